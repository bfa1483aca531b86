"""`fastgan ema RUN`: averages of lengths that are chosen after the run, and how good each one's images are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastgan.commands.evaluate import EvaluateOptions, evaluate
from fastgan.errors import UserError
from fastgan.evaluation.sampling import CheckpointSelector
from fastgan.run_config import MAX_EVAL_IMAGES
from fastgan.runs.ema_snapshots import EmaSnapshots, Reconstruction
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.fields import require_positive


@dataclass(frozen=True)
class EmaOptions:
    """Make averages of G of chosen lengths from what a run with --ema-stds stored."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    length: tuple[float, ...]
    """Lengths: standard deviations of the average's profile as shares of training, above 0, at most 0.25."""
    at: int | None = None
    """Images seen at one of the snapshots; without it, the newest."""
    evaluate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure each, as `fastgan evaluate` does, and end with a table."""
    images: int = 10_000
    """How many images to generate for that."""

    def __post_init__(self) -> None:
        require_positive(self, "images", at_most=MAX_EVAL_IMAGES)


def ema(options: EmaOptions) -> list[Reconstruction]:
    """Write a file a length into the run's averages/; with `evaluate` print a table of their metrics.

    Raises UserError for a folder without a run or without snapshots, and for lengths outside (0, 0.25].
    """
    folder = RunFolder(options.run)
    averages = EmaSnapshots(folder.averages, folder.read_config().optimizer.ema_stds)
    if not options.length:
        raise UserError("length has no value: give one or more, like --length 0.05 0.10")
    made = []
    for length in options.length:
        made.append(averages.reconstruct(length, options.at))
        _, _, images_seen, num_snapshots, error = made[-1]
        print(
            f"length {length:g} at {images_seen:,} images, of {num_snapshots} snapshots, error {error:.2%}: "
            f"{made[-1].path}"
        )
    if options.evaluate:
        _print_table(options)
    return made


def _print_table(options: EmaOptions) -> None:
    rows = {
        length: evaluate(
            EvaluateOptions(options.run, options.images, which=CheckpointSelector(length=length, at=options.at))
        )
        for length in options.length
    }
    names = list(next(iter(rows.values())))
    print("  ".join(["length", *(f"{name:>10}" for name in names)]))
    for length, metrics in rows.items():
        print("  ".join([f"{length:<6g}", *(f"{metrics[name]:{max(10, len(name))}.4f}" for name in names)]))
