"""The functions of the public API: `fastgan.load`, `fastgan.train`, `fastgan.evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgan.config import Config
from fastgan.presets import configure, flags_of, parse_config

if TYPE_CHECKING:
    from fastgan.evaluation.generator import Generator
    from fastgan.evaluation.sampling import CheckpointSelector


def _selector(which: "CheckpointSelector | str") -> "CheckpointSelector":
    from fastgan.errors import UserError
    from fastgan.evaluation.sampling import CheckpointSelector

    if isinstance(which, CheckpointSelector):
        return which
    if which not in ("newest", "best"):
        raise UserError(f"which is {which!r}: choose from 'newest' and 'best', or give a CheckpointSelector")
    return CheckpointSelector(best=which == "best")


def load(run: str | Path, which: "CheckpointSelector | str" = "newest") -> "Generator":
    """Return the generator of a run folder, an export's folder, or an export's OWNER/NAME on the Hugging Face hub.

    `which` is "newest", "best" (of a run with --best-by), or a CheckpointSelector, for an average of another length
    say. Raises UserError where there is none.
    """
    from fastgan.evaluation.generator import Generator

    return Generator.open(Path(run), _selector(which))


def train(config: Config | str | None = None, **changes: Any) -> Path:
    """Train a run, or resume it where its folder says so; return the folder.

    `config` is a preset's name, or a config of `fastgan.presets` or `fastgan.configure`; without it the preset is the
    one that suits the images. `changes` are settings by the names of the command line's options:
    `train("mnist28-fast", run_dir="runs/x", minutes=5)`, `train(data="photos")`. Raises UserError for wrong settings,
    Diverged, and Stopped (after a checkpoint) where Ctrl-C or a signal asked for it.
    """
    from fastgan.commands.train import train as train_run
    from fastgan.errors import Stopped
    from fastgan.planning.preset_choice import with_preset
    from fastgan.utils.stop import StopRequest

    config = parse_config(with_preset(flags_of(changes))) if config is None else configure(config, **changes)
    with StopRequest() as stop:
        try:
            train_run(config, stop)
        except Stopped:
            if stop.signalled:
                raise
    return config.run_dir


def evaluate(
    run: str | Path, images: int = 50_000, which: "CheckpointSelector | str" = "newest", **options: Any
) -> dict[str, float]:
    """Measure a run's images against its data, as `fastgan evaluate` does; return the metrics by name.

    `options` are those of `fastgan evaluate`: extractor="digits", data="where/the/images/are/now". Raises UserError.
    """
    from fastgan.commands.evaluate import EvaluateOptions
    from fastgan.commands.evaluate import evaluate as evaluate_run

    return evaluate_run(EvaluateOptions(Path(run), images=images, which=_selector(which), **options))
