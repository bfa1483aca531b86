"""The loader that runs everywhere: torch's DataLoader, whose worker processes decode ahead."""

import atexit
import multiprocessing
import sys
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastgan.data.batch import BatchSampler
from fastgan.data.prefetch import PrefetchLoader
from fastgan.errors import UserError, first_line
from fastgan.utils.workers import begin_worker, script_hidden, worker_context


class _Decoded(IterableDataset[Sequence[Tensor] | UserError]):
    """Every batch from `start` on, or why there is none; of n workers each decodes every n-th."""

    def __init__(self, sampler: BatchSampler, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[Sequence[Tensor] | UserError]:
        info = get_worker_info()
        number, count = (info.id, info.num_workers) if info is not None else (0, 1)
        images_seen, turn = self.start, 0
        while True:
            if turn % count == number:
                try:
                    yield self._read(images_seen)
                except UserError as error:  # raised in a worker it would be a traceback
                    yield error
                    return
            images_seen, turn = self.sampler.global_positions(images_seen).stop, turn + 1

    def _read(self, images_seen: int) -> Sequence[Tensor]:
        indices = self.sampler.dataset_indices(images_seen)
        pixels = self.sampler.dataset.pixels(indices).contiguous(memory_format=torch.channels_last)
        return self.sampler.labelled(indices, pixels)


def _checked(batch: Sequence[Tensor] | UserError) -> Sequence[Tensor]:
    if isinstance(batch, UserError):
        raise batch
    return batch


class TorchLoader(PrefetchLoader):
    """Batches decoded ahead by `num_workers` processes (0: by this one, when they are asked for)."""

    def __init__(self, sampler: BatchSampler, num_workers: int) -> None:
        super().__init__(sampler)
        self._num_workers = num_workers

    def _read(self, images_seen: int) -> Iterator[Sequence[Tensor]]:
        return map(_checked, _decoded(self._sampler, self._num_workers, images_seen))


# Functions, not methods: what reads must not hold the loader, with which its workers end.
def _decoded(sampler: BatchSampler, num_workers: int, images_seen: int) -> Iterator[Sequence[Tensor] | UserError]:
    if num_workers:
        images_seen = yield from _decoded_by_workers(sampler, num_workers, images_seen)
    yield from _Decoded(sampler, images_seen)


def _decoded_by_workers(
    sampler: BatchSampler, num_workers: int, images_seen: int
) -> Generator[Sequence[Tensor] | UserError, None, int]:
    """Yield what the workers decode until one of them dies; return where it would have gone on."""
    loader = DataLoader(
        _Decoded(sampler, images_seen),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=sampler.device.type == "cuda",
        multiprocessing_context=worker_context(__name__),
        worker_init_fn=_begin_worker,
    )
    with script_hidden():
        batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except (RuntimeError, EOFError, OSError) as error:
            if "in DataLoader worker process" in str(error):  # which raised it itself
                raise
            told = f"a loader's process died ({first_line(error)}): from here on this process decodes by itself"
            print(told, file=sys.stderr, flush=True)
            return images_seen
        images_seen = sampler.global_positions(images_seen).stop
        yield batch


@atexit.register
def _end_workers() -> None:
    """End this process's workers, which are deaf to what multiprocessing would send them and wait for."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _begin_worker(number: int) -> None:
    begin_worker()
