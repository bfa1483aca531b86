"""`fastgan new SRC`: look at images and at this machine, and recommend the one command that trains on them."""

import re
import shlex
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastgan.config import Config
from fastgan.data.archives import Entry
from fastgan.data.labels import Labelled
from fastgan.data.pixels import BadImage, Transform, read
from fastgan.data.preparation.inputs import open_archive
from fastgan.data.skipped import few
from fastgan.data.summary import describe_source
from fastgan.data.survey import sample
from fastgan.errors import UserError
from fastgan.planning import preset_choice
from fastgan.planning.preset_choice import NAMED, Facts, Measured
from fastgan.presets import get, parse_config
from fastgan.utils.cores import num_cores
from fastgan.utils.fields import require_positive

MAX_SECONDS = 600
DECODED = 16  # images, to tell how long all take
PREPARING_PAYS_S = 60.0  # of decoding at each start
MOST_LINES = 3  # on what the set is made of
# Images until samples are recognisable, and of what: measured, docs/recipes.md.
FIRST_SAMPLES = {
    "mnist28-fast": (15_000, "MNIST"),
    "faces128-fast": (30_000, "9,090 faces"),
    "stacked-mnist-fast": (200_000, "StackedMNIST"),
}


@dataclass(frozen=True)
class NewOptions:
    """Look at images and at this machine; print the command that trains on them, how fast it will be, and why."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A folder of images, an archive of them, a prepared set, or a named one; nothing is written."""
    seconds: float = 5.0
    """How long training is timed."""


@dataclass(frozen=True)
class Found:
    """What there is to train on."""

    facts: Facts
    lines: list[str]
    decode_s: float = 0.0  # all images once, on all cores
    is_archive: bool = False
    is_prepared: bool = False


@dataclass(frozen=True)
class Timed:
    """How training goes here."""

    images_per_s: float
    peak_gib: float


def new(options: NewOptions) -> None:
    """Print what the images are, what the machine is, the command and what to expect of it. Raises UserError."""
    from fastgan.data import loaders

    require_positive(options, "seconds", at_most=MAX_SECONDS)
    found = _look(options.source)
    lines = found.lines
    name, reason = preset_choice.choose(found.facts)
    flags = preset_choice.adapt(name, found.facts)
    config = parse_config(["--preset", name, *flags, "--data", options.source])
    if found.is_prepared:
        lines += loaders.summary(config, loaders.open_dataset(config))
    lines += [f"preset: {' '.join([name, *flags])}, {reason}", _machine()]
    print("\n".join((*lines, *_expected(config, found, time_steps(config, options.seconds)))))
    print("\n".join(_commands(options.source, config, found)))


def _look(source: str) -> Found:
    from fastgan.data.prepared import is_prepared

    on_gpu, path = preset_choice.has_gpu(), Path(source).expanduser()
    if source in NAMED:
        facts = preset_choice.of_named(source, on_gpu)
    elif path.is_dir() and is_prepared(path):
        facts = preset_choice.of_prepared(path, on_gpu)
    else:
        return _look_at_files(source, on_gpu)
    return Found(facts, [f"{source}: {facts}, ready to train on"], is_prepared=source not in NAMED)


def _look_at_files(source: str, on_gpu: bool) -> Found:
    """Raises UserError where there are no images that can be read."""
    with open_archive(source, Path(tempfile.gettempdir())) as archive:
        labelled = preset_choice.label(archive)
        measured = preset_choice.measure(labelled.entries)
        skipped = [*archive.skipped, *labelled.skipped]
        skipped_lines = [f"skipped files: {len(skipped):,}: {few(skipped)}"] if skipped else []
        if measured is None:
            what = f"none of its {len(labelled.entries):,} images can be read" if labelled.entries else "no images"
            lines = [what, *describe_source(source, archive, labelled, 0), *skipped_lines]
            raise UserError(f"{source}: {'; '.join(lines)}: name another folder or archive")
        facts = preset_choice.of_files(labelled, measured, on_gpu)
        preset = get(preset_choice.choose(facts)[0])
        told = facts.classes if preset.networks.num_classes else 0
        lines = [_sizes(source, labelled, measured, facts), *describe_source(source, archive, labelled, told)]
        transform = Transform(preset.data.image_size, channels=facts.channels)
        decode_s = len(labelled.entries) * _decode_s(labelled.entries, transform) / num_cores()
    return Found(facts, [*lines[: 1 + MOST_LINES], *skipped_lines], decode_s, archive.kind != "folder")


def _sizes(source: str, labelled: Labelled, measured: Measured, facts: Facts) -> str:
    least, most = (pick(measured.sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    sizes = "" if least == most else f", from {least[0]}x{least[1]} to {most[0]}x{most[1]} (height x width)"
    seen = "" if len(measured.sizes) == len(labelled.entries) else f", by a sample of {len(measured.sizes)}"
    return f"{source}: {facts}{sizes}{seen}"


def _decode_s(entries: list[Entry], transform: Transform) -> float:
    """Seconds for an image, read and fitted on one core."""
    chosen = sample([entry.name for entry in entries])
    chosen = chosen[:: -(-len(chosen) // DECODED)]
    began = time.perf_counter()
    for number in chosen:
        try:
            read(transform, entries[number].read())
        except BadImage:
            continue
    return (time.perf_counter() - began) / len(chosen)


def time_steps(config: Config, seconds: float) -> Timed:
    """Train on noise for so long, as training here would, and forget it. Raises UserError where there is no room."""
    import torch

    from fastgan import networks
    from fastgan.data.images import ArrayDataset
    from fastgan.data.loaders import build_loader
    from fastgan.distributed.processes import tune_malloc
    from fastgan.planning.room import require_room
    from fastgan.training.trainer import Trainer
    from fastgan.utils.memory import peak_memory_gib

    tune_malloc()
    device = torch.device("cuda" if preset_choice.has_gpu() else "cpu")
    require_room(config, device)
    count, (height, width) = max(config.data.batch_size, config.networks.num_classes), config.data.image_size
    pixels = torch.randint(256, (count, config.data.channels, height, width), dtype=torch.uint8)
    noise = ArrayDataset("noise", pixels, networks.example_labels(config.networks, torch.arange(count)))
    trainer = Trainer(config, networks.build(config, device), build_loader(config, noise, device))

    def steps() -> None:
        """From one penalty to the next."""
        for _ in range(config.objective.penalty_every):
            trainer.train_step(trainer.loader.batch(trainer.images_seen))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def timed(limit_s: float) -> float:
        """Images a second of one round, and of more until the time is over."""
        before, began = trainer.images_seen, time.perf_counter()
        while True:
            steps()
            if (spent := time.perf_counter() - began) > limit_s:
                return (trainer.images_seen - before) / spent

    rate = timed(0)
    if trainer.images_seen / rate < seconds:  # else a warm-up would take too long
        rate = timed(seconds)
    return Timed(rate, peak_memory_gib(device))


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if preset_choice.has_gpu() else 0


def _machine() -> str:
    import torch

    from fastgan.utils.memory import free_bytes

    gpus = _num_gpus()
    free = free_bytes(torch.device("cuda" if gpus else "cpu")) / 2**30
    machine = f"{gpus} x {torch.cuda.get_device_name(0)}" if gpus else f"{num_cores()} cores, no GPU"
    return f"machine: {machine}, {free:.1f} GiB of memory free{' on the first' * (gpus > 1)}"


def _expected(config: Config, found: Found, timed: Timed) -> Iterator[str]:
    more = ", on one GPU, before faster ways are tried" if found.facts.on_gpu else ""
    rate = f"{timed.images_per_s:,.0f}" if timed.images_per_s >= 100 else f"{timed.images_per_s:.3g}"
    yield f"speed: {rate} images/s, timed just now with this preset on noise{more}"
    if config.preset in FIRST_SAMPLES:
        images, data = FIRST_SAMPLES[config.preset]
        took = f"an estimate, as {data} took {images:,} images (docs/recipes.md)"
        yield f"first recognisable samples: after {_duration(images / timed.images_per_s)}: {took}"
    else:
        yield f"first recognisable samples: not known, {config.preset} has not been measured"
    total = config.total_images(found.facts.images)
    yield f"whole run: {total:,} images, {_duration(total / timed.images_per_s)}; it can be stopped at any time"
    gib = found.facts.images * config.data.channels * config.data.image_size[0] * config.data.image_size[1] / 2**30
    in_memory = gib <= config.run.in_memory_gib
    how = "with all images in it" if in_memory else "images are read as it goes"
    yield f"memory: {timed.peak_gib + in_memory * gib:.1f} GiB at the fullest moment of a step, {how}"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"


def _commands(source: str, config: Config, found: Found) -> Iterator[str]:
    """The commands, below a line on why the images are prepared, where that pays."""
    data = source
    if found.is_archive or found.decode_s > PREPARING_PAYS_S:
        height, width = config.data.image_size
        size = str(height) if height == width else f"{height}x{width}"
        name = re.sub(r"[^a-zA-Z0-9_-]+", "-", Path(source).name.split(".")[0]).strip("-").removesuffix(f"-{size}")
        data = f"{name or 'images'}-{size}"
        why = "training wants a folder" if found.is_archive else "as long as each start would take without it"
        yield f"prepare first: {_duration(found.decode_s)} or so, {why}"
        yield f"\n  fastgan data prepare {shlex.quote(source)} {data} --size {size} --channels {config.data.channels}"
    else:
        yield ""
    several = f"accelerate launch --multi_gpu --num_processes {_num_gpus()} -m fastgan.train"
    yield f"  {several if _num_gpus() > 1 else 'fastgan train'} --data {shlex.quote(data)}"
