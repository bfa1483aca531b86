"""The loader that runs everywhere: torch's DataLoader, whose worker processes decode ahead."""

import multiprocessing
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastgan.data.batch import BatchSampler
from fastgan.data.prefetch import PrefetchLoader

# Forks of a threaded process hang, and a spawned worker that ends while torch hands on a batch aborts: the interpreter
# unwinds that thread through C++. A fork server has one thread, and its workers end without such a farewell.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class _Decoded(IterableDataset[Sequence[Tensor]]):
    """Every batch from `start` on; of n workers each decodes every n-th."""

    def __init__(self, sampler: BatchSampler, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        info = get_worker_info()
        number, count = (info.id, info.num_workers) if info is not None else (0, 1)
        images_seen, turn = self.start, 0
        while True:
            if turn % count == number:
                indices = self.sampler.dataset_indices(images_seen)
                pixels = self.sampler.dataset.pixels(indices).contiguous(memory_format=torch.channels_last)
                yield self.sampler.labelled(indices, pixels)
            images_seen, turn = self.sampler.global_positions(images_seen).stop, turn + 1


class TorchLoader(PrefetchLoader):
    """Batches decoded ahead by `num_workers` processes (0: by this one, when they are asked for)."""

    def __init__(self, sampler: BatchSampler, num_workers: int) -> None:
        super().__init__(sampler)
        self._num_workers = num_workers

    def _read(self, images_seen: int) -> Iterator[Sequence[Tensor]]:
        multiprocessing.set_forkserver_preload([__name__])  # torch is imported once, not by each worker
        return iter(
            DataLoader(
                _Decoded(self._sampler, images_seen),
                batch_size=None,
                num_workers=self._num_workers,
                pin_memory=self._sampler.device.type == "cuda",
                multiprocessing_context=START_METHOD if self._num_workers else None,
            )
        )
