"""A run's folder: what is in it, whose run it is, and what made it.

config.json        the resolved settings           log.jsonl           losses, logits, metrics: a row an interval
sessions.jsonl     versions, commit, command       performance.jsonl   images/s, memory, health: likewise
checkpoints/       see checkpoint.py               tensorboard/        the same figures, and the grids
grids/             a PNG each                      training.gif        all grids
losses.png         both losses                     evaluation.jsonl    what `fastgan evaluate` measured
metrics.jsonl      evaluations in training          best/               the best checkpoint, by --best-by
averages/          see averages.py                 transfer.json       what was taken over from another run
real_and_fake.png, classes.png, walk.png           of the last grid; report.html: `fastgan report`
micro_batch.json   see micro_batch.py        profile/            see recording.py
data.json          its set: hash, classes      .lock               held by the session that trains it
trackers/NAME      the run's number at --tracker NAME
export/            what `fastgan export` made
files.jsonl        see data/findings.py
"""

import json
import platform
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastgan
from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.runs.rows import append_row
from fastgan.utils.files import write_atomically
from fastgan.utils.lock import Lock
from fastgan.utils.tone_options import AUTO

PACKAGES = ("torch", "torchvision", "accelerate", "torch-fidelity", "safetensors", "numpy")


class RunFolder:
    """The names of what a run leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.sessions = path / "config.json", path / "sessions.jsonl"
        self.log, self.performance = path / "log.jsonl", path / "performance.jsonl"
        self.evaluation, self.metrics = path / "evaluation.jsonl", path / "metrics.jsonl"
        self.data = path / "data.json"
        self.checkpoints, self.averages = path / "checkpoints", path / "averages"
        self.tensorboard, self.trackers = path / "tensorboard", path / "trackers"
        self.grids, self.gif, self.losses = path / "grids", path / "training.gif", path / "losses.png"
        self.profile = path / "profile"
        self._lock = Lock(
            path / ".lock", f"another process trains the run {path}", "wait for it, or give another --run-dir"
        )
        self.transfer, self.micro_batch = path / "transfer.json", path / "micro_batch.json"

    def read_config(self) -> Config:
        """Return the settings of the run. Raises UserError where the folder holds none."""
        try:
            return Config.from_json(self.config.read_text())
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{self.path} is no run folder ({self.config.name}: {error}): name one of yours") from None

    def settle(self, config: Config) -> Config:
        """Return the config with this run's background and range where it leaves them open.

        As it is where there is no run.
        """
        if not self.config.exists():
            return config
        ours, wanted = self.read_config().data, config.data
        background = ours.background if wanted.background == AUTO else wanted.background
        value_range = ours.range if wanted.range == AUTO else wanted.range
        return replace(config, data=replace(wanted, background=background, range=value_range))

    def check(self, config: Config) -> None:
        """Check that the folder holds this config's run, or none. Raises UserError where it holds another one.

        Where its images lie is no setting: data.json says which they are, and in a run of an earlier version the path.
        """
        if not self.config.exists():
            return
        before = self.read_config()
        if self.data.exists() or Path(before.data.data).resolve() == Path(config.data.data).resolve():
            before = replace(before, data=replace(before.data, data=config.data.data))
        if others := config.differences(before):
            raise UserError(
                f"{self.path} holds a run with other settings ({'; '.join(others)}): "
                "give another --run-dir, or the settings of that run to go on with it"
            )

    def open(self, config: Config, data: bytes | None = None) -> None:
        """Make the folder, check that it can be written and holds this config's run or none, and list this session.

        `data` is what data.json says of the images. This session is on the list. Raises UserError where the folder
        holds another run, can't be written, or another session trains it.
        """
        self.check(config)
        try:
            str(self.path).encode()  # TensorBoard's files need it
            self._lock.acquire()
            write_atomically(self.config, config.to_json().encode())
            if data is not None:
                write_atomically(self.data, data)
            append_row(self.sessions, session())
        except UnicodeEncodeError:
            raise UserError(f"run_dir is {str(self.path)!a}: TensorBoard needs a name in UTF-8: give another") from None
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}"
            raise UserError(
                f"cannot write into the run folder {self.path} ({reason}): give another --run-dir"
            ) from None

    def read_classes(self) -> list[str]:
        """Return the names of the run's classes, by number; none where it knows none."""
        try:
            names = json.loads(self.data.read_text())["classes"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [str(name) for name in names] if isinstance(names, list) else []

    def require_held(self) -> None:
        """Raise UserError where another session has taken the folder over."""
        self._lock.require_held()

    def close(self) -> None:
        """Leave the folder to other sessions."""
        self._lock.release()


def session() -> dict[str, Any]:
    """Return what a figure needs beside it to be made again: versions, commit, machine, command, time."""
    return {
        "fastgan": fastgan.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "command": shlex.join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version_of(package: str) -> str | None:
    """Return the installed version; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree that runs, with `-dirty` where it was changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
