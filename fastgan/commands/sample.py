"""`fastgan sample RUN`: images of chosen seeds, the same for the same seeds on every run."""

import contextlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from fastgan.config import Config
from fastgan.distributed.collectives import all_reduce_min, rank_and_world_size
from fastgan.errors import UserError
from fastgan.evaluation.fidelity import labels_for
from fastgan.evaluation.sampling import (
    BATCH_SIZE,
    MAX_TRUNCATION,
    CheckpointSelector,
    Truncated,
    images_of,
    launch_device,
    open_run,
    parse_classes,
    parse_seeds,
    vectors_of,
    weights_hash,
)
from fastgan.utils.fields import require_positive
from fastgan.utils.pngs import PARTIAL, grid, has_mark, save_png

LEFT_OVER = re.compile(rf"\.(class-\d+-)?seed-\d+\.png{re.escape(PARTIAL)}")


@dataclass(frozen=True)
class SampleOptions:
    """Make images from a run's averaged generator. The same command goes on after a stop: what is there stays."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, an export, or its OWNER/NAME on the hub."""
    seeds: str = "0-63"
    """Which images, as numbers and ranges: 0-63 or 1,5,8-11."""
    out: Path = Path("samples")
    """Folder for the PNG files."""
    grid: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """One picture of all images instead of a file each."""
    npz: Path | None = None
    """A file for all images once more, as ADM's evaluator reads them: arr_0 uint8 [N, H, W, C], arr_1 their classes."""
    class_number: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class of all images, by number or name, of a run with classes; of several (0-9, or cat,dog), each seed is
    shown in each: in a grid, a row a class and a column a seed. Without it, classes take turns: seed % classes."""
    vector: str | None = None
    """The vector of all images, of a run with vectors: --vector=0.1,0.9. Without it, those of the run's data."""
    truncation: float = 1.0
    """Scales the latents: below 1 images are better and more alike, above 1 worse and less so."""
    which: CheckpointSelector = field(default_factory=CheckpointSelector)

    def __post_init__(self) -> None:
        require_positive(self, "truncation", at_most=MAX_TRUNCATION)


@dataclass(frozen=True)
class Images:
    """The images that a command asks for, by their places: of each its seed, its class, and its file."""

    seeds: list[int]
    labels: Tensor | None
    num_classes: int  # more than 1 where each seed is shown in each of them
    folder: Path
    weights: str  # a hash of G
    truncation: float

    def __len__(self) -> int:
        return len(self.seeds)

    def path(self, place: int) -> Path:
        seed = f"seed-{self.seeds[place]:06d}.png"
        if self.num_classes > 1 and self.labels is not None:
            return self.folder / f"class-{int(self.labels[place]):03d}-{seed}"
        return self.folder / seed

    def mark(self, place: int) -> str:
        """Return what the image is made of: a file that bears it needn't be made again."""
        label = "" if self.labels is None else f", class {self.labels[place].tolist()}"
        scaled = "" if self.truncation == 1 else f", truncation {self.truncation!r}"
        return f"seed {self.seeds[place]}{label}{scaled}, G {self.weights}"


def _resolve(options: SampleOptions, config: Config, names: list[str], weights: str) -> Images:
    """The images in the order in which they are asked for; as files each of them once."""
    seeds = parse_seeds(options.seeds)
    classes = []
    if options.class_number is not None:
        classes = parse_classes(options.class_number, config, names)
    if not options.grid:
        seeds, classes = list(dict.fromkeys(seeds)), list(dict.fromkeys(classes))
    labels = vectors_of(config, options.vector, torch.tensor(seeds))
    if labels is None:
        labels = labels_for(torch.tensor(seeds), config.networks.num_classes)
    if classes:
        labels = torch.tensor(classes).repeat_interleave(len(seeds))
        seeds = seeds * len(classes)
    return Images(seeds, labels, len(classes), options.out, weights, options.truncation)


def sample(options: SampleOptions) -> None:
    """Write PNG files of the seeds into `out`, or one grid; with `npz` write them into that file, too.

    The processes of a launch, `accelerate launch -m fastgan.cli sample RUN`, share the work. Raises UserError.
    """
    parse_seeds(options.seeds)  # what is wrong with them is said before anything is read
    if options.grid and options.npz is not None:
        raise UserError(f"npz is {options.npz}: it is of the files of all images, leave --grid out")
    with launch_device() as device:
        _sample(options, device)


def _sample(options: SampleOptions, device: torch.device) -> None:
    is_main = rank_and_world_size()[0] == 0
    folder, config, checkpoint, G = open_run(options.run, options.which)
    images = _resolve(options, config, folder.read_classes(), weights_hash(G, config))
    G, z_dim = Truncated(G, options.truncation).to(device), config.networks.z_dim
    with _writing("--out", options.out):
        if options.grid and is_main:
            columns = len(images) // images.num_classes if images.num_classes > 1 else None
            made = images_of(G, images.seeds, z_dim, device, images.labels)
            save_png(options.out / "grid.png", grid(made, columns), f"grid, G {images.weights}")
        elif not options.grid:
            _write_files(images, G, z_dim, device)
    all_reduce_min(0)  # all files are there
    where = str(options.out)
    if options.npz is not None and is_main:
        with _writing("--npz", options.npz):
            _write_npz(options.npz, images)
        where += f" and {options.npz}"
    if is_main:
        print(f"{len(images)} images after {checkpoint.state['images_seen']:,} images seen: {where}")


@contextlib.contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    """Raise UserError where the path of the option can't be written."""
    try:
        yield
    except OSError as error:
        reason = f"cannot write into {path} ({error.strerror or error})"
        raise UserError(f"{reason}: mend that and the same command goes on, or give another {option}") from None


def _write_files(images: Images, G: nn.Module, z_dim: int, device: torch.device) -> None:
    """A file an image is there, whole batches of them made by this process, the others by the others.

    Which images meet in a batch decides about the rounding of their pixels: it is the same for every number of
    processes, and where some files are there already.
    """
    rank, world_size = rank_and_world_size()
    if rank == 0:
        _remove_left_overs(images.folder)
    starts = range(0, len(images), BATCH_SIZE)[rank::world_size]
    for start in tqdm(starts, desc="sample", unit=" batches", disable=None if rank == 0 else True):
        places = range(start, min(start + BATCH_SIZE, len(images)))
        missing = [place for place in places if not has_mark(images.path(place), images.mark(place))]
        if not missing:
            continue
        labels = None if images.labels is None else images.labels[start : places.stop]
        made = images_of(G, images.seeds[start : places.stop], z_dim, device, labels).permute(0, 2, 3, 1).numpy()
        for place in missing:
            save_png(images.path(place), made[place - start], images.mark(place))


def _remove_left_overs(folder: Path) -> None:
    """What a killed process left half-written is gone."""
    for path in folder.glob(f".*{PARTIAL}"):
        if LEFT_OVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _write_npz(path: Path, images: Images) -> None:
    """The file holds the pixels of the images' files and their classes, read and written one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}{PARTIAL}")
    pixels = _read_files(images)
    first = next(pixels)
    try:
        with zipfile.ZipFile(side, "w") as archive:  # stored, as np.savez does it
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                shape = (len(images), *first.shape)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(first.tobytes())
                for image in pixels:
                    file.write(image.tobytes())
            if images.labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, images.labels.numpy())
        side.replace(path)
    except BaseException:
        side.unlink(missing_ok=True)
        raise


def _read_files(images: Images) -> Iterator[np.ndarray]:
    """The pixels [H, W, C] of each image's file. Raises UserError where one isn't there, or is of another command."""
    for place in range(len(images)):
        path = images.path(place)
        if not has_mark(path, images.mark(place)):
            raise UserError(f"{path} is gone or another's: give --out a folder of its own, that every host sees")
        with Image.open(path) as image:
            pixels = np.asarray(image)
        yield pixels[:, :, None] if pixels.ndim == 2 else pixels
