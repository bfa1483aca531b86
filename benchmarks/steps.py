"""A preset's training step as benchmarks time it: on drawn images, past its burn-in, against the machine's products."""

import functools
import statistics
from collections.abc import Iterable
from dataclasses import replace

import harness
import torch
from torch import Tensor, nn

from fastgan import account, networks, presets
from fastgan.board import peak_memory_gib
from fastgan.config import Config
from fastgan.trainer import Trainer

COLUMNS = ("preset", "batch", "MFLOP an image", "step", "images/s", "ms a step", "share of peak", "peak memory, GiB")
HEAD = harness.head(*COLUMNS)


class Step:
    """A preset's trainer, and what its steps reach: `kind` is eager, compiled or CUDA graphs."""

    def __init__(self, config: Config, kind: str, device: torch.device) -> None:
        self.kind, self.device = kind, device
        self.trainer = Trainer(config, networks.build(config, device), harness.DrawnLoader(config, device))
        if kind != "eager":
            self.trainer.compile(cuda_graphs=kind == "CUDA graphs")
        self.peak_gib = 0.0
        self.first_s = harness.seconds(lambda: self.play(3))  # the third has everything that a step will have

    def play(self, count: int) -> None:
        for _ in range(count):
            self.trainer.train_step(self.trainer.loader.batch(self.trainer.images_seen))

    def images_per_s(self, seconds: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before, spent, count = self.trainer.images_seen, 0.0, 1
        while spent < seconds:
            spent += harness.seconds(functools.partial(self.play, count))
            count *= 2  # so that the device is waited for a few times only
        self.peak_gib = max(self.peak_gib, peak_memory_gib(self.device))
        return (self.trainer.images_seen - before) / spent


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


def rows(config: Config, kinds: Iterable[str], rounds: int, seconds: float, device: torch.device) -> list[str]:
    """A preset's part of the table, a row a kind of step, measured in turn."""
    steps = {kind: Step(config, kind, device) for kind in kinds}
    batch_size = config.data.batch_size
    flops = {kind: flops / batch_size for kind, flops in account.count(config, batch_size).flops.items() if flops}

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
