"""Checkpoints, the best one and snapshots of averages, written while training goes on."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgan.config import Config
from fastgan.distributed.processes import Processes
from fastgan.monitor.asides import Asides
from fastgan.runs.async_writer import AsyncWriter
from fastgan.runs.checkpoint import BEST, Checkpoints
from fastgan.runs.ema_snapshots import EmaSnapshots
from fastgan.runs.run_folder import RunFolder
from fastgan.training.trainer import Trainer


class Saving:
    """Save a trainer's state; the main process writes, the others give their parts of it.

    `saved` is called on each process with the images seen of a checkpoint that is on disk.
    """

    def __init__(
        self, config: Config, folder: RunFolder, processes: Processes, asides: Asides, saved: Callable[[int], None]
    ) -> None:
        self._folder, self._device, self._asides, self._saved = folder, processes.device, asides, saved
        self._checkpoints = Checkpoints(folder.checkpoints, config.run.keep_checkpoints)
        self.ema_snapshots = EmaSnapshots(folder.averages, config.optimizer.ema_stds)
        self.writer = AsyncWriter() if processes.is_main else None
        if processes.is_main:
            self.ema_snapshots.remove_partial()
        self._pause_ms: dict[str, float] = {}  # what the last of each kind cost, until a row shows it
        self._taken_part: int | None = None  # in which checkpoint last

    def checkpoint(self, trainer: Trainer) -> None:
        """Have a checkpoint of this very step on disk soon; training may go on meanwhile.

        Raises Diverged where there is nothing worth keeping, and what an earlier write raised: UserError where it was a
        checkpoint's.
        """
        if self._asides.is_done("checkpoint", trainer):
            return
        with self._pause("checkpoint"):
            self._asides.check_finite(trainer)
            tensors, state = trainer.state()  # all processes take part
            if self.writer is not None:
                self.writer.save("checkpoint", tensors, lambda copies: self._write(copies, state))
            elif self._taken_part is not None:
                self._saved(self._taken_part)  # the main process has written it by now
        self._taken_part = trainer.images_seen

    def _write(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        self._checkpoints.save(tensors, state)
        self._saved(state["images_seen"])

    def best(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Have a checkpoint of this step in best/, instead of an earlier one."""
        with self._pause("best"):
            self._asides.check_finite(trainer)
            tensors, state = trainer.state()  # all processes take part
            if self.writer is not None:
                best = Checkpoints(self._folder.path / BEST, keep=1)
                state = state | {"metrics": metrics}
                self.writer.save("best", tensors, lambda copies: best.save(copies, state))

    def ema_snapshot(self, trainer: Trainer) -> None:
        """Save a snapshot of each power-function average. Raises as `checkpoint` does."""
        if not self.ema_snapshots.stds or self._asides.is_done("average", trainer):
            return
        with self._pause("average"):
            self._asides.check_finite(trainer)
            if self.writer is not None:
                self.ema_snapshots.save(trainer.power.nets, trainer.images_seen, self.writer)

    def figures(self) -> dict[str, float]:
        """Return what saving cost since the last call: training's pauses, and what the thread took to write."""
        figures = {f"speed/{kind}_pause_ms": spent for kind, spent in self._pause_ms.items()}
        self._pause_ms = {}
        if self.writer is not None:
            figures |= {f"speed/{kind}_write_s": spent for kind, spent in self.writer.finished().items()}
        return figures

    def close(self) -> None:
        """Wait until everything is written."""
        if self.writer is not None:
            self.writer.close()

    def raise_if_failed(self) -> None:
        """Raise what a write in the background raised."""
        if self.writer is not None:
            self.writer.raise_if_failed()

    @contextlib.contextmanager
    def _pause(self, kind: str) -> Iterator[None]:
        """Count the time of the block as what saving cost training."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # steps that are still computed belong to training
        before = self._asides.row_s["checkpoint"]
        with self._asides.aside("checkpoint"):
            yield
        self._pause_ms[kind] = 1000 * (self._asides.row_s["checkpoint"] - before)
