"""What metrics need of the real images, taken once and kept."""

import contextlib
from hashlib import sha256
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from fastgan.data.images import ImageDataset
from fastgan.data.named import cache_dir
from fastgan.data.sampler import Sampler
from fastgan.distributed.collectives import all_reduce_min, rank_and_world_size
from fastgan.evaluation.distances import radii
from fastgan.evaluation.extractors import Extractor
from fastgan.evaluation.features import (
    BATCH_SIZE,
    Collector,
    FeatureStatistics,
    Gaussian,
    ahead,
    all_or_none,
    batches,
)
from fastgan.utils.files import write_atomically

STATISTICS_VERSION = 2


class RealStatistics(NamedTuple):
    """What metrics need of the real images; the same on every process."""

    gaussian: Gaussian
    features: Tensor  # [up to 10,000, F], float32: of a random part of the set
    radii: Tensor  # [up to 10,000, 2]: see `distances.radii`
    num_images: int


class Subset:
    """Some images of a set, as a set."""

    def __init__(self, dataset: ImageDataset, items: Tensor, name: str) -> None:
        self.dataset, self.items, self.name = dataset, items, name
        self.channels, self.image_size = dataset.channels, dataset.image_size
        self.labels = None if dataset.labels is None else dataset.labels[items]
        self.classes = dataset.classes

    def __len__(self) -> int:
        return len(self.items)

    def pixels(self, items: Tensor) -> Tensor:
        """Return the images of the given numbers, uint8 [B, C, H, W]."""
        return self.dataset.pixels(self.items[items])

    def content_hash(self) -> str:
        """Return a hash of the whole set's and of which images these are."""
        digest = sha256(self.dataset.content_hash().encode())
        digest.update(self.items.numpy().tobytes())
        return digest.hexdigest()[:16]


def key(dataset: ImageDataset, extractor: Extractor) -> str:
    """Return what the statistics depend on: content, transform, the extractor's weights, this code's version."""
    seen = sha256(f"{extractor.version} {extractor.transform}".encode()).hexdigest()[:16]
    return f"{dataset.content_hash()}-{extractor.name}-{seen}-v{STATISTICS_VERSION}"


def collect_set(
    dataset: ImageDataset,
    extractor: Extractor,
    device: torch.device,
    *,
    is_shuffled: bool,
    batch_size: int = BATCH_SIZE,
) -> FeatureStatistics:
    """Return what metrics need of the set: as it lies, or in its order of seed 0, whose first ones are a random part.

    All processes call it, each for its share; all have the same in the end.
    """
    order = Sampler(len(dataset), seed=0)

    def read(numbers: range) -> Tensor:
        return dataset.pixels(order.dataset_indices(numbers) if is_shuffled else torch.tensor(numbers))

    collector = Collector(extractor, len(dataset), device)
    with all_or_none():
        for numbers, images in ahead(batches(len(dataset), batch_size), read):
            collector.add(numbers, images.to(device))
    return collector.finish()


def real_statistics(
    dataset: ImageDataset,
    extractor: Extractor,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
) -> RealStatistics:
    """Return the set's statistics, from the cache where the same images and extractor were measured before.

    All processes call it; where one has no cached ones, all extract.
    """
    path = cache_dir() / "statistics" / f"{key(dataset, extractor)}.safetensors"
    kept = _read(path.read_bytes(), len(dataset)) if path.exists() else None
    if all_reduce_min(int(kept is not None)) and kept is not None:
        return kept
    found = collect_set(dataset, extractor, device, is_shuffled=True, batch_size=batch_size)
    made = RealStatistics(found.gaussian, found.features, radii(found.features), len(dataset))
    if rank_and_world_size()[0] == 0:
        tensors = {"mean": made.gaussian.mean, "root": made.gaussian.root}
        tensors |= {"features": made.features, "radii": made.radii}
        data = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()})
        with contextlib.suppress(OSError):  # without a cache the next evaluation is slower, no more
            write_atomically(path, data)
    return made


def _read(data: bytes, num_images: int) -> RealStatistics | None:
    """The statistics in a cached file's bytes; None where they are damaged, which is only a slower start."""
    try:
        kept = safetensors.torch.load(data)
        gaussian = Gaussian(kept["mean"], kept["root"])
        return RealStatistics(gaussian, kept["features"], kept["radii"], num_images)
    except (KeyError, safetensors.SafetensorError):
        return None
