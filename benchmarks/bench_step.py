"""Images/s of presets' training steps, eager and compiled in turn, against the machine's matrix products.

The step's work is counted, not assumed (fastgan/planning/op_counter.py): the multiply-adds (times two) of every matrix
product and convolution of one step. Element-wise work counts as nothing. The share of the peak is the time that this
work would take at the speed of large square products in the same arithmetic, by the time that the step takes; it may
exceed 1, as Fourier transforms (fastgan/networks/fourier.py) do with fewer multiplications. Images are drawn, so no
data set is needed.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import harness
import steps
import torch
import tyro

from fastgan.distributed.processes import tune_malloc
from fastgan.errors import UserError
from fastgan.utils.arguments import parse

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Options:
    """Measure presets' training steps."""

    presets: Annotated[tuple[str, ...], tyro.conf.Positional] = ("mnist28",)
    """Which recipes."""
    batch_size: int | None = None
    """Images a step; without it, the preset's."""
    compile: bool = False
    """True: the compiled step as well."""
    graphs: bool = False
    """True: each of these recorded as a CUDA graph, too (on a GPU)."""
    rounds: int = 3
    """How often; medians are shown."""
    seconds: float = 4.0
    """How long a round lasts at least."""
    save: bool = False
    """Write the table into results/."""


def main(options: Options) -> None:
    tune_malloc()  # as training does
    wanted = {(compiled, graphs) for compiled in {False, options.compile} for graphs in {False, options.graphs}}
    kinds = [kind for kind in steps.kinds(DEVICE) if steps.KINDS[kind] in wanted]
    lines = [steps.HEAD]
    print(lines[0], flush=True)
    for name in options.presets:
        config = steps.config_of(name, options.batch_size)
        for line in steps.rows(config, kinds, options.rounds, options.seconds, DEVICE):
            print(line, flush=True)
            lines.append(line)
    overhead = f"A step of `debug` without networks: {harness.spread(steps.overhead_ms(DEVICE), 2)} ms."
    print(overhead)
    memory = "of all tensors of this row's steps" if DEVICE.type == "cuda" else "the process's so far"
    if options.save:
        theme = f"step-{options.presets[0]}" if len(options.presets) == 1 else "step"
        note = f"Medians of rounds (lowest - highest). Memory is {memory}. {overhead}"
        print(harness.save(theme, "Training steps", "\n".join([*lines, "", note])))


if __name__ == "__main__":
    try:
        main(parse(Options, sys.argv[1:], prog="bench_step.py"))
    except UserError as error:
        sys.exit(f"bench_step.py: error: {error}")
