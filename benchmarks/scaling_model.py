"""How far the presets would scale: a model of a step on 1 to 1,024 GPUs, whose exchange is fitted to messages here.

Measured here: all-reduces of gloo between processes of this machine, to which the formula of a ring is fitted, and what
starting one operation costs. Everything of a GPU is taken from `fastgan plan`: counted work, data sheets, assumptions.
"""

import json
import os
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import harness
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastgan import networks, presets
from fastgan.config import Config, DataConfig, NetworkConfig, ObjectiveConfig
from fastgan.data.loaders import build_loader, open_dataset
from fastgan.errors import UserError
from fastgan.planning import op_counter
from fastgan.planning.forecast import FLOAT, Forecast, forecast, in_parts
from fastgan.planning.hardware import BUCKET_BYTES, Cluster, all_reduce_bytes, gpu_named
from fastgan.training.trainer import Trainer
from fastgan.utils.arguments import parse

PRESETS = ("stacked-mnist", "cifar10", "ffhq64", "ffhq256", "imagenet32", "imagenet64")
GPUS = tuple(2**exponent for exponent in range(11))
SIZES = tuple(4096 * 4**exponent for exponent in range(8))  # bytes: 4 KiB to 64 MiB
SHOWN = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
FEW_LAUNCHES_US = 0.01  # as if a step's operations were recorded once and started together
DISK_GB_S = 1.0


@dataclass(frozen=True)
class Options:
    """Measure messages here and model the presets on up to 1,024 GPUs."""

    gpu: str = "h100"
    """Which GPUs."""
    processes: tuple[int, ...] = (2, 3, 4)
    """How many processes exchange messages here, in turn."""
    rounds: int = 15
    """How often each size of message."""
    save: bool = False
    """Write the text and the plot into results/."""


Measured = dict[int, dict[int, list[float]]]  # seconds by processes and by bytes


def exchange(rank: int, size: int, rounds: int, folder: str) -> None:
    """One process's part; the first one writes down the seconds of each size in each round."""
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    seconds: dict[int, list[float]] = {}
    for num_bytes in SIZES:
        message, repeats = torch.zeros(num_bytes // FLOAT), max(2, min(50, 2**22 // num_bytes))
        for _ in range(rounds + 1):  # the first warms up
            dist.barrier()
            began = time.perf_counter()
            for _ in range(repeats):
                dist.all_reduce(message)
            seconds.setdefault(num_bytes, []).append((time.perf_counter() - began) / repeats)
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps({size: s[1:] for size, s in seconds.items()}))
    dist.destroy_process_group()


def measure(options: Options) -> Measured:
    measured: Measured = {}
    for size in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(exchange, (size, options.rounds, folder), nprocs=size)
            seconds = json.loads((Path(folder) / "seconds.json").read_text())
        measured[size] = {int(num_bytes): values for num_bytes, values in seconds.items()}
    return measured


def ring_s(size: int, num_bytes: float, hop_s: float, s_per_byte: float) -> float:
    """A ring all-reduce of one message among `size` processes: 2 (n - 1) hops and their bytes."""
    return 2 * (size - 1) * hop_s + all_reduce_bytes(size, num_bytes) * s_per_byte


def fit(measured: dict[int, list[float]], size: int) -> tuple[float, float]:
    """Seconds a hop and seconds a byte of a ring among so many processes, by least squares of relative errors.

    Fitted to each message's fastest round: other work on the machine only ever slows it.
    """
    rows = []
    for num_bytes, seconds in measured.items():
        rows.append([part / min(seconds) for part in (ring_s(size, num_bytes, 1, 0), ring_s(size, num_bytes, 0, 1))])
    (hop_s, s_per_byte), *_ = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)
    return float(hop_s), float(s_per_byte)


def launch_us(steps: int = 20) -> list[float]:
    """Microseconds an operation of a step so small that starting its operations is most of it, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = Config(
        data=DataConfig(data="toy", batch_size=1),
        networks=NetworkConfig(network="r3gan", z_dim=8, stages=(4, 4, 4)),
        objective=ObjectiveConfig(loss="relativistic", penalty="r1+r2"),
    )
    loader = build_loader(config, open_dataset(config), torch.device("cpu"))
    trainer = Trainer(config, networks.build(config), loader)
    seconds = [harness.seconds(lambda: trainer.train_step(loader.batch(0))) for _ in range(steps + 3)]
    torch.set_num_threads(threads)
    return [1e6 * value / op_counter.count(config, 1).operations for value in seconds[3:]]


@dataclass(frozen=True)
class Curve:
    """A preset on growing numbers of GPUs."""

    preset: str
    config: Config
    at_a_time: int  # the most images that fit
    strong: dict[int, Forecast]  # the preset's batch
    weak: dict[int, Forecast]  # as many images a GPU as with 8 GPUs

    def efficiency(self, gpus: int) -> float:
        """Of one GPU's speed for each, at the preset's batch."""
        return self.strong[1].time.total / (gpus * self.strong[gpus].time.total)

    def weak_efficiency(self, gpus: int) -> float:
        """The same with a batch that grows."""
        return self.weak[1].time.total / self.weak[gpus].time.total

    def first_below(self, efficiency: float) -> int | None:
        return next((gpus for gpus in self.strong if self.efficiency(gpus) < efficiency), None)

    def images_per_s(self, gpus: int) -> float:
        return self.config.data.batch_size / self.strong[gpus].time.total


def curve(preset: str, cluster: Cluster) -> Curve:
    config = presets.get(preset)
    on_eight = forecast(config, replace(cluster, gpus=8), None)
    fitting = on_eight if on_eight.fits else in_parts(on_eight)
    if fitting is None:
        raise UserError(f"gpu is {cluster.gpu!r}: not one image of {preset} fits; give a larger one")
    at_a_time, share = fitting.work.images, on_eight.share
    strong, weak = {}, {}
    for gpus in GPUS:
        there = replace(cluster, gpus=gpus)
        if gpus <= config.data.batch_size:
            strong[gpus] = forecast(config, there, None, at_a_time)
        grown = replace(config, data=replace(config.data, batch_size=gpus * share))
        counted = forecast(replace(config, data=replace(config.data, batch_size=8 * share)), cluster, None, at_a_time)
        weak[gpus] = replace(counted, config=grown, cluster=there, share=share)
    return Curve(preset, config, at_a_time, strong, weak)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


def paragraph(*sentences: str, mark: str = "") -> str:
    """The sentences in lines of at most 120 characters, after a list's mark where there is one."""
    indent = " " * len(mark)
    return textwrap.fill(
        " ".join(sentences), 120, initial_indent=mark, subsequent_indent=indent, break_on_hyphens=False
    )


def messages_text(measured: Measured, fits: dict[int, tuple[float, float]]) -> str:
    def cell(size: int, num_bytes: int) -> str:
        milliseconds = [1e3 * seconds for seconds in measured[size][num_bytes]]
        return f"{harness.spread(milliseconds, 2)}; {1e3 * ring_s(size, num_bytes, *fits[size]):.2f}"

    errors = sorted(
        abs(ring_s(size, num_bytes, *fits[size]) / min(seconds) - 1)
        for size, by_bytes in measured.items()
        for num_bytes, seconds in by_bytes.items()
    )
    said = paragraph(
        "An all-reduce by gloo among n processes as a ring: 2 (n - 1) hops, and 2 (n - 1) / n of the message sent.",
        "Fitted to the fastest rounds: "
        + "; ".join(
            f"{size} processes {1e6 * hop_s:.0f} us a hop and {1e-9 / s_per_byte:.2f} GB/s"
            for size, (hop_s, s_per_byte) in fits.items()
        )
        + ".",
        f"The formula misses them by {statistics.median(errors):.0%} in the median and by {errors[-1]:.0%} at",
        "worst, over",
        "four powers of ten.",
        f"All processes share {len(os.sched_getaffinity(0))} cores with other work, so each further one makes",
        "all slower:",
        "of these figures the model takes the form only.",
    )
    rows = [(f"{n // 1024:,} KiB", *(cell(size, n) for size in measured)) for n in SIZES]
    head = ("message", *(f"{size} processes: measured ms, median (lowest - highest); fitted ms" for size in measured))
    return f"## Messages, measured here\n\n{said}\n\n{table(head, rows)}"


def launches_text(launches: list[float]) -> str:
    said = paragraph(
        "A step of a network so small that its arithmetic hardly counts takes",
        f"{harness.spread(launches)} us an operation, eagerly, on one thread of this machine, which it shares",
        "with other",
        "work; backward passes, optimizers and averages included.",
        f"The model assumes {Cluster().launch_us:g} us, for a faster host whose GPU computes beside it.",
    )
    return f"## Starting operations, measured here\n\n{said}"


def efficiency_text(title: str, curves: list[Curve], weak: bool) -> str:
    rows = []
    for found in curves:
        per_gpu = found.weak[1].share
        points = found.weak if weak else found.strong
        of = found.weak_efficiency if weak else found.efficiency
        cells = [f"{of(gpus):.2f}" if gpus in points else "no image" for gpus in SHOWN]
        batch = f"{per_gpu} a GPU" if weak else f"{found.config.data.batch_size:,}"
        rows.append((f"`{found.preset}`", batch, *cells))
    return f"{title}\n\n{table(('preset', 'batch', *(f'{gpus:,}' for gpus in SHOWN)), rows)}"


def buckets_text(curves: list[Curve], gpus: int = 8) -> str:
    """What the exchange adds to a step in one message a network, in DDP's buckets, and at best beside the work."""
    said = paragraph(
        "torch.compile makes one node of a backward pass, so that all gradients come at its end and are exchanged",
        "then, however many buckets they fill (`optimize_ddp` is False: Dynamo's cuts at the buckets fail in gradient",
        "penalties). That is what the model counts. Beside an eager backward pass all but the last bucket of each",
        "network may be hidden.",
    )
    rows = []
    for found in curves:
        there, sizes = found.strong[gpus], found.strong[gpus].work.sizes
        time, hop_s = there.time, 1e-6 * there.cluster.hop_us * there.cluster.hops
        one = time.exchange - (there.messages - 2) * hop_s
        last = sum(min(FLOAT * size, BUCKET_BYTES) for size in (sizes.G, sizes.D))
        beside = all_reduce_bytes(gpus, last) / (1e9 * there.cluster.link) + 2 * hop_s
        shown = (f"{1e3 * extra:.2f} ({extra / time.total:.1%})" for extra in (one, time.exchange, beside))
        megabytes = FLOAT * (sizes.G + sizes.D) / 1e6
        rows.append((f"`{found.preset}`", f"{1e3 * time.total:,.0f}", f"{megabytes:,.0f}", f"{there.messages}", *shown))
    head = ("preset", "step, ms", "gradients, MB", "buckets")
    head += ("one each, after: ms (of the step)", "buckets, after", "buckets, beside, at best")
    return f"## The exchange on {gpus} GPUs: one bucket or several\n\n{said}\n\n{table(head, rows)}"


def limits_text(curves: list[Curve], free: list[Curve]) -> str:
    rows = []
    for found, without in zip(curves, free, strict=True):
        largest = max(found.strong)
        half = found.first_below(0.5)
        step = found.strong[largest].time
        first = "exchange" if step.exchange > getattr(step, step.limit) else step.limit
        sizes = found.strong[1].work.sizes
        saved = FLOAT * (3 * (sizes.G + sizes.D) + sizes.G)
        every = found.config.run.checkpoint_every or found.config.run.images or 1
        share = saved / (1e9 * DISK_GB_S) / (every / found.images_per_s(largest))
        rows.append(
            (
                f"`{found.preset}`",
                f"{found.at_a_time:,}",
                f"{found.images_per_s(8):,.0f}",
                f"{half:,}" if half else "not by 1,024",
                f"{largest:,}",
                f"{found.images_per_s(largest):,.0f}",
                f"{first}: {1e3 * getattr(step, first):,.0f} of {1e3 * step.total:,.0f} ms",
                f"{without.efficiency(largest):.2f}",
                f"{share:.1%}",
            )
        )
    head = (
        "preset",
        "images at a time",
        "images/s on 8",
        "under half at",
        "most GPUs",
        "images/s there",
        "longest there",
        "efficiency there, launches free",
        "a checkpoint's share there",
    )
    return table(head, rows)


def assumptions_text(cluster: Cluster) -> str:
    gpu = gpu_named(cluster.gpu)
    peaks = (gpu.peak(kind) / 1e12 for kind in ("bfloat16", "tf32", "float32"))
    bfloat16, tf32, float32 = (f"{peak:g} TFLOP/s" for peak in peaks)
    items = (
        (
            f"`{cluster.gpu}`, dense: {bfloat16} in bfloat16, {tf32} in float32 convolutions, {float32} in",
            "other float32",
            f"products, of which {cluster.reached('r3gan'):g} is reached, as R3GAN's published hours imply;",
            f"{gpu.memory_bandwidth:,g} GB/s of memory.",
        ),
        (
            f"{cluster.gpus_per_node} GPUs a node with {gpu.link:g} GB/s each way ({gpu.link_name});",
            f"{cluster.link_gbps:g} Gbit/s each way a GPU between nodes; {cluster.hop_us:g} us a hop; a ring",
            "in a node, a",
            "tree between nodes.",
        ),
        (
            f"{cluster.launch_us:g} us to start an operation. Arithmetic, memory and launches go on side by",
            "side, so that",
            "the slowest counts; gradients are exchanged after the work, not beside it, which is the worst case.",
        ),
        ("Images that don't fit at once go through the networks in parts, each starting its operations anew.",),
        (f"A checkpoint is written by one process at {DISK_GB_S:g} GB/s while the others wait.",),
    )
    lines = "\n".join(paragraph(*item, mark="- ") for item in items)
    return f"## Assumptions, none of them measured on a GPU\n\n{lines}"


def breaks_text(curves: list[Curve], free: list[Curve]) -> str:
    by_name, without = ({found.preset: found for found in kind} for kind in (curves, free))
    faces, large = by_name["ffhq256"], by_name["imagenet64"]
    most = max(faces.strong)
    step, large_step = faces.strong[most].time, large.strong[max(large.strong)].time
    ends = (f"`{found.preset}` at {max(found.strong):,}" for found in curves if max(found.strong) < GPUS[-1])
    demand = max(found.images_per_s(n) / at.cluster.nodes for found in curves for n, at in found.strong.items())
    items = (
        (
            "**Starting operations**, for all but ImageNet. The double backward pass of a grouped convolution",
            "is a loop",
            f"over its groups, so a step of `ffhq256` starts {faces.strong[most].operations:,.0f} operations",
            "however few",
            f"images a GPU has: {1e3 * step.launches:,.0f} ms on {most:,} GPUs, where arithmetic takes",
            f"{1e3 * step.arithmetic:,.0f} ms and the exchange {1e3 * step.exchange:,.0f} ms. With launches free its",
            f"efficiency there would be {without['ffhq256'].efficiency(most):.2f} instead of",
            f"{faces.efficiency(most):.2f}.",
            "One operation for all groups, torch.compile or a CUDA graph come before faster networks.",
        ),
        (
            f"**The exchange.** On {max(large.strong):,} GPUs `imagenet64` sends",
            f"{large.strong[max(large.strong)].communication_bytes / 1e9:,.2f} GB a GPU and step:",
            f"{1e3 * large_step.exchange:,.0f} of {1e3 * large_step.total:,.0f} ms. Beside the backward pass,",
            "where DDP",
            "puts most of it while nothing is compiled, it would cost less; bfloat16 gradients would halve it.",
        ),
        (
            f"**The batch.** Below one image a GPU there is nothing to divide: {', '.join(ends)} GPUs.",
            "Larger batches need a gamma and learning rates that nobody has published. The last table shows that the",
            "machines would bear them.",
        ),
        (
            "**Checkpoints**, where one process writes and the others wait: the last column's share of the",
            "time. Fewer of",
            "them, or writing in the background, are enough.",
        ),
        (
            f"**Data** would not break: the largest demand is {demand:,.0f} images/s a node, and two CPU",
            "threads decode",
            "some 4,000 faces of 128x128 a second (`bench_data.py`).",
        ),
        (
            "**Not in the model**: evaluations (every GPU makes its share of the images, so they scale), GPUs that are",
            "slower than others, and BatchNorm's sums over all processes, which these networks don't have.",
        ),
    )
    lines = "\n".join(paragraph(*item, mark=f"{number}. ") for number, item in enumerate(items, start=1))
    return f"## What would break first\n\n{lines}"


def text_of(options: Options, measured: Measured, launches: list[float], curves: list[Curve], free: list[Curve]) -> str:
    fits = {size: fit(by_bytes, size) for size, by_bytes in measured.items()}
    strong = efficiency_text("## Efficiency at the preset's own batch, by GPUs", curves, weak=False)
    weak = efficiency_text("## Efficiency where the batch grows with the GPUs", curves, weak=True)
    return "\n\n".join(
        (
            paragraph(
                "A model, not a measurement: fastgan has not run on several GPUs so far. Efficiency is the speed of",
                "n GPUs over",
                "n times that of one.",
            ),
            "![measured messages and modelled efficiency](scaling_model.png)",
            strong,
            "Where each preset would end:",
            limits_text(curves, free),
            breaks_text(curves, free),
            buckets_text(curves),
            weak,
            assumptions_text(Cluster(gpu=options.gpu)),
            messages_text(measured, fits),
            launches_text(launches),
        )
    )


def plot(path: Path, measured: Measured, curves: list[Curve], free: list[Curve]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (size, by_bytes) in enumerate(measured.items()):
        constants = fit(by_bytes, size)
        fastest = [1e3 * min(seconds) for seconds in by_bytes.values()]
        left.plot([*by_bytes], fastest, "o", color=f"C{number}", label=f"{size} processes")
        left.plot([*by_bytes], [1e3 * ring_s(size, n, *constants) for n in by_bytes], color=f"C{number}", lw=1)
    left.set(xscale="log", yscale="log", xlabel="message, bytes", ylabel="all-reduce, ms")
    left.set_title("gloo on this machine: fastest round, and ring fitted to it")
    for number, (found, without) in enumerate(zip(curves, free, strict=True)):
        color, points, height = f"C{number}", [*found.strong], found.config.data.image_size[0]
        label = f"{found.preset}, {height}x{height}, batch {found.config.data.batch_size:,}"
        right.plot(points, [found.efficiency(n) for n in points], "o-", ms=3, color=color, label=label)
        right.plot(points, [without.efficiency(n) for n in points], "--", lw=1, color=color)
    right.set(xscale="log", xlabel="GPUs", ylabel="efficiency", ylim=(0, 1.05))
    right.set_title("model at the preset's batch; dashed: launches free")
    right.set_xticks(GPUS, [f"{gpus:,}" for gpus in GPUS])
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


def main(options: Options) -> None:
    cluster = Cluster(gpu=options.gpu)
    launches = launch_us()
    measured = measure(options)
    curves = [curve(preset, cluster) for preset in PRESETS]
    free = [curve(preset, replace(cluster, launch_us=FEW_LAUNCHES_US)) for preset in PRESETS]
    text = text_of(options, measured, launches, curves, free)
    print(text)
    if options.save:
        saved = harness.save("scaling-model", "Scaling: the presets on 1 to 1,024 GPUs, modelled", text)
        path = saved.replace(harness.RESULTS / "scaling_model.md")
        plot(path.with_suffix(".png"), measured, curves, free)
        print(path)


if __name__ == "__main__":
    try:
        main(parse(Options, sys.argv[1:], prog="scaling_model.py"))
    except UserError as error:
        sys.exit(f"scaling_model.py: error: {error}")
