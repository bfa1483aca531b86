"""Images/s of a preset's training step against the machine's float32 matmul peak, in turn.

The step's work is counted, not assumed: torch's FLOP counter sums the multiply-adds (times two) of every matrix
product and convolution of one step, forward and backward. Element-wise work counts as nothing.
"""

import statistics
from dataclasses import dataclass

import harness
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastgan import networks, presets
from fastgan.board import peak_memory_gib
from fastgan.data.loaders import build_loader, open_source
from fastgan.distributed import keep_freed_memory
from fastgan.flags import parse
from fastgan.trainer import Trainer


@dataclass(frozen=True)
class Options:
    """Measure a preset's training step."""

    preset: str = "mnist28"
    """Which recipe."""
    rounds: int = 3
    """How often; medians are shown."""
    steps: int = 8
    """Steps a round."""
    save: bool = False
    """Write the table into results/."""


def main(options: Options) -> None:
    keep_freed_memory()  # as training does
    config = presets.get(options.preset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = build_loader(config, open_source(config), device)
    trainer = Trainer(config, networks.build(config, device), loader)
    with FlopCounterMode(display=False) as counted:
        trainer.train_step(loader.batch(0))
    batch_size = trainer.images_seen
    flops_per_image = counted.get_total_flops() / batch_size

    def steps() -> None:
        for _ in range(options.steps):
            trainer.train_step(loader.batch(trainer.images_seen))

    values = harness.in_turn(
        {
            "peak": harness.matmul_peak,
            "images_per_s": lambda: options.steps * batch_size / harness.seconds(steps),
        },
        options.rounds,
    )
    shares = [flops_per_image * rate / peak for rate, peak in zip(values["images_per_s"], values["peak"], strict=True)]
    step_ms = 1000 * batch_size / statistics.median(values["images_per_s"])
    rows = (
        ("work, counted", f"{flops_per_image / 1e6:.1f} MFLOP an image"),
        ("float32 matmul peak", f"{harness.spread([peak / 1e9 for peak in values['peak']], 0)} GFLOP/s"),
        ("training", f"{harness.spread(values['images_per_s'], 0)} images/s, {step_ms:.0f} ms a step"),
        ("share of peak", harness.spread(shares, 2)),
        ("peak memory", f"{peak_memory_gib(device):.2f} GiB"),
    )
    table = "| | median of rounds (lowest - highest) |\n| --- | --- |\n" + "\n".join(f"| {a} | {b} |" for a, b in rows)
    print(table)
    if options.save:
        title = f"Training step of `{options.preset}`, batch {batch_size}, float32, eager"
        print(harness.save(f"step-{options.preset}", title, table))


if __name__ == "__main__":
    import sys

    main(parse(Options, sys.argv[1:], prog="bench_step.py"))
