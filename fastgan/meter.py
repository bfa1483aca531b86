"""Means of what the steps report, kept on the device until somebody asks."""

from typing import Any

import torch
from torch import Tensor

from fastgan.networks.layers import all_values, place


class Meter:
    """Sums of terms since the last reading, and the first place where one of them wasn't finite."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._times: dict[str, int] = {}  # how often each was reported: a lazy penalty isn't in every step
        self.count = 0
        self._nonfinite_at: Tensor | None = None

    @torch.no_grad()
    def add(self, terms: dict[str, Tensor], images_seen: int) -> None:
        """Take in the terms of the step that began at `images_seen`; nothing waits for the device."""
        values = torch.stack([value.double() for value in terms.values()])
        if self._nonfinite_at is None:
            self._nonfinite_at = torch.full((), -1, device=values.device)
        bad = ~values.isfinite().all() & (self._nonfinite_at < 0)
        self._nonfinite_at = torch.where(bad, images_seen, self._nonfinite_at)
        for name, value in zip(terms, values.unbind(), strict=True):
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._times[name] = self._times.get(name, 0) + 1
        self.count += 1

    def first_nonfinite(self) -> int | None:
        """The images seen before the first step with a term that isn't a finite number; None where there is none."""
        place = -1 if self._nonfinite_at is None else int(self._nonfinite_at)
        return None if place < 0 else place

    def read(self) -> dict[str, float]:
        """The means since the last reading; then the count starts anew."""
        means = {name: float(total) / self._times[name] for name, total in self._sums.items()}
        self._sums, self._times, self.count = {}, {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Of all processes, who must all ask: each one's sums."""
        totals = [] if not self._sums else all_values(torch.stack(list(self._sums.values()))).tolist()
        return {"sums": [dict(zip(self._sums, row, strict=True)) for row in totals], "times": dict(self._times)} | {
            "count": self.count
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """This process has its own sums again; other processes than then share the means of all."""
        (rank, count), sums = place(), state["sums"]
        sums = sums if isinstance(sums, list) else [sums]  # as checkpoints of one process once had them
        mine = sums[rank] if len(sums) == count else mean_of(sums)
        self._sums = {name: torch.tensor(total, dtype=torch.float64) for name, total in mine.items()}
        self._times, self.count = dict(state["times"]), state["count"]


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
