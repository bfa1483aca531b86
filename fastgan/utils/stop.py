"""Requests to stop: Ctrl-C, SIGTERM, a terminal that closes, a clock."""

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from fastgan.errors import Stopped

HANGUP = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # not on Windows
WARNING = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []  # what schedulers send before a job's time is over
SIGNALS = [signal.SIGINT, signal.SIGTERM, *HANGUP, *WARNING]
TERMINALS = [stream for stream in (1, 2) if os.isatty(stream)]  # one that has gone doesn't say so of itself any more


class StopRequest:
    """A signal or the clock asks for a stop after the current step; a second Ctrl-C ends at once.

    Not so under a launcher of several processes: it hands Ctrl-C on, which a terminal sends to all of them anyway.
    As a context manager it gives the signals back at the end.
    """

    NONE, CLOCK, SIGNAL = range(3)  # who asked; the last goes before the others

    def __init__(self) -> None:
        self.signalled = False
        self._deadline = math.inf
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is not threading.main_thread():  # handlers are that one's
            return
        for number in SIGNALS:
            if number not in HANGUP or signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` wants it
                self._before[number] = signal.signal(number, self._handle)

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        if number == signal.SIGINT and "LOCAL_WORLD_SIZE" not in os.environ:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        elif number in HANGUP:
            _leave_terminal()

    def after(self, minutes: float | None) -> None:
        """Ask for a stop in so many minutes from now; None: never."""
        self._deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes

    @property
    def asked(self) -> int:
        if self.signalled:
            return self.SIGNAL
        return self.CLOCK if time.monotonic() >= self._deadline else self.NONE

    def update(self, asked: int) -> bool:
        """Return whether to stop, by what any process was asked: all of them stop alike."""
        self.signalled = self.signalled or asked == self.SIGNAL
        return asked > self.NONE


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped where a signal asks for it: the block has nothing to finish first, only to tidy up.

    What else breaks once it was asked for, an exchange with a process that ended first say, is Stopped as well.
    """
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if number in HANGUP:
            _leave_terminal()
        if asked:  # let it tidy up
            return
        asked = True
        raise KeyboardInterrupt  # which libraries let pass

    numbers = [number for number in SIGNALS if number not in WARNING and signal.getsignal(number) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():  # handlers are that one's
        numbers = []
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except BaseException:
        if asked:
            raise Stopped("stopped on request") from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_delayed() -> Iterator[None]:
    """Handle what asks for a stop after the block, which would leave half of something if it were left."""
    if threading.current_thread() is not threading.main_thread():  # no handler runs here
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _leave_terminal() -> None:
    """Print into nothing from here on: a terminal that has gone takes no more, and what writes to it would fail."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in TERMINALS:
        os.dup2(nothing, stream)
    os.close(nothing)


def die_with_parent() -> None:
    """Let the end of `accelerate launch`, where it started this process, be a SIGTERM to us.

    It hands no signals on itself.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
