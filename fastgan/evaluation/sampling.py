"""A run's generator, and the images it makes of seeds."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from fastgan import networks
from fastgan.config import MAX_SEED, Config
from fastgan.data.images import ImageDataset, to_bytes
from fastgan.data.loaders import check, locate, open_dataset
from fastgan.data.record import find_change
from fastgan.data.summary import name_classes
from fastgan.distributed.collectives import rank_and_world_size
from fastgan.distributed.processes import Processes
from fastgan.errors import UserError
from fastgan.evaluation.fidelity import conditions_for, latents
from fastgan.runs import exported
from fastgan.runs.checkpoint import BEST, Checkpoint, Checkpoints
from fastgan.runs.ema_snapshots import EmaSnapshots, read
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.memory import require_free

BATCH_SIZE = 64
MAX_SEEDS = 10_000_000  # of one command: their numbers are kept in memory
MAX_TRUNCATION = 2.0


@dataclass(frozen=True)
class CheckpointSelector:
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

    def name(self, config: Config) -> str:
        """Return what a checkpoint calls the average. Raises UserError where it isn't one of the run's."""
        number, names = self.average or 0, config.optimizer.ema_names
        if self.length is not None:
            return f"length {self.length:g}"
        if not 0 <= number < len(names):
            numbers = "0" if len(names) == 1 else f"a number from 0 to {len(names) - 1}"
            raise UserError(f"average is {number}: the run has {len(names)} of them, give {numbers}")
        return names[number]


class Truncated(nn.Module):
    """G of latents scaled by `truncation`: below 1 images are more alike, above 1 less."""

    def __init__(self, G: nn.Module, truncation: float) -> None:
        super().__init__()
        self.G, self.truncation = G, truncation

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images [B, C, H, W] of latents [B, z_dim]."""
        images: Tensor = self.G(self.truncation * z, labels)
        return images


def parse_seeds(
    text: str, name: str = "seeds", example: str = "0-63 or 1,5,8-11", at_most: int = MAX_SEEDS
) -> list[int]:
    """Return the numbers of a list like `1,5,8-11`. Raises UserError, which bears `name`, for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > MAX_SEED:
            raise UserError(f"{name} is {text!r}: give numbers and rising ranges, like {example}")
        if len(seeds) + last - first >= at_most:
            raise UserError(f"{name} is {text!r}: give at most {at_most:,} of them at once")
        seeds += range(first, last + 1)
    return seeds


def to_device() -> torch.device:
    """Return where a command without processes computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def launch_device() -> Iterator[torch.device]:
    """Yield where a command computes: alone, or as one of a launch's processes, which share its work."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield to_device()
        return
    processes = Processes()
    yield processes.device
    processes.close()


def open_run(path: Path, which: CheckpointSelector | None = None) -> tuple[RunFolder, Config, Checkpoint, nn.Module]:
    """Return a run's folder, settings, what G is read from, and G.

    G is an average in the newest whole checkpoint or the best, or one of a length. `path` may also be an export's, or
    its name on the hub. Raises UserError where something of it is missing.
    """
    which, path = which or CheckpointSelector(), exported.locate(path)
    folder = RunFolder(path)
    snapshot = _exported(path, which) if exported.is_export(path) else None
    config = folder.read_config()
    snapshot = snapshot or _checkpoint(folder, config, which)
    if snapshot is None:
        raise UserError(f"{path} has no checkpoint yet: let it train on")
    G, _ = networks.build(config)
    try:
        G.load_state_dict(snapshot.tensors[average_name(snapshot, config, which)])
    except RuntimeError as error:
        raise UserError(f"{path} holds no weights of its networks ({str(error).splitlines()[1].strip()})") from None
    return folder, config, snapshot, G.eval().requires_grad_(False)


def average_name(checkpoint: Checkpoint, config: Config, which: CheckpointSelector) -> str:
    """Return the name, in what `open_run` read, of the average that G is."""
    return next(iter(checkpoint.tensors)) if exported.is_export(checkpoint.path) else which.name(config)


def _exported(path: Path, which: CheckpointSelector) -> Checkpoint:
    if which != CheckpointSelector():
        raise UserError(f"{path} is an export, of one average: leave --best, --average, --length and --at out")
    return exported.read_weights(path)


def _checkpoint(folder: RunFolder, config: Config, which: CheckpointSelector) -> Checkpoint | None:
    """What holds the average in a run; None where it has no checkpoint yet."""
    name = which.name(config)
    if which.length is not None:
        made = EmaSnapshots(folder.averages, config.optimizer.ema_stds).reconstruct(which.length, which.at)
        return Checkpoint(made.path, {name: read(made.path)}, {"images_seen": made.images_seen})
    return _best(folder.path) if which.best else Checkpoints(folder.checkpoints).latest()


def open_training_set(config: Config, folder: RunFolder, data: str | None = None) -> ImageDataset:
    """Return the images that the run was trained on, which are at `data` where they have moved.

    Raises UserError where there are others, or none.
    """
    data_config, run = replace(config.data, data=data or config.data.data), replace(config.run, run_dir=folder.path)
    config = locate(replace(config, data=data_config, run=run))
    dataset, remedy = open_dataset(config), "give --data the folder where the run's images are now"
    if (dataset.channels, dataset.image_size) != (config.data.channels, config.data.image_size):
        raise UserError(f"the images of {config.data.data} are of another size than the run's: {remedy}")
    if change := find_change(folder.data, dataset, config.data.data, config.networks.is_conditional, print_on_main):
        raise UserError(f"{change}: {remedy}")
    return dataset


def print_on_main(text: str) -> None:
    """Print the line, on the main process alone."""
    if rank_and_world_size()[0] == 0:
        print(text)


def weights_hash(G: nn.Module, config: Config) -> str:
    """Return a hash of what images depend on besides their seeds and what G is told."""
    found = sha256(json.dumps(asdict(config.networks), sort_keys=True, default=str).encode())
    for name, tensor in sorted(G.state_dict().items()):
        found.update(f"{name} {tensor.dtype}".encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _best(run: Path) -> Checkpoint:
    """The best checkpoint of the run in the folder. Raises UserError where none was kept, or it is damaged."""
    try:
        found = Checkpoints(run / BEST).latest()
    except UserError as error:
        raise UserError(f"best: {error}, or leave --best out for the newest") from None
    if found is None:
        raise UserError(
            f"best: {run} has no best checkpoint; train with --best-by METRIC, fd_digits say, and --eval-every, "
            "to have one kept, or leave --best out for the newest"
        )
    return found


def parse_classes(text: str, config: Config, names: Sequence[str] = ()) -> list[int]:
    """Return the numbers of classes like `7`, `0-9`, or of names like `cat,dog`.

    Where all names are numbers, those are meant. Raises UserError for a class that the run doesn't have.
    """
    count = config.networks.num_classes
    if not count:
        raise UserError(f"class is {text}: the run has no classes, leave it out")
    if (named := _by_name(text, list(names))) is not None:
        return named
    of_run = f"class is {text}: the run has {count} classes, give a number from 0 to {count - 1}"
    of_run += f", or a name of {name_classes(names)}" if names else ""
    if names and not re.fullmatch(r"[\d\s,-]+", text):
        raise UserError(of_run)
    if re.fullmatch(r"-\d+", text):
        raise UserError(of_run)
    classes = parse_seeds(text, "class", "7 or 0-9")
    if max(classes) >= count:
        raise UserError(of_run)
    return classes


def parse_vector(text: str, config: Config) -> Tensor:
    """Return the numbers [K] of a vector like `0.1,0.9`.

    Raises UserError where the run is told none, or one of others.
    """
    length = config.networks.vector_dim
    if not length:
        raise UserError(f"vector is {text!r}: the run has no vectors, leave it out")
    try:
        vector = torch.tensor([float(number) for number in text.split(",")])
    except ValueError:
        vector = torch.tensor([])
    if len(vector) != length or not vector.isfinite().all():
        raise UserError(f"vector is {text!r}: give {length} numbers, with commas between them and after --vector=")
    return vector


def vectors_of(config: Config, text: str | None, seeds: Tensor) -> Tensor | None:
    """Return the vectors [B, K] of the seeds: the one that is asked for, or those of the run's data.

    None in a run without.

    Raises UserError for a wrong one, or where the data can't be read.
    """
    if text is not None:
        return parse_vector(text, config).expand(len(seeds), -1)
    if config.networks.condition != "vector":
        return None
    try:
        dataset = open_dataset(config)
        check(config, dataset)
    except UserError as error:
        raise UserError(f"the run's vectors can't be drawn from its data ({error}): give --vector") from None
    return conditions_for(seeds, config.networks, dataset.labels)


def _by_name(text: str, names: list[str]) -> list[int] | None:
    """The numbers of classes that are given by their names; None where these are no names."""
    chosen = [text] if text in names else text.split(",")
    if names and all(name.isdecimal() for name in names) and re.fullmatch(r"[\d,-]+", text):
        chosen = [str(number) for number in parse_seeds(text, "class", "7 or 0-9")]
        if not {*chosen} <= {*names}:
            raise UserError(f"class is {text}: the run has the classes {name_classes(names)}, give some of these")
    return [names.index(name) for name in chosen] if {*chosen} <= {*names} else None


@torch.inference_mode()
def images_of(G: nn.Module, seeds: list[int], z_dim: int, device: torch.device, labels: Tensor | None = None) -> Tensor:
    """Return uint8 images [N, C, H, W] of the seeds, told `labels` [N] or [N, K] where G is to be told any, on the
    CPU.
    """
    images = []
    for places in torch.arange(len(seeds)).split(BATCH_SIZE):
        part = torch.tensor(seeds)[places].to(device)
        given = None if labels is None else labels[places].to(device)
        images.append(to_bytes(G(latents(part, z_dim), given)).cpu())
        if len(images) == 1:  # then joined, then a picture
            needed = 3 * images[0].nbytes / len(part) * len(seeds)
            require_free(needed, "cpu", f"{len(seeds):,} images at once", "give fewer seeds")
    return torch.cat(images)
