"""The parts of gpu_acceptance.sh, each in a process of its own, for a fault on a GPU spoils all that follows in one."""

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import steps
import torch
from torch import Tensor

from fastgan import counter, networks, presets
from fastgan.augment import KINDS, Draws, diff_changes
from fastgan.config import Config
from fastgan.counter import Stream
from fastgan.kernels.bias_act import bias_act, bias_act_reference
from fastgan.kernels.conv2d import conv2d, conv2d_reference
from fastgan.kernels.diffaugment import diffaugment, diffaugment_reference
from fastgan.kernels.resample import (
    downsample2,
    downsample2_act,
    downsample2_reference,
    upsample2,
    upsample2_act,
    upsample2_reference,
)
from fastgan.kernels.unpack import unpack, unpack_reference
from fastgan.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the norm, against float64
BATCHES = {"imagenet64": 64, "imagenet32": 128, "ffhq256": 32, "ffhq64": 64, "cifar10": 128, "stacked-mnist": 128}
Row = tuple[str, bool | None, str]  # what, whether it is right (None: skipped), and what was seen
LIMITS_S = {"kernels": 70, "compiled": 130, "precision": 40, "dali": 40, "steps": 140, "kernel speeds": 60}


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
    draws = torch.Generator().manual_seed(0)

    def plain_act(resample: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda x, bias: bias_act_reference(resample(x), bias)

    image, bias = torch.randn(3, 5, 14, 18, generator=draws), torch.randn(5, generator=draws)
    weight, picture = torch.randn(6, 5, 3, 3, generator=draws), torch.randn(4, 3, 9, 12, generator=draws)
    keys = counter.keys(0, Stream.AUGMENT_D, torch.arange(4, device=DEVICE))
    changes = diff_changes(picture, Draws(keys, 1.0, KINDS["diffaugment"]))
    cases: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "bias_act": (bias_act, bias_act_reference, (image, bias)),
        "downsample2": (downsample2, downsample2_reference, (image,)),
        "upsample2": (upsample2, upsample2_reference, (image,)),
        "downsample2_act": (downsample2_act, plain_act(downsample2_reference), (image, bias)),
        "upsample2_act": (upsample2_act, plain_act(upsample2_reference), (image, bias)),
        "conv2d": (
            lambda x, w: conv2d(x, w, None, (1, 1), (1, 1)),
            lambda x, w: conv2d_reference(x, w, None, (1, 1), (1, 1), 1),
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
        limit = TOLERANCES[dtype] * (4 if name.endswith("2_act") else 1)  # a filtered number near 0 may turn its sign
        yield f"{name}, {dtype}, {layout}", error <= limit, f"error {error:.1e}"
    pixels = torch.randint(0, 256, (5, 3, 7, 9), generator=draws, dtype=torch.uint8).to(DEVICE)
    mirror = (torch.arange(5) % 2 == 0).to(DEVICE)
    equal = torch.equal(unpack(pixels, mirror), unpack_reference(pixels, mirror))
    yield "unpack, float32", equal, "the same bits" if equal else "other bits"


def small(name: str) -> Config:
    config = steps.config_of(name, BATCHES.get(name))
    network = config.networks
    if network.network == "r3gan":
        network = replace(network, stages=tuple(64 for _ in network.stages), precision="float32")
    return replace(config, networks=network)


def course(config: Config, compiled: str | None, count: int = 12) -> tuple[list[float], float]:
    """The losses of so many steps, and how long the first two took."""
    trainer = Trainer(config, networks.build(config, DEVICE), harness.DrawnLoader(config, DEVICE))
    if compiled is not None:
        trainer.compile(cuda_graphs=compiled == "CUDA graphs")
    losses: list[float] = []
    began, start_s = time.perf_counter(), 0.0
    for number in range(count):
        terms = trainer.train_step(trainer.loader.batch(trainer.images_seen))
        losses += [float(terms["loss/D"]), float(terms["loss/G"])]
        if number == 1:
            start_s = time.perf_counter() - began
    return losses, start_s


def compiled() -> Iterator[Row]:
    """Losses of compiled training, and of CUDA graphs, against eager training, TF32 off."""
    torch.backends.cudnn.allow_tf32 = False
    for name in ("mnist28-fast", "cifar10"):
        wanted, _ = course(small(name), None)
        for kind in ("compiled", *["CUDA graphs"] * (DEVICE.type == "cuda")):
            torch._dynamo.reset()
            losses, start_s = course(small(name), kind)
            error = max(abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True))
            yield f"{name}, {kind}", error < 1e-2, f"losses of 12 steps differ by {error:.1e}; ready in {start_s:.0f} s"


def precision() -> Iterator[Row]:
    """R3GAN's stages in bfloat16 and float16 against float32: finite losses, near to one another."""
    config = small("cifar10")
    wanted, _ = course(config, None, 6)
    for name in ("bfloat16", "float16"):
        half, _ = course(replace(config, networks=replace(config.networks, precision=name)), None, 6)
        error = max(abs(a - b) / abs(b) for a, b in zip(half, wanted, strict=True))
        yield f"cifar10, {name}", error < 0.1, f"losses of 6 steps differ by {error:.1e}"


def dali() -> Iterator[Row]:
    """Pictures decoded by DALI on the GPU against those decoded by Pillow."""
    missing = [name for name in ("nvidia", "nvidia.dali", "tyro") if importlib.util.find_spec(name) is None]
    if missing:
        yield "DALI", None, f"the package {missing[0]} isn't installed"
        return
    import numpy as np
    from PIL import Image

    from fastgan.data.loaders import build_loader, open_source
    from fastgan.data.prepare import PrepareOptions, prepare

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
            pixels[loader] = build_loader(chosen, open_source(chosen), DEVICE).batch(0).pixels.float()
        error = float((pixels["dali"] - pixels["torch"]).abs().max())
        yield "DALI, JPEG", error <= 4, f"levels differ by {error:.0f} of 255 at most"


def all_steps() -> Iterator[Row]:
    """Every preset's step, eager, and compiled where that is soon done; prints the table as it goes."""
    print(steps.HEAD, flush=True)
    for name in presets.PRESETS:
        kinds = ["eager", *["compiled"] * (name in ("mnist28", "mnist28-fast", "faces128"))]
        for line in steps.rows(steps.config_of(name, BATCHES.get(name)), kinds, 3, 1.0, DEVICE):
            print(line, flush=True)
            yield line, True, ""
        torch.cuda.empty_cache()


def kernel_speeds() -> Iterator[Row]:
    if importlib.util.find_spec("tyro") is None:
        yield "bench_kernels", None, "the package tyro isn't installed"
        return
    command = [sys.executable, str(Path(__file__).parent / "bench_kernels.py"), "--batch-size", "512", "--save"]
    done = subprocess.run([*command, "--no-compiled"], check=False, capture_output=True, text=True)
    print(done.stdout, flush=True)
    yield "bench_kernels", done.returncode == 0, (done.stderr.strip().splitlines() or ["see its table"])[-1]


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "kernels": kernels,
    "compiled": compiled,
    "precision": precision,
    "dali": dali,
    "steps": all_steps,
    "kernel speeds": kernel_speeds,
}


def run_part(name: str) -> list[dict[str, Any]]:
    """The part's rows so far, and how it ended; its process has its own limit."""
    with tempfile.NamedTemporaryFile() as kept:
        command = [sys.executable, __file__, "--one", name, "--rows", kept.name]
        began = time.perf_counter()
        try:
            code: int | str = subprocess.run(command, check=False, timeout=LIMITS_S[name]).returncode
        except subprocess.TimeoutExpired:
            code = f"no time left after {LIMITS_S[name]} s"
        rows = [json.loads(line) for line in Path(kept.name).read_text().splitlines()]
    if code != 0:
        rows.append({"what": "the whole part", "right": False, "seen": f"ended with {code}"})
    seconds = time.perf_counter() - began
    return [{"part": name, "seconds": seconds, **row} for row in rows]


def one_part(name: str, path: Path) -> None:
    with path.open("a", buffering=1) as kept:
        for what, right, seen in PARTS[name]():
            kept.write(json.dumps({"what": what, "right": right, "seen": seen}) + "\n")
            print(f"{name}: {what}: {seen}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--anyway", action="store_true", help="without a GPU, too: what then runs proves little")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_part(options.one, options.rows)
        return 0
    if DEVICE.type == "cpu" and not options.anyway:
        print("gpu_acceptance: error: torch finds no GPU here; --anyway runs what runs without one", file=sys.stderr)
        return 2
    rows = [row for name in options.parts for row in run_part(name)]
    words = {True: "right", False: "WRONG", None: "skipped"}
    table = ["| part | what | | |", "| --- | --- | --- | --- |"]
    table += [
        f"| {row['part']} | {row['what']} | {words[row['right']]} | {row['seen']} |" for row in rows if row["seen"]
    ]
    measured = [row["what"] for row in rows if not row["seen"]]
    text = "\n".join([*table, "", *([steps.HEAD] if measured else []), *measured])
    print(text)
    if DEVICE.type == "cuda":
        print(harness.save("gpu-acceptance", "What only a GPU can tell", text))
    return 1 if any(row["right"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
