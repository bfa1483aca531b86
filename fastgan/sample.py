"""`fastgan sample RUN`: images of chosen seeds, the same for the same seeds on every run."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from fastgan import networks
from fastgan.averages import Averages, read
from fastgan.board import grid, save_png
from fastgan.checkpoint import Checkpoints, Snapshot
from fastgan.config import Config
from fastgan.data.images import to_bytes
from fastgan.errors import UserError
from fastgan.metrics.fidelity import labels_for, latents
from fastgan.run_folder import RunFolder

BATCH_SIZE = 64


@dataclass(frozen=True)
class Which:
    """Which of the averages of G; without any of these, the first."""

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
    class_number: Annotated[int | None, tyro.conf.arg(name="class")] = None
    """The class of all images, by number, of a run with classes; without it, classes take turns: seed % classes."""
    which: Which = field(default_factory=Which)


def parse_seeds(text: str) -> list[int]:
    """The numbers of a list like `1,5,8-11`. Raises UserError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > 2**63 - 1:
            raise UserError(f"seeds is {text!r}: give numbers and rising ranges, like 0-63 or 1,5,8-11")
        seeds += range(first, last + 1)
    return seeds


def to_device() -> torch.device:
    """Where a command without processes computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_run(path: Path, which: Which | None = None) -> tuple[RunFolder, Config, Snapshot, nn.Module]:
    """A run's folder, settings, what G is read from, and G: an average in the newest whole checkpoint, or of a length.

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
        snapshot = Checkpoints(folder.checkpoints).latest()
    if snapshot is None:
        raise UserError(f"{path} has no checkpoint yet: let it train on")
    G, _ = networks.build(config)
    G.load_state_dict(snapshot.tensors[name])
    return folder, config, snapshot, G.eval().requires_grad_(False)


def _name(average: int, count: int) -> str:
    """The average's name in a checkpoint. Raises UserError where it isn't one of `count`."""
    if not 0 <= average < count:
        numbers = "0" if count == 1 else f"a number from 0 to {count - 1}"
        raise UserError(f"average is {average}: the run has {count} of them, give {numbers}")
    return f"G_ema{average or ''}"


def _labels(seeds: list[int], num_classes: int, class_number: int | None) -> Tensor | None:
    """The seeds' classes [N]. Raises UserError for a class that the run doesn't have."""
    if class_number is None:
        return labels_for(torch.tensor(seeds), num_classes)
    if not num_classes:
        raise UserError(f"class is {class_number}: the run has no classes, leave it out")
    if not 0 <= class_number < num_classes:
        raise UserError(
            f"class is {class_number}: the run has {num_classes} classes, give a number from 0 to {num_classes - 1}"
        )
    return torch.full([len(seeds)], class_number)


@torch.inference_mode()
def images_of(G: nn.Module, seeds: list[int], z_dim: int, device: torch.device, labels: Tensor | None = None) -> Tensor:
    """uint8 images [N, C, H, W] of the seeds, of the classes `labels` [N] where G is to be told one, on the CPU."""
    images = []
    for places in torch.arange(len(seeds)).split(BATCH_SIZE):
        part = torch.tensor(seeds)[places].to(device)
        given = None if labels is None else labels[places].to(device)
        images.append(to_bytes(G(latents(part, z_dim), given)).cpu())
    return torch.cat(images)


def sample(options: SampleOptions) -> list[Path]:
    """PNG files of the seeds in `out`, or one grid; their paths."""
    seeds = parse_seeds(options.seeds)
    _, config, snapshot, G = open_run(options.run, options.which)
    device = to_device()
    labels = _labels(seeds, config.networks.num_classes, options.class_number)
    images = images_of(G.to(device), seeds, config.networks.z_dim, device, labels)
    try:
        if options.grid:
            paths = [options.out / "grid.png"]
            save_png(paths[0], grid(images))
        else:
            paths = [options.out / f"seed-{seed:06d}.png" for seed in seeds]
            for path, image in zip(paths, images.permute(0, 2, 3, 1).numpy(), strict=True):
                save_png(path, image)
    except OSError as error:
        raise UserError(f"cannot write into {options.out} ({error.strerror}): give another --out") from None
    print(f"{len(images)} images after {snapshot.state['images_seen']:,} images seen: {options.out}")
    return paths
