"""How a run's steps are computed: one operation after the other, compiled by torch.compile, recorded as CUDA graphs, or
both. But for rounding nothing changes except the speed, so where the config says `auto` it is tried on the first steps.
"""

import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastgan.config import Config
from fastgan.data.batch import Batch
from fastgan.distributed.collectives import all_reduce_mean, all_reduce_min
from fastgan.distributed.processes import Processes
from fastgan.errors import UserError, first_line
from fastgan.training.cuda_graphs import CudaGraphSteps
from fastgan.training.objectives import Metrics
from fastgan.training.schedules import StepHyperparameters
from fastgan.training.trainer import Trainer

COMPILING_PAYS_S = 600.0  # of training left: compiling took 14 to 83 s on 16 cores beside an H200
TIMED_STEPS = 4  # times the steps from one penalty to the next


class StepMode(NamedTuple):
    """How steps may be computed."""

    compiled: bool
    cuda_graphs: bool

    def __str__(self) -> str:
        return " and ".join(["compiled"] * self.compiled + ["recorded"] * self.cuda_graphs) or "eager"


class StepModeTrials:
    """Runs a trainer's steps in one mode after the other, times each, and leaves the fastest to the trainer."""

    def __init__(self, trainer: Trainer, modes: list[StepMode], say: Callable[[str], None]) -> None:
        self._trainer, self._modes, self._say = trainer, modes, say
        every = trainer.config.objective.penalty_every
        self._warm_up, self._timed = 3 * every, TIMED_STEPS * every  # each kind of step is run, recorded and replayed
        self._images_per_s: dict[StepMode, float] = {}
        self._began = time.monotonic()
        self._take(modes[0])

    def __call__(self, batch: Batch, hparams: StepHyperparameters) -> Metrics:
        if self._steps == self._warm_up:
            self._synchronize()
            self._ready_s = time.monotonic() - self._began
        began = time.monotonic()
        metrics = self._inner(batch, hparams)
        if self._steps >= self._warm_up:
            self._synchronize()
            self._spent_s += time.monotonic() - began
            self._images += batch.global_size
        self._steps += 1
        if self._steps == self._warm_up + self._timed:
            self._end_mode()
        return metrics

    def _take(self, mode: StepMode) -> None:
        self._mode, self._steps, self._spent_s, self._images = mode, 0, 0.0, 0
        self._began = time.monotonic()
        self._trainer.compile(mode.compiled)
        self._trainer.use_graphs(mode.cuda_graphs)
        self._inner, self._trainer.runner = self._trainer.runner, self

    def _synchronize(self) -> None:
        if self._trainer.device.type == "cuda":
            torch.cuda.synchronize(self._trainer.device)

    def _end_mode(self) -> None:
        """Note how fast the mode was; take the next that is worth a trial, or end with the fastest."""
        rate = all_reduce_mean({"rate": self._images / self._spent_s})["rate"]  # the same on all
        failed = isinstance(self._inner, CudaGraphSteps) and self._inner.failure is not None
        self._images_per_s[self._mode] = 0.0 if failed else rate
        ready = f", ready after {self._ready_s:.0f} s" if self._mode.compiled else ""
        self._say(f"steps: {self._mode}: {rate:,.0f} images/s{ready}")
        remaining = self._modes[self._modes.index(self._mode) + 1 :]
        best = max(self._images_per_s, key=lambda mode: self._images_per_s[mode])
        left_s = (self._trainer.total_images - self._trainer.images_seen) / self._images_per_s[best]
        if remaining and remaining[0].compiled and not self._mode.compiled and left_s < COMPILING_PAYS_S:
            remaining = []
        if remaining:
            self._take(remaining[0])
            return
        if best != self._mode:
            self._trainer.compile(best.compiled)
            self._trainer.use_graphs(best.cuda_graphs)
            self._say(f"steps: {best} from now on")
        else:
            self._trainer.runner = self._inner


def settle(trainer: Trainer, processes: Processes, say: Callable[[str], None] = print) -> None:
    """Let the trainer run its steps as the config says; what it leaves to us is tried on the first steps.

    All processes do alike. Raises UserError where what is asked for can't be.
    """
    modes = possible_modes(trainer, processes, say)
    if len(modes) > 1:
        StepModeTrials(trainer, modes, say)
        return
    if modes[0].compiled:
        say("training runs compiled: the first steps take a minute or more")
    trainer.compile(modes[0].compiled)
    trainer.use_graphs(modes[0].cuda_graphs)


def possible_modes(trainer: Trainer, processes: Processes, say: Callable[[str], None]) -> list[StepMode]:
    """Return the ways that the config leaves open on this device, in the order of a trial.

    Raises UserError as `settle`.
    """
    run, on_gpu = trainer.config.run, processes.device.type == "cuda"
    choices = {"on": [True], "off": [False], "auto": [False, True] if on_gpu else [False]}
    compiled, recorded = choices[run.compile], choices[run.cuda_graphs]
    if True in recorded and (reason := cannot_record(trainer.config, processes)) is not None:
        if run.cuda_graphs == "on":
            raise UserError(f"cuda_graphs is on: {reason}; give --cuda-graphs off")
        recorded = [False]
    if True in compiled:
        reason = cannot_compile(trainer.config, processes)
        if run.compile == "on" and reason is not None:
            raise UserError(f"compile is on: {reason}; give --compile off")
        if not all_reduce_min(reason is None):
            say(f"training isn't compiled: {reason or 'another process cannot'}")
            compiled = [False]
    return [StepMode(*mode) for mode in itertools.product(compiled, recorded)]


def cannot_record(config: Config, processes: Processes) -> str | None:
    """Return why steps can't be recorded here; None where they can."""
    if processes.device.type != "cuda":
        return "CUDA graphs need a GPU"
    if processes.world_size > 1:
        return "several processes exchange numbers in the middle of a step"
    if config.networks.precision == "float16":
        return "a scaled loss decides about its step on the host"
    return None


def cannot_compile(config: Config, processes: Processes) -> str | None:
    """Return why nothing can be compiled here; None where a small function was. Takes some seconds."""
    if processes.engine_name == "zero3" and processes.world_size > 1:
        return "the engine zero3 moves weights while the networks run"
    if config.run.activation_checkpointing:
        return "compiled code decides by itself what it keeps, and activation_checkpointing is True"
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=processes.device))
    except Exception as error:  # whatever the compiler, its compiler or its driver raise
        return f"torch.compile fails here ({first_line(error)}), a C++ compiler may be missing"
    return None
