"""Worker processes: how they start, and that they end with the process they work for."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

from fastgan.utils.stop import SIGNALS

# A fork of a process with threads (torch's, DALI's) hangs: it has their locks and waits for them, but not the threads.
# A spawned loader that ends while torch hands on a batch aborts: the interpreter unwinds that thread through C++.
# A fork server has one thread, and its workers end without such a farewell.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@contextlib.contextmanager
def script_hidden() -> Iterator[None]:
    """Let workers that start within the block leave the user's script alone: it would train again in each of them."""
    script = vars(sys.modules["__main__"])
    hidden = {name: value for name, value in script.items() if name in ("__file__", "__spec__")}
    script |= dict.fromkeys(hidden)
    try:
        yield
    finally:
        script |= hidden


def worker_context(module: str) -> BaseContext:
    """Return multiprocessing's context for workers that need `module`.

    A fork server imports it once, where none runs yet. It is deaf to all that stops a run, as the workers are needed
    until the run has stopped.
    """
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload([module])
        resource_tracker.ensure_running()  # which unblocks signals where it has to start
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context(START_METHOD)


def begin_worker() -> None:
    """Let this worker end with the process that started it however that ends, and not before it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
