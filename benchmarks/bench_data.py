"""Images/s of the loaders on a prepared data set, in turn: DALI, torch's DataLoader, in memory, and bare DALI decoding.

Bare decoding is the smallest DALI pipeline there is: encoded bytes in file order, decoder, no torch. A loader's figure
counts finished batches, with order, labels and pixels as a tensor on the device; decoding starts before the clock does,
as in training.
"""

import io
import itertools
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import harness
import numpy as np
import torch
import tyro
from PIL import Image, ImageOps

from fastgan import presets
from fastgan.config import Config
from fastgan.data.batch import Loader
from fastgan.data.loaders import build_loader
from fastgan.data.prepared import PreparedDataset
from fastgan.distributed.processes import tune_malloc
from fastgan.utils.arguments import parse

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Options:
    """Compare the loaders on prepared data sets."""

    sets: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `fastgan data prepare` made."""
    rounds: int = 5
    """How often; medians are shown."""
    batches: int = 40
    """Batches a round."""
    batch_size: int = 32
    """Images a batch."""
    prepare: Path | None = None
    """A zip of images: `fastgan data prepare` of it against the usual loop, in turn as well."""
    size: int = 128
    """The size that it is prepared at."""
    max_workers: int = 2
    """torch's DataLoader is tried with 0 to so many worker processes; its best counts."""
    save: bool = False
    """Write the table into results/."""


def config_for(options: Options, source: PreparedDataset, loader: str, workers: int) -> Config:
    config = presets.get("debug")
    data = replace(
        config.data,
        image_size=source.image_size,
        channels=source.channels,
        batch_size=options.batch_size,
        keep_partial_batch=False,
    )
    return replace(config, data=data, run=replace(config.run, loader=loader, workers=workers))


def bare_dali(source: PreparedDataset, batch_size: int) -> Callable[[], Any]:
    """A call that decodes one batch with DALI and nothing else."""
    from nvidia.dali import Pipeline, fn, types

    place = 0

    def encoded() -> list[np.ndarray]:
        nonlocal place
        place += batch_size
        return [source.encoded(item % len(source)) for item in range(place - batch_size, place)]

    on_gpu = torch.cuda.is_available()
    pipeline = Pipeline(batch_size, torch.get_num_threads(), 0 if on_gpu else None, prefetch_queue_depth=2)
    with pipeline:
        bytes_ = fn.external_source(source=encoded, dtype=types.UINT8)
        kind = {1: types.GRAY, 3: types.RGB}.get(source.channels, types.ANY_DATA)
        pipeline.set_outputs(fn.decoders.image(bytes_, device="mixed" if on_gpu else "cpu", output_type=kind))
    pipeline.build()
    return pipeline.run


def rate(step: Callable[[], Any], options: Options) -> float:
    """Images/s of `options.batches` calls, after a few that don't count."""
    for _ in range(4):
        step()

    def all_batches() -> None:
        for _ in range(options.batches):
            step()

    return options.batches * options.batch_size / harness.seconds(all_batches)


def stepper(loader: Loader) -> Callable[[], Any]:
    """A call that takes the loader's next batch."""
    place = 0

    def step() -> None:
        nonlocal place
        place += loader.batch(place).global_size

    return step


def memory_gib() -> float:
    """The most memory that this process and its finished workers have held."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20


def measure(options: Options, folder: Path) -> str:
    """The table of one data set."""
    source = PreparedDataset(folder)
    measures: dict[str, Callable[[], float]] = {
        "bare DALI": lambda: rate(bare_dali(source, options.batch_size), options)
    }
    memory: dict[str, float] = {}

    def loader_rate(name: str, kind: str, workers: int) -> Callable[[], float]:
        def once() -> float:
            before = memory_gib()
            loader = build_loader(config_for(options, source, kind, workers), source, DEVICE)
            found = rate(stepper(loader), options)
            memory.setdefault(name, memory_gib() - before)
            return found

        return once

    threads = torch.get_num_threads()
    plan = [("dali", "dali", threads)]
    plan += [(f"torch, {workers} workers", "torch", workers) for workers in range(options.max_workers + 1)]
    plan += [("in_memory", "in_memory", threads)]
    measures |= {name: loader_rate(name, kind, workers) for name, kind, workers in plan}
    values = harness.in_turn(measures, options.rounds)
    medians = {name: statistics.median(found) for name, found in values.items()}
    best_torch = max(median for name, median in medians.items() if name.startswith("torch"))
    rows = [
        f"| {name} | {harness.spread(values[name], 0)} | {medians[name] / medians['bare DALI']:.2f} | "
        f"{medians[name] / best_torch:.2f} | {f'{memory[name]:.2f}' if name in memory else ''} |"
        for name in measures
    ]
    height, width = source.image_size
    head = f"{len(source):,} {source.encoding.upper()} images of {height}x{width}, {source.channels} channels\n\n"
    columns = "| loader | images/s | of bare DALI | of torch's best | memory it added, GiB |\n"
    columns += "| --- | --- | --- | --- | --- |\n"
    return head + columns + "\n".join(rows)


def usual_loop(archive: Path, out: Path, size: int) -> None:
    """What data-set tools of the field do: one process opens, crops, resizes, and stores PNGs in a zip, unpacked."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as result:
        names = sorted(name for name in source.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")))
        for number, name in enumerate(names):
            image = Image.open(io.BytesIO(source.read(name))).convert("RGB")
            square = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            square.save(buffer, format="png", compress_level=0, optimize=False)
            result.writestr(f"img{number:08d}.png", buffer.getvalue())


def measure_prepare(options: Options, archive: Path) -> str:
    """The table of `data prepare` against the usual loop, seconds per thousand images."""
    with zipfile.ZipFile(archive) as source:
        thousands = sum(not name.endswith("/") for name in source.namelist()) / 1000
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        numbers = itertools.count()

        def ours() -> float:
            dest = folder / str(next(numbers))
            command = [sys.executable, "-m", "fastgan.cli", "data", "prepare", str(archive), str(dest)]
            spent = harness.seconds(
                lambda: subprocess.run([*command, "--size", str(options.size)], check=True, capture_output=True)
            )
            shutil.rmtree(dest)
            return spent / thousands

        def usual() -> float:
            return harness.seconds(lambda: usual_loop(archive, folder / "usual.zip", options.size)) / thousands

        values = harness.in_turn({"fastgan data prepare": ours, "the usual loop": usual}, options.rounds)
    ratio = statistics.median(values["the usual loop"]) / statistics.median(values["fastgan data prepare"])
    rows = [f"| {name} | {harness.spread(found, 3)} |" for name, found in values.items()]
    head = f"{archive.name} at {options.size}x{options.size}: {ratio:.2f} times as fast, start-up included\n\n"
    return head + "| | seconds per 1,000 images |\n| --- | --- |\n" + "\n".join(rows)


def main(options: Options) -> None:
    tune_malloc()  # as training does
    found = [measure(options, folder) for folder in options.sets]
    if options.prepare is not None:
        found.append(measure_prepare(options, options.prepare))
    tables = "\n\n".join(found)
    print(tables)
    if options.save:
        print(harness.save("data", "Loaders: images/s in batches of " + str(options.batch_size), tables))


if __name__ == "__main__":
    main(parse(Options, sys.argv[1:], prog="bench_data.py"))
