"""`fastgan sample RUN`: images of chosen seeds, the same for the same seeds on every run."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from fastgan import checkpoint, networks
from fastgan.averages import Averages, read
from fastgan.board import grid, save_png
from fastgan.checkpoint import BEST, Checkpoints, Damaged, Snapshot
from fastgan.config import Config
from fastgan.data.images import to_bytes
from fastgan.errors import UserError
from fastgan.metrics.fidelity import labels_for, latents
from fastgan.run_folder import RunFolder

BATCH_SIZE = 64


@dataclass(frozen=True)
class Which:
    """Which of the averages of G, and of which checkpoint; without any of these, the first, of the newest."""

    best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of the best checkpoint instead, of a run with --best-by."""
    average: int | None = None
    """The number of one of ema_half_lives, from 0."""
    length: float | None = None
    """A power-function average of this length, of a run with --ema-stds: see `fastgan ema`."""
    at: int | None = None
    """With --length: as it was at so many images; without it, at the newest snapshot."""

    def __post_init__(self) -> None:
        if self.length is not None and self.average is not None:
            raise UserError(f"average is {self.average}: give either it or --length")
        if self.length is None and self.at is not None:
            raise UserError(f"at is {self.at}: it goes with --length")
        if self.best and self.length is not None:
            raise UserError(f"length is {self.length:g}: give either it or --best")


@dataclass(frozen=True)
class SampleOptions:
    """Make images from a run's averaged generator."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    seeds: str = "0-63"
    """Which images, as numbers and ranges: 0-63 or 1,5,8-11."""
    out: Path = Path("samples")
    """Folder for the PNG files."""
    grid: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """One picture of all images instead of a file each."""
    class_number: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class of all images, by number, of a run with classes; of several (0-9), each seed is shown in each: in a
    grid, a row a class and a column a seed. Without it, classes take turns: seed % classes."""
    truncation: float | None = None
    """For networks with a mapping to truncate; fastgan's have none."""
    which: Which = field(default_factory=Which)


def parse_seeds(text: str, name: str = "seeds", example: str = "0-63 or 1,5,8-11") -> list[int]:
    """The numbers of a list like `1,5,8-11`. Raises UserError, which bears `name`, for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > 2**63 - 1:
            raise UserError(f"{name} is {text!r}: give numbers and rising ranges, like {example}")
        seeds += range(first, last + 1)
    return seeds


def to_device() -> torch.device:
    """Where a command without processes computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_run(path: Path, which: Which | None = None) -> tuple[RunFolder, Config, Snapshot, nn.Module]:
    """A run's folder, settings, what G is read from, and G: an average in the newest whole checkpoint or the best, or
    of a length.

    Raises UserError where one of them is missing.
    """
    which = which or Which()
    folder = RunFolder(path)
    config = folder.read_config()
    if which.length is not None:
        made = Averages(folder.averages, config.optimizer.ema_stds).reconstruct(which.length, which.at)
        name = f"length {which.length:g}"
        snapshot: Snapshot | None = Snapshot(made.path, {name: read(made.path)}, {"images_seen": made.images_seen})
    else:
        name = _name(which.average or 0, max(1, len(config.optimizer.ema_half_lives)))
        snapshot = _best(path) if which.best else Checkpoints(folder.checkpoints).latest()
    if snapshot is None:
        raise UserError(f"{path} has no checkpoint yet: let it train on")
    G, _ = networks.build(config)
    G.load_state_dict(snapshot.tensors[name])
    return folder, config, snapshot, G.eval().requires_grad_(False)


def _best(run: Path) -> Snapshot:
    """The best checkpoint of the run in the folder. Raises UserError where none was kept, or it is damaged."""
    paths = Checkpoints(run / BEST).paths()
    if not paths:
        raise UserError(
            f"best: {run} has no best checkpoint; train with --best-by METRIC, fd_digits say, and --eval-every, "
            "to have one kept, or leave --best out for the newest"
        )
    try:
        return checkpoint.read(paths[-1])
    except Damaged as reason:
        raise UserError(f"best: {paths[-1]} is damaged ({reason}): leave --best out for the newest one") from None


def _name(average: int, count: int) -> str:
    """The average's name in a checkpoint. Raises UserError where it isn't one of `count`."""
    if not 0 <= average < count:
        numbers = "0" if count == 1 else f"a number from 0 to {count - 1}"
        raise UserError(f"average is {average}: the run has {count} of them, give {numbers}")
    return f"G_ema{average or ''}"


def parse_classes(text: str, config: Config) -> list[int]:
    """The numbers of classes like `7` or `0-9`. Raises UserError for one that the run doesn't have."""
    count = config.networks.num_classes
    if not count:
        raise UserError(f"class is {text}: the run has no classes, leave it out")
    of_run = f"class is {text}: the run has {count} classes, give a number from 0 to {count - 1}"
    if re.fullmatch(r"-\d+", text):
        raise UserError(of_run)
    classes = parse_seeds(text, "class", "7 or 0-9")
    if max(classes) >= count:
        raise UserError(of_run)
    return classes


@torch.inference_mode()
def images_of(G: nn.Module, seeds: list[int], z_dim: int, device: torch.device, labels: Tensor | None = None) -> Tensor:
    """uint8 images [N, C, H, W] of the seeds, of the classes `labels` [N] where G is to be told one, on the CPU."""
    images = []
    for places in torch.arange(len(seeds)).split(BATCH_SIZE):
        part = torch.tensor(seeds)[places].to(device)
        given = None if labels is None else labels[places].to(device)
        images.append(to_bytes(G(latents(part, z_dim), given)).cpu())
    return torch.cat(images)


def _asked(options: SampleOptions, config: Config) -> tuple[list[int], Tensor | None, list[str], int | None]:
    """The seeds, classes and file names of all images, and the columns of their grid where classes have rows."""
    if options.truncation is not None:
        raise UserError(f"truncation is {options.truncation:g}: this run's G has no mapping to truncate; leave it out")
    seeds = parse_seeds(options.seeds)
    classes = [] if options.class_number is None else parse_classes(options.class_number, config)
    if len(classes) <= 1:
        names = [f"seed-{seed:06d}.png" for seed in seeds]
        labels = labels_for(torch.tensor(seeds), config.networks.num_classes)
        return seeds, torch.full([len(seeds)], classes[0]) if classes else labels, names, None
    names = [f"class-{number:03d}-seed-{seed:06d}.png" for number in classes for seed in seeds]
    return seeds * len(classes), torch.tensor(classes).repeat_interleave(len(seeds)), names, len(seeds)


def sample(options: SampleOptions) -> list[Path]:
    """PNG files of the seeds in `out`, or one grid; their paths."""
    parse_seeds(options.seeds)  # what is wrong with them is said before anything is read
    _, config, snapshot, G = open_run(options.run, options.which)
    device = to_device()
    seeds, labels, names, columns = _asked(options, config)
    images = images_of(G.to(device), seeds, config.networks.z_dim, device, labels)
    try:
        if options.grid:
            paths = [options.out / "grid.png"]
            save_png(paths[0], grid(images, columns))
        else:
            paths = [options.out / name for name in names]
            for path, image in zip(paths, images.permute(0, 2, 3, 1).numpy(), strict=True):
                save_png(path, image)
    except OSError as error:
        raise UserError(f"cannot write into {options.out} ({error.strerror}): give another --out") from None
    print(f"{len(images)} images after {snapshot.state['images_seen']:,} images seen: {options.out}")
    return paths
