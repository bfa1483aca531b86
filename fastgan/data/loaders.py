"""From a data set's name to its images, and from them to batches on the device."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fastgan.config import Config, DataConfig
from fastgan.data import dali, named
from fastgan.data.batch import BatchSampler, Loader
from fastgan.data.dali import DaliLoader
from fastgan.data.folder import FolderDataset
from fastgan.data.images import ImageDataset
from fastgan.data.in_memory import InMemoryLoader
from fastgan.data.labels import AUTO, NO_LABELS, LabelOptions
from fastgan.data.pixels import MODES
from fastgan.data.prepared import PreparedDataset, is_prepared
from fastgan.data.stacked import StackedDataset
from fastgan.data.summary import classes_line, name_classes
from fastgan.data.tones import Tones
from fastgan.data.torch_loader import TorchLoader
from fastgan.errors import UserError
from fastgan.utils.cores import require_startable
from fastgan.utils.memory import require_free
from fastgan.utils.tone_options import FULL, parse_background, parse_range

PREPARE_IT = "leave it out, or prepare the images again with it"


def open_dataset(config: Config) -> ImageDataset:
    """Return the data set that the config names.

    A known one (got first if need be), a prepared one, or a folder of images.

    Raises UserError where there is no such set, or what is there can't be used.
    """
    name, folder = config.data.data, Path(config.data.data)
    if name in named.NAMES:
        _refuse_tones(config.data, Tones(), name)
        return named.open_named(name)
    if not folder.is_dir():
        raise UserError(
            f"no data set {name!r}: give --data a folder of images, one that `fastgan data prepare` made "
            f"(it takes archives too), or one of {', '.join(named.NAMES)}"
        )
    if is_prepared(folder):
        prepared = PreparedDataset(folder)
        _refuse_tones(config.data, prepared.tones, name)
        return prepared
    data = config.data
    if data.channels not in MODES:
        raise UserError(f"channels is {data.channels}: give 1, 3 or 4")
    return FolderDataset(
        folder,
        data.image_size,
        data.channels,
        label_options(config),
        background=data.background,
        value_range=data.range,
        run_dir=config.run_dir,
    )


def _refuse_tones(data: DataConfig, tones: Tones, name: str) -> None:
    """Raise UserError where other tones are asked for than those of a set whose pixels are made already."""
    background, value_range = parse_background(data.background), parse_range(data.range)
    if background not in (None, tones.background):
        raise UserError(f"background is {data.background}: {name} lies on {tones.background}; {PREPARE_IT}")
    if data.range != AUTO and value_range != tones.value_range:
        has = FULL if tones.value_range is None else "{:g}:{:g}".format(*tones.value_range)
        raise UserError(f"range is {data.range}: {name} has the range {has}; {PREPARE_IT}")


def label_options(config: Config) -> LabelOptions:
    """Return which labels the networks of the config want."""
    data, networks = config.data, config.networks
    return LabelOptions(data.labels, networks.condition, data.label_column, data.file_column, networks.num_classes)


def locate(config: Config, last: str = "") -> Config:
    """Return the config with the whole path of its folder of images, where it is one.

    Where there is none of the name here it is the one that the run's `last` session had, under the same words.
    """
    path, known = Path(config.data.data).expanduser(), Path(last)
    if not path.is_dir() and known.is_dir() and known.parts[-len(path.parts) :] == path.parts:
        path = known
    if config.data.data in named.NAMES or not path.is_dir():
        return config
    return replace(config, data=replace(config.data, data=str(path.resolve())))


def num_images(config: Config) -> int:
    """Return how many images the config's data set has; a known one need not be here yet.

    Raises UserError as `open_source` does.
    """
    name = config.data.data
    return named.NUM_IMAGES[name] if name in named.NUM_IMAGES else len(open_dataset(config))


def check(config: Config, dataset: ImageDataset, num_processes: int = 1) -> None:
    """Check that the config can train on the set. Raises UserError that says what disagrees."""
    (height, width), batch_size = dataset.image_size, config.data.batch_size
    if isinstance(dataset, FolderDataset) and dataset.folder.resolve() == config.run_dir.resolve():
        raise UserError(f"run_dir is {config.run_dir}, where the images are: give another --run-dir")
    wanted, is_made = config.data.channels, isinstance(dataset, PreparedDataset)
    if (dataset.channels, dataset.image_size) != (config.data.channels, config.data.image_size):
        raise UserError(
            f"the data set {dataset.name} has {dataset.channels}-channel images of {height}x{width}: "
            f"give --channels {dataset.channels} --image-size {height} {width} and a network that makes them"
            f"{f', or prepare it with --channels {wanted}' * (dataset.channels != wanted and is_made)}"
        )
    _check_labels(config, dataset)
    if batch_size > len(dataset):
        raise UserError(
            f"batch_size is {batch_size}: the data set {dataset.name} has only {len(dataset)} images; "
            f"give --batch-size {len(dataset)} or less"
        )
    last = len(dataset) % batch_size if config.data.keep_partial_batch else 0
    if 0 < (last or batch_size) < num_processes:
        raise UserError(
            f"the smallest batch has {last or batch_size} images for {num_processes} processes: "
            "give --no-keep-partial-batch, another --batch-size or fewer processes"
        )


def _check_labels(config: Config, dataset: ImageDataset) -> None:
    """The set has what the networks are to be told. Raises UserError."""
    labels, networks = config.data.labels, config.networks
    if labels not in (AUTO, NO_LABELS) and not isinstance(dataset, FolderDataset):
        raise UserError(f"labels is {labels!r}: {dataset.name} has its own; leave it out, or prepare the set with it")
    if networks.condition == "vector":
        _check_vectors(networks.vector_dim, dataset)
    elif networks.num_classes:
        if dataset.labels is None or labels == NO_LABELS:
            raise UserError(_no_labels(config, dataset))
        _check_classes(networks.num_classes, dataset)


def _no_labels(config: Config, dataset: ImageDataset) -> str:
    origin = dataset.labels_origin if isinstance(dataset, FolderDataset) else NO_LABELS
    reason = origin.removeprefix(NO_LABELS)
    text = f"num_classes is {config.networks.num_classes}: the images of {dataset.name} have no labels{reason}; give 0"
    if config.preset.startswith("mnist28"):
        return f"{text}, or, as the preset {config.preset} is for digits, leave --preset out for one that suits them"
    return f"{text}, or images with a folder a class, or --labels FILE"


def _check_vectors(vector_dim: int, dataset: ImageDataset) -> None:
    labels = dataset.labels
    if labels is None or labels.ndim != 2:
        found = "no labels" if labels is None else "classes"
        raise UserError(
            f"condition is 'vector': the images of {dataset.name} have {found}, no vectors; "
            "give --condition class, or a file of vectors by --labels"
        )
    if labels.shape[1] != vector_dim:
        raise UserError(
            f"vector_dim is {vector_dim}: the vectors of {dataset.name} have {labels.shape[1]} numbers; give that"
        )


def _check_classes(num_classes: int, dataset: ImageDataset) -> None:
    assert dataset.labels is not None
    if dataset.labels.ndim == 2:
        raise UserError(
            f"num_classes is {num_classes}: the images of {dataset.name} have vectors, not classes; "
            f"give --condition vector --vector-dim {dataset.labels.shape[1]} --num-classes 0"
        )
    classes = dataset.classes
    if (found := len(classes) if classes else int(dataset.labels.max()) + 1) != num_classes:
        names = f" ({name_classes(classes)})" if classes else ""
        raise UserError(
            f"num_classes is {num_classes}: the data set {dataset.name} has {found}{names}; give that number, or 0"
        )
    empty = (dataset.labels.bincount(minlength=found) == 0).nonzero().flatten().tolist()
    if empty:
        names = name_classes([classes[number] for number in empty] if classes else [*map(str, empty)])
        raise UserError(f"the data set {dataset.name} has no image of class {names}: prepare it without, or give 0")


def summary(config: Config, dataset: ImageDataset) -> list[str]:
    """Return what the user should know of the set besides its images: its classes, and what is no part of it."""
    if isinstance(dataset, FolderDataset):
        return dataset.summary
    changes = dataset.changes() if isinstance(dataset, PreparedDataset) else []
    unused = label_options(config).unused_columns(f"{dataset.name} has its own labels, or none")
    return changes + unused + _labels_found(config, dataset)


def _labels_found(config: Config, dataset: ImageDataset) -> list[str]:
    labels, networks = dataset.labels, config.networks
    if labels is None or (networks.condition == "vector" and networks.is_conditional):
        return []
    if labels.ndim == 2:
        flags = label_options(config).ask_for_vectors(labels.shape[1])
        return [f"vectors of {labels.shape[1]} numbers found and not used: {flags}"]
    if dataset.classes is None or (len(dataset.classes) == 1 and not networks.num_classes):
        return []
    counts = labels.bincount(minlength=len(dataset.classes)).tolist()
    return [classes_line(dataset.classes, counts, networks.num_classes)]


def missed(dataset: ImageDataset) -> list[str]:
    """Return what has shown since the last time of images while they were read, in lines."""
    return dataset.missed() if isinstance(dataset, FolderDataset) else []


def choose_loader(config: Config, dataset: ImageDataset) -> tuple[str, str]:
    """Return the loader's name, and why."""
    if config.run.loader != "auto":
        return config.run.loader, "asked for"
    if isinstance(dataset, StackedDataset):
        return "torch", "drawn batch by batch"
    gib = len(dataset) * dataset.channels * dataset.image_size[0] * dataset.image_size[1] / 2**30
    if gib <= config.run.in_memory_gib:
        return "in_memory", f"{gib:.2f} GiB decoded, of the {config.run.in_memory_gib:g} that --in-memory-gib allows"
    if not isinstance(dataset, PreparedDataset):
        return "torch", f"{gib:.1f} GiB decoded are too much to keep, and the set isn't prepared"
    if dali.is_installed():
        return "dali", f"{gib:.1f} GiB decoded are too much to keep"
    return "torch", f"{gib:.1f} GiB decoded are too much to keep, and DALI isn't installed"


def require_room(config: Config, dataset: ImageDataset, device: torch.device, local_processes: int = 1) -> None:
    """Raise UserError where the set is to be kept in memory, by each of this machine's processes, and that isn't free.

    Before any of them takes it: what is free is less then.
    """
    if choose_loader(config, dataset)[0] == "in_memory":
        decoded = len(dataset) * dataset.channels * math.prod(dataset.image_size)
        what = f"loader is in_memory: the {len(dataset):,} images of {dataset.name}"
        require_free(decoded, device, what, "give --loader torch", local_processes)


def build_loader(
    config: Config,
    dataset: ImageDataset,
    device: torch.device,
    rank: int = 0,
    num_processes: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Loader:
    """Return the loader that the config asks for; `say` hears which and why. Raises UserError as `check` does."""
    check(config, dataset, num_processes)
    require_startable("workers", config.run.workers or None)
    kind, reason = choose_loader(config, dataset)
    require_room(config, dataset, device)
    say(f"data: {len(dataset):,} images of {dataset.name}; loader {kind} ({reason})")
    for line in summary(config, dataset):
        say(line)
    drawn = isinstance(dataset, StackedDataset)  # which is quicker than to hand it over
    workers = config.run.workers if config.run.workers is not None else 0 if drawn else torch.get_num_threads()
    if kind == "in_memory":
        return InMemoryLoader(BatchSampler(config, dataset, device, rank, num_processes, indices_on=device))
    sampler = BatchSampler(config, dataset, device, rank, num_processes)
    if kind == "torch":
        return TorchLoader(sampler, workers)
    if not isinstance(dataset, PreparedDataset):
        raise UserError(f"loader is 'dali': the set {dataset.name} isn't prepared; `fastgan data prepare` it first")
    return DaliLoader(sampler, dataset, max(1, workers))
