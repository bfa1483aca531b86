"""What happens beside the steps: how long it takes, that it happens once at a time, and what may be left out."""

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from fastgan.distributed.processes import Processes
from fastgan.errors import UserError
from fastgan.evaluation.features import EvaluationFailed
from fastgan.training.trainer import Trainer


class Asides:
    """Account for the time of a session that isn't training's, by what it was spent on."""

    def __init__(self, processes: Processes, say: Callable[[str], None]) -> None:
        self._processes, self._say = processes, say
        self._began = time.monotonic()
        self.row_s = {"grid": 0.0, "evaluation": 0.0, "checkpoint": 0.0, "health": 0.0}  # since the last row
        self.total_s = dict(self.row_s)  # since the session began
        self._done_at: dict[str, int] = {}
        self._finite_at: int | None = None

    def new_row(self) -> None:
        """Start counting from 0 for the next row."""
        self.row_s = dict.fromkeys(self.row_s, 0.0)

    def fraction(self, what: str) -> float:
        """Return the fraction of the session so far that was spent on it."""
        return self.total_s[what] / max(1e-9, time.monotonic() - self._began)

    def is_done(self, what: str, trainer: Trainer) -> bool:
        """Return whether it was done after this very step; from now on it was."""
        done = self._done_at.get(what) == trainer.images_seen
        self._done_at[what] = trainer.images_seen
        return done

    def check_finite(self, trainer: Trainer) -> None:
        """Raise Diverged where a loss or weight isn't finite; once a step, however often it is asked."""
        if self._finite_at != trainer.images_seen:
            trainer.check_finite()
            self._finite_at = trainer.images_seen

    @contextlib.contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Count the time of the block as spent on `what`, not on training."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - began
            self.row_s[what] += spent
            self.total_s[what] += spent

    @contextlib.contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Leave the rest of the block out, which is aside, where memory runs out for a single image.

        An evaluation is left out whatever fails in it, if it does on all processes: a checkpoint is worth more. Raises
        UserError instead where other processes wait for this one's part of an evaluation.
        """
        with self.aside(what):
            try:
                yield
            except torch.OutOfMemoryError as error:
                if what == "evaluation" and self._processes.world_size > 1:
                    raise UserError(
                        f"memory runs out in an evaluation, of which each process has a part ({error}): give "
                        "--eval-every 0, or use smaller networks"
                    ) from None
                self._say(f"memory ran out in {what} at {self._done_at[what]:,} images, which is left out: {error}")
            except Exception as error:
                alike = self._processes.world_size == 1 or isinstance(error, EvaluationFailed | UserError)
                if what != "evaluation" or not alike:
                    raise
                text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self._say(f"evaluation failed at {self._done_at[what]:,} images, and is left out: {text}")
