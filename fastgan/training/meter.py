"""Means of what the steps report, kept on the device until somebody asks."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from fastgan.distributed.collectives import all_gather, rank_and_world_size

NEVER = torch.iinfo(torch.int64).max  # images seen: where every term was a finite number


class Meter:
    """Sums of the metrics since the last reading, and the first step with a term that wasn't a finite number.

    One vector holds all sums, so that a step adds its metrics by a handful of operations however many there are. The
    means are of finite values alone: float16 leaves steps out that overflow, and their metrics tell nothing.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.count = 0  # steps since the last reading
        self.nonfinite_at = torch.full((), NEVER, device=device)  # images seen before that step, on the device
        self._totals = torch.zeros(2, 0, dtype=torch.float64, device=device)  # a column a name: sum, number of values
        self._columns: dict[str, int] = {}
        self._indices: dict[
            tuple[str, ...], Tensor
        ] = {}  # columns of a step's names: a lazy penalty isn't in every one
        self._reported: dict[tuple[str, ...], None] = {}  # since the last reading, in their order

    @torch.no_grad()
    def add(self, metrics: dict[str, Tensor], images_seen: int) -> None:
        """Add the metrics of the step that began at `images_seen`; nothing waits for the device."""
        names = tuple(metrics)
        self._reported[names] = None
        index = self._index(names)
        values = torch.stack(list(metrics.values())).double()
        finite = values.abs() < math.inf
        self._totals.index_add_(1, index, torch.stack([values.nan_to_num(0.0, 0.0, 0.0), finite]))
        self.nonfinite_at = torch.where(finite.all(), self.nonfinite_at, self.nonfinite_at.clamp(max=images_seen))
        self.count += 1

    def _index(self, names: tuple[str, ...]) -> Tensor:
        """The columns of the names, which are made where there are none yet."""
        if names not in self._indices:
            for name in names:
                self._columns.setdefault(name, len(self._columns))
            room = self._totals.new_zeros(2, len(self._columns) - self._totals.shape[1])
            self._totals = torch.cat([self._totals, room], dim=1)
            # Filled on the device, which a copy from the host would wait for.
            columns = [torch.full((1,), self._columns[name], device=self._totals.device) for name in names]
            self._indices[names] = torch.cat(columns)
        return self._indices[names]

    @property
    def _names(self) -> tuple[str, ...]:
        """What was reported since the last reading, in the order in which it first was."""
        return tuple(dict.fromkeys(itertools.chain.from_iterable(self._reported)))

    def _restart(self) -> None:
        self._totals.zero_()
        self._reported.clear()
        self.count = 0

    def read(self) -> dict[str, float]:
        """Return the means since the last reading, NaN where no value was finite, and start again."""
        sums, times = self._totals.tolist()
        columns = {name: self._columns[name] for name in self._names}
        self._restart()
        return {name: sums[column] / times[column] if times[column] else math.nan for name, column in columns.items()}

    def state(self) -> dict[str, Any]:
        """Return each process's sums and numbers of values; all processes must ask."""
        names = self._names
        totals = all_gather(self._totals[:, self._index(names)]).tolist() if names else []
        sums, times = ([dict(zip(names, rows[kind], strict=True)) for rows in totals] for kind in range(2))
        return {"sums": sums, "times": times, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take this process's own sums; other processes than then share the means of all."""
        (rank, count), sums, times = rank_and_world_size(), state["sums"], state["times"]
        sums = sums if isinstance(sums, list) else [sums]  # as checkpoints of one process once had them
        times = times if isinstance(times, list) else [times] * len(sums)  # as they once were, the same on all
        mine = [rows[rank] if len(rows) == count else mean_of(rows) for rows in (sums, times)]
        self._restart()
        if names := tuple(mine[0]):
            self._reported[names] = None
            index, values = self._index(names), [[totals[name] for name in names] for totals in mine]
            self._totals[:, index] = self._totals.new_tensor(values)
        self.count = state["count"]


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
