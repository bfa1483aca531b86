"""Show on one GPU whether training is right there, and how fast it is: the parts that gpu_acceptance.sh runs.

Without a GPU the same parts run at tiny sizes (--anyway): they prove that this script works, and little else.
"""

import argparse
import functools
import gc
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import jobs
import steps
import torch
from jobs import Part, Row, Stage, check
from torch import Tensor

from fastgan import networks, presets
from fastgan.config import Config
from fastgan.errors import EXIT_DONE, EXIT_STOPPED, first_line
from fastgan.kernels.bias_act import bias_act, bias_act_reference
from fastgan.kernels.conv2d import conv2d
from fastgan.kernels.diffaugment import diffaugment, diffaugment_reference
from fastgan.kernels.resample import (
    downsample2,
    downsample2_reference,
    upsample2,
    upsample2_reference,
)
from fastgan.kernels.unpack import unpack, unpack_reference
from fastgan.runs.rows import read_rows
from fastgan.training.augment import KINDS, AugmentParameters, diff_changes
from fastgan.training.trainer import Trainer
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
PACK = Path(os.environ.get("FASTGAN_PACK", ".pack"))  # what gpu_pack.sh made
WORK = "ACCEPTANCE_WORK"  # the environment variable that names the folder of parts that share files
NO_PACK = "not in the pack: make it with benchmarks/gpu_pack.sh and bring it along"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the norm, against float64
SAME = 1e-6  # of steps in float64: what differs more isn't rounding
CHECKED_FIRST = ("mnist28-fast", "fewshot", "cifar10", "ffhq256")
GIB = {  # of the device's memory while a compiled step gets ready, by preset and batch: the step table's, by worth
    ("cifar10", 512): 62,
    ("mnist28-fast", 64): 1,
    ("fewshot", 64): 3,
    ("ffhq256", 32): 46,
    ("cifar10", 128): 16,
    ("ffhq256", 16): 23,
    ("ffhq64", 64): 20,
}
SHOW_KERNELS = (("cifar10", 512), ("ffhq256", 32))
SHARE, RATE = "of the bfloat16 peak", "images/s"
TARGETS = {  # what the fastest kind of step is to reach on an H100 or H200
    ("cifar10", 512): (SHARE, 0.55),
    ("ffhq256", 32): (SHARE, 0.35),
    ("fewshot", 64): (RATE, 3000.0),
    ("mnist28-fast", 64): (RATE, 40_000.0),
}
ROUND_S = 0.4  # of three
TRAINING_S = {"mnist28-fast": 40.0, "fewshot": 25.0}
QUICKSTART_FD, QUICKSTART_S = 0.3, 30.0
GPU_TESTS = ("test_cuda_graphs.py", "test_loaders.py", "kernels/test_conv2d.py")
PLAIN_TESTS = "plain tests"
# A line that pytest prints while tests run, with xdist or without.
FAILED_TEST = re.compile(r"\[gw\d+\].* (?:FAILED|ERROR) (.+::.+)|(\S+::.+) (?:FAILED|ERROR)\b")
MOST_WAIT = 0.02  # of training, for batches


def release() -> None:
    """Give the memory that nothing uses back to the device, for other processes."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def target(what: str, wanted: float, found: float, reached: bool) -> Row:
    """Make a row of the table of targets."""
    return Row("targets", {"what": what, "wanted": wanted, "found": found, "reached": "yes" if reached else "no"})


def error_of(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest error of a tensor, of its norm."""
    return max(
        float(((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)).detach())
        for a, b in zip(found, wanted, strict=True)
    )


def orders(op: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The op's value, its gradients, and the gradients of their squares, which R1 needs."""
    leaves = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in inputs]
    y = op(*leaves)
    slope = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype).requires_grad_()
    first = torch.autograd.grad(y, leaves, slope, create_graph=True)
    total = sum((value.double() ** 2).sum() for value in first)
    second = torch.autograd.grad(total, [*leaves, slope], allow_unused=True)
    return [y, *first, *(value for value in second if value is not None)]


def kernels() -> Iterator[Row]:
    """Values and gradients of both orders against float64 references, each type and layout, at odd sizes."""
    torch.backends.cudnn.allow_tf32 = False
    draws = torch.Generator().manual_seed(0)

    image, bias = torch.randn(3, 5, 14, 18, generator=draws), torch.randn(5, generator=draws)
    weight, picture = torch.randn(6, 5, 3, 3, generator=draws), torch.randn(4, 3, 9, 12, generator=draws)
    keys = rng.keys(0, RngStream.AUGMENT_D, torch.arange(4, device=DEVICE))
    changes = diff_changes(picture, AugmentParameters(keys, 1.0, KINDS["diffaugment"]))
    cases: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "bias_act": (bias_act, bias_act_reference, (image, bias)),
        "downsample2": (downsample2, downsample2_reference, (image,)),
        "upsample2": (upsample2, upsample2_reference, (image,)),
        "conv2d": (
            lambda x, w: conv2d(x, w, None, (1, 1), (1, 1)),
            lambda x, w: torch.nn.functional.conv2d(x, w, None, (1, 1), (1, 1)),
            (image, weight),
        ),
        "diffaugment": (
            lambda x: diffaugment(x, changes),
            lambda x: diffaugment_reference(x, changes),
            (picture,),
        ),
    }
    for (name, (op, reference, inputs)), dtype, layout in itertools.product(
        cases.items(), TOLERANCES, (torch.contiguous_format, torch.channels_last)
    ):
        given = [value.to(DEVICE, dtype) for value in inputs]
        given[0] = given[0].contiguous(memory_format=layout)
        wanted = orders(reference, *(value.double() for value in given))
        error = error_of(orders(op, *given), wanted)
        yield check(f"{name}, {dtype}, {layout}", error <= TOLERANCES[dtype], f"error {error:.1e}")
    pixels = torch.randint(0, 256, (5, 3, 7, 9), generator=draws, dtype=torch.uint8).to(DEVICE)
    mirror = (torch.arange(5) % 2 == 0).to(DEVICE)
    equal = torch.equal(unpack(pixels, mirror), unpack_reference(pixels, mirror))
    yield check("unpack, float32", equal, "the same bits" if equal else "other bits")


def small(name: str, precision: str = "float32") -> Config:
    """Return the preset with narrow networks, few images a step, and schedules that move."""
    config = steps.config_of(name, 8)
    network = replace(config.networks, width=1 / 16)
    if network.network == "r3gan":
        stages = tuple(16 for _ in network.stages)
        network = replace(network, width=1.0, stages=stages, blocks=1, group_width=8, precision=precision)
        size = 4 if config.data.image_size[0] < 256 else 2
        config = replace(config, data=replace(config.data, batch_size=size))
    elif network.network == "dcgan":
        network = replace(network, width=0.25)
    return replace(config, networks=network, optimizer=replace(config.optimizer, burn_in=40))


def sized(name: str, batch_size: int) -> Config:
    """Return the preset past its burn-in with this batch or, without a GPU, a tiny one."""
    return steps.config_of(name, batch_size) if ON_GPU else replace(small(name), optimizer=presets.get(name).optimizer)


def course(config: Config, compiled: bool, device: torch.device) -> tuple[list[list[float]], list[Tensor]]:
    """Take some steps, then as many as recording needs, where there is a GPU recorded.

    Return the losses of both halves, and the weights at the end.
    """
    trainer = Trainer(config, networks.build(config, device), harness.DrawnLoader(config, device))
    if compiled:
        trainer.compile()
    every, losses = config.objective.penalty_every, []
    for count, recorded in ((every + 1, False), (3 * every + 1, True)):
        if recorded and device.type == "cuda":
            trainer.use_graphs()
        losses.append([value for _ in range(count) for value in both_losses(trainer)])
        if (failure := getattr(trainer.runner, "failure", None)) is not None:
            raise RuntimeError(f"the steps can't be recorded: {failure}")
    return losses, [weight.detach().cpu() for net in (trainer.G.net, trainer.D.net) for weight in net.parameters()]


def both_losses(trainer: Trainer) -> list[float]:
    """Take a step and return D's and G's loss, at once: the next replay would write over them."""
    terms = trainer.train_step(trainer.loader.batch(trainer.images_seen))
    return [float(terms[name]) for name in ("loss/D", "loss/G")]


def equality(name: str, compiled: bool) -> Iterator[Row]:
    """A preset's step, eager or compiled, then recorded, narrow, in float64, against eager steps on the CPU."""
    torch.set_default_dtype(torch.float64)
    config = small(name)
    wanted, weights = course(config, False, torch.device("cpu"))
    norm = sum(float(weight.square().sum()) for weight in weights) ** 0.5
    began = time.perf_counter()
    found, others = course(config, compiled, DEVICE)
    spent = time.perf_counter() - began
    halves = ["compiled", "compiled graphs"] if compiled else ["eager", "graphs"]
    for kind, ours, theirs in zip(halves, found, wanted, strict=True):
        if kind in steps.kinds(DEVICE):
            error = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))
            yield check(f"{name}, {kind}", error < SAME, f"losses of {len(ours) // 2} steps differ by {error:.1e}")
    moved = sum(float((a - b).square().sum()) for a, b in zip(others, weights, strict=True)) ** 0.5 / norm
    yield check(f"{name}, {' and '.join(halves)}", moved < SAME, f"weights differ by {moved:.1e}; took {spent:.0f} s")


def two_losses(config: Config) -> list[float]:
    """Return both losses of two eager steps."""
    trainer = Trainer(config, networks.build(config, DEVICE), harness.DrawnLoader(config, DEVICE))
    return both_losses(trainer) + both_losses(trainer)


def precision() -> Iterator[Row]:
    """R3GAN's stages in bfloat16 and float16 against float32: finite losses, near to one another."""
    for name in ("cifar10", "ffhq256"):
        wanted = two_losses(small(name))
        for dtype in ("bfloat16", "float16"):
            half = two_losses(small(name, dtype))
            error = max(abs(a - b) / abs(b) for a, b in zip(half, wanted, strict=True))
            yield check(f"{name}, {dtype}", error < 0.02, f"losses of two steps differ by {error:.1e}")


def step_table(name: str, batch_size: int) -> Iterator[Row]:
    """A preset's step at full size, in each kind: speed, share of what the device can do, host, kernels, memory."""
    config, best = sized(name, batch_size), 0.0
    step: steps.Step | None = steps.Step(config, "compiled", DEVICE)
    step.costs(1)  # the profiler's start takes seconds
    release()
    jobs.turn()
    peaks = {kind: harness.matmul_peak(kind) for kind in {"bfloat16", *steps.flops_an_image(config)}}
    for kind in ("compiled", "compiled graphs", "eager", "graphs"):
        if kind not in steps.kinds(DEVICE):
            continue
        try:
            if kind == "eager":
                step = None
                release()
                step = steps.Step(config, "eager", DEVICE)
            if step is None:
                continue
            release()
            if steps.KINDS[kind][1]:
                step.use_graphs()
            row, costs = measured(step, kind, peaks)
        except RuntimeError as error:  # out of memory, too
            yield check(f"{name}, {batch_size}, {kind}", None, first_line(error))
            continue
        yield row
        if (name, batch_size) in TARGETS:
            best = max(best, float(row.cells[TARGETS[name, batch_size][0]]))
        if kind == "compiled" and (name, batch_size) in SHOW_KERNELS:
            yield from costliest(f"{name}, {batch_size}", costs)
    if best:
        what, wanted = TARGETS[name, batch_size]
        yield target(f"{name}, batch {batch_size}: {what}", wanted, best, best >= wanted)


def measured(step: steps.Step, kind: str, peaks: dict[str, float]) -> tuple[Row, list[steps.Cost]]:
    """Return the row of a step that is ready, and what its kernels cost."""
    config, flops = step.config, steps.flops_an_image(step.config)
    rates = [step.images_per_s(ROUND_S) for _ in range(3)]
    rate = statistics.median(rates)
    step_s = config.data.batch_size / rate
    costs = step.costs(max(1, min(5, round(0.3 / step_s))))
    cells: dict[str, str | float] = {
        "preset": config.preset,
        "batch": config.data.batch_size,
        "step": kind,
        RATE: rate,
        "lowest - highest": f"{min(rates):.0f} - {max(rates):.0f}",
        "ms a step": 1000 * step_s,
        SHARE: rate * sum(flops.values()) / peaks["bfloat16"],
        "of each arithmetic's peak": rate * sum(count / peaks[name] for name, count in flops.items()),
        "host, ms": step.host_ms(),
        "kernels, ms": sum(cost.ms for cost in costs),
        "kernels a step": sum(cost.calls for cost in costs),
        "peak memory, GiB": step.peak_gib,
        "ready after, s": step.first_s,
    }
    return Row("steps", cells), costs


def costliest(what: str, costs: list[steps.Cost]) -> Iterator[Row]:
    """The ten costliest kernels of a compiled step."""
    total = sum(cost.ms for cost in costs)
    for cost in costs[:10]:
        cells: dict[str, str | float] = {"step": what, "kernel": cost.name[:100].replace("|", "/"), "calls": cost.calls}
        yield Row("kernels", cells | {"ms": cost.ms, "of all kernels": cost.ms / total})


def plain() -> Iterator[Row]:
    """The same networks and losses written in plain PyTorch, beside fastgan's eager step."""
    from plain_gan import PlainGan

    for batch_size in (128, 512):
        config = sized("cifar10", batch_size)
        if batch_size == 128:
            gan = PlainGan(config, DEVICE)
            gan.step()
            jobs.turn()
        release()
        gan = PlainGan(config, DEVICE)

        def play(gan: PlainGan = gan) -> None:
            gan.step()

        try:
            harness.seconds(play)
            spent = statistics.median(harness.seconds(play) for _ in range(4))
            yield Row("plain PyTorch", {"networks": "cifar10", "batch": batch_size, RATE: len(gan.labels) / spent})
        except torch.OutOfMemoryError as error:
            yield check(f"plain PyTorch, {batch_size}", None, first_line(error))
        del gan, play


def tests(what: str, tier: str, *files: str) -> Iterator[Row]:
    """Tests of a tier, each that fails at once by its name: who ends this part doesn't lose them."""
    folder = Path(__file__).parent.parent / "tests"
    command = [sys.executable, "-m", "pytest", "-v", "-m", tier, "--tb=short", "-o", "faulthandler_timeout=120"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(folder), *(str(folder / name) for name in files or ("",))]
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):  # errors with CI's versions alone
        command += ["-W", f"ignore::{kind}"]
    if not files and importlib.util.find_spec("xdist"):
        command += ["-n", "8", "--dist", "loadfile"]
    lines = []
    environment = {name: value for name, value in os.environ.items() if name not in (jobs.ROWS, WORK)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
            if found := FAILED_TEST.match(line):
                yield check((found[1] or found[2]).strip(), False, "failed")
    reasons = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    seen = "; ".join([lines[-1] if lines else "nothing ran", *reasons])[:4000]
    yield check(what, process.returncode == 0 if ON_GPU else None, seen)


def memory() -> Iterator[Row]:
    """What activation checkpointing saves, and what it costs."""
    jobs.turn()
    for again in (False, True):
        config = sized("ffhq256", 32)
        step = steps.Step(replace(config, run=replace(config.run, activation_checkpointing=again)), "eager", DEVICE)
        cells: dict[str, str | float] = {"preset": "ffhq256, eager", "batch": config.data.batch_size}
        rate = step.images_per_s(ROUND_S)
        yield Row("memory", cells | {"checkpointing": str(again), RATE: rate, "peak memory, GiB": step.peak_gib})
        del step
        release()


def fastgan(*options: str) -> list[str]:
    """Return the command line of the program."""
    return [sys.executable, "-m", "fastgan.cli", *options]


def training_command(name: str) -> list[str] | None:
    """Return the real command that trains a preset on what the pack holds; None where that isn't there."""
    folder = Path(os.environ[WORK]) / name
    command = fastgan("train", "--preset", name, "--run-dir", str(folder))
    if not ON_GPU:
        command += ["--log-every", "8"]  # it may not come far
    if name == "mnist28-fast":
        return command if (PACK / "cache" / "mnist").exists() else None
    if not (PACK / "images64").exists():
        return None
    size = ["--batch-size", "64", "--log-every", "1000"] if ON_GPU else ["--batch-size", "4", "--stages", *["16"] * 5]
    return [*command, "--data", str(PACK / "images64"), *size]


def train(name: str) -> Iterator[Row]:
    """The real command, stopped by SIGTERM and given again; its speed as its own log has it."""
    command = training_command(name)
    if command is None:
        yield check(f"train {name}", None, NO_PACK)
        return
    jobs.turn()
    run, began, good_s = Path(os.environ[WORK]) / name, time.monotonic(), None
    process = subprocess.Popen(command)
    while process.poll() is None and time.monotonic() - began < TRAINING_S[name]:
        time.sleep(0.1)
        scores = [row["metrics"]["fd_digits"] for row in read_rows(run / "metrics.jsonl") if name == "mnist28-fast"]
        if good_s is None and scores and scores[-1] < QUICKSTART_FD:
            good_s = time.monotonic() - began
        if good_s is not None and time.monotonic() - began > TRAINING_S[name] / 2:
            break
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    code = process.wait()
    rows = speed_rows(run)
    if not rows:
        yield check(f"train {name}", False, f"it ended with {code} before it logged its speed")
        return
    stopped = code in (EXIT_STOPPED, EXIT_DONE)  # done: it was faster than the signal
    yield check(f"train {name}, SIGTERM", stopped, f"exit code {code} after {time.monotonic() - asked:.1f} s")
    yield from speeds(name, rows, scores[-1] if scores else None, good_s)
    resumed = subprocess.run([*command, "--minutes", "0.1"], check=False).returncode
    before, after = (found[-1]["images_seen"] for found in (rows, speed_rows(run)))
    went_on = resumed == EXIT_DONE and (after > before or code == EXIT_DONE)
    yield check(f"train {name}, resumed", went_on, f"exit code {resumed}, from {before:,} to {after:,} images")


def speed_rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log that say its speed."""
    return [row for row in read_rows(run / "performance.jsonl") if "speed/images_per_s" in row]


def speeds(name: str, rows: list[dict[str, Any]], score: float | None, good_s: float | None) -> Iterator[Row]:
    """What a run's log says of its second half, when it has found its pace."""
    settled = rows[len(rows) // 2 :]
    rate, wait = (statistics.median(row[f"speed/{key}"] for row in settled) for key in ("images_per_s", "input_wait"))
    cells: dict[str, str | float] = {"preset": name, RATE: rate, "input wait": wait}
    aside = {key: sum(row.get(f"speed/{key}_s", 0.0) for row in rows) for key in ("grid", "evaluation", "health")}
    cells |= {f"{key}, s": spent for key, spent in aside.items()} | {"images": rows[-1]["images_seen"]}
    yield Row("training", cells | {"fd_digits": "-" if score is None else score})
    _, wanted = TARGETS[name, 64]
    yield target(f"train {name}: {RATE}", wanted, rate, rate >= wanted)
    yield target(f"train {name}: input wait", MOST_WAIT, wait, wait < MOST_WAIT)
    if name == "mnist28-fast":
        found = float("inf") if good_s is None else good_s
        what = f"quickstart: seconds to fd_digits below {QUICKSTART_FD}, start of the program included"
        yield target(what, QUICKSTART_S, found, found <= QUICKSTART_S)


def outcome(name: str) -> Iterator[Row]:
    """Sample and evaluate the run that `train` left."""
    work = Path(os.environ[WORK])
    run, samples = work / name, work / f"{name}-samples"
    if not (run / "checkpoints").exists():
        yield check(f"sample {name}", None, "there is no run of it")
        return
    code = subprocess.run(fastgan("sample", str(run), "--seeds", "0-15", "--out", str(samples)), check=False).returncode
    count = len(list(samples.glob("*.png")))
    yield check(f"sample {name}", code == 0 and count == 16, f"exit code {code}, {count} images")
    images = "4000" if ON_GPU else "500"
    code = subprocess.run(fastgan("evaluate", str(run), "--images", images), check=False).returncode
    rows = read_rows(run / "evaluation.jsonl")
    metrics = rows[-1]["metrics"] if rows else {}
    found = {key: value for key, value in metrics.items() if key.startswith("fd_")}
    seen = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
    yield check(f"evaluate {name}", code == 0 and bool(found), f"exit code {code}, {seen or 'no distance'}")


def dali() -> Iterator[Row]:
    """Pictures decoded by DALI on the GPU against those decoded by Pillow."""
    missing = [name for name in ("nvidia", "nvidia.dali", "tyro") if importlib.util.find_spec(name) is None]
    if missing:
        yield check("DALI", None, f"the package {missing[0]} isn't installed")
        return
    import numpy as np
    from PIL import Image

    from fastgan.data.loaders import build_loader, open_dataset
    from fastgan.data.preparation.prepare import PrepareOptions, prepare

    with tempfile.TemporaryDirectory() as folder:
        raw, made = Path(folder) / "raw", Path(folder) / "made"
        raw.mkdir()
        draws = np.random.default_rng(0)
        for number in range(64):
            smooth = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(smooth).resize((64, 64), Image.Resampling.BICUBIC).save(raw / f"{number}.jpg", quality=95)
        prepare(PrepareOptions(str(raw), made, "64"))
        config = presets.get("ffhq64")
        config = replace(config, data=replace(config.data, data=str(made), batch_size=16))
        pixels = {}
        for loader in ("dali", "torch"):
            chosen = replace(config, run=replace(config.run, loader=loader, workers=0 if loader == "torch" else None))
            pixels[loader] = build_loader(chosen, open_dataset(chosen), DEVICE).batch(0).pixels.float()
        error = float((pixels["dali"] - pixels["torch"]).abs().max())
        yield check("DALI, JPEG", error <= 4, f"levels differ by {error:.0f} of 255 at most")


def kernel_speeds() -> Iterator[Row]:
    """Bytes/s of the ops in kernels/ against a copy of their result."""
    if importlib.util.find_spec("tyro") is None:
        yield check("kernel speeds", None, "the package tyro isn't installed")
        return
    import bench_kernels

    jobs.turn()
    for dtype in ("bfloat16", "float32"):
        batch_size = 512 if ON_GPU else 1
        options = bench_kernels.Options(batch_size=batch_size, channels=64, dtype=dtype, compiled=False, rounds=3)
        for op in ("bias_act", "downsample2", "upsample2"):
            for cells in bench_kernels.measure(op, options, DEVICE):
                yield Row("kernel speeds", {"dtype": dtype} | dict(zip(bench_kernels.COLUMNS, cells, strict=True)))
            release()


def _tables(sizes: list[tuple[str, int]], wave: int = 1) -> dict[str, Part]:
    return {
        f"steps {name} {size}": Part(functools.partial(step_table, name, size), Stage.TURN, 40, GIB[name, size], wave)
        for name, size in sizes
    }


SIZES = list(GIB)
PARTS: dict[str, Part] = {
    "kernels": Part(kernels, Stage.EARLY, 90),
    **_tables(SIZES[:4]),
    "tests": Part(functools.partial(tests, "tests that need a GPU", "gpu", *GPU_TESTS), Stage.EARLY, 120),
    PLAIN_TESTS: Part(functools.partial(tests, PLAIN_TESTS, "not slow"), Stage.EARLY, 560, 16),
    "train mnist28-fast": Part(functools.partial(train, "mnist28-fast"), Stage.TURN, 75),
    "train fewshot": Part(functools.partial(train, "fewshot"), Stage.TURN, 60),
    **_tables(SIZES[4:5]),
    "precision": Part(precision, Stage.EARLY, 60),
    **{f"equality {name}": Part(functools.partial(equality, name, False), Stage.EARLY, 60) for name in CHECKED_FIRST},
    "memory": Part(memory, Stage.TURN, 20),
    "plain": Part(plain, Stage.TURN, 20, 20),
    "kernel speeds": Part(kernel_speeds, Stage.TURN, 25),
    **_tables(SIZES[5:], wave=2),
    "outcome mnist28-fast": Part(functools.partial(outcome, "mnist28-fast"), Stage.LATE, 60),
    "outcome fewshot": Part(functools.partial(outcome, "fewshot"), Stage.LATE, 60),
    "dali": Part(dali, Stage.LATE, 40),
    **{
        f"compiled equality {name}": Part(functools.partial(equality, name, True), Stage.LATE, 110)
        for name in presets.PRESETS
    },
}


def kind_of(part: str) -> str:
    """Return the name by which a part is chosen, alone or with others."""
    return part if part in ("kernel speeds", PLAIN_TESTS) else part.split(maxsplit=1)[0]


KINDS_OF_PARTS = list(dict.fromkeys(map(kind_of, PARTS)))
USUAL_PARTS = [kind for kind in KINDS_OF_PARTS if kind != PLAIN_TESTS]  # which would take the machine for minutes
TITLES = {
    "checks": "What is right",
    "targets": "Targets, for an H100 or H200",
    "steps": "Steps on drawn images: medians of three rounds, one process at a time",
    "kernels": "The ten costliest kernels of a compiled step",
    "training": "The real command: medians of the second half of its log",
    "plain PyTorch": "The same networks and losses in plain PyTorch, eager",
    "memory": "Activation checkpointing",
    "kernel speeds": "Ops of kernels/: 64 channels, 64x64, channels last",
}


class Results:
    """All rows so far, as JSON lines and as a results file, written again with each."""

    def __init__(self, path: Path | None, copy_to: Path | None, commit: str | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path, self._copy_to, self._commit = path, copy_to, commit
        self._name = harness.result_path("gpu-acceptance").name

    def keep(self, part: str, row: dict[str, Any]) -> None:
        self.rows.append({"part": part} | row)
        word = result(row) if row["is_check"] else ""
        print(
            f"{part}: {word} {', '.join(f'{name} {shown(value)}' for name, value in row['cells'].items())}", flush=True
        )
        text = harness.document("What only a GPU can tell", self.tables(), self._commit)
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            self._path.write_text(text)
        if self._copy_to is not None:
            (self._copy_to / self._name).write_text(text)
            with (self._copy_to / "rows.jsonl").open("a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")

    def tables(self) -> str:
        return "\n\n".join(f"## {title}\n\n{self._table(name)}" for name, title in TITLES.items() if self._of(name))

    def _of(self, table: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["table"] == table]

    def _table(self, name: str) -> str:
        rows = self._of(name)
        if name == "checks":
            columns = ["part", "what", "", "seen"]
            cells = [{"part": row["part"], "": result(row)} | row["cells"] for row in rows]
        else:
            cells = [row["cells"] for row in rows]
            columns = list(dict.fromkeys(column for row in cells for column in row))
        lines = [harness.row(*(shown(row.get(column, "")) for column in columns)) for row in cells]
        return "\n".join([harness.head(*columns), *lines])


def result(row: dict[str, Any]) -> str:
    """Return a check's result in a word."""
    return {True: "right", False: "WRONG", None: "not done"}[row["right"]]


def shown(value: str | float) -> str:
    """Return a cell's text: numbers with as many digits as tell something."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(min(value, 1e9)) else f"{value:.3g}"


def device_gib() -> float:
    """Return what parts that get ready side by side may hold of the device's memory together."""
    return 0.85 * torch.cuda.get_device_properties(DEVICE).total_memory / 2**30 if ON_GPU else 8.0


def run_all(names: list[str], options: argparse.Namespace, folder: Path) -> int:
    """Run the parts, keep what they find, and return the exit code."""
    if options.copy_to is not None:
        options.copy_to.mkdir(parents=True, exist_ok=True)
    results = Results(harness.result_path("gpu-acceptance") if ON_GPU else None, options.copy_to, options.commit)
    os.environ[WORK] = str(folder)
    own = [sys.executable, __file__, "--one"]
    found = [jobs.Job(name, PARTS[name], [*own, name], folder) for name in names]
    deadline = time.monotonic() + 60 * options.minutes - (time.time() - options.since)
    most = options.at_once or max(1, (os.cpu_count() or 1) // 2)
    try:
        jobs.Runner(found, deadline, most, device_gib(), results.keep).run()
    finally:
        print(f"\n{results.tables()}", flush=True)
        if options.copy_to is not None:
            logs = [f"=== {job.name}\n{job.last_words(200)}\n" for job in found if job.log.exists()]
            (options.copy_to / "log.txt").write_text("\n".join(logs))
    return 1 if any(row["right"] is False for row in results.rows) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="for everything; 4 without it")
    parser.add_argument("--parts", nargs="+", metavar="PART", choices=KINDS_OF_PARTS, default=USUAL_PARTS)
    parser.add_argument("--anyway", action="store_true", help="without a GPU, too, at tiny sizes: it proves little")
    parser.add_argument(
        "--at-once", type=int, help="parts that get ready side by side; without it, half as many as cores"
    )
    parser.add_argument("--copy-to", type=Path, help="a folder for rows.jsonl, the results file and all logs")
    parser.add_argument("--commit", help="of this tree, where git can't say it")
    parser.add_argument("--since", type=float, default=time.time(), help=argparse.SUPPRESS)  # when all of it began
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        jobs.play(PARTS[options.one])
        return 0
    if not ON_GPU and not options.anyway:
        print("gpu_acceptance: error: torch finds no GPU here; --anyway runs what runs without one", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = [name for name in PARTS if kind_of(name) in options.parts]
    folder = Path(tempfile.mkdtemp(prefix="gpu-acceptance-"))
    try:
        return run_all(names, options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
