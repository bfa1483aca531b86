"""A preset's training step as benchmarks time it: on drawn images, past its burn-in, against the machine's products."""

import functools
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import harness
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fastgan import networks, presets
from fastgan.config import Config
from fastgan.planning import op_counter
from fastgan.training.trainer import Trainer
from fastgan.utils.memory import peak_memory_gib

COLUMNS = ("preset", "batch", "MFLOP an image", "step", "images/s", "ms a step", "share of peak", "peak memory, GiB")
HEAD = harness.head(*COLUMNS)


# How a step runs: whether compiled, and whether recorded as one CUDA graph.
KINDS = {
    "eager": (False, False),
    "graphs": (False, True),
    "compiled": (True, False),
    "compiled graphs": (True, True),
}


def kinds(device: torch.device) -> list[str]:
    """Return those of KINDS that run on the device: a CPU records no graphs."""
    return [kind for kind, (_, graphs) in KINDS.items() if device.type == "cuda" or not graphs]


class Cost(NamedTuple):
    """What one kernel costs a step on the device."""

    name: str
    calls: float
    ms: float


class Step:
    """A preset's trainer on drawn images, whose steps run as `kind`, one of KINDS, says."""

    def __init__(self, config: Config, kind: str, device: torch.device) -> None:
        self.config, self.device = config, device
        compiled, graphs = KINDS[kind]
        nets, loader = networks.build(config, device), harness.DrawnLoader(config, device)
        self.trainer = Trainer(config, nets, loader, on_out_of_memory=_refuse_smaller)
        if compiled:
            self.trainer.compile()
        self.peak_gib = 0.0
        self.first_s = harness.seconds(lambda: self.play(3))  # the third has everything that a step will have
        if graphs:
            self.first_s += harness.seconds(self.use_graphs)

    def use_graphs(self) -> None:
        """Record the steps from now on, with and without a lazy penalty, and replay them. Raises RuntimeError."""
        self.trainer.use_graphs()
        self.play(3 * self.config.objective.penalty_every + 1)  # each kind's third step is recorded
        if (failure := getattr(self.trainer.runner, "failure", None)) is not None:
            raise RuntimeError(f"the steps can't be recorded: {failure}")

    def play(self, count: int) -> None:
        """Take so many steps, without waiting for the device."""
        for _ in range(count):
            self.trainer.train_step(self.trainer.loader.batch(self.trainer.images_seen))

    def images_per_s(self, seconds: float) -> float:
        """Return the speed of steps that take so long together, or a little longer."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before, spent, count = self.trainer.images_seen, 0.0, 1
        while spent < seconds:
            spent += harness.seconds(functools.partial(self.play, count))
            count *= 2  # so that the device is waited for a few times only
        self.peak_gib = max(self.peak_gib, peak_memory_gib(self.device))
        return (self.trainer.images_seen - before) / spent

    def host_ms(self, count: int = 3) -> float:
        """Return how long the host takes to start a step that finds the device idle: the median of `count`."""
        return 1000 * statistics.median(self._start_s() for _ in range(count))

    def _start_s(self) -> float:
        began = time.perf_counter()
        self.play(1)
        spent = time.perf_counter() - began
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return spent

    def costs(self, count: int) -> list[Cost]:
        """Return what `count` steps spend in each kernel (on a CPU: in each op), the costliest first, by one step."""
        on_gpu = self.device.type == "cuda"
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        with profile(activities=[activity]) as recorded:
            harness.seconds(functools.partial(self.play, count))
        found = []
        for event in recorded.key_averages():
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            if spent > 0 and not event.is_user_annotation:
                found.append(Cost(event.key, event.count / count, spent / count / 1000))
        return sorted(found, key=lambda cost: -cost.ms)


def _refuse_smaller(micro_batch: int) -> None:
    """Refuse to measure a step that ran out of memory and goes on in parts."""
    raise torch.OutOfMemoryError(f"memory runs out: the step would go on with a micro_batch of {micro_batch}")


class NoGenerator(nn.Module):
    """One learned picture, whatever z is."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.zeros(1, config.data.channels, *config.data.image_size))

    def forward(self, z: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        return self.picture.expand(len(z), -1, -1, -1)


class NoDiscriminator(nn.Module):
    """One learned logit and the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        return self.logit + images[:, 0, 0, 0]


def overhead_ms(device: torch.device, rounds: int = 5, count: int = 100) -> list[float]:
    """Milliseconds of a step of `debug` with networks that compute next to nothing: what training itself costs."""
    config = config_of("debug")
    nets = (NoGenerator(config).to(device), NoDiscriminator().to(device))
    trainer = Trainer(config, nets, harness.DrawnLoader(config, device))

    def play() -> None:
        for _ in range(count):
            trainer.train_step(trainer.loader.batch(trainer.images_seen))

    play()
    return [1000 * harness.seconds(play) / count for _ in range(rounds)]


def config_of(name: str, batch_size: int | None = None) -> Config:
    """The preset, past its burn-in, with another batch size if one is given."""
    config = presets.get(name)
    config = replace(config, optimizer=replace(config.optimizer, burn_in=0))
    return config if batch_size is None else replace(config, data=replace(config.data, batch_size=batch_size))


def flops_an_image(config: Config) -> dict[str, float]:
    """Return the multiply-adds, times two, of a step by image and arithmetic."""
    batch_size = config.data.batch_size
    return {kind: flops / batch_size for kind, flops in op_counter.count(config, batch_size).flops.items() if flops}


def rows(config: Config, kinds: Iterable[str], rounds: int, seconds: float, device: torch.device) -> list[str]:
    """A preset's part of the table, a row a kind of step, measured in turn."""
    steps = {kind: Step(config, kind, device) for kind in kinds}
    batch_size = config.data.batch_size
    flops = flops_an_image(config)

    def ideal_s() -> float:
        return sum(count / harness.matmul_peak(kind) for kind, count in flops.items())

    measures = {kind: functools.partial(step.images_per_s, seconds) for kind, step in steps.items()}
    found = harness.in_turn({"ideal": ideal_s, **measures}, rounds)
    lines = []
    for kind, step in steps.items():
        shares = [ideal * rate for ideal, rate in zip(found["ideal"], found[kind], strict=True)]
        middle = statistics.median(found[kind])
        shown = kind if kind == "eager" else f"{kind} (in {step.first_s:.0f} s)"
        cells = (config.preset, str(batch_size), f"{sum(flops.values()) / 1e6:.1f}", shown)
        more = (harness.spread(found[kind], 0), f"{1000 * batch_size / middle:.1f}", harness.spread(shares, 2))
        lines.append(f"| {' | '.join((*cells, *more))} | {step.peak_gib:.2f} |")
    return lines
