"""`fastgan sample RUN`: images of chosen seeds, the same for the same seeds on every run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.evaluation.fidelity import labels_for
from fastgan.evaluation.sampling import (
    CheckpointSelector,
    images_of,
    open_run,
    parse_classes,
    parse_seeds,
    to_device,
    vectors_of,
)
from fastgan.utils.pngs import grid, save_png


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
    vector: str | None = None
    """The vector of all images, of a run with vectors: --vector=0.1,0.9. Without it, those of the run's data."""
    truncation: float | None = None
    """For networks with a mapping to truncate; fastgan's have none."""
    which: CheckpointSelector = field(default_factory=CheckpointSelector)


def _resolve(options: SampleOptions, config: Config) -> tuple[list[int], Tensor | None, list[str], int | None]:
    """The seeds, classes and file names of all images, and the columns of their grid where classes have rows."""
    if options.truncation is not None:
        raise UserError(f"truncation is {options.truncation:g}: this run's G has no mapping to truncate; leave it out")
    seeds = parse_seeds(options.seeds)
    classes = [] if options.class_number is None else parse_classes(options.class_number, config)
    if len(classes) <= 1:
        names = [f"seed-{seed:06d}.png" for seed in seeds]
        labels = vectors_of(config, options.vector, torch.tensor(seeds))
        if labels is None:
            labels = labels_for(torch.tensor(seeds), config.networks.num_classes)
        return seeds, torch.full([len(seeds)], classes[0]) if classes else labels, names, None
    names = [f"class-{number:03d}-seed-{seed:06d}.png" for number in classes for seed in seeds]
    return seeds * len(classes), torch.tensor(classes).repeat_interleave(len(seeds)), names, len(seeds)


def sample(options: SampleOptions) -> list[Path]:
    """PNG files of the seeds in `out`, or one grid; their paths."""
    parse_seeds(options.seeds)  # what is wrong with them is said before anything is read
    _, config, checkpoint, G = open_run(options.run, options.which)
    device = to_device()
    seeds, labels, names, columns = _resolve(options, config)
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
    print(f"{len(images)} images after {checkpoint.state['images_seen']:,} images seen: {options.out}")
    return paths
