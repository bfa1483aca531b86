"""From a data set's name to its images, and from them to batches on the device."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch

from fastgan.config import Config
from fastgan.data import named
from fastgan.data.batch import BatchSampler, Loader
from fastgan.data.dali import DaliLoader
from fastgan.data.folder import FolderDataset
from fastgan.data.images import ImageDataset
from fastgan.data.prepared import PreparedDataset, is_prepared
from fastgan.data.resident import InMemoryLoader
from fastgan.data.stacked import StackedDataset
from fastgan.data.torch_loader import TorchLoader
from fastgan.errors import UserError


def open_dataset(config: Config) -> ImageDataset:
    """The data set that the config names: a known one (got first if need be), a prepared one, or a folder of images.

    Raises UserError where there is no such set, or what is there can't be used.
    """
    name, folder = config.data.data, Path(config.data.data)
    if name in named.NAMES:
        return named.open_named(name)
    if not folder.is_dir():
        raise UserError(
            f"no data set {name!r}: give --data a folder of images, one that `fastgan data prepare` made "
            f"(it takes archives too), or one of {', '.join(named.NAMES)}"
        )
    if is_prepared(folder):
        return PreparedDataset(folder)
    return FolderDataset(folder, config.data.image_size, config.data.channels)


def num_images(config: Config) -> int:
    """Images in the config's data set; a known one need not be here yet. Raises UserError as `open_source` does."""
    name = config.data.data
    return named.NUM_IMAGES[name] if name in named.NUM_IMAGES else len(open_dataset(config))


def check(config: Config, source: ImageDataset, num_processes: int = 1) -> None:
    """The set is one that the config can train on. Raises UserError that says what disagrees."""
    (height, width), batch_size = source.image_size, config.data.batch_size
    if (source.channels, source.image_size) != (config.data.channels, config.data.image_size):
        raise UserError(
            f"the data set {source.name} has {source.channels}-channel images of {height}x{width}: "
            f"give --channels {source.channels} --image-size {height} {width} and a network that makes them"
        )
    if config.networks.num_classes:
        _check_classes(config.networks.num_classes, source)
    if batch_size > len(source):
        raise UserError(f"batch_size is {batch_size}: the data set {source.name} has only {len(source)} images")
    last = len(source) % batch_size if config.data.keep_partial_batch else 0
    if 0 < (last or batch_size) < num_processes:
        raise UserError(
            f"the smallest batch has {last or batch_size} images for {num_processes} processes: "
            "give --no-keep-partial-batch, another --batch-size or fewer processes"
        )


def _check_classes(num_classes: int, source: ImageDataset) -> None:
    if source.labels is None:
        raise UserError(
            f"num_classes is {num_classes}: the images of {source.name} have no labels; "
            "give 0, or images with a folder a class"
        )
    if (found := int(source.labels.max()) + 1) != num_classes:
        raise UserError(f"num_classes is {num_classes}: the data set {source.name} has {found}; give that number, or 0")


def choose_loader(config: Config, source: ImageDataset) -> tuple[str, str]:
    """The loader's name, and why."""
    if config.run.loader != "auto":
        return config.run.loader, "asked for"
    if isinstance(source, StackedDataset):
        return "torch", "drawn batch by batch"
    gib = len(source) * source.channels * source.image_size[0] * source.image_size[1] / 2**30
    if gib <= config.run.resident_gib:
        return "resident", f"{gib:.2f} GiB decoded, of the {config.run.resident_gib:g} that --resident-gib allows"
    if not isinstance(source, PreparedDataset):
        return "torch", f"{gib:.1f} GiB decoded are too much to keep, and the set isn't prepared"
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        return "dali", f"{gib:.1f} GiB decoded are too much to keep"
    return "torch", f"{gib:.1f} GiB decoded are too much to keep, and DALI isn't installed"


def build_loader(
    config: Config,
    source: ImageDataset,
    device: torch.device,
    rank: int = 0,
    num_processes: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Loader:
    """The loader that the config asks for; `say` hears which and why. Raises UserError as `check` does."""
    check(config, source, num_processes)
    kind, reason = choose_loader(config, source)
    say(f"data: {len(source):,} images of {source.name}; loader {kind} ({reason})")
    drawn = isinstance(source, StackedDataset)  # which is quicker than to hand it over
    workers = config.run.workers if config.run.workers is not None else 0 if drawn else torch.get_num_threads()
    if kind == "resident":
        return InMemoryLoader(BatchSampler(config, source, device, rank, num_processes, indices_on=device))
    sampler = BatchSampler(config, source, device, rank, num_processes)
    if kind == "torch":
        return TorchLoader(sampler, workers)
    if not isinstance(source, PreparedDataset):
        raise UserError(f"loader is 'dali': the set {source.name} isn't prepared; `fastgan data prepare` it first")
    return DaliLoader(sampler, source, max(1, workers))
