"""What the processes of a launch must agree on before they train: settings, versions, images, the place to go on from.

It is settled through the launch's store, before there is a process group: a process that fails early takes part with
its error, so that nobody waits for it, and a wrong launch ends on every process with the same line.
"""

import argparse
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from fastgan.config import Config, flat
from fastgan.errors import EXIT_USER_ERROR, Lost, UserError, first_line, machine_error

if TYPE_CHECKING:
    from torch.distributed import Store

    from fastgan.data.images import ImageDataset

T = TypeVar("T")
Fingerprint = Mapping[str, Mapping[str, object]]  # by kind, then by name

LIMIT_S = 120.0  # for the processes of a launch to come: launchers start them at the same time, but imports take time
ANSWER_S = 10.0  # for a store to answer where something listens at its port
WORK_S = 3600.0  # for one to finish its work, a download perhaps
ABSENT = "absent: "  # what a verdict begins with where nobody made a mistake
ERRORS_S = 1.0  # for more errors to come after the first
GRACE_S = 10.0  # for all to read the verdict before the store goes with its host's launcher
PACKAGES = ("torch", "accelerate", "deepspeed")
OF_HOST = ("run_dir", "loader", "in_memory_gib", "workers", "threads", "console", "inception_weights", "minutes")
REMEDIES = {
    "setting": "give every host the same command",
    "version": "install the same on every host",
    "data set": "give every host the same images",
    "run folder": "put --run-dir where every host sees the same files",
}


class Absent(Lost):
    """A process hasn't come, or is gone: the same command may go well the next time."""


class ConsistencyCheck:
    """What rank `rank` of `count` settles with the others through `store`; a process that is alone agrees."""

    def __init__(self, store: "Store | None" = None, rank: int = 0, count: int = 1, limit_s: float = WORK_S) -> None:
        self.store = None if store is None or count == 1 else store
        self.rank, self.world_size, self.limit_s = rank, count, limit_s

    def run_on_all(
        self,
        name: str,
        work: Callable[[], T],
        facts: Callable[[T], Fingerprint] = lambda made: {},
        main_first: bool = False,
    ) -> T:
        """Return what `work` returns, with the same facts on every process.

        With `main_first` rank 0 works before the others.

        All processes call it with the same name, each name once. Where work fails on one with a UserError or an
        OSError, or the facts differ, every process raises the same UserError.
        """
        if main_first and self.rank != 0 and self._failed_before(name):
            self.verify(name, {})
        made, found, error = None, None, None
        try:
            made = work()
            found = facts(made)
        except UserError as reason:
            error = str(reason)
        except OSError as reason:
            error = machine_error(reason)
        self.verify(name, found or {}, error)
        return made  # type: ignore[return-value]

    def verify(self, name: str, facts: Fingerprint, error: str | None = None) -> None:
        """Check that all processes have the same facts, and none an error.

        Raises the same UserError on all where it isn't so.

        Raises Absent where a process doesn't come, or the store has gone.
        """
        if self.store is None:
            if error is not None:
                raise UserError(error)
            return
        mine = {"host": socket.gethostname(), "facts": facts, "error": error}
        try:
            verdict = self._exchange(name, json.dumps(mine, default=str))
        except RuntimeError as reason:  # the store went with the main host
            if error is None:
                text = first_line(reason)
                raise Absent(f"the main process ended or can't be reached ({text}): see what it said") from None
            verdict = error
        if verdict.startswith(ABSENT):
            raise Absent(verdict.removeprefix(ABSENT))
        if verdict:
            raise UserError(verdict)

    def _exchange(self, name: str, mine: str) -> str:
        """Rank 0 gathers and judges, the others read its verdict; "" means that all agree."""
        assert self.store is not None
        self.store.set(self._key(name, self.rank), mine)
        if self.rank == 0:
            verdict = self._verdict(name)
            self.store.set(self._key(name, "verdict"), verdict)
            if verdict:
                end = time.monotonic() + GRACE_S
                while self.store.add(self._key(name, "read"), 0) < self.world_size - 1 and time.monotonic() < end:
                    time.sleep(0.05)
            return verdict
        if not self._wait_for(self._key(name, "verdict")):
            return f"{ABSENT}rank 0 has not come to agree on the {name} in {self.limit_s:g} s: see its console"
        verdict = self.store.get(self._key(name, "verdict")).decode()
        self.store.add(self._key(name, "read"), 1)
        return verdict

    def _verdict(self, name: str) -> str:
        """Waits for all, or until one has an error."""
        assert self.store is not None
        said: dict[int, dict[str, Any]] = {}
        end = time.monotonic() + self.limit_s
        while True:
            for rank in range(self.world_size):
                if rank not in said and self.store.check([self._key(name, rank)]):
                    said[rank] = json.loads(self.store.get(self._key(name, rank)))
            failed = any(entry["error"] for entry in said.values())
            if failed:
                end = min(end, time.monotonic() + ERRORS_S)
            over = time.monotonic() >= end
            if len(said) == self.world_size or (over and failed):
                return compare(said)
            if over:
                absent = ", ".join(str(rank) for rank in range(self.world_size) if rank not in said)
                return (
                    f"{ABSENT}rank {absent} has not come to agree on the {name} in {self.limit_s:g} s: see its console"
                )
            time.sleep(0.02)

    def _failed_before(self, name: str) -> bool:
        """Whether rank 0, which works first, has failed."""
        assert self.store is not None or self.rank == 0
        if self.store is None:
            return False
        try:
            if not self._wait_for(self._key(name, 0)):
                return True
            return json.loads(self.store.get(self._key(name, 0)))["error"] is not None
        except RuntimeError:
            return True

    def _wait_for(self, key: str) -> bool:
        """Whether the key was there within the limit; other threads may use the store meanwhile."""
        assert self.store is not None
        end = time.monotonic() + self.limit_s
        while not self.store.check([key]):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def _key(self, name: str, what: object) -> str:
        return f"agreement/{name}/{what}"


def of_launch(limit_s: float = LIMIT_S) -> ConsistencyCheck:
    """Return the agreement of the processes that a launcher started with this one, as their environment tells.

    Raises Absent where the main process can't be reached within the limit, another program has its port, or a
    process doesn't come.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if count == 1:
        return ConsistencyCheck()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts_it = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not hosts_it and not _is_open(host, port, limit_s):
        raise Absent(f"nothing listens at {host}:{port} for rank {rank}: is the main host up, and its port open?")
    store = _join(host, port, count, hosts_it, limit_s)
    if isinstance(store, str):
        fault = f"{host}:{port} can't be the launch's store for rank {rank} ({store})"
        raise Absent(f"{fault}: another program has the port; give another --main_process_port")
    return ConsistencyCheck(_meet(store, rank, count, limit_s), rank, count)


def _join(host: str, port: int, count: int, hosts_it: bool, limit_s: float) -> "Store | str":
    """The store there, or why there is none."""
    from torch.distributed import TCPStore

    found: list[Store | str] = []

    def join() -> None:  # waits for ever where another program listens, whatever the store's own limit
        try:
            limit = timedelta(seconds=limit_s)
            found.append(TCPStore(host, port, count, hosts_it, limit, wait_for_workers=False, multi_tenant=True))
        except RuntimeError as error:
            found.append(first_line(error))

    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return found[0] if found else f"no answer in {ANSWER_S:g} s"


def _is_open(host: str, port: int, limit_s: float) -> bool:
    """Whether something listened at the port within the limit."""
    end = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection((host, port), timeout=2.0).close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.2)


def _meet(store: "Store", rank: int, count: int, limit_s: float) -> "Store":
    """The part of the store that belongs to those who meet here: earlier attempts may have left their keys in it.

    Each process says a name of its own, until rank 0 answers to it with the attempt's. Raises Absent where one
    doesn't come within the limit.
    """
    from torch.distributed import PrefixStore

    end = time.monotonic() + limit_s
    absent = f"has not come within {limit_s:g} s: see what its console says, then start the same command again"
    if rank != 0:
        mine = uuid4().hex
        store.set(f"fastgan/hello/{rank}", mine)
        while not store.check([f"fastgan/attempt/{mine}"]):
            if time.monotonic() > end:
                raise Absent(f"rank 0 {absent}")
            time.sleep(0.02)
        attempt = store.get(f"fastgan/attempt/{mine}").decode()
        store.set(f"fastgan/{attempt}/here/{rank}", "")
        return PrefixStore(f"fastgan/{attempt}", store)
    attempt, missing = uuid4().hex, set(range(1, count))
    while missing:
        for other in sorted(missing):
            if store.check([f"fastgan/hello/{other}"]):
                name = store.get(f"fastgan/hello/{other}").decode()
                store.set(f"fastgan/attempt/{name}", attempt)
        missing -= {other for other in missing if store.check([f"fastgan/{attempt}/here/{other}"])}
        if missing and time.monotonic() > end:
            raise Absent(f"rank {', '.join(map(str, sorted(missing)))} {absent}")
        time.sleep(0.02)
    return PrefixStore(f"fastgan/{attempt}", store)


def announce(error: UserError, limit_s: float = LIMIT_S) -> UserError:
    """Return what to end with where the command line is refused: every process of the launch ends with the same.

    For a process that hasn't come to the first agreement, named "launch".
    """
    try:
        of_launch(limit_s).verify("launch", {}, str(error))
    except UserError as agreed:
        return agreed
    except RuntimeError:  # the others aren't there to hear of it
        pass
    return error


def launch_fingerprint(config: Config) -> Fingerprint:
    """Return what has to be equal before anything is made: settings and versions."""
    from fastgan.runs.run_folder import session, version_of

    settings = {name: value for name, value in flat(config).items() if name not in OF_HOST}
    made = session()
    versions = {"fastgan": made["fastgan"], "commit": made["commit"]}
    versions |= {"python": ".".join(platform.python_version_tuple()[:2])}
    return {"setting": settings, "version": versions | {package: version_of(package) for package in PACKAGES}}


def data_fingerprint(dataset: "ImageDataset") -> Fingerprint:
    """Return what has to be equal of the images: how many, of which kind, their classes, and what they show."""
    height, width = dataset.image_size
    facts: dict[str, object] = {"images": len(dataset), "channels": dataset.channels, "size": f"{height}x{width}"}
    if dataset.labels is not None:
        facts["classes"] = sha256(dataset.labels.cpu().numpy().tobytes()).hexdigest()[:16]
    facts["content"] = dataset.content_hash()
    return {"data set": facts}


def compare(said: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the line that says what is wrong with what each rank said, "" where nothing is.

    Rank 0's facts are the measure.

    An error goes before a difference, since it may be the reason of one.
    """
    errors: dict[str, list[int]] = {}
    for rank, entry in sorted(said.items()):
        if entry["error"]:
            errors.setdefault(entry["error"], []).append(rank)
    if errors:
        everywhere = len(next(iter(errors.values()))) == len(said)
        if len(errors) == 1 and (everywhere or len({entry["host"] for entry in said.values()}) == 1):
            return next(iter(errors))
        return "; ".join(f"{_who(ranks, said)}: {text}" for text, ranks in errors.items())
    found: dict[tuple[str, str, str], list[int]] = {}
    for rank, entry in sorted(said.items()):
        for kind, name, value in differences(entry["facts"], said[0]["facts"]):
            found.setdefault((kind, name, value), []).append(rank)
    if not found:
        return ""
    parts = []
    for (kind, name, value), ranks in found.items():
        wanted = _show(said[0]["facts"][kind].get(name))
        parts.append(f"{kind} {name} is {value} on {_who(ranks, said)}, {wanted} on {_who([0], said)}")
    more = [f"{len(parts) - 3} more"] if len(parts) > 3 else []
    remedy = "; ".join(dict.fromkeys(REMEDIES.get(kind, f"make the {kind} the same") for kind, _, _ in found))
    return f"the processes don't agree: {'; '.join(parts[:3] + more)}: {remedy}"


def differences(mine: Fingerprint, others: Fingerprint) -> list[tuple[str, str, str]]:
    """Return (kind, name, my value) of every fact that isn't equal; commits are compared where both are known."""
    found = []
    for kind in others:
        names = list(others[kind]) + [name for name in mine.get(kind, {}) if name not in others[kind]]
        for name in names:
            value, other = mine.get(kind, {}).get(name), others[kind].get(name)
            unknown = name == "commit" and None in (value, other)
            if value != other and not unknown:
                found.append((kind, name, _show(value)))
    return found


def _show(value: object) -> str:
    return "not there" if value is None else repr(value) if isinstance(value, str) and not value else str(value)


def _who(ranks: list[int], said: Mapping[int, Mapping[str, Any]]) -> str:
    """The ranks and their hosts: `rank 1 (host b)`, `ranks 2, 3 (host b)`."""
    hosts = ", ".join(dict.fromkeys(said[rank]["host"] for rank in ranks))
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} ({hosts})"


def port_taken(command: Sequence[str]) -> str | None:
    """Return a line where another program has the port of the main host that a launcher's command names.

    None where not.

    For who starts launchers: torch's own waits there for minutes, without a word.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("ip", "port"):
        parser.add_argument(f"--main_process_{name}", f"--main-process-{name}")
    named, _ = parser.parse_known_args(command)
    port = int(named.main_process_port or 29500)
    if named.main_process_ip is None or not _is_open(named.main_process_ip, port, 0.0):
        return None
    if not isinstance(_join(named.main_process_ip, port, 1, False, ANSWER_S), str):
        return None
    return f"another program has {named.main_process_ip}:{port}: give every host another --main_process_port"


if __name__ == "__main__":
    if (line := port_taken(sys.argv[1:])) is not None:
        print(f"fastgan: error: {line}", file=sys.stderr, flush=True)
        os._exit(EXIT_USER_ERROR)  # a thread still waits for that program
