"""Whole training steps as CUDA graphs: recorded once, then replayed, which costs the host one launch a step.

What a step computes with lies in fixed places: weights and states as ever, the batch and what schedules change in
buffers that are filled before each replay. A schedule that stands still is recorded as the number that it is.
"""

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.data.batch import Batch
from fastgan.errors import first_line
from fastgan.training.objectives import Metrics
from fastgan.training.schedules import StepHyperparameters

MOST = 16  # recorded kinds of steps; more are a sign that something changes at each step that shouldn't


@dataclass(frozen=True)
class _Recording:
    """One kind of step: how it is done again, what it reads and what it leaves behind."""

    replay: Callable[[], object]
    batch: Batch
    numbers: Tensor  # of the schedules that move
    metrics: Metrics


class CudaGraphSteps:
    """`play` by replaying: each kind of step runs as it is the first time, is recorded the second, and replayed then.

    Where a step can't be recorded all run as they are, after `forget` has cleared what the attempt left behind.

    A kind is a shape of batches, the schedules that stand still with their values, and those that are 0, which leaves
    penalties and augmentations out.
    """

    def __init__(
        self, play: Callable[[Batch, StepHyperparameters], Metrics], device: torch.device, forget: Callable[[], None]
    ) -> None:
        self._play, self._device, self._forget = play, device, forget
        self._recordings: dict[Hashable, _Recording] = {}
        self._seen: set[Hashable] = set()
        self._last: dict[Hashable, list[float]] = {}  # the numbers of the last step with the same zeros
        self._pool: Any = None
        self.failure: str | None = None  # why nothing is recorded any more

    def __call__(self, batch: Batch, hparams: StepHyperparameters) -> Metrics:
        numbers = _numbers(hparams)
        shapes = tuple((value.shape, value.stride()) for value in _tensors(batch))
        zeros = (batch.global_size, *shapes, *(number == 0 for number in numbers))
        last = self._last.get(zeros, numbers)
        self._last[zeros] = numbers
        moves = [number != before for number, before in zip(numbers, last, strict=True)]
        kind = (zeros, *(None if moving else number for moving, number in zip(moves, numbers, strict=True)))
        if kind in self._recordings:
            return self._replay(self._recordings[kind], batch, numbers, moves)
        known = kind in self._seen
        self._seen.add(kind)
        if not known or self.failure is not None or len(self._recordings) == MOST:
            return self._play(batch, hparams)
        try:
            self._recordings[kind] = self._record(batch, hparams, moves)
        except RuntimeError as error:  # out of memory, or what no graph can hold; nothing has been done yet
            self.failure = first_line(error)
            self._forget()
            return self._play(batch, hparams)
        return self._replay(self._recordings[kind], batch, numbers, moves)

    def _record(self, batch: Batch, hparams: StepHyperparameters, moves: list[bool]) -> _Recording:
        mine = _clone(batch)
        moving = torch.zeros(sum(moves), dtype=torch.float64, device=self._device)
        given = _with_numbers(hparams, moves, iter(moving.unbind()))
        replay, metrics = self._capture(lambda: self._play(mine, given))
        return _Recording(replay, mine, moving, metrics)

    def _capture(self, work: Callable[[], Metrics]) -> tuple[Callable[[], object], Metrics]:
        """Record the work, which is not done yet; return how to do it, and where its results will be."""
        graph = torch.cuda.CUDAGraph()
        # Other threads (the writer of checkpoints, a loader) may ask the device for what a recording can't hold.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            metrics = work()
        self._pool = graph.pool()
        return graph.replay, metrics

    def _replay(self, recording: _Recording, batch: Batch, numbers: list[float], moves: list[bool]) -> Metrics:
        for mine, value in zip(_tensors(recording.batch), _tensors(batch), strict=True):
            mine.copy_(value, non_blocking=True)
        if any(moves):
            moving = [number for number, moves_on in zip(numbers, moves, strict=True) if moves_on]
            # torch keeps pinned memory from being used again before the copy is done.
            pinned = torch.tensor(moving, dtype=torch.float64, pin_memory=self._device.type == "cuda")
            recording.numbers.copy_(pinned, non_blocking=True)
        recording.replay()
        return recording.metrics


def _tensors(batch: Batch) -> list[Tensor]:
    """The batch's tensors, those of the part for G, too, in the order of their fields."""
    found: list[Tensor] = []
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        found += _tensors(value) if isinstance(value, Batch) else [value] if isinstance(value, Tensor) else []
    return found


def _clone(batch: Batch) -> Batch:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        changes[field.name] = _clone(value) if isinstance(value, Batch) else value
        if isinstance(value, Tensor):
            changes[field.name] = value.clone()
    return dataclasses.replace(batch, **changes)


def _numbers(hparams: StepHyperparameters) -> list[float]:
    """All schedules' numbers in the order of their fields."""
    found: list[Any] = []
    for value in vars(hparams).values():
        found += value if isinstance(value, tuple) else [value]
    return found


def _with_numbers(hparams: StepHyperparameters, moves: list[bool], tensors: Any) -> StepHyperparameters:
    """The hparams with a tensor instead of each number that moves."""
    moving = iter(moves)

    def put(value: Any) -> Any:
        return next(tensors) if next(moving) else value

    fields = vars(hparams).items()
    changes: dict[str, Any] = {name: tuple(map(put, v)) if isinstance(v, tuple) else put(v) for name, v in fields}
    return dataclasses.replace(hparams, **changes)
