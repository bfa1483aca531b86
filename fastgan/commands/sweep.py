"""`fastgan sweep gamma`: three short runs at a quarter, once and four times the gamma, and which was best.

The rule for gamma is a start, not an answer: StyleGAN3's guide has this sweep made by hand (its docs/configs.md).
Each run is a process of its own, so that the end of one doesn't end the others, in a folder beside the others':
`tensorboard --logdir` of the sweep's folder shows them together.

    runs/sweep-PRESET/gamma-0.5/   a run folder each        sweep.json   how each one ended
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from fastgan.config import Config
from fastgan.errors import EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED, EXIT_USER_ERROR, UserError

FACTORS = (0.25, 1.0, 4.0)
SHARE, MIN_STEPS = 20, 200  # a run is a twentieth of the whole one, but so many steps at least
NUM_ROWS = 20  # of losses, at least, in a run's log
CLOSE = 0.02  # distances that differ by less than this share of the lowest don't tell runs apart
LAST = 0.75  # means are of the rows after this share of the run
WHAT = ("gamma",)
USAGE = """\
usage: fastgan sweep gamma [options]     (fastgan sweep gamma --help lists them: they are train's)

  Three runs at a quarter, once and four times the config's first gamma (--gamma-end goes with it), --images long;
  without it a twentieth of the whole run, 200 steps at least. They are in RUN_DIR/gamma-VALUE; without --run-dir, in
  runs/sweep-PRESET. The same command again resumes, and skips what is done."""
# column, its name in the log
COLUMNS = (
    ("loss D", "loss/D"),
    ("loss G", "loss/G"),
    ("r1", "penalty/r1"),
    ("r2", "penalty/r2"),
    ("penalty share", "penalty/share"),
    ("logits' gap", "gap"),
)
DISTANCES = ("metrics/fd_", "metrics/fid_", "metrics/kl")  # less is better


@dataclass(frozen=True)
class Run:
    """One of the short runs: its settings, and the options of `fastgan train` that make it."""

    config: Config
    args: tuple[str, ...]

    @property
    def gamma(self) -> float:
        assert self.config.objective.gamma is not None
        return self.config.objective.gamma

    @property
    def folder(self) -> Path:
        return self.config.run_dir


def runs_of(args: Sequence[str]) -> list[Run]:
    """Return the runs that the options ask for, in the order of their gammas.

    Raises UserError for what `fastgan train` refuses, and where there is no gamma.
    """
    from fastgan import presets
    from fastgan.planning.preset_choice import with_preset
    from fastgan.training import schedules

    args = with_preset(args, prefix="sweep-")
    config = presets.parse_config(args, prog="fastgan sweep gamma")
    penalty = config.objective.penalty
    if penalty == "none":
        raise UserError("penalty is 'none': there is no gamma to sweep; give --penalty r1 or --penalty r1+r2")
    first = schedules.first_gamma(config)
    if first == 0:
        raise UserError("gamma is 0.0: four times that is the same; give a number above 0")
    folder = config.run.run_dir or Path("runs") / f"sweep-{config.preset}"
    config = _located(config, folder)
    images = _images(config, args)
    log_every = min(config.run.log_every, max(1, images // NUM_ROWS))
    runs = []
    for factor in FACTORS:
        gamma, end = _rounded(first * factor), config.objective.gamma_end
        end = None if end is None else _rounded(end * factor)
        run_dir = folder / f"gamma-{gamma:g}"
        given = ["--gamma", repr(gamma), *(() if end is None else ("--gamma-end", repr(end)))]
        given += [
            "--images",
            str(images),
            "--log-every",
            str(log_every),
            "--run-dir",
            str(run_dir),
            "--data",
            config.data.data,
        ]
        objective = replace(config.objective, gamma=gamma, gamma_end=end)
        run = replace(config.run, images=images, log_every=log_every, run_dir=run_dir)
        runs.append(Run(replace(config, objective=objective, run=run), (*args, *given)))
    return runs


def _located(config: Config, folder: Path) -> Config:
    """The config with the whole path of its data set, which an earlier session of the sweep may have known."""
    from fastgan.data.loaders import locate
    from fastgan.runs.run_folder import RunFolder

    before = [path.parent for path in folder.glob("gamma-*/config.json")]
    return locate(config, RunFolder(before[0]).read_config().data.data if before else "")


def _images(config: Config, args: Sequence[str]) -> int:
    """The length of a run: what the user says, else a small part of the whole run."""
    from fastgan.data.loaders import num_images

    total = config.total_images(num_images(config))
    if any(arg.split("=")[0] in ("--images", "--epochs") for arg in args):
        return total
    return min(total, max(-(-total // SHARE), MIN_STEPS * config.data.batch_size))


def _rounded(gamma: float) -> float:
    """What the folder's name says is what is computed with."""
    return float(f"{gamma:g}")


class Children:
    """The processes of the runs, one at a time; who stops this one stops the run, which then saves a checkpoint."""

    def __init__(self) -> None:
        self.stopped = False
        self._child: subprocess.Popen[bytes] | None = None
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    def train(self, args: Sequence[str]) -> int:
        """Run `fastgan train` with these options; return its exit code, negative where a signal killed it."""
        command = [sys.executable, "-m", "fastgan.cli", "train", *args]
        with subprocess.Popen(command) as self._child:
            if self.stopped:  # before there was a process to tell
                self._child.send_signal(signal.SIGTERM)
            return self._child.wait()

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Outcomes:
    """How each run ended, by its folder's name and the length that was asked for: kept from one command to the next."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "sweep.json"
        self._codes: dict[str, dict[str, int]] = {}
        if self._path.exists():
            try:
                self._codes = json.loads(self._path.read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"{self._path} can't be read ({error}): delete it") from None

    def of(self, run: Run) -> int | None:
        """Return the exit code of the run as it is asked for; None where it hasn't ended."""
        found = self._codes.get(run.folder.name, {})
        same = found.get("images") == run.config.run.images and (run.folder / "config.json").exists()
        return found.get("exit_code") if same else None

    def keep(self, run: Run, exit_code: int) -> None:
        from fastgan.utils.files import write_atomically

        assert run.config.run.images is not None
        self._codes[run.folder.name] = {"exit_code": exit_code, "images": run.config.run.images}
        write_atomically(self._path, (json.dumps(self._codes, indent=1) + "\n").encode())


def sweep(runs: Sequence[Run], train: Callable[[Sequence[str]], int], is_stopped: Callable[[], bool]) -> list[int]:
    """Train each run to its end; return their exit codes, of fewer runs where it was stopped.

    Raises UserError where a folder holds another run.
    """
    from fastgan.runs.run_folder import RunFolder

    for run in runs:
        RunFolder(run.folder).check(run.config)
    outcomes, codes = Outcomes(runs[0].folder.parent), list[int]()
    for number, run in enumerate(runs, start=1):
        code = outcomes.of(run)
        again = "" if code is None else ": it has ended before"
        print(f"sweep {number}/{len(runs)}: gamma {run.gamma:g} in {run.folder}{again}", flush=True)
        if code is None:
            code = train(run.args)
            if code == EXIT_DONE and last_seen(run) < (run.config.run.images or 0):  # its --minutes were over
                code = EXIT_STOPPED
            if code in (EXIT_DONE, EXIT_DIVERGED):
                outcomes.keep(run, code)
        codes.append(code)
        if is_stopped():
            break
    return codes


def last_seen(run: Run) -> int:
    """Return the images of the run's newest checkpoint."""
    from fastgan.runs.checkpoint import Checkpoints
    from fastgan.runs.run_folder import RunFolder

    paths = Checkpoints(RunFolder(run.folder).checkpoints).paths()
    return int(paths[-1].name) if paths else 0


def figures(run: Run) -> dict[str, float]:
    """Return the run's means over its last quarter, and its last metrics, by their names in the log."""
    from fastgan.runs.rows import read_figures
    from fastgan.runs.run_folder import RunFolder

    rows = read_figures(RunFolder(run.folder).log)
    values: dict[str, list[float]] = {}
    first = LAST * rows[-1]["images_seen"] if rows else 0.0
    for row in rows:
        for name, value in row.items():
            if name.startswith("metrics/"):
                values[name] = [value]
            elif row["images_seen"] > first:
                values.setdefault(name, []).append(value)
    means = {name: sum(found) / len(found) for name, found in values.items()}
    if "logits/real" in means:
        means["gap"] = means["logits/real"] - means["logits/fake"]
    return means


def distance_name(found: Sequence[dict[str, float]]) -> str | None:
    """Return the distance that every one of them has; None where there is none."""
    for name in found[0] if found else ():
        if name.startswith(DISTANCES) and not name.endswith("_floor") and all(name in figures for figures in found):
            return name
    return None


def table(runs: Sequence[Run], codes: Sequence[int], found: Sequence[dict[str, float]]) -> str:
    """Return a row a run: gamma, means, the distance where there is one, and how it ended."""
    done = [figures for figures, code in zip(found, codes, strict=False) if code == EXIT_DONE]
    distance = distance_name(done)
    columns = [*COLUMNS, *([(distance.removeprefix("metrics/"), distance)] if distance else [])]
    lines = [["gamma", *(head for head, _ in columns), ""]]
    for run, code, figures in zip(runs, codes, found, strict=False):
        cells = [f"{figures[name]:.4g}" if code == EXIT_DONE and name in figures else "-" for _, name in columns]
        lines.append([f"{run.gamma:g}", *cells, ending(code)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if place < len(widths) - 1 else cell
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def ending(code: int) -> str:
    """Return how a run ended, in words."""
    words = {EXIT_DONE: "", EXIT_DIVERGED: "diverged", EXIT_STOPPED: "stopped"}
    return words.get(code, f"failed (exit code {code})")


def advice(runs: Sequence[Run], codes: Sequence[int], found: Sequence[dict[str, float]]) -> str:
    """Return one line: the gamma to train with, as far as these runs can tell."""
    done = [(run, figures) for run, code, figures in zip(runs, codes, found, strict=False) if code == EXIT_DONE]
    if not done:
        return "advice: none, as no run came to its end"
    distance = distance_name([figures for _, figures in done])
    folder = done[0][0].folder.parent
    if distance is None:
        return f"advice: none, as no distance was measured (--eval-every): compare the grids in {folder}/gamma-*/grids"
    best, figures = min(done, key=lambda pair: pair[1][distance])
    if len(done) > 1 and max(means[distance] for _, means in done) < (1 + CLOSE) * figures[distance]:
        return f"advice: none, as the distances are less than {CLOSE:.0%} apart: give more --images"
    end = best.config.objective.gamma_end
    flags = f"--gamma {best.gamma:g}" + ("" if end is None else f" --gamma-end {end:g}")
    edge = "" if len(done) < len(FACTORS) or best is done[1][0] else "; it is at the edge: sweep on from there"
    return (
        f"advice: {flags} had the lowest {distance.removeprefix('metrics/')}, {figures[distance]:.4g}, "
        f"after {best.config.run.images:,} images of one seed{edge}"
    )


def main(args: Sequence[str]) -> int:
    """Sweep as the command line says; returns the exit code."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(EXIT_DONE)
    if not args or args[0] not in WHAT:
        given = f"{args[0]!r}" if args else "nothing"
        raise UserError(f"fastgan sweep got {given} to sweep: choose from {', '.join(WHAT)}")
    runs = runs_of(args[1:])
    folder, images = runs[0].folder.parent, runs[0].config.run.images
    print(
        f"sweep of gamma: {', '.join(f'{run.gamma:g}' for run in runs)}, {images:,} images each, into {folder}",
        flush=True,
    )
    if runs[0].config.run.dry_run:
        return EXIT_DONE
    children = Children()
    try:
        codes = sweep(runs, children.train, lambda: children.stopped)
    except OSError as error:
        raise UserError(f"cannot write into {folder} ({error.strerror}): give another --run-dir") from None
    finally:
        children.close()
    if children.stopped or EXIT_STOPPED in codes:
        print(f"fastgan: the sweep was stopped; the same command resumes in {folder}", file=sys.stderr)
        asked_for = runs[0].config.run.minutes is not None and not children.stopped
        return EXIT_DONE if asked_for else EXIT_STOPPED
    means = [figures(run) for run in runs]
    print(f"\n{table(runs, codes, means)}\n{advice(runs, codes, means)}")
    print(f"all three: tensorboard --logdir {folder}")
    return exit_code(codes)


def exit_code(codes: Sequence[int]) -> int:
    """Return 2 where a run failed, 3 where all diverged, else 0."""
    if set(codes) - {EXIT_DONE, EXIT_DIVERGED}:
        return EXIT_USER_ERROR
    return EXIT_DIVERGED if set(codes) == {EXIT_DIVERGED} else EXIT_DONE
