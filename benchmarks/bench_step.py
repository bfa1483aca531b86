"""Images/s of presets' training steps, eager and compiled in turn, against the machine's matrix products.

The step's work is counted, not assumed (fastgan/account.py): the multiply-adds (times two) of every matrix product and
convolution of one step. Element-wise work counts as nothing. The share of the peak is the time that this work would
take at the speed of large square products in the same arithmetic, by the time that the step takes. Images are drawn, so
no data set is needed.
"""

import functools
import statistics
import sys
from dataclasses import dataclass, replace
from typing import Annotated

import harness
import torch
import tyro

from fastgan import account, networks, presets
from fastgan.board import peak_memory_gib
from fastgan.config import Config
from fastgan.distributed import keep_freed_memory
from fastgan.errors import UserError
from fastgan.flags import parse
from fastgan.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COLUMNS = ("preset", "batch", "MFLOP an image", "step", "images/s", "ms a step", "share of peak", "peak memory, GiB")


@dataclass(frozen=True)
class Options:
    """Measure presets' training steps."""

    presets: Annotated[tuple[str, ...], tyro.conf.Positional] = ("mnist28",)
    """Which recipes."""
    batch_size: int | None = None
    """Images a step; without it, the preset's."""
    compile: bool = False
    """True: the compiled step as well."""
    cuda_graphs: bool = False
    """True: the compiled step recorded as CUDA graphs, too (on a GPU)."""
    rounds: int = 3
    """How often; medians are shown."""
    seconds: float = 4.0
    """How long a round lasts at least."""
    save: bool = False
    """Write the table into results/."""


class Step:
    """A preset's trainer, and what its steps reach."""

    def __init__(self, config: Config, kind: str) -> None:
        self.kind = kind
        self.trainer = Trainer(config, networks.build(config, DEVICE), harness.DrawnLoader(config, DEVICE))
        if kind != "eager":
            self.trainer.compile(cuda_graphs=kind == "CUDA graphs")
        self.peak_gib = 0.0
        self.first_s = harness.seconds(lambda: self.play(3))  # the third has everything that a step will have

    def play(self, count: int) -> None:
        for _ in range(count):
            self.trainer.train_step(self.trainer.loader.batch(self.trainer.images_seen))

    def images_per_s(self, seconds: float) -> float:
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before, spent, count = self.trainer.images_seen, 0.0, 1
        while spent < seconds:
            spent += harness.seconds(functools.partial(self.play, count))
            count *= 2  # so that the device is waited for a few times only
        self.peak_gib = max(self.peak_gib, peak_memory_gib(DEVICE))
        return (self.trainer.images_seen - before) / spent


def rows(name: str, options: Options) -> list[str]:
    """One preset's part of the table, a row a kind of step."""
    config = presets.get(name)
    if options.batch_size is not None:
        config = replace(config, data=replace(config.data, batch_size=options.batch_size))
    # Past the burn-in a step has all its parts.
    config = replace(config, optimizer=replace(config.optimizer, burn_in=0))
    kinds = ["eager", *["compiled"] * options.compile, *["CUDA graphs"] * options.cuda_graphs]
    steps = {kind: Step(config, kind) for kind in kinds}
    batch_size = config.data.batch_size
    flops = {kind: flops / batch_size for kind, flops in account.count(config, batch_size).flops.items() if flops}

    def ideal_s() -> float:
        return sum(count / harness.matmul_peak(kind) for kind, count in flops.items())

    measures = {kind: lambda step=step: step.images_per_s(options.seconds) for kind, step in steps.items()}
    found = harness.in_turn({"ideal": ideal_s, **measures}, options.rounds)
    lines = []
    for kind, step in steps.items():
        shares = [ideal * rate for ideal, rate in zip(found["ideal"], found[kind], strict=True)]
        middle = statistics.median(found[kind])
        shown = kind if kind == "eager" else f"{kind} (in {step.first_s:.0f} s)"
        cells = (name, str(batch_size), f"{sum(flops.values()) / 1e6:.1f}", shown, harness.spread(found[kind], 0))
        more = (f"{1000 * batch_size / middle:.1f}", harness.spread(shares, 2), f"{step.peak_gib:.2f}")
        lines.append(f"| {' | '.join((*cells, *more))} |")
        print(lines[-1], flush=True)
    return lines


def main(options: Options) -> None:
    keep_freed_memory()  # as training does
    head = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    print("\n".join(head), flush=True)
    lines = [line for name in options.presets for line in rows(name, options)]
    note = "Medians of rounds (lowest - highest). " + (
        "Memory is the process's so far." if DEVICE.type == "cpu" else "Memory is of all tensors of the steps above."
    )
    if options.save:
        theme = f"step-{options.presets[0]}" if len(options.presets) == 1 else "step"
        print(harness.save(theme, "Training steps", "\n".join([*head, *lines, "", note])))


if __name__ == "__main__":
    try:
        main(parse(Options, sys.argv[1:], prog="bench_step.py"))
    except UserError as error:
        sys.exit(f"bench_step.py: error: {error}")
