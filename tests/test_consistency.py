"""What several processes settle before they train: the same line on all of them where something is wrong."""

import json
import re
import socket
import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from conftest import refusal
from forks import ForkServer
from torch.distributed import TCPStore

from fastgan import presets
from fastgan.data import named
from fastgan.data.loaders import open_dataset
from fastgan.distributed import consistency
from fastgan.distributed.consistency import Absent, ConsistencyCheck, compare, launch_fingerprint
from fastgan.errors import EXIT_USER_ERROR, UserError


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=20), wait_for_workers=False)


def together(store, *work, limit_s=10.0):
    """What `work(agreement)` of each rank returns or raises, all at the same time."""
    ends: list[object] = [None] * len(work)

    def run(rank: int) -> None:
        try:
            ends[rank] = work[rank](ConsistencyCheck(store.clone(), rank, len(work), limit_s))
        except UserError as error:
            ends[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return ends


def settle(facts, error=None):
    return lambda group: group.verify("launch", facts, error)


def test_equal_processes_agree_at_once(store):
    """Three processes with the same config go on."""
    facts = launch_fingerprint(presets.debug())
    assert together(store, *[settle(facts)] * 3) == [None] * 3


def test_other_settings_are_told_on_all(store):
    """Field, both values, who has which, and the remedy, in the same line everywhere."""
    config = presets.debug()
    others = [config, replace(config, seed=7), config]
    ends = together(store, *[settle(launch_fingerprint(each)) for each in others])
    assert len(set(ends)) == 1
    assert re.fullmatch(
        r"the processes don't agree: setting seed is 7 on rank 1 \(.+\), 0 on rank 0 \(.+\): "
        "give every host the same command",
        ends[0],
    )


def test_where_and_on_what_a_host_runs_may_differ():
    """Paths and the number of threads are each host's own."""
    config = presets.debug()
    other = replace(config, run=replace(config.run, threads=3, loader="torch"))
    assert launch_fingerprint(config) == launch_fingerprint(other)
    longer = replace(config, run=replace(config.run, log_every=17))
    assert launch_fingerprint(config) != launch_fingerprint(longer)


def test_error_of_one_ends_all(store):
    """A process that failed early is heard, whichever it is; those that did not fail don't wait for the limit."""
    for rank in range(2):
        work = [settle({}), settle({})]
        work[rank] = settle({}, "the disk is full: free some space")
        began = time.monotonic()
        first, second = together(TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False), *work)
        assert first == second and "the disk is full: free some space" in first
        assert time.monotonic() - began < 5


def test_errors_of_different_hosts_name_them():
    """On one host an error needs no name before it, on two it has the host's; the same error on all is told once."""

    def said(*hosts_and_errors):
        return {
            rank: {"host": host, "facts": {}, "error": error} for rank, (host, error) in enumerate(hosts_and_errors)
        }

    assert compare(said(("a", None), ("a", "no MNIST"))) == "no MNIST"
    assert compare(said(("a", None), ("b", "no MNIST"))) == "rank 1 (b): no MNIST"
    assert compare(said(("a", "no MNIST"), ("b", "no MNIST"))) == "no MNIST"
    assert compare(said(("a", "one"), ("b", "two"), ("b", "two"))) == "rank 0 (a): one; ranks 1, 2 (b): two"
    assert compare(said(("a", None), ("b", None))) == ""


def test_many_differences_are_counted():
    """The line stays one that can be read: three differences, then how many more; unknown commits don't count."""
    facts = {"version": {"torch": "2.14", "commit": None} | dict.fromkeys("abcd", 1)}
    other = {"version": {"torch": "2.11", "commit": "f00"} | dict.fromkeys("abcd", 2)}
    text = compare({0: {"host": "a", "facts": facts, "error": None}, 1: {"host": "b", "facts": other, "error": None}})
    assert text.startswith("the processes don't agree: version torch is 2.11 on rank 1 (b), 2.14 on rank 0 (a); ")
    assert text.endswith("; 2 more: install the same on every host")
    assert "commit" not in text


def test_main_process_works_first(store):
    """With main_first the others begin when rank 0 is done, and don't where it failed."""
    order: list[int] = []

    def work(group):
        def get() -> int:
            if group.rank == 0:
                time.sleep(0.3)
            order.append(group.rank)
            return group.rank

        return group.run_on_all("data set", get, main_first=True)

    assert together(store, work, work, work) == [0, 1, 2]
    assert order[0] == 0

    def failing(group):
        def get() -> None:
            order.append(group.rank)
            raise FileNotFoundError(2, "No such file or directory", "images.zip")

        return group.run_on_all("other data set", get, main_first=True)

    order.clear()
    assert together(store, failing, failing) == ["No such file or directory (images.zip)"] * 2
    assert order == [0]


def test_process_that_never_comes_is_named(store, monkeypatch):
    """Those that came end within the limit, and say who didn't."""
    monkeypatch.setattr(consistency, "GRACE_S", 0.2)
    with pytest.raises(Absent, match="rank 1, 2 has not come"):
        ConsistencyCheck(store, 0, 3, 1.0).verify("launch", {})
    other = TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False)
    with pytest.raises(Absent, match="rank 0 has not come"):
        ConsistencyCheck(other, 1, 3, 0.5).verify("launch", {})


def test_attempts_do_not_mix(store):
    """What an earlier attempt left in the store, a launcher's restart say, means nothing to the next one."""

    def meet(rank: int) -> None:
        group = ConsistencyCheck(consistency._meet(store.clone(), rank, 2, 10.0), rank, 2)
        try:
            group.verify("launch", {}, errors[rank])
        except UserError as error:
            ends.append(str(error))

    for errors in (["the disk is full", None], [None, None], [None, "no such folder"]):
        ends: list[str] = []
        threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert ends == [error for error in errors if error] * 2
    for rank in range(2):
        with pytest.raises(Absent, match=f"rank {1 - rank} has not come within 0.5 s"):
            consistency._meet(store, rank, 2, 0.5)


@pytest.mark.parametrize("rank", [0, 1])
def test_port_of_another_program_is_named(monkeypatch, rank):
    """Where something else listens at the launch's port, both ranks say which port and what to do, before the limit."""
    monkeypatch.setattr(consistency, "ANSWER_S", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        launch = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in launch.items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        with pytest.raises(Absent, match=rf"127\.0\.0\.1:{port} .* give another --main_process_port"):
            consistency.of_launch(limit_s=60)
    assert time.monotonic() - began < 60  # the limit


def test_main_host_that_is_not_there_is_named(monkeypatch):
    """Where nothing listens, the limit passes and the address is told."""
    launch = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Absent, match=re.escape("nothing listens at 127.0.0.1:9 for rank 1")):
        consistency.of_launch(limit_s=0.5)


def test_alone_only_its_own_error_counts():
    """A single process needs no store; its work is done, its error is raised."""
    assert ConsistencyCheck().run_on_all("data set", lambda: 3, main_first=True) == 3
    assert consistency.of_launch().store is None
    assert refusal(lambda: ConsistencyCheck().verify("launch", {}, "no")) == "no"


def test_data_facts_tell_sets_apart():
    """The number of images, their kind and their content count."""
    source = named.open_named("toy")
    found = consistency.data_fingerprint(source)
    assert json.loads(json.dumps(found)) == found
    assert found["data set"]["images"] == len(source) and found["data set"]["content"] == source.content_hash()


def take_part(torch_version: str, data: str, *flags: str) -> int:
    """Do what a process of the next test does, of another torch and with other data where they aren't "-"."""
    try:
        config = presets.parse_config(flags)
    except UserError as error:
        print(consistency.announce(error))
        return EXIT_USER_ERROR
    made = consistency.launch_fingerprint(config)
    other = {} if torch_version == "-" else {"torch": torch_version}
    try:
        agreement = consistency.of_launch(limit_s=25)
        agreement.verify("launch", {"setting": made["setting"], "version": made["version"] | other})
        if data != "-":
            config = presets.parse_config([*flags, "--data", data])
        agreement.run_on_all("data set", lambda: open_dataset(config), consistency.data_fingerprint, main_first=True)
    except UserError as error:
        print(error)
        return EXIT_USER_ERROR
    return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        (("-", "-"), ("-", "-", "--seed", "1"), "setting seed is 1 on rank 1"),
        (("-", "-"), ("-", "-", "--batch-size", "x"), "batch-size"),
        (("-", "-", "--batch-size", "-3"), ("-", "-"), "batch_size is -3"),
        (("-", "-"), ("2.10.0", "-"), "version torch is 2.10.0 on rank 1"),
        (("-", "-"), ("-", "nowhere"), "no data set 'nowhere'"),
    ],
)
def test_wrong_launch_ends_on_all_with_one_line(store, fork_server: ForkServer, first, second, wanted):
    """Processes with other settings, versions or without the images: the same line, exit 2, within 30 seconds."""
    launch = {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1"}
    launch |= {"MASTER_PORT": str(store.port)}
    processes = [
        fork_server.start(take_part, *words[:2], "--preset", "debug", *words[2:], RANK=str(rank), **launch)
        for rank, words in enumerate((first, second))
    ]
    began = time.monotonic()
    lines = [process.finish() for process in processes]
    assert time.monotonic() - began < 30
    assert lines[0] == lines[1] and lines[0].count("\n") == 1
    assert wanted in lines[0]
    assert [process.returncode for process in processes] == [EXIT_USER_ERROR] * 2
