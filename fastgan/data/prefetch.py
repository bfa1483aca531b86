"""What the loaders share that read ahead: batches in their order, and their way to a GPU beside the step."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.data.batch import Batch, BatchSampler


class PrefetchLoader(ABC):
    """Batches that are read in their order, ahead of the step; a jump starts reading again at the place asked for."""

    def __init__(self, sampler: BatchSampler) -> None:
        self._sampler, self.num_images = sampler, sampler.num_images
        self._batches: Iterator[Sequence[Tensor]] = iter(())
        self._next = -1  # where the next batch begins that comes without a jump

    def batch(self, images_seen: int) -> Batch:
        """Return this process's share of the batch that starts at `images_seen`."""
        if images_seen != self._next:
            batches, device = self._read(images_seen), self._sampler.device
            self._batches = Prefetcher(batches, device) if device.type == "cuda" else batches
        pixels, *labels = next(self._batches)
        self._next = self._sampler.global_positions(images_seen).stop
        return self._sampler.batch(images_seen, pixels, *labels)

    @abstractmethod
    def _read(self, images_seen: int) -> Iterator[Sequence[Tensor]]:
        """Read pixels, and labels where there are any, of every batch from `images_seen` on, without end.

        A tensor that is on a GPU is complete on torch's current stream there, on which it is copied.
        """


@dataclass(frozen=True)
class _Copy:
    """A batch on its way to the GPU."""

    sources: Sequence[Tensor]
    tensors: Sequence[Tensor]
    done: torch.cuda.Event


class Prefetcher(Iterator[Sequence[Tensor]]):
    """Batches on the GPU, each copied on a stream of its own while the step before it is computed.

    On the step's stream a copy would wait for the step before it, and hold up the step after it.
    """

    def __init__(self, batches: Iterator[Sequence[Tensor]], device: torch.device) -> None:
        self._batches, self._device, self._stream = batches, device, torch.cuda.Stream(device)
        self._next: _Copy | None = None
        self._unfinished: list[_Copy] = []  # handed out while their copies ran: till these end their sources stay

    def __next__(self) -> Sequence[Tensor]:
        ready = self._next or self._start()
        self._next = self._start()
        self._unfinished = [copy for copy in (*self._unfinished, ready) if not copy.done.query()]
        step = torch.cuda.current_stream(self._device)
        step.wait_event(ready.done)
        for tensor in ready.tensors:
            tensor.record_stream(step)  # else its memory could be written again while a step still reads it
        return ready.tensors

    def _start(self) -> _Copy:
        """Start to copy the next batch; nothing waits for it."""
        with torch.cuda.stream(self._stream):
            sources = [tensor if tensor.is_cuda else tensor.pin_memory() for tensor in next(self._batches)]
            tensors = [tensor.to(self._device, non_blocking=True, copy=True) for tensor in sources]
            return _Copy(sources, tensors, self._stream.record_event())
