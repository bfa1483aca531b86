"""Parts of a long measurement, each in a process of its own, for a fault on a GPU spoils all that follows in one.

Parts check or prepare side by side; what is timed has the machine to itself, one part after the other; what can wait
comes last, side by side again. Rows are handed on as they come, so that a stop loses nothing.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

ROWS = "ACCEPTANCE_ROWS"  # the environment variable that names a part's file of rows
READY = {"ready": True}
POLL_S = 0.05
LOG_LINES = 30  # of a part that failed
LATE_SHARE = 0.1  # of the time, which is kept for what comes last
READY_SHARE = 0.55  # of the time that is left, in which parts must be ready for their turns


class Stage(Enum):
    """When a part runs."""

    EARLY = 1  # at once, beside others
    TURN = 2  # prepares at once, beside others, then waits in `turn` until it has the machine to itself
    LATE = 3  # beside others, when all turns are over


@dataclass(frozen=True)
class Row:
    """A row of the table of that name; `right` where it is a check: None, where it couldn't be made."""

    table: str
    cells: dict[str, str | float]
    is_check: bool = False
    right: bool | None = None


@dataclass(frozen=True)
class Part:
    """What a part does, when, how long it may, and how much of the device's memory it takes beside others.

    Those that take turns get ready in waves: the second one when the turns of the first are over.
    """

    work: Callable[[], Iterator[Row]]
    stage: Stage
    limit_s: float
    gib: float = 1.0
    wave: int = 1


def check(what: str, right: bool | None, seen: str) -> Row:
    """Make a row of the table of checks."""
    return Row("checks", {"what": what, "seen": seen}, True, right)


def turn() -> None:
    """Wait, in a part's process, until nothing else runs; a part that is run by hand waits for nothing."""
    if ROWS not in os.environ:
        return
    _append(READY)
    if not sys.stdin.readline():  # who gives turns is gone
        sys.exit(1)


def play(part: Part) -> None:
    """Run a part in this process and keep its rows where the other process looks for them."""
    for row in part.work():
        print(row.table, row.cells, row.right if row.is_check else "", flush=True)
        _append(asdict(row))


def _append(row: dict[str, Any]) -> None:
    if path := os.environ.get(ROWS):
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")


class Job:
    """A part's process, from outside."""

    def __init__(self, name: str, part: Part, command: Sequence[str], folder: Path) -> None:
        self.name, self.part, self.command = name, part, command
        stem = name.replace(" ", "-")
        self.rows, self.log = folder / f"{stem}.jsonl", folder / f"{stem}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = self.over = False
        self.began = math.inf
        self._read = 0

    @property
    def is_busy(self) -> bool:
        """Whether it runs and doesn't wait for its turn."""
        return self.process is not None and not self.over and not self.ready

    def start(self) -> None:
        self.rows.touch()
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {ROWS: str(self.rows)},
                start_new_session=True,  # so that its own children end with it
            )

    def go(self) -> None:
        """Give it its turn."""
        assert self.process is not None and self.process.stdin is not None
        self.ready, self.began = False, time.monotonic()
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def poll(self) -> list[dict[str, Any]]:
        """Return its new rows; a last one says so if it failed."""
        if self.process is None or self.over:
            return []
        code = self.process.poll()  # before the rows are read: none comes after it
        found = self._new_rows()
        if code is not None:
            self.over = True
            if code:
                found.append(asdict(check("the whole part", False, f"ended with {code}: {self.last_words()}")))
        return found

    def stop(self, right: bool | None, why: str) -> list[dict[str, Any]]:
        """End it where it runs; return the rows that it leaves, and one that says why it was ended."""
        found = self.poll()
        if self.process is None or self.over:
            return found
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.over = True
        return [*found, *self._new_rows(), asdict(check("the whole part", right, why))]

    def last_words(self, lines: int = 1) -> str:
        """Return the end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").strip().splitlines()[-lines:])

    def _new_rows(self) -> list[dict[str, Any]]:
        text = self.rows.read_bytes()
        end = text.rfind(b"\n") + 1
        rows = [json.loads(line) for line in text[self._read : end].splitlines()]
        self._read = end
        self.ready = self.ready or READY in rows
        return [row for row in rows if row != READY]


class Runner:
    """Runs jobs, in the order of their worth, until a moment of time.monotonic's."""

    def __init__(
        self,
        jobs: Sequence[Job],
        deadline: float,
        most: int,
        gib: float,
        keep: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.jobs, self.deadline, self.most, self.gib, self._keep = jobs, deadline, most, gib, keep

    def run(self) -> None:
        """Run all three stages; no process is left, however it ends."""
        late = [job for job in self.jobs if job.part.stage == Stage.LATE]
        end = self.deadline - (LATE_SHARE * (self.deadline - time.monotonic()) if late else 0.0)
        try:
            for wave in sorted({job.part.wave for job in self.jobs}):
                jobs = [job for job in self.jobs if job.part.wave == wave and job.part.stage != Stage.LATE]
                now = time.monotonic()
                self._side_by_side(jobs, now + READY_SHARE * (end - now))
                for job in jobs:
                    if job.part.stage == Stage.TURN:
                        self._turn(job, end)
            self._side_by_side(late, self.deadline)
        finally:
            for job in self.jobs:
                if job.process is None:
                    self._keep(job.name, asdict(check("the whole part", None, "no time was left for it")))
                self._keep_all(job, job.stop(None, "stopped"))

    def _side_by_side(self, jobs: list[Job], until: float) -> None:
        """Start jobs as room allows; return when each is over or waits for its turn, or ended because it is late."""
        while time.monotonic() < until:
            for job in jobs:
                self._keep_all(job, job.poll())
                is_check = job.part.stage != Stage.TURN
                if is_check and job.is_busy and time.monotonic() > job.began + job.part.limit_s:
                    self._keep_all(job, job.stop(False, f"not done after {job.part.limit_s:.0f} s"))
            self._fill(jobs)
            if not any(job.is_busy for job in jobs):
                return
            time.sleep(POLL_S)
        for job in jobs:
            if job.is_busy:
                self._keep_all(job, job.stop(None, f"not ready after {time.monotonic() - job.began:.0f} s"))

    def _fill(self, jobs: list[Job]) -> None:
        for job in jobs:
            busy = [other for other in jobs if other.is_busy]
            fits = not busy or sum(other.part.gib for other in busy) + job.part.gib <= self.gib
            if job.process is None and len(busy) < self.most and fits:
                job.start()

    def _turn(self, job: Job, end: float) -> None:
        """Let the job have the machine until it is over, its limit is reached, or the end."""
        if job.over or time.monotonic() >= end:
            return
        if job.process is None:
            job.start()
        job.began = time.monotonic()  # its limit is for what it does in its turn
        while time.monotonic() < min(end, job.began + job.part.limit_s) and not job.over:
            if job.ready:
                job.go()
            time.sleep(POLL_S)
            self._keep_all(job, job.poll())
        self._keep_all(job, job.stop(None, f"no time was left after {time.monotonic() - job.began:.0f} s"))

    def _keep_all(self, job: Job, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._keep(job.name, row)
            if row["right"] is False:
                print(f"--- {job.name}:\n{job.last_words(LOG_LINES)}", file=sys.stderr, flush=True)
