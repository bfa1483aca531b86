"""Time to quality: recipes on one data set, and when each of them has which score.

A recipe is a preset, or a preset and options of training in one word: `"mnist28-fast --batch-size 32"`.

Two things are measured, and kept in a folder. The speed: seconds of training an image, in rounds in turn on equal
threads, on a machine with nothing else to do. The course: scores after so many images, from several seeds; it depends
on no clock, so it may be made in pieces and beside other work: the same command resumes, also after a kill, with the
slice that was under way. A score's time is its images times the speed.
"""

import functools
import json
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import harness
import torch
import tyro

from fastgan import networks
from fastgan.data.loaders import build_loader, open_dataset
from fastgan.distributed.processes import tune_malloc
from fastgan.errors import UserError
from fastgan.evaluation import extractors
from fastgan.evaluation.evaluator import Evaluator
from fastgan.evaluation.fidelity import labels_for
from fastgan.evaluation.sampling import images_of
from fastgan.presets import parse_config
from fastgan.runs.checkpoint import Checkpoints
from fastgan.runs.rows import append_row, read_rows
from fastgan.training.trainer import Trainer
from fastgan.utils.arguments import parse
from fastgan.utils.files import write_atomically
from fastgan.utils.pngs import grid, save_png

MARKS = tuple(int(digits * 10**zeros) for zeros in range(4, 8) for digits in (1, 1.5, 2, 3, 5, 7))
ROUNDS, ROUND_S = 6, 4.0  # of the speed: the first round warms up


@dataclass(frozen=True)
class Options:
    """Train recipes on equal terms and compare when they reach which score."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = ("mnist28", "mnist28-fast")
    """The reference first."""
    minutes: tuple[float, ...] = (60, 5)
    """How long each of them trains, by its speed; one number is for all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each recipe trains once with each."""
    data: str | None = None
    """The data set, where it isn't the recipes' own."""
    threads: int | None = None
    """CPU threads of the courses; without it, torch's, as for the speed."""
    slice_images: int = 20_000
    """Images of training before it is the next one's turn."""
    images: int = 10_000
    """Generated images of a score."""
    folder: Path = Path("runs/quality")
    """What goes on from here."""
    until: float | None = None
    """End this call after so many minutes; the same command resumes."""
    theme: str = "quality"
    """What the result's file name begins with."""
    save: bool = False
    """Write the table and the plot into results/."""


def build_trainer(options: Options, recipe: str, seed: int) -> Trainer:
    config = parse_config(["--preset", *shlex.split(recipe)])
    config = replace(config, seed=seed, data=replace(config.data, data=options.data or config.data.data))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Trainer(config, networks.build(config, device), build_loader(config, open_dataset(config), device))


def train_step(trainer: Trainer) -> None:
    trainer.train_step(trainer.loader.batch(trainer.images_seen))


def speeds(options: Options) -> dict[str, list[float]]:
    """Images a second of each recipe in each round, from the folder where all have been measured together."""
    path = options.folder / "speeds.json"
    measured: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    if any(recipe not in measured for recipe in options.recipes):
        trainers = {recipe: build_trainer(options, recipe, 0) for recipe in options.recipes}
        measures = {recipe: functools.partial(_speed, trainer) for recipe, trainer in trainers.items()}
        values = harness.in_turn(measures, ROUNDS)
        measured = {name: value[1:] for name, value in values.items()}
        options.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measured).encode())
    return measured


def _speed(trainer: Trainer) -> float:
    before, seconds = trainer.images_seen, 0.0
    while seconds < ROUND_S:
        seconds += harness.seconds(lambda: train_step(trainer))
    return (trainer.images_seen - before) / seconds


class Racer:
    """One recipe with one seed on its way to `limit` images, and its scores: `rows`, each at a `mark` of images."""

    def __init__(self, options: Options, recipe: str, seed: int, limit: int) -> None:
        self.recipe, self.seed, self.num_images = recipe, seed, options.images
        self.marks = sorted({*(mark for mark in MARKS if mark < limit), limit})
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in recipe)
        self.folder = options.folder / f"{name}-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trainer = build_trainer(options, recipe, seed)
        self.config = self.trainer.config
        self.device = next(self.trainer.G.net.parameters()).device
        self.extractor = extractors.name_for(self.config)
        self.evaluator = self._evaluator()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=1)
        if (snapshot := self.checkpoints.latest()) is not None:
            self.trainer.load_state(snapshot.tensors, snapshot.state)
        log = self.folder / "scores.jsonl"
        self.rows = [row for row in read_rows(log) if row["images_seen"] <= self.trainer.images_seen]
        log.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def _evaluator(self) -> Evaluator | None:
        try:
            extractor = extractors.load(self.extractor, self.device, None)
            return Evaluator(self.config, open_dataset(self.config), extractor, self.device)
        except UserError as error:
            print(f"{self.recipe} has no scores, only grids and speed: {error}")
            return None

    @property
    def is_done(self) -> bool:
        return self.trainer.images_seen >= self.marks[-1]

    def train(self, images: int) -> None:
        """So many more images, a score at each mark that is passed, and a checkpoint."""
        goal = min(self.trainer.images_seen + images, self.marks[-1])
        while (before := self.trainer.images_seen) < goal:
            train_step(self.trainer)
            for mark in self.marks:
                if before < mark <= self.trainer.images_seen:
                    self._score(mark)
        self.checkpoints.save(*self.trainer.state())

    def _score(self, mark: int) -> None:
        self.trainer.check_finite()
        net, num_classes = self.trainer.ema.net, self.config.networks.num_classes
        row: dict[str, Any] = {"mark": mark, "images_seen": self.trainer.images_seen}
        if self.evaluator is not None:
            row |= self.evaluator(net, self.num_images)
        labels = labels_for(torch.arange(64), num_classes)
        images = images_of(net, [*range(64)], self.config.networks.z_dim, self.device, labels)
        save_png(self.folder / f"{mark:08d}.png", grid(images))
        append_row(self.folder / "scores.jsonl", row)
        self.rows.append(row)
        shown = (f"{name} {row[name]:.3f}" for name in row if name.startswith(("fd_", "fid_", "confident_")))
        print(f"{self.recipe} seed {self.seed}: {mark:,} images  {'  '.join(shown)}", flush=True)


def race(options: Options, racers: list[Racer]) -> None:
    """All have had their images, or the call's time is over."""
    ends = time.monotonic() + (1e9 if options.until is None else 60 * options.until)
    while not all(racer.is_done for racer in racers) and time.monotonic() < ends:
        for racer in racers:
            racer.train(options.slice_images)


def course(racers: list[Racer], metric: str) -> dict[int, list[float]]:
    """The seeds' scores at each mark that one of them has passed."""
    scores: dict[int, list[float]] = {}
    for racer in racers:
        for row in racer.rows:
            if metric in row:
                scores.setdefault(row["mark"], []).append(row[metric])
    return dict(sorted(scores.items()))


def table(by_recipe: dict[str, list[Racer]], speed: dict[str, float], metric: str) -> str:
    """A row a recipe, with what it has at its end."""
    columns = ("recipe", "parameters G / D", "images/s", "seconds of training", "seeds", metric, "sure of")
    lines = [harness.head(*columns)]
    for recipe, racers in by_recipe.items():
        sizes = " / ".join(f"{size:,}" for size in networks.sizes(racers[0].config))
        mark, *cells = [(0, "0", "", ""), *_scores(racers, metric)][-1]
        lines.append(harness.row(recipe, sizes, f"{speed[recipe]:.0f}", f"{mark / speed[recipe]:.1f}", *cells))
    return "\n".join(lines)


def courses(by_recipe: dict[str, list[Racer]], speed: dict[str, float], metric: str) -> str:
    """A row for each mark that a recipe has passed."""
    lines = [harness.head("recipe", "images", "seconds of training", "seeds", metric, "sure of")]
    for recipe, racers in by_recipe.items():
        for mark, *cells in _scores(racers, metric):
            lines.append(harness.row(recipe, f"{mark:,}", f"{mark / speed[recipe]:.1f}", *cells))
    return "\n".join(lines)


def _scores(racers: list[Racer], metric: str) -> list[tuple[int, str, str, str]]:
    """Each mark, how many seeds have passed it, their scores, and the share of samples a classifier is sure of."""
    sure = {mark: f"{statistics.median(shares):.3f}" for mark, shares in course(racers, "confident_digits").items()}
    return [
        (mark, str(len(scores)), harness.spread(scores, 2), sure.get(mark, ""))
        for mark, scores in course(racers, metric).items()
    ]


def verdicts(by_recipe: dict[str, list[Racer]], speed: dict[str, float], metric: str) -> list[str]:
    """How much earlier than the reference each other recipe has its score, at the time given and at its last mark."""
    (reference, racers), *others = by_recipe.items()
    ends = course(racers, metric)
    said = []
    for mark in sorted({racers[0].marks[-1], *list(ends)[-1:]} & set(ends)):
        goal, end = statistics.median(ends[mark]), mark / speed[reference]
        said.append(f"{reference} has {metric} {goal:.2f} after {end:.0f} s ({len(ends[mark])} seeds).")
        for recipe, found in others:
            reached = [mark for mark, scores in course(found, metric).items() if statistics.median(scores) <= goal]
            first = reached[0] / speed[recipe] if reached else 0.0
            when = f"after {first:.1f} s, {end / first:.3g} times as fast" if reached else "not yet"
            said.append(f"{recipe} has it {when}.")
    return said


def plot(path: Path, by_recipe: dict[str, list[Racer]], speed: dict[str, float], metric: str) -> None:
    """A line a seed, or for more than three recipes one of medians."""
    from matplotlib.figure import Figure

    many = len(by_recipe) > 3
    figure = Figure(figsize=(12 if many else 8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (recipe, racers) in enumerate(by_recipe.items()):
        style = ("-", "--", ":")[number // 10 % 3]  # there are ten colours
        for group in [racers] if many else [[racer] for racer in racers]:
            points = [(mark / speed[recipe], statistics.median(s)) for mark, s in course(group, metric).items()]
            label = recipe if group[0] is racers[0] else None
            axes.plot(*zip(*points, strict=True), style, color=f"C{number % 10}", marker="o", ms=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel=metric, title="time to quality")
    axes.grid(alpha=0.3, which="both")
    if many:
        figure.legend(loc="outside right upper", fontsize="small")
    else:
        axes.legend()
    figure.savefig(path)


def main(options: Options) -> None:
    times = options.minutes * len(options.recipes) if len(options.minutes) == 1 else options.minutes
    if len(options.recipes) != len(times):
        raise UserError(f"minutes is {options.minutes}: give one number for each of {', '.join(options.recipes)}")
    tune_malloc()  # as training does
    measured = speeds(options)
    speed = {recipe: statistics.median(measured[recipe]) for recipe in options.recipes}
    for recipe in options.recipes:
        print(f"{recipe}: {harness.spread(measured[recipe], 0)} images/s, {harness.processor()}", flush=True)
    named = options.recipes
    if len(named) > 3:
        named = (named[0], f"{len(named) - 1} others")
    title = "Time to quality: " + " against ".join(named)
    machine = harness.processor()  # of the speed
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    by_recipe = {
        recipe: [Racer(options, recipe, seed, round(60 * minutes * speed[recipe])) for seed in options.seeds]
        for recipe, minutes in zip(options.recipes, times, strict=True)
    }
    race(options, [racer for racers in by_recipe.values() for racer in racers])
    extractor = by_recipe[options.recipes[0]][0].extractor
    metric = "fid_inception" if extractor == "inception" else f"fd_{extractor}"
    text = "\n".join([table(by_recipe, speed, metric), "", *verdicts(by_recipe, speed, metric)])
    text += f"\n\n{courses(by_recipe, speed, metric)}"
    print(text)
    if options.save:
        theme = f"{options.theme}-{options.recipes[0].split()[0]}"
        path = harness.save(theme, title, f"{text}\n\nSpeed measured on {machine}.")
        plot(path.with_suffix(".png"), by_recipe, speed, metric)
        path.write_text(f"{path.read_text()}\n![{metric} over seconds of training]({path.stem}.png)\n")
        print(path)


if __name__ == "__main__":
    try:
        main(parse(Options, sys.argv[1:], prog="bench_quality.py"))
    except UserError as error:
        sys.exit(f"bench_quality.py: error: {error}")
