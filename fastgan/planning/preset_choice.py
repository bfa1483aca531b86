"""Which preset suits a set of images on this machine, where the user names none: a table, and what it looks at.

A preset is changed where the set leaves no choice: by its size where it is prepared, its channels, its classes.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from fastgan import presets
from fastgan.data.archives import ArchiveReader, Entry
from fastgan.data.labels import AUTO, NO_LABELS, Labelled, LabelOptions, label_entries
from fastgan.data.local_folder import list_folder
from fastgan.data.names import NUM_IMAGES
from fastgan.data.pixels import BadImage, Size, bytes_of, count_channels, opened
from fastgan.data.survey import sample
from fastgan.runs.run_folder import RunFolder

FEW_IMAGES = 2_000  # below it D memorises the images where it sees them unchanged (ADA, 2006.06676)
ADA = ("--augment", "ada", "--augment-target", "0.6")
MIN_WIDTH = 16  # channels of a stage that a preset hasn't
NAMED = {"mnist": (28, 1, 10), "fashion-mnist": (28, 1, 10), "toy": (28, 1, 2), "stacked-mnist": (32, 3, 0)}


@dataclass(frozen=True)
class Facts:
    """What decides about the preset: the same on all processes of a run."""

    images: int
    size: Size  # height and width; of files of several sizes the medians
    is_fixed: bool  # whether networks must make images of that size: the set's are, or it is asked for
    channels: int
    classes: int  # that networks can be told of; 0: none
    on_gpu: bool
    name: str = ""  # of a named set

    def __str__(self) -> str:
        colours = {1: "gray", 3: "RGB", 4: "RGBA"}.get(self.channels, f"{self.channels}-channel")
        machine = "a GPU" if self.on_gpu else "no GPU"
        return f"{self.images:,} {colours} images of {self.size[0]}x{self.size[1]}, {machine}"


class Rule(NamedTuple):
    """A row of the table: the first that fits decides."""

    fits: Callable[[Facts], bool]
    preset: str
    reason: str


RULES = (
    Rule(lambda it: it.channels == 1 and min(it.size) <= 32, "mnist28-fast", "made for small gray images"),
    Rule(lambda it: it.images < FEW_IMAGES and it.on_gpu, "fewshot", f"made for fewer than {FEW_IMAGES:,}"),
    Rule(lambda it: it.name == "stacked-mnist" and it.on_gpu, "stacked-mnist", "R3GAN's for this set"),
    Rule(lambda it: min(it.size) <= 32 and it.on_gpu, "cifar10", "R3GAN's for 32x32"),
    Rule(lambda it: min(it.size) <= 32, "stacked-mnist-fast", "made for small images on a CPU"),
    Rule(lambda it: not it.on_gpu, "faces128-fast", "made for a CPU"),
    Rule(lambda it: min(it.size) < 128, "ffhq64", "R3GAN's for 64x64"),
    Rule(lambda it: min(it.size) < 256, "faces128-fast", "made for 128x128"),
    Rule(lambda it: True, "ffhq256", "R3GAN's for 256x256, which takes days; faces128-fast shows something in minutes"),
)


def choose(facts: Facts) -> tuple[str, str]:
    """Return the preset's name, and why it is that one."""
    return next((rule.preset, rule.reason) for rule in RULES if rule.fits(facts))


def adapt(name: str, facts: Facts) -> list[str]:
    """Return the flags by which the preset takes such images. Raises UserError for a size that no network makes.

    Stages are left out or added at the highest resolution, gamma goes with pixels and batches by its rule, and D sees
    few images augmented.
    """
    from fastgan.networks.r3gan import stages_for

    preset, flags = presets.get(name), list[str]()
    (height, width), batch_size, networks = preset.data.image_size, preset.data.batch_size, preset.networks
    factor = 1.0  # of gamma, which goes with the pixels over the batch
    if facts.is_fixed and facts.size != (height, width):
        factor *= facts.size[0] * facts.size[1] / (height * width)
        count = stages_for(facts.size)[1] - (networks.network == "dcgan")
        stages = list(networks.stages[:count])
        while len(stages) < count:
            stages.append(max(MIN_WIDTH, stages[-1] // 2))
        flags += ["--image-size", *map(str, facts.size), "--stages", *map(str, stages)]
    if facts.images < batch_size:
        factor *= batch_size / facts.images
        flags += ["--batch-size", str(facts.images)]
    for field, gamma in (("gamma", preset.objective.gamma), ("gamma-end", preset.objective.gamma_end)):
        if gamma is not None and factor != 1:
            flags += [f"--{field}", f"{gamma * factor:.3g}"]
    if facts.images < FEW_IMAGES and preset.objective.augment == "none":
        flags += ADA
    if facts.channels != preset.data.channels:
        flags += ["--channels", str(facts.channels)]
    if networks.num_classes and facts.classes != networks.num_classes:
        flags += ["--num-classes", str(facts.classes)]
    return flags


class Measured(NamedTuple):
    """What a sample of the files is like."""

    sizes: list[Size]
    channels: int

    @property
    def size(self) -> Size:
        """The middle of the heights and of the widths."""
        heights, widths = zip(*self.sizes, strict=True)
        return int(statistics.median(heights)), int(statistics.median(widths))


def measure(entries: Sequence[Entry]) -> Measured | None:
    """Look at a sample of the images; None where none of them can be read. Transparent ones count as RGB."""
    sizes, channels = [], 1
    for number in sample([entry.name for entry in entries]):
        try:
            raw = entries[number].read()
            if not isinstance(raw, bytes | Path):
                continue
            with opened(bytes_of(raw)) as image:
                sizes.append((image.height, image.width))
        except BadImage:
            continue
        if channels == 1 and count_channels([raw]) != [1]:
            channels = 3
    return Measured(sizes, channels) if sizes else None


def of_named(name: str, on_gpu: bool) -> Facts:
    """Return the facts of a named set, which need not be here."""
    side, channels, classes = NAMED[name]
    return Facts(NUM_IMAGES[name], (side, side), True, channels, classes, on_gpu, name)


def of_prepared(folder: Path, on_gpu: bool) -> Facts:
    """Return the facts of a prepared set. Raises UserError where it isn't whole."""
    from fastgan.data.prepared import PreparedDataset

    found = PreparedDataset(folder)
    return Facts(len(found), found.image_size, True, found.channels, _tellable(found.classes), on_gpu)


def of_files(labelled: Labelled, measured: Measured, on_gpu: bool) -> Facts:
    """Return the facts of image files, which are fitted to any size."""
    classes = _tellable(labelled.classes)
    return Facts(len(labelled.entries), measured.size, False, measured.channels, classes, on_gpu)


def _tellable(classes: Sequence[str] | None) -> int:
    return len(classes) if classes is not None and len(classes) > 1 else 0


def label(source: ArchiveReader, options: LabelOptions | None = None) -> Labelled:
    """Return the source's images with their classes, where all of them have one. Raises UserError."""
    return label_entries(source, replace(options or LabelOptions(), num_classes=0))


def has_gpu() -> bool:
    """Whether training computes on a GPU here."""
    import torch

    return torch.cuda.is_available()


def _say(line: str) -> None:
    """Print the line, on the main process."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def with_preset(args: Sequence[str], prefix: str = "", on_gpu: bool | None = None) -> list[str]:
    """Return train's arguments with the preset that suits the images, where --data names some and --preset none.

    Of a run that is there already preset and settings are kept; flags of the command line come last, so they win. The
    run folder of a folder of images is runs/NAME, with the prefix before its name, whatever the preset. One line says
    which preset and why. Raises UserError as training on the images would.
    """
    given = _given(args)
    if given is None or given.preset is not None or not given.data or given.data in NAMED.keys() - {"stacked-mnist"}:
        return [*args]
    path, start = Path(given.data).expanduser(), list[str]()
    if given.data not in NAMED:
        name = os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119  # unlike Path's, of any text
        run_dir = Path(given.run_dir or Path("runs") / f"{prefix}{name}")
        start = ["--run-dir", str(run_dir)]
        if RunFolder(run_dir).config.exists():
            kept = RunFolder(run_dir).read_config()
            _say(f"preset: {kept.preset}, with the settings of the run {run_dir}")
            return [*presets.as_flags(replace(kept, run=presets.get(kept.preset).run)), *start, *args]
    facts = _facts(given, path, has_gpu() if on_gpu is None else on_gpu)
    if facts is None:  # training says what is wrong
        return [*args]
    name, reason = choose(facts)
    flags = adapt(name, facts)
    _say(f"preset: {' '.join([name, *flags])} ({facts}: {reason})")
    return ["--preset", name, *flags, *start, *args]


def _given(args: Sequence[str]) -> argparse.Namespace | None:
    """What the arguments say of the images; None where they ask for help or aren't right, which their parser says."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("preset", "data", "run-dir", "labels", "label-column", "file-column", "condition"):
        finder.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}")), nargs="?", const="")
    finder.add_argument("--image-size", "--image_size", nargs=2, type=int)
    finder.add_argument("--channels", type=int)
    try:
        return None if {"-h", "--help"} & {*args} else finder.parse_known_args(args)[0]
    except argparse.ArgumentError:
        return None


def _facts(given: argparse.Namespace, path: Path, on_gpu: bool) -> Facts | None:
    """The facts of the images there, as far as the arguments don't say others; None where there are none."""
    from fastgan.data.prepared import is_prepared

    if given.data in NAMED:
        return of_named(given.data, on_gpu)
    if not path.is_dir():
        return None
    if is_prepared(path):
        facts = of_prepared(path, on_gpu)
    else:
        options = LabelOptions(given.labels or AUTO, "class", given.label_column, given.file_column)
        if given.condition == "vector":
            options = LabelOptions(NO_LABELS)
        labelled = label(list_folder(path.resolve(), without=None), options)
        measured = measure(labelled.entries)
        if measured is None:
            return None
        facts = of_files(labelled, measured, on_gpu)
        if given.image_size is not None:
            facts = replace(facts, size=tuple(given.image_size), is_fixed=True)
        facts = replace(facts, channels=given.channels or facts.channels)
    if given.labels == NO_LABELS or given.condition == "vector":
        facts = replace(facts, classes=0)
    return facts
