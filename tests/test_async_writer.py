"""Checkpoints that a thread writes while training goes on: what they hold, what they cost, and how they fail."""

import errno
import json
import multiprocessing
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastgan.commands import train
from fastgan.errors import EXIT_DIVERGED, EXIT_STOPPED, EXIT_USER_ERROR, Diverged, UserError
from fastgan.monitor import hooks, pictures
from fastgan.runs import checkpoint, ema_snapshots
from fastgan.runs.async_writer import AsyncWriter, Files
from fastgan.runs.checkpoint import Checkpoints, read
from fastgan.runs.rows import read_rows
from fastgan.training import losses
from fastgan.training.trainer import Trainer
from fastgan.utils import files

DEBUG = ("--preset", "debug", "--images", "256", "--checkpoint-every", "64", "--log-every", "64")
PATIENCE_S = 60


def state(number: float) -> Files:
    """Small tensors of several layouts, all of this value."""
    images = torch.full((2, 3, 4, 5), number)
    return {"G": {"weight": images.to(memory_format=torch.channels_last)}, "D": {"part": torch.full((9,), number)[::2]}}


@pytest.fixture
def writer() -> Iterator[AsyncWriter]:
    writer = AsyncWriter()
    yield writer
    writer.close()


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


# The writer


def test_training_goes_on_while_it_writes(tmp_path: Path, writer: AsyncWriter) -> None:
    """`save` returns before anything is written, and what is written is the state of that moment, bit for bit."""
    checkpoints, may_write = Checkpoints(tmp_path), threading.Event()

    def write(copies: Files) -> None:
        may_write.wait(PATIENCE_S)
        checkpoints.save(copies, {"images_seen": 64})

    tensors = state(1.0)
    writer.save("checkpoint", tensors, write)
    assert not checkpoints.paths() and not writer.finished()
    for group in tensors.values():
        for tensor in group.values():
            tensor.fill_(2.0)
    may_write.set()
    writer.close()
    found = read(tmp_path / "000000000064").tensors
    for file, group in state(1.0).items():
        assert all(torch.equal(found[file][name], tensor) for name, tensor in group.items())


def test_next_save_waits_for_the_last(writer: AsyncWriter) -> None:
    """A save begins once the last of its kind is written, uses its memory again, and never changes what it writes."""
    seen: list[float] = []
    places: set[int] = set()

    def write(copies: Files) -> None:
        time.sleep(0.05)
        values = {float(value) for group in copies.values() for tensor in group.values() for value in tensor.unique()}
        assert len(values) == 1
        seen.append(values.pop())
        places.add(copies["G"]["weight"].data_ptr())

    for number in range(5):
        writer.save("checkpoint", state(float(number)), write)
        assert len(seen) >= number, "two writes are under way"
    writer.close()
    assert seen == [0, 1, 2, 3, 4] and len(places) == 1
    assert writer.failure is None


def test_kinds_are_written_in_their_order(writer: AsyncWriter) -> None:
    """Saves of two kinds don't wait for one another, have memory of their own, and are written as they came."""
    may_write, seen = threading.Event(), list[float]()

    def write(copies: Files) -> None:
        may_write.wait(PATIENCE_S)
        seen.append(copies["G"]["weight"].mean().item())

    writer.save("average", state(1.0), write)
    writer.save("checkpoint", state(2.0), write)
    assert seen == []
    may_write.set()
    writer.close()
    assert seen == [1.0, 2.0] and set(writer.finished()) == {"average", "checkpoint"} and writer.finished() == {}


def test_tensors_that_change_their_shape(writer: AsyncWriter) -> None:
    """New tensors, and tensors of another shape or type, get copies of their own."""
    seen: list[Files] = []
    for tensors in (torch.ones(3), torch.ones(4), torch.ones(4, dtype=torch.int64), torch.ones(4, requires_grad=True)):
        writer.save("checkpoint", {"G": {"weight": tensors}}, seen.append)
    writer.save("checkpoint", {"G": {"other": torch.tensor(5)}, "empty": {}}, seen.append)
    writer.close()
    shapes = [(copies["G"]["weight"].shape, copies["G"]["weight"].dtype) for copies in seen[:4]]
    assert shapes == [((3,), torch.float32), ((4,), torch.float32), ((4,), torch.int64), ((4,), torch.float32)]
    assert seen[4]["G"]["other"] == 5 and seen[4]["empty"] == {} and "weight" not in seen[4]["G"]


def test_nothing_follows_on_a_failed_write(writer: AsyncWriter) -> None:
    """What a write raises is raised where training asks, each time, and nothing that was waiting is written."""
    may_write, written = threading.Event(), list[int]()

    def fails(copies: Files) -> None:
        may_write.wait(PATIENCE_S)
        raise UserError("no room")

    writer.save("average", state(1.0), fails)
    writer.save("checkpoint", state(1.0), lambda _: written.append(1))
    writer.raise_if_failed()
    may_write.set()
    for ask in (lambda: writer.save("checkpoint", state(2.0), lambda _: written.append(2)), writer.raise_if_failed):
        with pytest.raises(UserError, match="no room"):
            ask()
    writer.close()
    assert written == [] and writer.finished() == {}


def test_files_are_those_of_safetensors(tmp_path: Path) -> None:
    """A checkpoint's files are what safetensors itself would write, byte for byte."""
    group = {
        "weight": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "bias": torch.randn(7, requires_grad=True),
        "half": torch.randn(3).half(),
        "steps": torch.tensor(12),
        "flag": torch.tensor([True, False, True]),
    }
    path = Checkpoints(tmp_path).save({"G": group, "empty": {}}, {"images_seen": 1})
    whole = {name: tensor.detach().contiguous() for name, tensor in group.items()}
    assert (path / "G.safetensors").read_bytes() == safetensors.torch.save(whole)
    assert read(path).tensors["empty"] == {}


def save_for_ever(folder: Path, number: int) -> None:
    """A process that goes on from checkpoint `number`, as training would."""
    torch.set_num_threads(1)
    writer, checkpoints = AsyncWriter(), Checkpoints(folder, keep=2)
    tensors = {file: torch.zeros(20_000) for file in ("G", "D", "optimizers")}
    while True:
        number += 1
        for tensor in tensors.values():
            tensor.fill_(number)
        writer.save(
            "checkpoint",
            {file: {"weight": tensor} for file, tensor in tensors.items()},
            lambda copies, number=number: checkpoints.save(copies, {"images_seen": number}),  # type: ignore[misc]
        )


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Kill -9 at 40 random moments: what can be seen is whole and of one moment, and nothing that was there is lost."""
    checkpoints, moments, newest, cut_off = Checkpoints(tmp_path), random.Random(0), 0, 0
    for _ in range(40):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(tmp_path, newest))
        process.start()
        wait_until(lambda newest=newest: any(int(path.name) > newest for path in checkpoints.paths()))
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        paths = checkpoints.paths()
        assert newest < int(paths[-1].name) and len(paths) <= 3  # a third: the oldest was about to go
        newest = int(paths[-1].name)
        for path in paths:
            snapshot = read(path)
            values = {float(value) for group in snapshot.tensors.values() for value in group["weight"].unique()}
            assert values == {float(path.name)} == {float(snapshot.state["images_seen"])}
        cut_off += bool(list(tmp_path.glob(".*.partial")))
        checkpoints.remove_partial()
        assert list(tmp_path.glob(".*")) == []
    assert cut_off > 10, "hardly any write was cut off"


# Runs


@pytest.fixture
def run_dir(tmp_path: Path, keep_signal_handlers: None) -> Path:
    return tmp_path / "run"


def run(run_dir: Path, *options: str) -> int:
    return train.main([*DEBUG, "--run-dir", str(run_dir), *options])


def slow_write(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    write = checkpoint.write_synced

    def slow(path: Path, data: Any) -> None:
        time.sleep(seconds)
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_synced", slow)


def failing_write(monkeypatch: pytest.MonkeyPatch, part: str, module: Any = checkpoint) -> None:
    """The disk is full for files of which `part` is in the name, or in the name of their folder."""
    write = files.write_synced

    def fails(path: Path, data: Any) -> None:
        if part in f"{path.parent.name}/{path.name}":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(module, "write_synced", fails)


def contents(run_dir: Path) -> dict[str, bytes]:
    found = [run_dir / "log.jsonl", *run_dir.glob("checkpoints/*/*"), *run_dir.glob("averages/*")]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in found}


def test_slow_writes_change_nothing(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long writing takes, rows, checkpoints and averages are the same, and steps are made meanwhile."""
    options = ("--ema-stds", "0.05", "0.1", "--ema-snapshot-every", "64")
    assert run(run_dir, *options) == 0
    slow_write(monkeypatch, 0.05)
    steps, train_step = list[bool](), Trainer.train_step

    def watched(self: Trainer, batch: Any) -> Any:
        time.sleep(0.03)  # else the few steps between two checkpoints may be over before the thread begins
        steps.append(bool(list((tmp_path / "slow").glob("checkpoints/.*.partial"))))
        return train_step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", watched)
    assert run(tmp_path / "slow", *options) == 0
    assert contents(tmp_path / "slow") == contents(run_dir)
    assert len(contents(run_dir)) == 1 + 3 * 7 + 4 * 2
    assert any(steps), "no step was made while a checkpoint was written"
    assert not list((tmp_path / "slow").glob("*/.*"))


def test_pause_is_shown(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """performance.jsonl has each checkpoint's pause and how long its writing took; log.jsonl has neither."""
    slow_write(monkeypatch, 0.02)
    assert run(run_dir, "--ema-stds", "0.05", "--ema-snapshot-every", "64") == 0
    rows = read_rows(run_dir / "performance.jsonl")
    for kind in ("checkpoint", "average"):
        assert len([row for row in rows if f"speed/{kind}_pause_ms" in row]) == 4
        assert 2 <= len([row for row in rows if f"speed/{kind}_write_s" in row]) <= 4
    assert min(row["speed/checkpoint_write_s"] for row in rows if "speed/checkpoint_write_s" in row) > 0.08
    assert rows[1]["speed/checkpoint_pause_ms"] < 80, "training waited for the write"
    assert "pause" not in (run_dir / "log.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("images_seen", ["128", "256"])
def test_full_disk(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, images_seen: str) -> None:
    """A checkpoint in the middle or at the end that can't be written ends the run with its one line and exit code 2."""
    with monkeypatch.context() as full:
        failing_write(full, images_seen)
        assert run(run_dir) == EXIT_USER_ERROR
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "cannot save the checkpoint" in line and "No space left" in line and "is kept" in line
    assert "done" not in said.out and "cannot save" not in said.out
    last = {"128": "64", "256": "192"}[images_seen]
    assert [int(path.name) for path in Checkpoints(run_dir / "checkpoints").paths()][-1] == int(last)
    assert not list((run_dir / "checkpoints").glob(".*")) and (run_dir / "losses.png").exists()
    assert run(run_dir) == 0
    assert f"resuming {run_dir} at {last} of" in capsys.readouterr().out


def test_full_disk_for_an_average(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """No checkpoint follows on a snapshot that couldn't be written: a resume makes the snapshot."""
    options = ("--ema-stds", "0.05", "--ema-snapshot-every", "64")
    with monkeypatch.context() as full:
        failing_write(full, "000000128-", files)
        assert run(run_dir, *options) == EXIT_USER_ERROR
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in Checkpoints(run_dir / "checkpoints").paths()] == ["000000000064"]
    assert run(run_dir, *options) == 0
    assert len(list((run_dir / "averages").iterdir())) == 4


def test_full_disk_in_the_last_checkpoint_of_a_stopped_run(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A run that was asked to stop and can't save doesn't say that it has."""
    failing_write(monkeypatch, "000000000032")
    assert run(run_dir, "--minutes", "0.00001") == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot save the checkpoint" in line and "there is no earlier one" in line


def test_stopped_run_has_its_last_checkpoint(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """When `main` returns after a SIGTERM the checkpoint of the last step is whole, however long writing takes."""
    slow_write(monkeypatch, 0.1)
    log = hooks.Hooks.log
    monkeypatch.setattr(hooks.Hooks, "log", lambda *args: (log(*args), signal.raise_signal(signal.SIGTERM)))
    assert run(run_dir) == EXIT_STOPPED
    (path,) = Checkpoints(run_dir / "checkpoints").paths()
    assert read(path).state["images_seen"] == 64
    assert "stopped on request at 64 images" in capsys.readouterr().err
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("writer")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_stopped_by_a_signal_only_the_checkpoint_is_written(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A scheduler kills what goes on for long: pictures wait for the session that ends the run, whose last they are."""
    done: list[str] = []

    def noted(name: str, owner: Any, method: str) -> None:
        original = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *args: (original(*args), done.append(name))[0])

    noted("checkpoint", Checkpoints, "save")
    noted("gif", pictures, "save_gif")
    noted("losses", pictures.loss_plot, "save")
    with monkeypatch.context() as signalled:
        log = hooks.Hooks.log
        signalled.setattr(hooks.Hooks, "log", lambda *args: (log(*args), signal.raise_signal(number)))
        assert run(run_dir) == EXIT_STOPPED
    assert done == ["checkpoint"]
    assert run(run_dir, "--minutes", "0.00001") == 0
    assert done == ["checkpoint", "checkpoint", "gif", "losses"]  # the clock is no such haste
    assert run(run_dir) == 0
    assert done[4:].count("gif") == 1 and done[-3:] == ["checkpoint", "gif", "losses"]


def test_divergence_says_more_than_a_full_disk(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Where losses aren't finite and a write fails, the exit code is divergence's; the failed write is reported."""
    calls = []

    def spoiled(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return losses.nonsaturating_d(real_logits, fake_logits) * (torch.nan if len(calls) > 2 else 1)

    monkeypatch.setitem(losses.LOSSES, "nonsaturating", losses.Loss(spoiled, losses.nonsaturating_g))
    diverged, check_finite = list[bool](), Trainer.check_finite

    def noted(trainer: Trainer) -> None:
        try:
            check_finite(trainer)
        except Diverged:
            diverged.append(True)
            raise

    def fails(path: Path, data: Any) -> None:
        wait_until(lambda: diverged)  # the write fails when training has
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "check_finite", noted)
    monkeypatch.setattr(checkpoint, "write_synced", fails)
    assert run(run_dir) == EXIT_DIVERGED
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and "diverged" in said.err and "cannot save the checkpoint" in said.out
    assert not Checkpoints(run_dir / "checkpoints").paths()


def test_other_failures_leave_a_whole_checkpoint(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training fails for another reason the checkpoint under way is finished, and that reason is raised."""
    slow_write(monkeypatch, 0.1)

    def broken(self: Trainer, batch: Any) -> Any:
        if self.images_seen == 64:
            raise RuntimeError("this step is broken")
        return train_step(self, batch)

    train_step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", broken)
    with pytest.raises(RuntimeError, match="this step is broken"):
        run(run_dir)
    (path,) = Checkpoints(run_dir / "checkpoints").paths()
    assert read(path).state["images_seen"] == 64


def test_folder_removed_meanwhile(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Where somebody removes the checkpoints during a run, between two writes, the next ones are made again."""
    log, moved = hooks.Hooks.log, run_dir / "moved"

    def removes(self: hooks.Hooks, trainer: Trainer) -> None:
        log(self, trainer)
        if trainer.images_seen == 192:
            wait_until(self.saving.writer._writes["checkpoint"].done)
            (run_dir / "checkpoints").rename(moved)

    monkeypatch.setattr(hooks.Hooks, "log", removes)
    assert run(run_dir) == 0
    assert [path.name for path in Checkpoints(run_dir / "checkpoints").paths()] == ["000000000192", "000000000256"]
    assert len(list(moved.iterdir())) == 2


def test_every_process_gives_its_part(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that doesn't write is asked for its state all the same: others may need its part of it."""
    asked, state_of = list[bool](), Trainer.state

    class Other(hooks.Hooks):
        def __init__(self, trainer: Trainer, folder: Any, source: Any, processes: Any, saved: Any) -> None:
            monkeypatch.setattr(processes, "is_main", False)
            super().__init__(trainer, folder, source, processes, saved)

    monkeypatch.setattr(hooks, "Hooks", Other)
    monkeypatch.setattr(Trainer, "state", lambda self: (asked.append(True), state_of(self))[1])
    assert run(run_dir) == 0
    assert len(asked) == 4 and not (run_dir / "checkpoints").exists()
    assert json.loads((run_dir / "config.json").read_text())


def test_averages_by_the_writer(tmp_path: Path, writer: AsyncWriter) -> None:
    """A snapshot that the thread writes is the file that is written at once, of the moment of saving."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    ema_snapshots.EmaSnapshots(tmp_path / "a", (0.05,)).save([net], 64)
    may_write = threading.Event()
    writer.save("other", {}, lambda _: may_write.wait(PATIENCE_S))
    ema_snapshots.EmaSnapshots(tmp_path / "b", (0.05,)).save([net], 64, writer)
    net[0].weight.data.zero_()
    may_write.set()
    writer.close()
    (a,), (b,) = (list((tmp_path / name).iterdir()) for name in "ab")
    assert a.name == b.name and a.read_bytes() == b.read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_from_a_gpu(writer: AsyncWriter) -> None:
    """A GPU's tensors are copied whole, into pinned memory that is used again, before `save` returns."""
    seen, places = list[float](), set[int]()

    def write(copies: Files) -> None:
        weight = copies["G"]["weight"]
        assert weight.is_pinned() and weight.unique().numel() == 1
        seen.append(weight[0, 0].item())
        places.add(weight.data_ptr())

    weight = torch.zeros(1000, 1000, device="cuda")
    for number in range(3):
        weight.fill_(number)
        writer.save("checkpoint", {"G": {"weight": weight}, "CPU": {"step": torch.tensor(1.0)}}, write)
        weight.fill_(-1)
    writer.close()
    assert writer.failure is None and seen == [0, 1, 2] and len(places) == 1
