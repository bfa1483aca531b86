"""The sweep of gamma: three short runs, a table, an advice; and the figure that it is about."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import refusal

from fastgan import cli, presets
from fastgan.commands import sweep, train
from fastgan.runs.rows import append_row, read_rows
from fastgan.runs.run_folder import RunFolder
from fastgan.training.objectives import DiscriminatorObjective, penalty_ratio

pytestmark = pytest.mark.usefixtures("keep_signal_handlers", "here")
TINY = ("--preset", "debug", "--penalty", "r1", "--gamma", "0.4", "--images", "64")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the test is run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_here(_: object, args: Sequence[str]) -> int:
    """Train for real, but in this process."""
    return train.main(args)


def ends(codes: Sequence[int], metrics: Sequence[float] = ()) -> tuple[list[list[str]], object]:
    """A stand-in for `Children.train` whose runs log a row and end with the codes; and what it was asked for."""
    asked: list[list[str]] = []

    def stand_in(_: object, args: Sequence[str]) -> int:
        config = presets.parse_config(args)
        number, folder = len(asked), RunFolder(config.run_dir)
        asked.append(list(args))
        folder.open(config)
        for images_seen in (16, 64):
            row = {"loss/D": float(images_seen), "logits/real": 2.0, "logits/fake": -1.0}
            append_row(folder.log, {"images_seen": images_seen} | row)
        if metrics:
            append_row(folder.log, {"images_seen": 64, "metrics/fd_digits": metrics[number]})
        if codes[number] == 0:
            (folder.checkpoints / "000000000064").mkdir(parents=True)
        return codes[number]

    return asked, stand_in


def test_runs() -> None:
    """The runs are train's with a quarter, once and four times gamma, and its end; nothing else of learning differs."""
    args = [*TINY, "--gamma-end", "0.04", "--burn-in", "500", "--run-dir", "x"]
    runs, given = sweep.runs_of(args), presets.parse_config(args)
    assert [run.gamma for run in runs] == [0.1, 0.4, 1.6]
    for run, (gamma, end) in zip(runs, ((0.1, 0.01), (0.4, 0.04), (1.6, 0.16)), strict=True):
        assert presets.parse_config(run.args) == run.config
        wanted = replace(given, objective=replace(given.objective, gamma=gamma, gamma_end=end))
        assert run.config.differences(wanted) == [] and run.config.run.images == 64
        assert run.folder == Path("x") / f"gamma-{gamma:g}"
    assert sweep.runs_of(TINY)[0].folder == Path("runs/sweep-debug/gamma-0.1")


def test_gamma_by_the_rule() -> None:
    """Without a gamma the rule's is the middle one: 0.0002 * 784 / 32 for `debug`."""
    assert sweep.runs_of(["--preset", "debug", "--penalty", "r1"])[1].gamma == pytest.approx(0.0049)


@pytest.mark.parametrize(
    ("args", "images"),
    [([], 2000), (["--batch-size", "2"], 400), (["--images", "70"], 70), (["--epochs=0.5"], 500)],
)
def test_length(args: list[str], images: int) -> None:
    """A run is as long as the user says, else a twentieth of the preset's, but 200 steps, and never longer than it."""
    runs = sweep.runs_of(["--preset", "debug", "--penalty", "r1", *args])
    assert {run.config.run.images for run in runs} == {images}
    assert sweep.runs_of(["--preset", "mnist28", "--penalty", "r1"])[0].config.run.images == 150_000


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_road(processes: bool, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Three trained runs, a table of their figures and a word on the metric; again: nothing is trained, same table.

    Nothing is a stand-in where each run is a process of its own.
    """
    if not processes:
        monkeypatch.setattr(sweep.Children, "train", train_here)
    assert cli.main(["sweep", "gamma", *TINY, "--run-dir", "s"]) == 0
    shown = capsys.readouterr().out
    heads, *rows = (line.split() for line in shown.split("\n\n")[1].splitlines()[:4])
    assert heads == ["gamma", "loss", "D", "loss", "G", "r1", "r2", "penalty", "share", "logits'", "gap"]
    for row, gamma in zip(rows, (0.1, 0.4, 1.6), strict=True):
        log = read_rows(here / "s" / f"gamma-{gamma:g}" / "log.jsonl")[-1]
        assert float(row[0]) == gamma and float(row[1]) == pytest.approx(log["loss/D"], rel=1e-3)
        assert row[4] == "-" and float(row[5]) == pytest.approx(gamma / 2 * log["penalty/r1"] / log["loss/D"], rel=1e-3)
        assert float(row[6]) == pytest.approx(log["logits/real"] - log["logits/fake"], rel=1e-2)
        assert list((here / "s" / f"gamma-{gamma:g}" / "tensorboard").iterdir())
    assert "advice: none, as no distance was measured" in shown and "tensorboard --logdir s" in shown

    def fails(*_: object) -> int:
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr(sweep.Children, "train", fails)
    assert cli.main(["sweep", "gamma", *TINY, "--run-dir", "s"]) == 0
    again = capsys.readouterr().out
    assert again.split("\n\n")[1] == shown.split("\n\n")[1] and again.count("it has ended before") == 3


def test_diverged_and_failed_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that diverged or crashed is a row that says so, and the next ones are made; only the crashed one again.

    The runs are stand-ins, which log two rows; the table and what is made again are the command's own.
    """
    asked, stand_in = ends([3, -9, 0])
    monkeypatch.setattr(sweep.Children, "train", stand_in)
    assert cli.main(["sweep", "gamma", *TINY]) == 2
    rows = capsys.readouterr().out.split("\n\n")[1].splitlines()[1:4]
    assert len(asked) == 3 and rows[0].split()[-1] == "diverged" and rows[1].endswith("failed (exit code -9)")
    assert rows[2].split() == ["1.6", "64", "-", "-", "-", "-", "3"]  # the last quarter's
    again, stand_in = ends([0])
    monkeypatch.setattr(sweep.Children, "train", stand_in)
    assert cli.main(["sweep", "gamma", *TINY]) == 0
    assert again == [asked[1]]
    assert json.loads(Path("runs/sweep-debug/sweep.json").read_text())["gamma-0.1"] == {"exit_code": 3, "images": 64}


def test_all_diverged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where every run diverged, so did the sweep."""
    monkeypatch.setattr(sweep.Children, "train", train_here)
    assert cli.main(["sweep", "gamma", *TINY, "--d-lr", "1e30"]) == 3
    shown = capsys.readouterr().out
    assert "no run came to its end" in shown
    assert [row.split()[-1] for row in shown.split("\n\n")[1].splitlines()[1:4]] == ["diverged"] * 3


@pytest.mark.parametrize(
    ("codes", "distances", "words"),
    [
        ([0, 0, 0], [30.0, 10.0, 20.0], "--gamma 0.4 had the lowest fd_digits, 10, after 64 images of one seed\n"),
        ([0, 0, 0], [30.0, 20.0, 10.0], "--gamma 1.6 had the lowest fd_digits, 10, after 64 images of one seed; it is"),
        ([3, 0, 0], [1.0, 30.0, 20.0], "--gamma 1.6 had the lowest fd_digits, 20"),
        ([0, 0, 0], [10.1, 10.0, 10.15], "none, as the distances are less than 2% apart"),
    ],
)
def test_advice(
    codes: list[int],
    distances: list[float],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The advice is the lowest distance of the runs that ended well, if it stands out; at the edge it says so."""
    monkeypatch.setattr(sweep.Children, "train", ends(codes, distances)[1])
    cli.main(["sweep", "gamma", *TINY])
    shown = capsys.readouterr().out
    assert f"advice: {words}" in shown and "fd_digits" in shown.split("\n\n")[1].splitlines()[0]


def test_stop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stop ends the sweep with 75 after the run that it stopped; the same command resumes with that one."""
    asked, stand_in = ends([0, 75])

    def train_and_stop(children: sweep.Children, args: Sequence[str]) -> int:
        children.stopped = len(asked) == 1
        code: int = stand_in(children, args)  # type: ignore[operator]
        return code

    monkeypatch.setattr(sweep.Children, "train", train_and_stop)
    assert cli.main(["sweep", "gamma", *TINY]) == 75
    assert len(asked) == 2 and "the same command resumes" in capsys.readouterr().err
    more, stand_in_again = ends([0, 0])
    monkeypatch.setattr(sweep.Children, "train", stand_in_again)
    assert cli.main(["sweep", "gamma", *TINY]) == 0
    assert [args[args.index("--run-dir") + 1] for args in more] == [
        f"runs/sweep-debug/gamma-{gamma}" for gamma in ("0.4", "1.6")
    ]


def test_children_are_processes(capfd: pytest.CaptureFixture[str]) -> None:
    """A run is `fastgan train` in a process of its own, whose exit code comes back; a stop is passed on to it."""
    children = sweep.Children()
    try:
        assert children.train(["--batch-size", "0"]) == 2
        assert "batch_size is 0" in capfd.readouterr().err
        children.stopped = True
        assert children.train([*TINY, "--images", "100_000"]) in (75, -15)
    finally:
        children.close()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["nothing", "choose from gamma"]),
        (["beta"], ["'beta'", "choose from gamma"]),
        (["gamma", "--preset", "debug"], ["penalty is 'none'", "--penalty r1"]),
        (["gamma", "--preset", "debug", "--penalty", "r1", "--gamma", "0"], ["gamma is 0"]),
        (["gamma", "--gama", "1"], ["'--gama'", "did you mean --gamma"]),
        (["gamma", "--preset", "cifar10"], ["no data set 'cifar10'"]),
    ],
)
def test_refusals(args: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can't be swept is refused in one line, and nothing is made."""
    assert cli.main(["sweep", *args]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and all(word in shown.err for word in words)
    assert list(here.iterdir()) == []


def test_another_runs_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another sweep is refused before anything is trained."""
    asked, stand_in = ends([0, 0, 0])
    monkeypatch.setattr(sweep.Children, "train", stand_in)
    assert cli.main(["sweep", "gamma", *TINY]) == 0
    text = refusal(lambda: sweep.main(["gamma", *TINY, "--seed", "5"]))
    assert "seed: 5, not 0" in text and len(asked) == 3


def test_dry_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run names the gammas and the length, and makes nothing."""
    assert cli.main(["sweep", "gamma", *TINY, "--dry-run"]) == 0
    assert "0.1, 0.4, 1.6, 64 images each, into runs/sweep-debug" in capsys.readouterr().out
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("penalty", ["r1", "r1+r2"])
def test_penalty_share(penalty: str) -> None:
    """The share is what the penalties add to D's loss, by the adversarial loss; lazy ones count by their mean."""
    config = presets.debug()
    for every in (1, 4):
        objective = replace(config.objective, penalty=penalty, gamma=0.5, penalty_every=every)
        config = replace(config, objective=objective)
        D = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1), torch.nn.Flatten(0)).double()
        D.forward = lambda images, labels, noise, D=D: torch.nn.Sequential.forward(D, images).sin()
        torch.manual_seed(0)
        reals, fakes = torch.randn(2, 8, 3, 2, 2, dtype=torch.float64)
        loss, terms = DiscriminatorObjective(D, config)(reals, fakes, None, torch.arange(8), 0.5)
        means = {name: term.item() for name, term in terms.items()}
        wanted = loss.item() / means["loss/D"] - 1
        assert penalty_ratio(config, 0, means) == pytest.approx(wanted) and wanted > 1e-3


def test_penalty_share_follows_gamma() -> None:
    """Where gamma moves, the share's does; without r1 and r2, or with a loss below 0, there is none."""
    config = presets.get("ffhq64")
    means = {"loss/D": 0.5, "penalty/r1": 0.1, "penalty/r2": 0.3}
    assert penalty_ratio(config, 0, means) == pytest.approx(2 / 2 * 0.4 / 0.5)
    assert penalty_ratio(config, 10**9, means) == pytest.approx(0.2 / 2 * 0.4 / 0.5)
    assert penalty_ratio(config, 0, {"loss/D": 0.5}) is None
    assert penalty_ratio(config, 0, means | {"loss/D": -0.5}) is None
