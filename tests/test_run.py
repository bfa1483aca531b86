"""Runs from the command line's point of view, in this process: bad input, damage, divergence."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import EAGER, _signal_handlers_kept

from fastgan import cli
from fastgan.commands import train
from fastgan.errors import EXIT_DIVERGED, EXIT_USER_ERROR
from fastgan.runs.checkpoint import Checkpoints
from fastgan.runs.rows import append_row, read_rows
from fastgan.training import losses

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
DEBUG = ("--preset", "debug", "--images", "256", "--checkpoint-every", "64", "--log-every", "64")


def run(run_dir, *options):
    return train.main([*DEBUG, "--run-dir", str(run_dir), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of 256 images, with a checkpoint and a row every 64."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with _signal_handlers_kept():
        assert run(folder, *EAGER) == 0
    return folder


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """A copy of the finished run, for the test to change."""
    return shutil.copytree(finished, tmp_path / "run")


def complaint(capsys) -> str:
    """What was said on standard error: one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_run_leaves_what_it_promises(run_dir):
    """A finished run has its config, session, rows, grids, GIF, checkpoints and TensorBoard log."""
    assert json.loads((run_dir / "config.json").read_text())["preset"] == "debug"
    session = read_rows(run_dir / "sessions.jsonl")[0]
    assert session["packages"]["torch"] and session["command"] and "commit" in session
    rows = read_rows(run_dir / "log.jsonl")
    assert [row["images_seen"] for row in rows] == [64, 128, 192, 256]
    assert set(rows[0]) == {
        *("images_seen", "loss/D", "loss/G", "logits/real", "logits/fake", "grad_norm/D", "grad_norm/G")
    }
    assert read_rows(run_dir / "performance.jsonl")[0]["speed/images_per_s"] > 0
    assert sorted(path.name for path in (run_dir / "grids").iterdir()) == ["000000000000.png", "000000000256.png"]
    assert (run_dir / "training.gif").exists() and list((run_dir / "tensorboard").iterdir())
    assert [path.name for path in Checkpoints(run_dir / "checkpoints").paths()][-1] == "000000000256"


def test_complete_run_says_so(run_dir, capsys):
    """The same command on a finished run does nothing; more images go on from it."""
    assert run(run_dir, *EAGER) == 0
    assert "is complete" in capsys.readouterr().out
    assert run(run_dir, *EAGER, "--images", "320") == 0
    assert "resuming" in capsys.readouterr().out


MEASURED = ("--eval-every", "128", "--eval-images", "64", "--health-every", "0")


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Iterator[Path]:
    """A run that was evaluated twice, with the cache that it filled."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTGAN_CACHE", str(folder / "cache"))
        with _signal_handlers_kept():
            assert run(folder / "run", *MEASURED) == 0
        yield folder / "run"


@pytest.mark.parametrize("left", [None, b"of an earlier session"], ids=["none", "old"])
def test_killed_after_the_last_checkpoint(run_dir, left):
    """The same command makes the pictures that a run killed at its very end lacks, as they would have been."""
    pictures = [run_dir / "losses.png", run_dir / "training.gif"]
    wanted = [path.read_bytes() for path in pictures]
    for path in pictures:
        path.unlink()
        if left is not None:
            path.write_bytes(left)
            os.utime(path, (1e9, 1e9))
    assert run(run_dir, *EAGER) == 0
    assert [path.read_bytes() for path in pictures] == wanted


def test_rows_after_a_kill(tmp_path, measured):
    """Rows that a session wrote after its last checkpoint are cut off by the next: none is there twice, in any file."""
    run_dir = shutil.copytree(measured, tmp_path / "run")
    files = [run_dir / f"{name}.jsonl" for name in ("metrics", "performance", "log", "evaluation")]
    append_row(files[3], {"images_seen": 256})
    before = [read_rows(file) for file in files]
    for path in Checkpoints(run_dir / "checkpoints").paths()[-2:]:  # as if the kill had been before them
        shutil.rmtree(path)
    with files[0].open("a") as file:
        file.write('{"images_seen": 256, "ki')
    assert run(run_dir, *MEASURED) == 0
    seen = [[row["images_seen"] for row in read_rows(file)] for file in files]
    assert seen[0] == [row["images_seen"] for row in before[0]] == [128, 256]
    assert seen[2] == [row["images_seen"] for row in before[2]] and seen[3] == []
    for rows in before[1], read_rows(files[1]):
        assert [row["images_seen"] for row in rows if "speed/images_per_s" in row] == [64, 128, 192, 256]


def test_other_settings_are_refused(run_dir, capsys):
    """A run folder of another config is refused by the fields that differ, and isn't touched; intervals may differ."""
    before = (run_dir / "config.json").read_bytes()
    assert run(run_dir, "--batch-size", "16", "--seed", "3") == EXIT_USER_ERROR
    said = complaint(capsys)
    assert "seed: 3, not 0" in said and "batch_size: 16, not 32" in said
    assert (run_dir / "config.json").read_bytes() == before
    assert run(run_dir, "--grid-every", "100", "--images", "320") == 0


def test_unwritable_run_folder(tmp_path, capsys):
    """A run folder that can't be made is one line that names it."""
    (tmp_path / "file").write_text("in the way")
    assert run(tmp_path / "file" / "run") == EXIT_USER_ERROR
    assert "cannot write into the run folder" in complaint(capsys)


def test_batch_larger_than_the_set(tmp_path, capsys):
    """A batch that the set can't fill is refused with both numbers."""
    assert run(tmp_path / "run", "--batch-size", "1001") == EXIT_USER_ERROR
    assert "batch_size is 1001: the data set toy has only 1000 images" in complaint(capsys)


def test_damaged_checkpoint_falls_back(run_dir, capsys):
    """A resume over a damaged checkpoint says so, goes on from the one before, and ends with the same weights."""
    last = Checkpoints(run_dir / "checkpoints").paths()[-1] / "G.safetensors"
    wanted = last.read_bytes()
    last.write_bytes(wanted[:-1] + bytes([wanted[-1] ^ 1]))
    assert run(run_dir, *EAGER) == 0
    said = capsys.readouterr().out
    assert "is damaged (G.safetensors has changed): falling back" in said and "at 192 of 256 images" in said
    assert last.read_bytes() == wanted


def test_every_checkpoint_damaged(run_dir, capsys):
    """Where no checkpoint is left whole the run doesn't start over silently."""
    for path in Checkpoints(run_dir / "checkpoints").paths():
        (path / "D.safetensors").unlink()
    assert run(run_dir) == EXIT_USER_ERROR
    assert "every checkpoint in" in complaint(capsys)


def test_divergence_keeps_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    """NaN losses end the run with exit code 3, name the step and the remedy; the checkpoint before is whole."""
    calls = []

    def spoiled(real_logits, fake_logits):
        calls.append(0)
        loss = losses.nonsaturating_d(real_logits, fake_logits)
        return loss * torch.nan if len(calls) > 5 else loss

    monkeypatch.setitem(losses.LOSSES, "nonsaturating", losses.Loss(spoiled, losses.nonsaturating_g))
    run_dir = tmp_path / "run"
    assert run(run_dir) == EXIT_DIVERGED
    said = complaint(capsys)
    assert "since step 6 (160 images)" in said and "--g-lr" in said
    snapshot = Checkpoints(run_dir / "checkpoints").latest()
    assert snapshot.state["images_seen"] == 128
    assert all(value.isfinite().all() for group in snapshot.tensors.values() for value in group.values())
    assert all(row["images_seen"] <= 128 for row in read_rows(run_dir / "log.jsonl"))


def test_time_limit_is_an_end_in_good_order(tmp_path, capsys):
    """After the given minutes the run ends with a checkpoint and exit code 0; the same command resumes from it."""
    run_dir = tmp_path / "run"
    assert run(run_dir, "--minutes", "0.00001") == 0
    assert "stopped on request at 32 images" in complaint(capsys)
    assert run(run_dir) == 0
    assert "at 32 of 256 images" in capsys.readouterr().out
    assert read_rows(run_dir / "log.jsonl")[-1]["images_seen"] == 256


def test_training_goes_on_without_an_extractor(tmp_path, capsys, monkeypatch):
    """Where the Inception weights aren't to be had, one line says so and training goes on to its end."""

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert run(tmp_path / "run", "--extractor", "inception", "--eval-every", "64") == 0
    said = capsys.readouterr().out
    assert said.count("training goes on without evaluation: no Inception weights") == 1
    assert "metrics/" not in (tmp_path / "run" / "log.jsonl").read_text()


def test_evaluation_during_training(measured):
    """Figures come at each interval and at the end, named after the extractor; `fastgan evaluate` finds the last."""
    run_dir = measured
    rows = [row for row in read_rows(run_dir / "log.jsonl") if "metrics/fd_digits" in row]
    assert [row["images_seen"] for row in rows] == [128, 256]
    assert cli.main(["evaluate", str(run_dir), "--images", "64"]) == 0
    found = read_rows(run_dir / "evaluation.jsonl")[-1]
    assert found["metrics"]["fd_digits"] == pytest.approx(rows[-1]["metrics/fd_digits"], rel=1e-6)
    assert found["protocol"]["extractor"] == "digits" and found["protocol"]["num_reals"] == 1000
