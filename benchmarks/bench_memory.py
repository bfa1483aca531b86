"""Memory of every preset's training step: counted operation by operation on tensors without content, so for any batch.

`kept` is what the backward pass needs of the forward pass when it begins, `peak` the fullest moment of either phase;
both without weights, gradients, optimizers' states and averages, which the next column adds up, as one process has
them.
"""

import sys
from dataclasses import dataclass, replace

import harness

from fastgan import presets
from fastgan.config import Config
from fastgan.planning import op_counter
from fastgan.planning.forecast import Forecast
from fastgan.planning.hardware import Cluster
from fastgan.utils.arguments import parse

SIZES = ("kept, GB", "peak, GB", "weights and states, GB")
COLUMNS = ("preset", "images at a time", "checkpointing", *SIZES, "GFLOP an image")


@dataclass(frozen=True)
class Options:
    """Count what presets' steps hold."""

    most: int = 256
    """Images at a time, where the preset's batch has more."""
    save: bool = False
    """Write the table into results/."""


def row(config: Config, images: int) -> str:
    work = op_counter.count(config, images)
    held = Forecast(config, Cluster(), images, work, 0).memory
    lasting = sum(value for name, value in held.items() if "backward pass" not in name)
    sizes = (work.fullest.kept, work.fullest.peak, lasting)
    again = "yes" if config.run.activation_checkpointing else ""
    cells = (config.preset, str(images), again, *(f"{size / 1e9:.2f}" for size in sizes))
    return f"| {' | '.join(cells)} | {work.total_flops / images / 1e9:.2f} |"


def main(options: Options) -> None:
    lines = [harness.head(*COLUMNS)]
    for name in presets.PRESETS:
        config = presets.get(name)
        images = min(options.most, config.data.batch_size)
        lines.append(row(config, images))
        if config.networks.network == "r3gan":
            lines.append(row(replace(config, run=replace(config.run, activation_checkpointing=True)), images))
    table = "\n".join(lines)
    print(table)
    if options.save:
        print(harness.save("memory", "Memory of a training step, counted", table))


if __name__ == "__main__":
    main(parse(Options, sys.argv[1:], prog="bench_memory.py"))
