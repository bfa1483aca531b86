"""What every loader yields, what the trainer knows of a loader, and what the loaders share."""

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastgan.config import Config
from fastgan.data.images import ImageDataset
from fastgan.data.sampler import CPU, Sampler, batch_positions, largest_local_batch, local_shard
from fastgan.kernels.unpack import unpack
from fastgan.utils import rng
from fastgan.utils.rng import RngStream


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch, on the training device."""

    pixels: Tensor  # [B, C, H, W], uint8, channels last in memory
    labels: Tensor | None  # classes [B], int64, or vectors [B, K], float32
    sample_ids: Tensor  # [B], int64: each image's number since the start of training, the key of all its randomness
    global_size: int  # images of all processes
    mirror: Tensor | None = None  # [B], bool: those seen with left and right exchanged
    of_g: "Batch | None" = None  # what G's phase answers, where it has reals of its own; None: this batch

    @property
    def for_g(self) -> "Batch":
        """Return the reals that G's phase compares with, and whose classes its fakes have."""
        return self if self.of_g is None else self.of_g

    @property
    def reals(self) -> Tensor:
        """Return the images as D sees them: [B, C, H, W] in [-1, 1], of torch's default dtype (float32)."""
        return unpack(self.pixels, self.mirror, dtype=torch.get_default_dtype(), channels_last=True)

    def micro_batch(self, indices: slice) -> "Batch":
        """Return some of these images, still of the same global batch, for one of the two phases."""
        labels, mirror = (None if values is None else values[indices] for values in (self.labels, self.mirror))
        return Batch(self.pixels[indices], labels, self.sample_ids[indices], self.global_size, mirror)

    def split(self, micro_batch_size: int | None, num_processes: int) -> list[tuple[slice, "Batch"]]:
        """Split into micro-batches of about equal size, as many in all processes; with each come its indices.

        None keeps the batch whole.
        """
        if micro_batch_size is None:
            return [(slice(None), self)]
        largest = largest_local_batch(self.global_size, num_processes)
        count = min(-(-largest // micro_batch_size), max(1, self.global_size // num_processes))
        ends = [len(self.pixels) * number // count for number in range(count + 1)]
        slices = [slice(start, end) for start, end in itertools.pairwise(ends)]
        return [(indices, self.micro_batch(indices)) for indices in slices]


class Loader(Protocol):
    """Batches as a function of the images seen."""

    num_images: int

    def batch(self, images_seen: int) -> Batch: ...


class BatchSampler:
    """Choose the images of each batch and turn their pixels into it: the same for every loader.

    Batches are on `device`; the indices of their images on `indices_on`, where a loader looks their pixels up.
    """

    def __init__(
        self,
        config: Config,
        dataset: ImageDataset,
        device: torch.device,
        rank: int = 0,
        num_processes: int = 1,
        indices_on: torch.device = CPU,
    ) -> None:
        self.dataset, self.device, self.num_images = dataset, device, len(dataset)
        self._config, self._rank, self._num_processes = config, rank, num_processes
        streams = [(RngStream.ORDER, RngStream.MIRROR)]
        if not config.objective.reuse_reals:
            streams.append((RngStream.ORDER_G, RngStream.MIRROR_G))
        self._roles = [(Sampler(len(dataset), config.seed, order, indices_on), mirror) for order, mirror in streams]
        self.max_images = len(self._roles) * largest_local_batch(config.data.batch_size, num_processes)

    def global_positions(self, images_seen: int) -> range:
        """Return the positions, in the run, of the batch that starts at `images_seen`, of all processes."""
        data = self._config.data
        return batch_positions(images_seen, self.num_images, data.batch_size, data.keep_partial_batch)

    def local_positions(self, images_seen: int) -> range:
        """Return this process's part of them."""
        return local_shard(self.global_positions(images_seen), self._rank, self._num_processes)

    def dataset_indices(self, images_seen: int) -> Tensor:
        """Return the data set's indices of that part's images, int64: D's [B], then G's [B] where it has its own."""
        found = [order.dataset_indices(self.local_positions(images_seen)) for order, _ in self._roles]
        return found[0] if len(found) == 1 else torch.cat(found)

    def labelled(self, indices: Tensor, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the pixels and, where the set has labels, those of the indices, on the CPU."""
        return (pixels,) if self.dataset.labels is None else (pixels, self.dataset.labels[indices])

    def batch(self, images_seen: int, pixels: Tensor, labels: Tensor | None = None) -> Batch:
        """Make the batch of its images' pixels, uint8 [indices, C, H, W], and labels [indices], on the device."""
        local, size = self.local_positions(images_seen), len(self.global_positions(images_seen))
        sample_ids = torch.arange(local.start, local.stop, device=self.device)

        mirrors = [self._mirror(stream, sample_ids) for _, stream in self._roles]
        if len(mirrors) == 1:
            return Batch(pixels, labels, sample_ids, size, mirrors[0])
        for_d, for_g = slice(0, len(local)), slice(len(local), 2 * len(local))
        d_labels, g_labels = (None if labels is None else labels[part] for part in (for_d, for_g))
        of_g = Batch(pixels[for_g], g_labels, sample_ids, size, mirrors[1])
        return Batch(pixels[for_d], d_labels, sample_ids, size, mirrors[0], of_g)

    def _mirror(self, stream: RngStream, sample_ids: Tensor) -> Tensor | None:
        if not self._config.data.mirror:
            return None
        return rng.uniform(rng.keys(self._config.seed, stream, sample_ids), 1)[:, 0] >= 0.5
