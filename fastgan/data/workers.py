"""The loader that runs everywhere: torch's DataLoader, whose worker processes decode ahead."""

import multiprocessing
from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastgan.data.batch import Batch, Dealer

# Forks of a threaded process hang, and a spawned worker that ends while torch hands on a batch aborts: the interpreter
# unwinds that thread through C++. A fork server has one thread, and its workers end without such a farewell.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class _Decoded(IterableDataset[tuple[int, Tensor]]):
    """The pixels of every batch from `start` on; of n workers each decodes every n-th batch."""

    def __init__(self, dealer: Dealer, start: int) -> None:
        self.dealer, self.start = dealer, start

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        info = get_worker_info()
        number, count = (info.id, info.num_workers) if info is not None else (0, 1)
        place, turn = self.start, 0
        while True:
            if turn % count == number:
                yield place, self.dealer.source.pixels(self.dealer.items(place)).contiguous()
            place, turn = self.dealer.whole(place).stop, turn + 1


class WorkersLoader:
    """Batches in their order, decoded ahead by `num_workers` processes (0: by this one); a jump starts them anew."""

    def __init__(self, dealer: Dealer, num_workers: int) -> None:
        self._dealer, self.num_images, self._num_workers = dealer, dealer.num_images, num_workers
        self._batches: Iterator[tuple[int, Tensor]] = iter(())
        self._next = -1

    def batch(self, images_seen: int) -> Batch:
        """This process's share of the batch that starts at `images_seen`."""
        if images_seen != self._next:
            self._start(images_seen)
        place, pixels = next(self._batches)
        assert place == images_seen
        self._next = self._dealer.whole(images_seen).stop
        return self._dealer.batch(images_seen, pixels, self._dealer.labels(self._dealer.items(images_seen)))

    def _start(self, images_seen: int) -> None:
        multiprocessing.set_forkserver_preload([__name__])  # torch is imported once, not by each worker
        self._batches = iter(
            DataLoader(
                _Decoded(self._dealer, images_seen),
                batch_size=None,
                num_workers=self._num_workers,
                pin_memory=self._dealer.device.type == "cuda",
                multiprocessing_context=START_METHOD if self._num_workers else None,
            )
        )
