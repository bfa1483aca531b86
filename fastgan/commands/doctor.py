"""`fastgan doctor RUN`: what a run's log says of its health, the evidence, and the remedy.

Reads config.json, log.jsonl and performance.jsonl; health.py has what the figures mean. Exit code 0: nothing is wrong,
or it is too early to tell; 1: a fault was found. `fastgan doctor` alone checks the installation: see installation.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastgan.config import Config
from fastgan.errors import EXIT_DONE
from fastgan.monitor.health import EARLY_EVERY
from fastgan.runs.rows import read_figures
from fastgan.runs.run_folder import RunFolder
from fastgan.training.schedules import preset_gamma_note

EXIT_FAULT = 1

# D's loss where it can't tell: all logits 0, for least-squares 0.5. The Wasserstein loss has no such value.
CHANCE_LEVEL = {"nonsaturating": 2 * math.log(2), "relativistic": math.log(2), "hinge": 2.0, "least-squares": 0.25}
LAST = 2 / 3  # judged is what is after this share of the rows: first rows are those of networks that know nothing
MIN_ROWS = 4  # of health: the last third of fewer is one row, which may be chance
EARLY = 20_000  # images before which a fault may show, but good health can't, and labels aren't learned
UNSTABLE = 2.0  # times the undecided loss: D does far worse than not looking; healthy runs stay below 1.0 of it
COLLAPSED = 0.05  # of the data's diversity: collapsed runs had 0.01 and less, networks without any training 0.15
WINS_PAIRS = 0.99  # of pairs of real and fake in the right order, in the mean; healthy runs have 0.6 to 0.95
WINS_LOSS = 0.2  # of the undecided loss: D is sure and right; healthy runs have 0.8 and more
OVERFITTING = 0.5  # held_out_gap, moved_gap: three pairs in four have the seen image above; healthy runs stay below 0.2
MEMORISED = 0.5  # nearest_real: samples are half as far from training images as new images are; healthy ones 1 and more
FEW_IMAGES = 2_000  # below it D memorises unchanged images (ADA, 2006.06676)
OFTEN = 20  # times that each image was seen: nothing is memorised at once
LR_RATIO = 4.0  # between the players' learning rates: twofold ones are usual (TTUR, 1706.08500)
WEAK_PAIRS = 0.5  # a D that does worse than chance, and has by far the smaller steps
NO_USE = 0.6  # mean of label_real and label_fake: mixed-up classes have 0.50 to 0.53, healthy runs 0.70 and more
HEALTH = {f"health/{name}" for name in ("diversity", "data_spread", "saturation", "nearest_real", "passes")}
HEALTH |= {f"health/{name}" for name in ("d_accuracy_pairs", "logit_gap", "moved_gap")}  # of which a row has each
LABEL_ROWS = 6  # of health at least: a row has few pairs


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in words."""

    fault: str
    evidence: tuple[str, ...]
    remedy: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What a run's log says: the most serious fault first; none where it is healthy or too early to tell."""

    verdict: str
    evidence: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    remedy: tuple[str, ...] = ()


class RunHistory:
    """The figures of a run by name, in the order of the images seen."""

    def __init__(self, config: Config, log: Sequence[dict[str, Any]], performance: Sequence[dict[str, Any]]) -> None:
        self.config = config
        self.log = [row for row in log if "loss/D" in row and "loss/G" in row]
        # Runs of earlier versions have these in the log.
        self.health = [row for row in (*log, *performance) if row.keys() >= HEALTH and row["health/passes"] > 0]
        self.diverged_at = next((row["images_seen"] for row in performance if "health/diverged" in row), None)
        self.images_seen = max((row["images_seen"] for row in (*self.log, *self.health)), default=0)

    @property
    def since(self) -> int:
        """The images seen where the judged part begins."""
        return int(LAST * self.images_seen)

    def mean(self, name: str) -> float | None:
        """Return the mean of the figure over the judged part; None where no row has it."""
        values = [row[name] for row in (*self.log, *self.health) if name in row and row["images_seen"] > self.since]
        return sum(values) / len(values) if values else None

    def health_of(self, name: str) -> float:
        """Return the mean of a figure that each row of health has."""
        value = self.mean(f"health/{name}")
        assert value is not None
        return value

    @property
    def chance_level(self) -> float | None:
        return CHANCE_LEVEL.get(self.config.objective.loss)

    @property
    def loss_share(self) -> float | None:
        """D's loss as a share of what it is where D can't tell; None where the loss has no such value."""
        loss = self.mean("loss/D")
        return None if self.chance_level is None or loss is None else loss / self.chance_level

    @property
    def d_wins(self) -> bool:
        """Whether D tells nearly all reals from fakes, and is sure."""
        share = self.loss_share
        return self.health_of("d_accuracy_pairs") >= WINS_PAIRS and share is not None and share <= WINS_LOSS

    @property
    def lr_ratio(self) -> float:
        """How many times D's learning rate is G's."""
        return self.config.optimizer.d_lr / self.config.optimizer.g_lr

    @property
    def passes(self) -> float:
        """How often each training image was seen."""
        last: float = self.health[-1]["health/passes"]
        return last

    @property
    def num_images(self) -> int:
        """Images of the data set."""
        return round(self.health[-1]["images_seen"] / self.passes)

    def line(self, name: str, meaning: str) -> str:
        """Return a line of evidence: the figure, its mean over the judged part, and what it means."""
        return f"{name} {self.health_of(name.removeprefix('health/')):.3g} {meaning}"


def find_divergence(history: RunHistory) -> Finding | None:
    config, place = history.config, f"after {history.since:,} images"
    share = history.loss_share
    if history.diverged_at is not None:
        said = f"the losses were no longer finite numbers at {history.diverged_at:,} images"
    elif share is not None and not share < UNSTABLE:  # also where it is no number
        said = f"loss/D {history.mean('loss/D'):.3g} in the mean {place}: {share:.1f} times that of a D that can't tell"
    else:
        return None
    evidence = [said]
    if (g_loss := history.mean("loss/G")) is not None and (norm := history.mean("grad_norm/D")) is not None:
        evidence.append(f"loss/G {g_loss:.3g}, grad_norm/D {norm:.3g} in the mean {place}")
    g_lr, d_lr = config.optimizer.g_lr, config.optimizer.d_lr
    remedy = [f"smaller steps: --g-lr {g_lr / 10:g} --d-lr {d_lr / 10:g} (they were {g_lr:g} and {d_lr:g})"]
    if config.objective.penalty == "none":
        remedy.append("a penalty that holds D's slopes down: --penalty r1+r2")
    return Finding("diverging", tuple(evidence), tuple(remedy))


def find_collapse(history: RunHistory) -> Finding | None:
    if history.health_of("data_spread") == 0:
        said = "health/data_spread 0: all training images that were looked at are alike"
        return Finding("collapse", (said,), ("look at the images: fastgan data info FOLDER shows a contact sheet",))
    if history.health_of("diversity") >= COLLAPSED:
        return None
    evidence = [history.line("health/diversity", "of the data's: the samples of different z are nearly one image")]
    saturated = history.health_of("saturation")
    if saturated > 0.5:
        evidence.append(f"health/saturation {saturated:.3g} of G's values are at the ends of tanh, without a gradient")
    g_lr, beta = history.config.optimizer.g_lr, history.config.optimizer.betas[0]
    remedy = ["G doesn't come back from it by itself: begin again, in another --run-dir, with"]
    remedy.append(f"  a smaller step of G: --g-lr {g_lr / 10:g} (it was {g_lr:g})")
    if beta > 0:
        remedy.append(f"  no momentum: --betas 0 {history.config.optimizer.betas[1]:g} (the first was {beta:g})")
    if history.config.objective.penalty == "none":
        remedy.append("  a penalty: --penalty r1+r2, with --loss relativistic where modes are lost (R3GAN)")
    return Finding("collapse", tuple(evidence), tuple(remedy))


def find_overfitting(history: RunHistory) -> Finding | None:
    evidence = []
    held_out = history.mean("health/held_out_gap")
    if held_out is not None and held_out >= OVERFITTING:
        evidence.append(history.line("health/held_out_gap", "D knows seen images from unseen: 0 is none, 1 memorised"))
    if held_out is None and history.passes >= OFTEN and history.health_of("moved_gap") >= OVERFITTING:
        evidence.append(
            history.line(
                "health/moved_gap", "D knows seen images from copies moved by one pixel: 0 is none, 1 memorised"
            )
        )
    if history.num_images < FEW_IMAGES and history.health_of("nearest_real") < MEMORISED:
        evidence.append(history.line("health/nearest_real", "samples are copies of training images: 1 is a new image"))
    if not evidence:
        return None
    evidence.append(f"{history.num_images:,} training images, each seen {history.passes:,.0f} times")
    if held_out is None:
        evidence.append("there are no held-out images of this data set, so D's verdict on unseen ones isn't known")
    remedy = ["more images, or fewer passes: stop at the checkpoint whose samples are best"]
    if history.config.objective.augment == "none":
        remedy.insert(0, "let D see each image changed: --augment ada --augment-target 0.6, or --preset fewshot")
    return Finding("D overfits", tuple(evidence), tuple(remedy))


def find_strong_d(history: RunHistory) -> Finding | None:
    if not history.d_wins:
        return None
    evidence = [
        history.line("health/d_accuracy_pairs", "of pairs of real and fake are told apart"),
        f"loss/D {history.mean('loss/D'):.3g}: {history.loss_share:.1%} of that of a D that can't tell",
        f"health/logit_gap {history.health_of('logit_gap'):.3g}, loss/G {history.mean('loss/G'):.3g}",
    ]
    optimizer, remedy = history.config.optimizer, []
    if history.lr_ratio >= LR_RATIO:
        evidence.append(f"D's learning rate is {history.lr_ratio:g} times G's")
        remedy.append(f"steps of like size: --d-lr {optimizer.g_lr:g} (it was {optimizer.d_lr:g}), or a larger --g-lr")
    elif history.lr_ratio > 1 / LR_RATIO:
        remedy.append(f"a smaller step of D: --d-lr {optimizer.d_lr / 4:g} (it was {optimizer.d_lr:g})")
    if history.config.objective.penalty == "none":
        remedy.append("a penalty that holds D's slopes down: --penalty r1 or r1+r2")
    else:
        remedy.append("a stronger penalty: fastgan sweep gamma tells which --gamma")
    if history.config.networks.d_width > 1:
        remedy.append("a narrower D: --d-width 1")
    return Finding("D far too strong", tuple(evidence), tuple(remedy))


def find_weak_d(history: RunHistory) -> Finding | None:
    optimizer = history.config.optimizer
    if history.lr_ratio > 1 / LR_RATIO or history.health_of("d_accuracy_pairs") >= WEAK_PAIRS:
        return None
    evidence = (
        history.line("health/d_accuracy_pairs", "of pairs of real and fake in the right order: 0.5 is chance"),
        f"G's learning rate is {1 / history.lr_ratio:g} times D's",
    )
    remedy = (f"steps of like size: --d-lr {optimizer.g_lr:g} (it was {optimizer.d_lr:g}), or a smaller --g-lr",)
    return Finding("D too weak", evidence, remedy)


def _mean_labels(rows: list[dict[str, float]]) -> tuple[float, float]:
    """The means of label_real and label_fake."""
    real, fake = (sum(row[f"health/label_{side}"] for row in rows) / len(rows) for side in ("real", "fake"))
    return real, fake


def find_broken_labels(history: RunHistory) -> Finding | None:
    rows = [row for row in history.health if "health/label_real" in row]
    if len(rows) < LABEL_ROWS or history.images_seen < EARLY:
        return None
    # D learns the classes early; once samples are good it may know little of them, in a healthy run.
    size = max(LABEL_ROWS, len(rows) // 3)
    stretches = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    real, fake = max((_mean_labels(stretch) for stretch in stretches), key=sum)
    if (real + fake) / 2 >= NO_USE:
        return None
    evidence = (
        f"health/label_real {real:.3g} of pairs of reals fit their own classes better: 0.5 is chance",
        f"health/label_fake {fake:.3g} of pairs of G's: what D knows of the classes says nothing of the images",
    )
    remedy = (
        "look at the classes (fastgan data info FOLDER): folders may be mixed up, or labels be in another order",
        "or train without classes: --num-classes 0",
    )
    return Finding("broken labels", evidence, remedy)


# The most serious first: what comes after may only follow from it.
FAULTS: tuple[Callable[[RunHistory], Finding | None], ...] = (
    find_collapse,
    find_overfitting,
    find_strong_d,
    find_weak_d,
    find_broken_labels,
)


def diagnose(history: RunHistory) -> Diagnosis:
    """Return what the figures say."""
    if not history.log and history.diverged_at is None:
        return Diagnosis("too short to tell", ("log.jsonl has no rows yet: let the run go on",))
    divergence = find_divergence(history)
    if divergence is not None:  # whatever else there is comes from it
        return Diagnosis(divergence.fault, divergence.evidence, (divergence,), divergence.remedy)
    if len(history.health) < MIN_ROWS:
        seen = f"{history.images_seen:,} images seen, {len(history.health)} rows of health/ of the {MIN_ROWS} it takes"
        return Diagnosis("too short to tell", (seen, f"ask again later, or give --health-every {EARLY_EVERY}"))
    findings = [found for find in FAULTS if (found := find(history)) is not None]
    if history.lr_ratio >= LR_RATIO:  # then a G that stands still is D's doing
        findings.sort(key=lambda found: found.fault != "D far too strong")
    if findings:
        return Diagnosis(findings[0].fault, findings[0].evidence, tuple(findings), findings[0].remedy)
    if history.images_seen < EARLY:
        seen = f"{history.images_seen:,} images seen: no fault shows, but good health doesn't before {EARLY:,}"
        return Diagnosis("too short to tell", (seen,))
    return Diagnosis("healthy", _well(history))


def _well(history: RunHistory) -> tuple[str, ...]:
    evidence = [
        history.line("health/d_accuracy_pairs", "of pairs of real and fake are told apart: neither blind nor sure")
    ]
    if (share := history.loss_share) is not None:
        evidence.append(f"loss/D {history.mean('loss/D'):.3g}: {share:.2f} of that of a D that can't tell")
    evidence.append(history.line("health/diversity", "of the data's diversity"))
    evidence.append(history.line("health/nearest_real", "times as far from training images as a new image is"))
    if history.mean("health/held_out_gap") is not None:
        evidence.append(history.line("health/held_out_gap", "of 1: D doesn't know seen images from unseen ones"))
    else:
        evidence.append("no held-out images of this data set: whether D knows unseen ones from seen ones isn't known")
    return tuple(evidence)


def text(name: str, history: RunHistory, diagnosis: Diagnosis) -> str:
    """Return the diagnosis as the command prints it."""
    head = f"{name}: {diagnosis.verdict}"
    if not history.log and history.diverged_at is None:
        return f"{head}: {diagnosis.evidence[0]}"
    head += f"   ({history.images_seen:,} images seen; figures are means after {history.since:,})"
    lines = [head]
    if not diagnosis.findings:
        return "\n".join([head, *(f"  {line}" for line in diagnosis.evidence)])
    for finding in diagnosis.findings:
        lines += [f"  {finding.fault}", *(f"    evidence: {line}" for line in finding.evidence)]
        lines += [f"    remedy:   {line}" for line in finding.remedy]
    return "\n".join(lines)


@dataclass(frozen=True)
class DoctorOptions:
    """Say what a run's log shows, with the evidence and the remedy; without a run, check the installation."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """The run folder."""


def doctor(options: DoctorOptions) -> int:
    """Print the run's diagnosis, or the installation's; return 1 where there is a fault, else 0.

    Raises UserError where there is no run.
    """
    if options.run is None:
        from fastgan.commands import installation

        return installation.check()
    folder = RunFolder(options.run)
    log, performance = (read_figures(path, print) for path in (folder.log, folder.performance))
    course = RunHistory(folder.read_config(), log, performance)
    diagnosis = diagnose(course)
    print(text(str(options.run), course, diagnosis))
    if (note := preset_gamma_note(course.config)) is not None:
        print(f"  {note}")
    return EXIT_FAULT if diagnosis.findings else EXIT_DONE
