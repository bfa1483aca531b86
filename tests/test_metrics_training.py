"""Evaluation during training: the curve, the full measure, the best checkpoint, patience, several processes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import DEVICE, refusal
from forks import ForkServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastgan import cli, presets
from fastgan.commands import train
from fastgan.commands.report.page import plots_of
from fastgan.commands.report.record import Record
from fastgan.data import named
from fastgan.data.images import ArrayDataset, to_bytes
from fastgan.errors import EXIT_USER_ERROR, UserError
from fastgan.evaluation import evaluator, extractors
from fastgan.evaluation.evaluator import Evaluator, best_of, load_on_all
from fastgan.evaluation.fidelity import latents
from fastgan.monitor import chart_groups
from fastgan.runs.checkpoint import BEST, Checkpoints
from fastgan.runs.rows import read_rows
from fastgan.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
DEBUG = ("--preset", "debug", "--images", "256", "--eval-every", "64", "--eval-images", "120")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def run(run_dir, *options):
    return train.main([*DEBUG, "--run-dir", str(run_dir), *options])


def rows_with(run_dir, name):
    return [row for row in read_rows(run_dir / "log.jsonl") if name in row]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    """A run with a curve of 100 images, a full measure of 120, and its best checkpoint."""
    run_dir = tmp_path_factory.mktemp("told") / "run"
    assert run(run_dir, "--eval-curve-images", "100", "--best-by", "recall_digits") == 0
    return run_dir


def test_curve_and_full_measure(told):
    """Each interval has a point of few images, the end a full measure as well; each with its protocol."""
    assert [row["images_seen"] for row in rows_with(told, "metrics/fd_digits")] == [64, 128, 192, 256]
    (full,) = rows_with(told, "full/fd_digits")
    assert full["images_seen"] == 256
    rows = read_rows(told / "metrics.jsonl")
    assert [(row["kind"], row["protocol"]["num_fakes"]) for row in rows] == [("metrics", 100)] * 4 + [("full", 120)]
    protocol = rows[-1]["protocol"]
    assert protocol["extractor"] == "digits" and protocol["extractor_weights"] and protocol["transform"]
    assert protocol["num_reals"] == 1000 and protocol["split"] == "train" and protocol["sample_seeds"] == "0-119"
    assert protocol["truncation"] == "none" and rows[0]["session"]["packages"]["torch"]
    assert full["full/fd_digits"] == rows[-1]["metrics"]["fd_digits"]


def test_evaluation_at_the_end_only(tmp_path):
    """Without an interval there is one evaluation, at the end, of all `eval_images`; it makes the best checkpoint."""
    options = ("--eval-every", "None", "--images", "32", "--eval-curve-images", "10", "--best-by", "recall_digits")
    assert run(tmp_path / "run", *options, "--eval-images", "20", "--health-every", "0") == 0
    (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert (row["images_seen"], row["kind"], row["protocol"]["num_fakes"]) == (32, "metrics", 20)
    assert Checkpoints(tmp_path / "run" / BEST).latest().state["images_seen"] == 32


def test_board_shows_the_share(told):
    """The share of the time that evaluation took is on the board, between 0 and 1, after each one."""
    shares = [row["speed/evaluation_share"] for row in read_rows(told / "performance.jsonl") if len(row) == 2]
    assert len(shares) >= 4 and all(0 < share < 1 for share in shares)


def test_best_checkpoint_is_kept(told):
    """best/ holds the one checkpoint, whole, with the best of the log's figures."""
    values = {row["images_seen"]: row["metrics/recall_digits"] for row in rows_with(told, "metrics/recall_digits")}
    (path,) = Checkpoints(told / BEST).paths()
    snapshot = Checkpoints(told / BEST).latest()
    best = max(values.values())
    assert snapshot.state["metrics"]["recall_digits"] == best
    assert int(path.name) == next(seen for seen, value in values.items() if value == best)
    assert "G_ema" in snapshot.tensors


def test_evaluate_repeats_the_full_measure(told):
    """`fastgan evaluate` of the finished run has the figures of its full measure, under an equal protocol; given again,
    as after a kill before its end, it keeps one row of them. Of a truncation it has others, under its own.
    """
    for _ in range(2):
        assert cli.main(["evaluate", str(told), "--images", "120"]) == 0
    rows = read_rows(told / "evaluation.jsonl")
    assert [row["protocol"]["num_fakes"] for row in rows if not row["which"]["best"]] == [120]
    found, full = read_rows(told / "evaluation.jsonl")[-1], read_rows(told / "metrics.jsonl")[-1]
    assert found["metrics"] == pytest.approx(full["metrics"], rel=1e-6)
    assert found["protocol"] == full["protocol"] and found["which"] == full["which"]
    assert cli.main(["evaluate", str(told), "--images", "120", "--truncation", "0.5"]) == 0
    scaled = read_rows(told / "evaluation.jsonl")[-1]
    assert scaled["protocol"] == full["protocol"] | {"truncation": 0.5} and scaled["metrics"] != found["metrics"]


def test_evaluate_the_best_checkpoint(told, capsys):
    """`fastgan evaluate --best` has the figures that made it the best, and the report says of which checkpoint."""
    best = Checkpoints(told / BEST).latest()
    before = (told / "evaluation.jsonl").read_bytes() if (told / "evaluation.jsonl").exists() else None
    assert cli.main(["evaluate", str(told), "--images", "100", "--best"]) == 0
    found = read_rows(told / "evaluation.jsonl")[-1]
    assert found["images_seen"] == best.state["images_seen"] and found["which"]["best"] is True
    assert found["metrics"]["recall_digits"] == pytest.approx(best.state["metrics"]["recall_digits"], rel=1e-6)
    (measurement, *_) = Record(told).measurements()
    assert measurement.protocol["checkpoint"] == "the best"
    (told / "evaluation.jsonl").write_bytes(before) if before else (told / "evaluation.jsonl").unlink()


def test_report_has_the_full_measure(told):
    """What the report shows of training is its newest measure with that one's protocol, and the best checkpoint."""
    record = Record(told)
    measurement = next(one for one in record.measurements() if one.protocol["measured"] == "while training")
    assert measurement.metrics == read_rows(told / "metrics.jsonl")[-1]["metrics"]
    assert measurement.protocol["generated images"] == "120" and measurement.protocol["sample seeds"] == "0-119"
    assert any(command.endswith("--best --out best") for _, command in record.commands())
    assert "full/fd_digits" in record.series() and "Full measures" not in dict(plots_of([record]))


def test_layout_has_every_metric(told):
    """Each metric that a run writes, of the curve and in full, is on one chart of TensorBoard's custom page."""
    charts = chart_groups.custom_scalars(RunFolder(told).read_config())
    tags = [tag for group in charts.values() for _, patterns in group.values() for tag in patterns]
    written = EventAccumulator(str(told / "tensorboard")).Reload().Tags()["scalars"]
    metrics = [name for name in written if name.startswith(("metrics/", "full/")) and "_std_" not in name]
    assert sum(name.startswith("full/") for name in metrics) == 10
    for name in metrics:
        assert sum(re.match(tag, name) is not None for tag in tags) == 1, name


@pytest.mark.parametrize(
    ("values", "metric", "stale"),
    [([3, 2, 1], "fd_digits", 0), ([1, 2, 3], "fd_digits", 2), ([1, 2, 3], "recall_digits", 0), ([2, 1, 1], "kl", 1)],
)
def test_best_of_values(values, metric, stale):
    """Distances are best where they are small, precision and its like where they are large; a tie isn't better."""
    assert best_of(values, metric) == stale


def test_patience_ends_a_run(tmp_path, capsys, monkeypatch):
    """After two evaluations without a better figure the run stops, measured in full, with a checkpoint and code 0."""
    figures = iter([3.0, 2.0, 2.5, 2.5, 9.0])
    measure = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda *args: measure(*args) | {"fd_digits": next(figures)})
    run_dir = tmp_path / "run"
    options = ("--images", "640", "--eval-curve-images", "50", "--best-by", "fd_digits", "--patience", "2")
    assert run(run_dir, *options) == 0
    assert "no better fd_digits in 2 evaluations: stopped at 256 images" in capsys.readouterr().err
    assert len(rows_with(run_dir, "metrics/fd_digits")) == 4 and len(rows_with(run_dir, "full/fd_digits")) == 1
    assert [int(path.name) for path in Checkpoints(run_dir / BEST).paths()] == [128]
    assert int(Checkpoints(run_dir / "checkpoints").paths()[-1].name) == 256


def test_unknown_metric(tmp_path, capsys):
    """A metric that isn't measured is refused before training, with those that are."""
    assert run(tmp_path / "run", "--best-by", "fid") == EXIT_USER_ERROR
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "best_by is 'fid': choose from fd_digits, kid_digits" in said[0]
    assert run(tmp_path / "run", "--patience", "2") == EXIT_USER_ERROR
    assert "patience is 2: it counts evaluations" in capsys.readouterr().err


def test_singular_covariance_is_said(tmp_path, capsys):
    """A run whose evaluations are of few images says so, once a number."""
    assert run(tmp_path / "run", "--eval-images", "50", "--images", "64") == 0
    assert capsys.readouterr().out.count("50 generated images for 96 features of digits") == 1


def test_a_run_without_a_checkpoint(tmp_path, capsys, told):
    """A run that has no checkpoint yet is one line."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes((told / "config.json").read_bytes())
    assert cli.main(["evaluate", str(tmp_path / "run")]) == EXIT_USER_ERROR
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_weights_missing_elsewhere():
    """Where another process lacks the weights this one goes on without evaluation, too, and says why."""
    said: list[str] = []
    config = presets.get("debug")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(extractors, "load", lambda *_: extractors._digits(DEVICE))
        patch.setattr(evaluator, "all_reduce_min", lambda number: 0)  # its fellow has nothing
        assert load_on_all(config, named.load("toy"), DEVICE, said.append) is None
    assert said == ["training goes on without evaluation: a process has no extractor efficientnet"]


def test_per_class(told):
    """Each class has a distance of its own; a run that is not class-conditional is refused in one line."""
    config = presets.get("debug")
    toy = named.load("toy")
    digits = extractors.load("digits", DEVICE)
    with pytest.raises(UserError, match="not class-conditional"):
        Evaluator(config, toy, digits, DEVICE).per_class(torch.nn.Identity(), 100)
    text = refusal(lambda: cli._run(["evaluate", str(told), "--images", "120", "--per-class"]))
    assert "per_class" in text


@pytest.mark.slow
def test_two_processes_train_and_evaluate(tmp_path, fork_server: ForkServer):
    """Two processes evaluate together: the same rows and best checkpoint as one process has."""
    folders = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        options = ["--images", "128", "--best-by", "fd_digits", "--run-dir", str(folder)]
        fork_server.launch(count, train.main, [*DEBUG, *options])
        folders.append(folder)
    one, two = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in folders
    )
    assert len(one) == len(two) == 2
    for mine, others in zip(one, two, strict=True):
        assert mine["metrics"] == pytest.approx(others["metrics"], rel=1e-2, abs=1e-2)
        assert mine["protocol"] == others["protocol"]
    assert len(Checkpoints(folders[1] / BEST).paths()) == 1


class OfTwoClasses(torch.nn.Module):
    """Dark noise for class 0, light noise for class 1."""

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (z.repeat(1, 28)[:, :784].view(-1, 1, 28, 28) * 0.2 + labels.view(-1, 1, 1, 1) - 0.5).clamp(-1, 1)


def test_distances_of_classes():
    """Each class is measured against its own images only: one whose images G makes is nearer than one it doesn't."""
    config = presets.get("debug")
    config = replace(config, networks=replace(config.networks, num_classes=2))
    seeds = torch.arange(500, 800)
    dark = to_bytes(OfTwoClasses()(latents(seeds, config.networks.z_dim), torch.zeros(300)))
    light = named.load("toy").images[:300]
    source = ArrayDataset("two classes", torch.cat([dark, light]), torch.arange(2).repeat_interleave(300))
    evaluator = Evaluator(config, source, extractors.load("digits", DEVICE), DEVICE)
    found = evaluator.per_class(OfTwoClasses(), 400)
    assert list(found) == ["fd_digits_class_0", "fd_digits_class_1"]
    assert found["fd_digits_class_0"] < 0.05 * found["fd_digits_class_1"]
    assert "class 0 has 300 real and 1 generated images" in refusal(lambda: evaluator.per_class(OfTwoClasses(), 3))


@pytest.mark.slow
def test_two_processes_evaluate_a_run(told, fork_server: ForkServer):
    """`fastgan evaluate` on two processes has one process's figures, and one row is kept."""
    said = fork_server.launch(2, cli.main, ["evaluate", str(told), "--images", "120"])
    rows = read_rows(told / "evaluation.jsonl")
    same = [row for row in rows if all(row[name] == rows[-1][name] for name in ("images_seen", "which", "protocol"))]
    assert len(same) == 1 and [text.count("fd_digits") for text in said] == [1, 0]
    assert rows[-1]["metrics"] == pytest.approx(read_rows(told / "metrics.jsonl")[-1]["metrics"], rel=1e-6)
