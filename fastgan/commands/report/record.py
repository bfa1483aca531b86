"""What a run folder tells, read once: figures, measurements with their protocol, sessions, pictures, commands."""

import contextlib
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgan import presets
from fastgan.config import Config, flat
from fastgan.errors import UserError
from fastgan.runs.checkpoint import BEST, Checkpoints
from fastgan.runs.rows import is_number, read_figures, read_rows
from fastgan.runs.run_folder import RunFolder

METRICS = "metrics/"
# start of a metric's name, better, what it is
EXPLAINED = (
    ("fid_", "less", "Fréchet distance of Inception's features"),
    ("fd_", "less", "Fréchet distance of the extractor's features"),
    ("kid_std_", None, "standard deviation of the kernel distance over subsets"),
    ("kid_", "less", "kernel distance of features, unbiased"),
    ("is_std_", None, "standard deviation of the score over ten splits"),
    ("is_", "more", "how sure the extractor is, and how varied the images are"),
    ("precision_", "more", "share of samples among the real images"),
    ("recall_", "more", "share of real images among the samples"),
    ("density_", "more", "how many real images are as near to a sample as their neighbours are to each other"),
    ("coverage_", "more", "share of real images with a sample among their neighbours"),
    ("confident_", "more", "share of samples that a classifier is at least 0.9 sure of"),
    ("min_class_share_", "more", "share of the rarest class"),
    ("max_class_share_", "less", "share of the most frequent class"),
    ("modes", "more", "modes found, of 1,000"),
    ("kl_floor", None, "what a perfect sampler has with so many images"),
    ("kl", "less", "divergence from equally frequent modes"),
)
PROTOCOL = {
    "num_reals": "real images",
    "num_fakes": "generated images",
    "torch_fidelity": "torch-fidelity",
    "num_neighbor_images": "most images for precision, recall, kid",
}
HEADLINES = ("fid_", "fd_", "kl")


@dataclass(frozen=True)
class Measurement:
    """The metrics of one evaluation, and what must agree before they are compared with another's."""

    images_seen: int
    metrics: dict[str, float]
    protocol: dict[str, str]


class Record:
    """A run as its folder tells of it. Raises UserError where that is none, or nothing has happened in it yet."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, RunFolder(path)
        self.name = path.resolve().name
        self.config = self.folder.read_config()
        self.log, self.performance = (read_figures(file, print) for file in (self.folder.log, self.folder.performance))
        self.evaluations, self.curve = (_measured(file) for file in (self.folder.evaluation, self.folder.metrics))
        self.sessions = [_session(row) for row in read_rows(self.folder.sessions, print)]
        self.grids = sorted(self.folder.grids.glob("[0-9]*.png"))
        if not self.log and not self.grids:
            raise UserError(f"{path} has nothing to report yet: let it train on")

    @property
    def images_seen(self) -> int:
        places = [row["images_seen"] for rows in (self.log, self.performance, self.evaluations) for row in rows[-1:]]
        newest = [*Checkpoints(self.folder.checkpoints).paths()[-1:], *self.grids[-1:]]
        return max([*places, *(int(path.stem) for path in newest)])

    @property
    def seconds(self) -> float:
        """Time of training itself: evaluations, grids and pauses to save aren't in it."""
        total, before = 0.0, 0
        for row in self.performance:
            if speed := row.get("speed/images_per_s"):
                total += (row["images_seen"] - before) / speed
                before = row["images_seen"]
        return total

    def series(self) -> dict[str, list[tuple[float, float]]]:
        """Return every figure over the images seen, by name, finite values only."""
        found: dict[str, list[tuple[float, float]]] = {}
        for row in (*self.log, *self.performance):
            for name, value in row.items():
                if name != "images_seen" and isinstance(value, int | float) and math.isfinite(value):
                    found.setdefault(name, []).append((row["images_seen"], float(value)))
        return found

    def measurements(self) -> list[Measurement]:
        """Return what `fastgan evaluate` measured, newest first, then the newest that was measured while training."""
        evaluated = [_measurement(row, "by fastgan evaluate") for row in reversed(self.evaluations)]
        curve = [_measurement(row, "while training") for row in self.curve[-1:]]
        return evaluated + (curve or list(self._in_log()))

    def _in_log(self) -> Iterator[Measurement]:
        """The newest metrics of a run whose protocols are gone, if there are any."""
        for row in reversed(self.log):
            metrics = {name.removeprefix(METRICS): v for name, v in row.items() if name.startswith(METRICS)}
            if metrics:
                protocol = {"measured": "while training", "data": self.config.data.data}
                yield Measurement(row["images_seen"], metrics, protocol)
                return

    @property
    def from_preset(self) -> list[tuple[str, str, str]]:
        """The settings that aren't the preset's: name, here, there. None where the preset is no longer known."""
        if self.config.preset not in presets.PRESETS:
            return []
        mine, theirs = flat(self.config), flat(presets.PRESETS[self.config.preset]())
        return [(name, shown(mine[name]), shown(theirs[name])) for name in mine if mine[name] != theirs[name]]

    def commands(self) -> list[tuple[str, str]]:
        """Return what to type, and what for."""
        run = shlex.quote(str(self.path))
        classes = self.config.networks.num_classes
        best = Checkpoints(self.path / BEST).paths()
        lines = [("64 samples in one picture", f"fastgan sample {run} --seeds 0-63 --grid --out samples")]
        if classes:
            many = f"fastgan sample {run} --seeds 0-9 --class 0-{min(classes, 10) - 1} --grid --out classes"
            lines.append(("a row a class", many))
        if best:
            seen = f"{int(best[0].name):,} images seen"
            lines.append((f"samples of the best checkpoint, of {seen}", f"fastgan sample {run} --best --out best"))
        lines += [
            ("a walk from seed to seed", f"fastgan walk {run} --out walk.gif"),
            ("measure it against its data", f"fastgan evaluate {run}"),
            ("all figures, live", f"tensorboard --logdir {run}"),
        ]
        with contextlib.suppress(ValueError, IndexError):  # there is none, or its command is damaged
            lines.insert(0, ("train on, from the newest checkpoint", self._train_on()))
        return lines

    def _train_on(self) -> str:
        """The last session's command, into the folder where the run is now."""
        words = shlex.split(as_typed(self.sessions[-1]["command"]))
        number = next((number for number, word in enumerate(words) if word.split("=")[0] == "--run-dir"), None)
        if number is None:
            here = self.path.resolve() == self.config.run_dir.resolve()
            return shlex.join([*words, *([] if here else ["--run-dir", str(self.path)])])
        rest = words[number + 1 + ("=" not in words[number]) :]
        return shlex.join([*words[:number], "--run-dir", str(self.path), *rest])


def _measured(path: Path) -> list[dict[str, Any]]:
    """The rows of measurements; those that aren't whole are passed over, and it is said."""
    found = read_rows(path, print)
    rows = [row for row in found if isinstance(row.get("images_seen"), int) and isinstance(row.get("metrics"), dict)]
    if len(rows) < len(found):
        print(f"{path}: rows without images_seen and metrics are passed over: {len(found) - len(rows):,}")
    return [
        row | {"metrics": {name: value for name, value in row["metrics"].items() if is_number(value)}} for row in rows
    ]


def _session(row: dict[str, Any]) -> dict[str, Any]:
    """The session with all that the page shows of one."""
    names = ("started", "command", "fastgan", "commit", "python", "machine")
    return {name: str(row.get(name) or "") for name in names} | {"packages": _part(row, "packages")}


def _part(row: dict[str, Any], name: str) -> dict[str, Any]:
    """What the row has by the name; nothing where that isn't what it should be."""
    part = row.get(name)
    return part if isinstance(part, dict) else {}


def _measurement(row: dict[str, Any], measured: str) -> Measurement:
    found = _part(row, "protocol")
    words = {name: PROTOCOL.get(name, name.replace("_", " ")) for name in found}
    protocol = {"measured": measured} | {words[name]: shown(value) for name, value in found.items()}
    which = dict(_part(row, "which"))
    if which.pop("best", False):
        protocol["checkpoint"] = "the best"
    if any(value is not None for value in which.values()):
        protocol["average"] = ", ".join(f"{name} {value}" for name, value in which.items() if value is not None)
    made_by = _part(row, "session")
    protocol["fastgan"] = f"{made_by.get('fastgan', '')} {str(made_by.get('commit') or '')[:10]}".strip()
    packages = _part(made_by, "packages")
    for package in ("torch", "torch-fidelity"):
        if packages.get(package):
            protocol.setdefault(package, str(packages[package]))
    return Measurement(row["images_seen"], row["metrics"], protocol)


def as_typed(command: str) -> str:
    """Return the command as it is typed again, of how Python was called."""
    words = shlex.split(command)
    program = Path(words[0]).name if words else ""
    if program == "train.py":
        return shlex.join(["accelerate", "launch", *words])
    return shlex.join(["fastgan", *words[1:]]) if program in ("fastgan", "cli.py") else command


def explained(metric: str) -> tuple[str | None, str]:
    """Return whether less or more of the metric is better, None where neither, and what it is."""
    for start, better, text in EXPLAINED:
        if metric.startswith(start):
            return better, text
    return None, ""


def headline(records: list[Record], wanted: str | None) -> str | None:
    """Return the metric that stands above all: the wanted one, else the first distance.

    None where nothing was measured.

    Raises UserError for one that no run has.
    """
    known = list(dict.fromkeys(name for record in records for found in record.measurements() for name in found.metrics))
    if wanted is not None and wanted not in known:
        those = f"choose from {', '.join(known)}" if known else "nothing was measured: see fastgan evaluate"
        raise UserError(f"metric is {wanted!r}: {those}")
    return wanted or next((name for start in HEADLINES for name in known if name.startswith(start)), None)


def best_known(record: Record, metric: str | None) -> Measurement | None:
    """Return the newest measurement that has the metric, `fastgan evaluate`'s first."""
    return next((found for found in record.measurements() if metric in found.metrics), None)


def shown(value: Any) -> str:
    """Return a setting as a person writes it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case float():
            return f"{value:.6g}"
        case tuple() | list():
            return ", ".join(map(shown, value)) or "-"
        case _:
            return str(value)


def differences(configs: list[Config]) -> list[tuple[str, list[str]]]:
    """Return the settings in which the runs differ, each with the value of every run.

    Those of where and how often to save are left out.
    """
    learned = [{name: v for name, v in flat(config).items() if name not in flat(config.run)} for config in configs]
    rows = []
    for name in learned[0]:
        values = [settings[name] for settings in learned]
        if any(value != values[0] for value in values):
            rows.append((name, list(map(shown, values))))
    return rows
