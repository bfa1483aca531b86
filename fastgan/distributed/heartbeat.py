"""Notices within a bounded time that a process of the run is gone or stuck, says which and where, and ends this one.

A collective whose partner is gone can't be interrupted: with NCCL it hangs without an exception, with gloo where the
cable is cut. So each process tells the launch's store every few seconds where it is. Rank 0 reads that of all and
writes down in one line who is behind or silent: with n processes a beat costs the store some n calls, not n of each. A
process that waits for too long reads that line, prints one of its own and ends with EXIT_LOST. What started it can
start it again.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
from torch.distributed import Store

from fastgan.errors import EXIT_LOST, first_line
from fastgan.utils.exit_status import report

LIMIT_S = 300.0
PREPARING_S = 1800.0  # what comes before the second step: data are got and decoded, networks compiled
BEAT_S = 2.0
EVENT_S = 3600.0  # for what happens between steps, an evaluation say: the processes that have no part in it wait
MISSED_BEATS = 4  # a process that misses so many is taken for dead once a collective has failed
LOST = re.compile(
    "|".join(
        (
            r"[Cc]onnection (closed by (remote )?peer|reset by peer|refused|timed out)",  # gloo, and NCCL's last error
            r"Broken pipe|No route to host|Network is unreachable",
            r"Timed out waiting \d+ms for (send|recv)|Application timeout caused pair closure",  # gloo
            r"Gloo connectFullMesh failed",
            r"Watchdog caught collective operation timeout|NCCL communicator was aborted",
            r"ncclRemoteError|remote process exited or there was a network error",
            r"retrieving ncclUniqueId from \[0\] via c10d key-value store",  # rank 0 went before its first collective
        )
    )
)


class Phase(NamedTuple):
    """Where this process is: in which phase, at which image, since when, for how long it may be there."""

    phase: str
    images_seen: int
    moves: int  # phases begun since images_seen changed
    since: float
    limit_s: float


@dataclass(frozen=True)
class Heartbeat:
    """What a process last said of itself."""

    rank: int
    host: str
    phase: str
    images_seen: int
    moves: int
    in_phase_s: float
    left_s: float  # until it has been there for too long
    ended: str | None  # where it has ended: a line that says why
    number: int

    @property
    def where(self) -> str:
        return f"{self.phase} at {self.images_seen:,} images"


@dataclass(frozen=True)
class Digest:
    """What rank 0 last heard of all processes."""

    number: int  # of the beat with which rank 0 wrote it, so a new one each time
    main: str  # rank 0 and its host
    main_where: str
    ended: str | None  # why one has ended
    silent: str  # who has been silent for the longest
    silent_s: float
    num_behind: int  # 0 where one has not come so far
    behind: str  # who is behind all others, or waits with all others
    left_s: float  # the most that one of them may still be there


class Watchdog:
    """Watches a run of `count` processes from process `rank`, through a clone of `store`, in which there is nothing of
    earlier attempts (consistency.py); nothing is watched where it is alone.

    A dead process, or a store out of reach, ends this one after `limit_s` and a few beats at most, whatever the phase.
    A process that lives ends it once it has been longer in a phase than the phase's own limit, and others wait for it.
    """

    def __init__(
        self,
        store: Store | None,
        rank: int,
        count: int,
        limit_s: float = LIMIT_S,
        preparing_s: float = PREPARING_S,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.rank, self.world_size, self.limit_s, self.preparing_s = rank, count, limit_s, preparing_s
        self.beat_s = min(BEAT_S, limit_s / 10)
        self._store = None if store is None or count == 1 else store.clone()
        self._host, self._end = socket.gethostname(), end
        self._ended: str | None = None  # why, once that is known; `_published`: what of it the others can read
        self._published: str | None = None
        self._checkpoint: int | None = None
        self._first: int | None = None  # images seen when the first step began
        self._phase = Phase("starting", 0, 0, time.monotonic(), max(limit_s, preparing_s))
        self._reached = time.monotonic()
        self._beats: dict[int, tuple[Heartbeat, float]] = {}  # rank 0 alone has them, each with when it was new
        self._began = self._asked_since = self._digest_heard = self._reached
        self._digest: Digest | None = None
        self._asked = self._explaining = self._closed = False
        self._wake = threading.Event()
        self._threads = [threading.Thread(target=part, daemon=True) for part in (self._talk, self._watch)]

    def start(self) -> "Watchdog":
        """Watch from now on."""
        if self._store is not None:
            for thread in self._threads:
                thread.start()
        return self

    def close(self) -> None:
        """Watch no more: this process has done what the others wait for."""
        self._closed = True
        self._wake.set()
        if self._store is not None and self._threads[0].is_alive():
            self._threads[0].join(timeout=self.beat_s)

    def set_phase(self, phase: str, images_seen: int, limit_s: float | None = None) -> None:
        """Begin `phase`, in which this process may be for `limit_s` (None: the run's limit.

        Longer before step 2).

        All processes say the same phases in the same order. Nothing is sent from here.
        """
        before = self._phase
        moves = before.moves + 1 if images_seen == before.images_seen else 0
        if limit_s is None:
            if self._first is None and images_seen > 0:
                self._first = images_seen
            begins = self._first is None or images_seen == self._first
            limit_s = max(self.limit_s, self.preparing_s) if begins else self.limit_s
        self._phase = Phase(phase, images_seen, moves, time.monotonic(), limit_s)

    def report_saved(self, images_seen: int) -> None:
        """Note a checkpoint of so many images: the last line names it."""
        self._checkpoint = images_seen
        report(f"checkpoint {images_seen}")

    def report_exit(self, reason: str) -> None:
        """Tell the others that this process ends, and why: they needn't wait to find out. Takes a beat at most."""
        self._tell(f"rank {self.rank} on {self._host} ended: {reason}")

    def _tell(self, text: str) -> None:
        self._ended = self._ended or text
        if self._store is not None and not self._closed:
            self._wake.set()
            end = time.monotonic() + self.beat_s
            while self._published != self._ended and time.monotonic() < end:
                time.sleep(0.01)

    def diagnose(self, error: BaseException) -> str | None:
        """Return one line that says why a collective failed; None where `error` is something else.

        Takes a few beats where the partner hasn't said why it ended.
        """
        if not is_lost(error):
            return None
        if self._store is None or self._closed:
            return f"the exchange between the processes failed ({first_line(error)}); {self._remedy()}"
        silence_s = MISSED_BEATS * self.beat_s
        end = time.monotonic() + silence_s + 2 * self.beat_s
        self._explaining = True
        self._ask()
        while (text := self._gone(silence_s)) is None and time.monotonic() < end:
            self._wake.set()
            time.sleep(self.beat_s / 4)
        if text is None:
            where = f"{self._phase.phase} at {self._phase.images_seen:,} images"
            text = (
                f"the exchange between the processes broke in {where} ({first_line(error)}), though all of them live: "
                "look at the network between the hosts"
            )
        self._tell(text)
        return f"{text}; {self._remedy()}"

    # -- the thread that talks to the store, and may be stuck in it

    def _talk(self) -> None:
        number = 0
        while not self._closed:
            number += 1
            self._wake.clear()
            with contextlib.suppress(RuntimeError):  # `_reached` tells
                self._exchange(number)
            self._wake.wait(self.beat_s)
        if self._ended is None:
            with contextlib.suppress(RuntimeError):
                self._ended = f"rank {self.rank} on {self._host} was done"
                self._exchange(number + 1)

    def _exchange(self, number: int) -> None:
        """Say where this process is; rank 0 hears what all say, the others what it made of that where they wait."""
        self._send(number)
        self._reached = time.monotonic()
        if self._waited() > self.limit_s / 2:
            self._ask()
        if self.rank == 0:
            self._publish(number)
        elif self._asked:
            self._read()
        else:
            self._digest = None

    def _send(self, number: int) -> None:
        assert self._store is not None
        phase, in_phase_s, ended = self._phase, self._waited(), self._ended
        beat = Heartbeat(
            self.rank,
            self._host,
            phase.phase,
            phase.images_seen,
            phase.moves,
            in_phase_s,
            min(phase.limit_s - in_phase_s, 1e9),
            ended,
            number,
        )
        self._store.set(self._key(self.rank), json.dumps(asdict(beat)))
        if self.rank != 0:  # what rank 0 says of itself the others find in the digest
            self._published = ended

    def _publish(self, number: int) -> None:
        """Read what all say now, in one call once all have come, and write down what matters of it."""
        assert self._store is not None
        come = [rank for rank in range(self.world_size) if rank in self._beats or self._store.check([self._key(rank)])]
        for words in self._store.multi_get([self._key(rank) for rank in come]):
            beat = Heartbeat(**json.loads(words))
            before = self._beats.get(beat.rank)
            if before is None or before[0].number != beat.number:
                self._beats[beat.rank] = beat, time.monotonic()
        self._digest, self._digest_heard = self._summary(number), time.monotonic()
        self._store.set(self._key("digest"), json.dumps(asdict(self._digest)))
        self._published = self._beats[0][0].ended

    def _summary(self, number: int) -> Digest:
        beats = [self._beats[rank][0] for rank in sorted(self._beats)]
        now, heard = time.monotonic(), {rank: at for rank, (_, at) in self._beats.items()}
        silences = [now - heard.get(rank, self._began) for rank in range(self.world_size)]
        silent_s = max(silences)
        rank, others = silences.index(silent_s), sum(s > MISSED_BEATS * self.beat_s for s in silences) - 1
        if rank in self._beats:
            found = self._beats[rank][0]
            silent = (
                f"rank {rank} on {found.host}{_more(others)} has not been heard of for {silent_s:.0f} s "
                f"(last: {found.where})"
            )
        else:
            silent = f"rank {rank}{_more(others)} has not come"
        last = min((beat.images_seen, beat.moves) for beat in beats)
        behind = [beat for beat in beats if (beat.images_seen, beat.moves) == last]
        first = behind[0]
        return Digest(
            number=number,
            main=f"rank 0 on {self._host}",
            main_where=beats[0].where,
            ended=next((beat.ended for beat in beats if beat.ended is not None), None),
            silent=silent,
            silent_s=silent_s,
            num_behind=len(behind) if len(beats) == self.world_size else 0,
            behind=(
                f"rank {first.rank} on {first.host}{_more(len(behind) - 1)} is stuck in {first.where} "
                f"for {first.in_phase_s:.0f} s"
            ),
            left_s=max(beat.left_s for beat in behind),
        )

    def _read(self) -> None:
        """Read what rank 0 last wrote down."""
        assert self._store is not None
        if self._digest is None and not self._store.check([self._key("digest")]):
            return
        digest = Digest(**json.loads(self._store.get(self._key("digest"))))
        if self._digest is None or digest.number != self._digest.number:
            self._digest, self._digest_heard = digest, time.monotonic()

    def _ask(self) -> None:
        """From now on the others are listened to; silence counts from here."""
        if not self._asked:
            self._asked, self._asked_since = True, time.monotonic()

    def _key(self, what: object) -> str:
        return f"watchdog/{what}"

    # -- the thread that judges, and never waits

    def _watch(self) -> None:
        while not self._closed:
            time.sleep(self.beat_s / 2)
            waited = self._waited()
            if self._explaining or self._ended is not None:  # this process ends anyway
                continue
            if waited <= self.limit_s / 2:
                self._asked = False  # it went on
            text = self._gone(self.limit_s / 2) if waited > self.limit_s else None
            if text is None and waited > self._phase.limit_s:
                text = self._stuck(waited)
            if text is not None and not self._closed:
                self._give_up(text)

    def _give_up(self, text: str) -> None:
        print(f"fastgan: error: {text}; {self._remedy()}", file=sys.stderr, flush=True)
        self._tell(text)
        report(f"exit {EXIT_LOST}")
        self._end(EXIT_LOST)

    def _gone(self, silence_s: float) -> str | None:
        """Who has ended, or has been silent for so long; None where nobody has, as far as is known."""
        now = time.monotonic()
        if now - self._reached > silence_s:
            return (
                f"the main host's store ({store_address()}) is out of reach for {now - self._reached:.0f} s; "
                f"rank {self.rank} on {self._host} waits in {self._phase.phase} at {self._phase.images_seen:,} images"
            )
        digest, unread_s = self._digest, now - max(self._digest_heard, self._asked_since)
        if digest is not None and digest.ended is not None:
            return digest.ended
        if self.rank != 0 and unread_s > silence_s:
            who = "rank 0 has not come"
            if digest is not None:
                who = f"{digest.main} has not been heard of for {unread_s:.0f} s (last: {digest.main_where})"
        elif digest is not None and digest.silent_s > silence_s:
            who = digest.silent
        else:
            return None
        phase = self._phase
        return f"{who}; rank {self.rank} on {self._host} waits in {phase.phase} at {phase.images_seen:,} images"

    def _stuck(self, waited: float) -> str | None:
        """Who keeps the others waiting though it lives; None where it may still be at it."""
        digest, mine = self._digest, self._phase
        if digest is None or digest.num_behind == 0 or digest.left_s > 0:
            return None
        if digest.num_behind == self.world_size:
            return (
                f"all {self.world_size} ranks wait in {mine.phase} at {mine.images_seen:,} images for {waited:.0f} s: "
                "the exchange between them hangs; look at the network between the hosts"
            )
        return f"{digest.behind}, and the others wait for it"

    def _waited(self) -> float:
        return time.monotonic() - self._phase.since

    def _remedy(self) -> str:
        if self._checkpoint is None:
            return "start the same command again: it resumes from the last checkpoint, if there is one"
        return f"start the same command again: it resumes from the checkpoint of {self._checkpoint:,} images"


def is_lost(error: BaseException) -> bool:
    """Return whether a collective, or the store under it, failed because a partner or the way to it is gone.

    What NCCL, gloo or torch say of a mistake or of this machine, memory or shapes say, is no such failure.
    """
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return True
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


def collective_timeout(limit_s: float = LIMIT_S) -> timedelta:
    """Return the process groups' timeout: longer than any phase's limit, so that the watchdog's line comes first."""
    return timedelta(seconds=2 * max(limit_s, PREPARING_S, EVENT_S))


def _more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""


def store_address() -> str:
    return f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
