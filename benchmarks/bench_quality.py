"""Time to quality: presets on one data set, in turn on equal threads, scores against training time.

Every (preset, seed) trains for a slice of time, then the next one, until each has had its own; only training steps
count as time. Scores are taken at fixed times, off the clock. What was done is kept in a folder: the same command goes
on, also after a kill, with the slice that was under way.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import harness
import torch
import tyro

from fastgan import networks, presets
from fastgan.board import append_row, grid, read_rows, save_png
from fastgan.checkpoint import Checkpoints
from fastgan.data.loaders import build_loader, open_source
from fastgan.distributed import keep_freed_memory
from fastgan.errors import UserError
from fastgan.evaluate import Evaluator
from fastgan.flags import parse
from fastgan.metrics import extractors
from fastgan.metrics.fidelity import labels_for
from fastgan.sample import images_of
from fastgan.trainer import Trainer

MARKS = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600, 900, 1200, 1800, 2400, 3000, 3600, 5400, 7200)


@dataclass(frozen=True)
class Options:
    """Train presets on equal terms and compare when they reach which score."""

    presets: Annotated[tuple[str, ...], tyro.conf.Positional] = ("mnist28", "mnist28-fast")
    """The reference first."""
    minutes: tuple[float, ...] = (60, 5)
    """How long each of them trains."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each preset trains once with each."""
    data: str | None = None
    """The data set, where it isn't the presets' own."""
    threads: int | None = None
    """CPU threads; without it, torch's."""
    slice_s: float = 60
    """Seconds of training before it is the next one's turn."""
    images: int = 10_000
    """Generated images of a score."""
    folder: Path = Path("runs/quality")
    """What goes on from here."""
    until: float | None = None
    """End this call after so many minutes; the same command goes on."""
    save: bool = False
    """Write the table and the plot into results/."""


class Racer:
    """One preset with one seed, and how far it has come: `seconds` of training, `rows` of scores."""

    def __init__(self, options: Options, preset: str, seed: int, limit_s: float) -> None:
        self.preset, self.seed, self.limit_s = preset, seed, limit_s
        self.folder = options.folder / f"{preset}-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        config = presets.get(preset)
        data = replace(config.data, data=options.data or config.data.data)
        self.config = replace(config, seed=seed, data=data)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.source = open_source(self.config)
        loader = build_loader(self.config, self.source, self.device)
        self.trainer = Trainer(self.config, networks.build(self.config, self.device), loader)
        self.extractor = extractors.name_for(self.config)
        self.evaluator = self._evaluator()
        self.num_images = options.images
        self.seconds = 0.0
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=1)
        if (snapshot := self.checkpoints.latest()) is not None:
            self.seconds = snapshot.state.pop("seconds")
            self.trainer.load_state(snapshot.tensors, snapshot.state)
        log = self.folder / "scores.jsonl"
        self.rows = [row for row in read_rows(log) if row["seconds"] <= self.seconds]
        log.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def _evaluator(self) -> Evaluator | None:
        try:
            extractor = extractors.load(self.extractor, self.device, None)
            return Evaluator(self.config, self.source, extractor, self.device)
        except UserError as error:
            print(f"{self.preset} has no scores, only grids and speed: {error}")
            return None

    def train(self, seconds: float) -> None:
        """So much more training, a score at each mark that is passed, and a checkpoint."""
        goal = min(self.seconds + seconds, self.limit_s)
        while self.seconds < goal:
            before = self.seconds
            self.seconds += harness.seconds(self._step)
            if any(before < mark <= self.seconds for mark in (*MARKS, self.limit_s)):
                self._score()
        tensors, state = self.trainer.state()
        self.checkpoints.save(tensors, state | {"seconds": self.seconds})

    def _step(self) -> None:
        trainer = self.trainer
        trainer.train_step(trainer.loader.batch(trainer.images_seen))

    def _score(self) -> None:
        self.trainer.check_finite()
        net, num_classes = self.trainer.ema.net, self.config.networks.num_classes
        row: dict[str, Any] = {"seconds": self.seconds, "images_seen": self.trainer.images_seen}
        if self.evaluator is not None:
            row |= self.evaluator(net, self.num_images)
        labels = labels_for(torch.arange(64), num_classes)
        images = images_of(net, [*range(64)], self.config.networks.z_dim, self.device, labels)
        save_png(self.folder / f"{round(self.seconds):06d}.png", grid(images))
        append_row(self.folder / "scores.jsonl", row)
        self.rows.append(row)
        shown = {name: round(value, 3) for name, value in row.items() if name in ("fd_digits", "confident_digits")}
        place = f"{self.seconds:.0f} s, {row['images_seen']:,} images"
        print(f"{self.preset} seed {self.seed}: {place}, {shown}", flush=True)


def race(options: Options, racers: list[Racer]) -> None:
    """All have had their time, or the call's time is over."""
    ends = time.monotonic() + 60 * (options.until or 1e9)
    while any(racer.seconds < racer.limit_s for racer in racers) and time.monotonic() < ends:
        for racer in racers:
            if racer.seconds < racer.limit_s:
                racer.train(options.slice_s)


def course(racers: list[Racer], metric: str) -> list[tuple[float, list[float]]]:
    """(mark, the seeds' scores) at each mark that all of one preset's seeds have passed."""
    marks = [*MARKS, racers[0].limit_s]
    scores = [{_mark(row["seconds"], marks): row[metric] for row in racer.rows if metric in row} for racer in racers]
    return [(mark, [one[mark] for one in scores]) for mark in sorted(set(marks)) if all(mark in one for one in scores)]


def _mark(seconds: float, marks: list[float]) -> float:
    return max(mark for mark in marks if mark <= seconds)


def table(options: Options, by_preset: dict[str, list[Racer]], metric: str) -> str:
    columns = ("preset", "parameters G / D", "images/s", "seconds of training", metric, "sure of")
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for preset, racers in by_preset.items():
        sizes = " / ".join(f"{size:,}" for size in networks.sizes(racers[0].config))
        speed = harness.spread([racer.trainer.images_seen / max(racer.seconds, 1e-9) for racer in racers], 0)
        sure = dict(course(racers, "confident_digits"))
        for mark, scores in course(racers, metric):
            share = f"{statistics.median(sure[mark]):.3f}" if mark in sure else ""
            lines.append(f"| {preset} | {sizes} | {speed} | {mark:g} | {harness.spread(scores, 2)} | {share} |")
    return "\n".join([*lines, "", *verdicts(options, by_preset, metric)])


def verdicts(options: Options, by_preset: dict[str, list[Racer]], metric: str) -> list[str]:
    """How much earlier than the reference at its end each other preset had its score, medians of the seeds."""
    reference, *others = options.presets
    if not (ends := course(by_preset[reference], metric)):
        return [f"{reference} has no scores of {metric}."]
    end, scores = ends[-1]
    goal = statistics.median(scores)
    said = []
    for preset in others:
        reached = [mark for mark, found in course(by_preset[preset], metric) if statistics.median(found) <= goal]
        when = f"after {reached[0]:g} s, {end / reached[0]:.0f} times as fast" if reached else "not yet"
        said.append(f"{reference} has {metric} {goal:.2f} after {end:g} s; {preset} has it {when}.")
    return said


def plot(path: Path, by_preset: dict[str, list[Racer]], metric: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (preset, racers) in enumerate(by_preset.items()):
        for racer in racers:
            points = [(row["seconds"], row[metric]) for row in racer.rows if metric in row]
            label = preset if racer is racers[0] else None
            axes.plot(*zip(*points, strict=True), color=f"C{number}", marker="o", ms=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel=metric, title="time to quality")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)


def main(options: Options) -> None:
    if len(options.presets) != len(options.minutes):
        raise UserError(f"minutes is {options.minutes}: give one number for each of {', '.join(options.presets)}")
    keep_freed_memory()  # as training does
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    by_preset = {
        preset: [Racer(options, preset, seed, 60 * minutes) for seed in options.seeds]
        for preset, minutes in zip(options.presets, options.minutes, strict=True)
    }
    race(options, [racer for racers in by_preset.values() for racer in racers])
    extractor = by_preset[options.presets[0]][0].extractor
    metric = "fid_inception" if extractor == "inception" else f"fd_{extractor}"
    text = table(options, by_preset, metric)
    print(text)
    if options.save:
        title = "Time to quality: " + " against ".join(options.presets)
        path = harness.save(f"quality-{options.presets[-1]}", title, text)
        plot(path.with_suffix(".png"), by_preset, metric)
        print(path)


if __name__ == "__main__":
    try:
        main(parse(Options, sys.argv[1:], prog="bench_quality.py"))
    except UserError as error:
        sys.exit(f"bench_quality.py: error: {error}")
