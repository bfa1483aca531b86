"""What every loader yields, what the trainer knows of a loader, and what the loaders share."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastgan.config import Config
from fastgan.data.images import ImageSource
from fastgan.data.sampler import CPU, Order, batch_positions, largest_share, share
from fastgan.kernels.unpack import unpack
from fastgan.utils import rng
from fastgan.utils.rng import Stream


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch, on the training device."""

    pixels: Tensor  # [B, C, H, W], uint8, channels last in memory
    labels: Tensor | None  # [B], int64
    index: Tensor  # [B], int64: each image's number since the start of training, the key of all its randomness
    global_size: int  # images of all processes
    mirror: Tensor | None = None  # [B], bool: those seen with left and right exchanged
    of_g: "Batch | None" = None  # what G's phase answers, where it has reals of its own; None: this batch

    @property
    def for_g(self) -> "Batch":
        """What G's phase compares with, and whose classes its fakes have."""
        return self if self.of_g is None else self.of_g

    @property
    def reals(self) -> Tensor:
        """The images as D sees them: [B, C, H, W] in [-1, 1], of torch's default dtype (float32)."""
        return unpack(self.pixels, self.mirror, dtype=torch.get_default_dtype(), channels_last=True)

    def part(self, place: slice) -> "Batch":
        """Return some of these images, still of the same global batch, for one of the two phases."""
        labels, mirror = (None if values is None else values[place] for values in (self.labels, self.mirror))
        return Batch(self.pixels[place], labels, self.index[place], self.global_size, mirror)


class Loader(Protocol):
    """Batches as a function of the images seen."""

    num_images: int

    def batch(self, images_seen: int) -> Batch: ...


class Dealer:
    """Which images make the batch at a place, and what becomes of their pixels: the same for every loader.

    Batches are for `device`; the numbers of their items are on `items_on`, where a loader looks their pixels up.
    """

    def __init__(
        self,
        config: Config,
        source: ImageSource,
        device: torch.device,
        rank: int = 0,
        num_processes: int = 1,
        items_on: torch.device = CPU,
    ) -> None:
        self.source, self.device, self.num_images = source, device, len(source)
        self._config, self._rank, self._num_processes = config, rank, num_processes
        streams = [(Stream.ORDER, Stream.MIRROR)]
        if not config.objective.reuse_reals:
            streams.append((Stream.ORDER_G, Stream.MIRROR_G))
        self._roles = [(Order(len(source), config.seed, order, items_on), mirror) for order, mirror in streams]
        self.most_items = len(self._roles) * largest_share(config.data.batch_size, num_processes)

    def whole(self, images_seen: int) -> range:
        """The positions of the batch that starts at `images_seen`, all processes together."""
        data = self._config.data
        return batch_positions(images_seen, self.num_images, data.batch_size, data.keep_partial_batch)

    def mine(self, images_seen: int) -> range:
        """This process's part of them."""
        return share(self.whole(images_seen), self._rank, self._num_processes)

    def items(self, images_seen: int) -> Tensor:
        """Return the numbers in the set of the images of that part, int64.

        They are D's [B], then, where G has reals of its own, G's [B].
        """
        found = [order.items(self.mine(images_seen)) for order, _ in self._roles]
        return found[0] if len(found) == 1 else torch.cat(found)

    def labelled(self, items: Tensor, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the pixels and, where the set has labels, those of the items, int64 on the CPU."""
        return (pixels,) if self.source.labels is None else (pixels, self.source.labels[items])

    def batch(self, images_seen: int, pixels: Tensor, labels: Tensor | None = None) -> Batch:
        """Make the batch of its items' pixels, uint8 [items, C, H, W], and labels, on the device."""
        mine, size = self.mine(images_seen), len(self.whole(images_seen))
        index = torch.arange(mine.start, mine.stop, device=self.device)

        mirrors = [self._mirror(stream, index) for _, stream in self._roles]
        whole = Batch(pixels, labels, index, size, mirrors[0])
        if len(mirrors) == 1:
            return whole
        of_d, of_g = (slice(number * len(mine), (number + 1) * len(mine)) for number in range(2))
        g_labels, d_labels = (None if labels is None else labels[part] for part in (of_g, of_d))
        part_of_g = Batch(pixels[of_g], g_labels, index, size, mirrors[1])
        return Batch(pixels[of_d], d_labels, index, size, mirrors[0], part_of_g)

    def _mirror(self, stream: Stream, index: Tensor) -> Tensor | None:
        if not self._config.data.mirror:
            return None
        return rng.uniform(rng.keys(self._config.seed, stream, index), 1)[:, 0] >= 0.5
