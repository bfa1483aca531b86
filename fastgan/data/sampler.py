"""(seed, position) -> which image: the order of a run, the same on every number of processes and after every resume."""

import torch
from torch import Tensor

from fastgan.utils import rng
from fastgan.utils.rng import RngStream

CPU = torch.device("cpu")


class Sampler:
    """An endless sequence of item numbers in which every epoch is a permutation of its own.

    It is computed and kept on `device`, from integers, so that it is the same on every device.
    """

    def __init__(
        self, num_images: int, seed: int, stream: RngStream = RngStream.ORDER, device: torch.device = CPU
    ) -> None:
        self.num_images, self.seed, self.stream, self.device = num_images, seed, stream, device
        self._epochs: dict[int, Tensor] = {}

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            number = torch.full((1,), epoch, device=self.device)  # filled there: a copy of it would wait for the device
            key = rng.keys(self.seed, self.stream, number)
            kept = list(self._epochs.items())[-1:]  # two in all: a batch may run across an epoch's end
            self._epochs = dict([*kept, (epoch, rng.bits(key, self.num_images)[0].argsort(stable=True))])
        return self._epochs[epoch]

    def dataset_indices(self, positions: range) -> Tensor:
        """Return the items at the given positions since the start of training, int64, on the order's device."""
        parts = []
        start = positions.start
        while start < positions.stop:
            epoch, offset = divmod(start, self.num_images)
            parts.append(self._epoch(epoch)[offset : offset + positions.stop - start])
            start += len(parts[-1])
        if len(parts) == 1:  # as nearly always: nothing is copied
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=self.device)


def batch_positions(images_seen: int, num_images: int, batch_size: int, keep_partial: bool) -> range:
    """Return the positions of the batch that starts at `images_seen`.

    With `keep_partial` it ends where the epoch ends.
    """
    size = batch_size
    if keep_partial:
        size = min(size, num_images - images_seen % num_images)
    return range(images_seen, images_seen + size)


def num_steps(total_images: int, num_images: int, batch_size: int, keep_partial: bool) -> int:
    """Return the steps from the start of training to where `total_images` have been seen."""
    if not keep_partial:
        return -(-total_images // batch_size)
    epochs, rest = divmod(total_images, num_images)
    return epochs * -(-num_images // batch_size) + -(-rest // batch_size)


def largest_local_batch(batch_size: int, num_processes: int) -> int:
    """Return the most images of a batch that one process has."""
    return -(-batch_size // num_processes)


def local_shard(positions: range, rank: int, num_processes: int) -> range:
    """Return one process's contiguous part of a batch; the parts differ in length by one at most."""
    start, stop = (len(positions) * part // num_processes for part in (rank, rank + 1))
    return positions[start:stop]
