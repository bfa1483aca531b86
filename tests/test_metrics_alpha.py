"""Metrics of images with alpha, and evaluations that fail: a run goes on, and its checkpoints are there."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image
from torch import Tensor, nn

from fastgan import cli
from fastgan.commands import train
from fastgan.config import Config, DataConfig
from fastgan.data.folder import FolderDataset
from fastgan.evaluation import extractors, features
from fastgan.evaluation.evaluator import Evaluator
from fastgan.evaluation.extractors import Extractor
from fastgan.evaluation.features import EvaluationFailed, all_or_none

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
CPU = torch.device("cpu")


class Means(nn.Module):
    """The means of three channels and four places of them: no more channels, no fewer."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.shape[1] == 3 and images.dtype == torch.uint8, images.shape
        values = images.float()
        features = torch.cat([values.mean((2, 3)), values[:, 0, ::9, ::9].flatten(1)[:, :4]], dim=1)
        return features, features[:, :0]


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> Extractor:
    """What takes the place of every extractor."""
    made = Extractor("efficientnet", "1", 7, Means(), 0, "none")
    monkeypatch.setattr(extractors, "load", lambda *_: made)
    return made


def write_set(folder: Path, count: int = 12) -> Path:
    """Noise in RGB and alpha."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (28, 28, 4), np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def command(data: Path, run: Path, *more: str) -> list[str]:
    shape = ("--preset", "debug", "--width", "0.03125", "--channels", "4", "--batch-size", "4", "--images", "24")
    evaluated = ("--eval-every", "8", "--eval-images", "12", "--checkpoint-every", "8", "--extractor", "efficientnet")
    return [*shape, *evaluated, "--data", str(data), "--run-dir", str(run), *more]


class Painter(nn.Module):
    """Gives the images [N, C, H, W] of a set, in [-1, 1], whatever the latents."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images / 127.5 - 1

    def forward(self, z: Tensor) -> Tensor:
        return self.images[: len(z)]


@pytest.mark.parametrize("background", ["white", "black", "#3060c0"])
def test_alpha_lies_on_the_background(tmp_path: Path, means: Extractor, background: str) -> None:
    """Real and generated images of four channels measure as those of three that lie on the background."""
    folder = write_set(tmp_path / "set")
    found = []
    for channels in (4, 3):
        dataset = FolderDataset(folder, (28, 28), channels, background=background)
        config = Config(data=DataConfig(data=str(folder), channels=channels))
        evaluator = Evaluator(config, dataset, means, CPU)
        fakes = dataset.pixels(torch.arange(12)).flip(3)
        found.append(evaluator(Painter(fakes), 12))
        assert ("alpha on #" in str(evaluator.protocol(12)["transform"])) == (channels == 4)
    assert found[0] == pytest.approx(found[1], rel=0.02)
    assert found[0]["fd_efficientnet"] > 1


def test_two_channels_are_grey_and_alpha(means: Extractor) -> None:
    """The last of two channels is alpha, too."""
    seen: list[Tensor] = []

    class Grey(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(images)
            return images.float().mean((2, 3)), images.float().mean((2, 3))

    extractor = extractors.with_alpha(means._replace(net=Grey()), 2, "#ffffff", CPU)
    extractor(torch.tensor([[100, 0], [100, 255]], dtype=torch.uint8)[:, :, None, None])
    assert torch.cat(seen).flatten().tolist() == [255, 100]


def test_runs_of_four_channels_are_measured(tmp_path: Path, means: Extractor) -> None:
    """In training, and by `evaluate`."""
    args = command(write_set(tmp_path / "set"), tmp_path / "run")
    assert train.main(args) == 0
    assert "metrics/fd_efficientnet" in (tmp_path / "run" / "log.jsonl").read_text()
    assert cli.main(["evaluate", str(tmp_path / "run"), "--images", "12", "--extractor", "efficientnet"]) == 0


def test_an_evaluation_that_fails_is_left_out(
    tmp_path: Path, means: Extractor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each time; the checkpoints are there, and the run ends as ever, also when it is resumed."""

    def fail(*_: Any) -> Any:
        raise RuntimeError("expected 3 channels,\nbut got 4")

    monkeypatch.setattr(Means, "forward", fail)
    args = command(write_set(tmp_path / "set"), tmp_path / "run")
    assert train.main(args) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation")]
    text = "RuntimeError: expected 3 channels, but got 4"
    assert lines == [f"evaluation failed at {seen} images, and is left out: {text}" for seen in (8, 16, 24)]
    assert len([*(tmp_path / "run" / "checkpoints").iterdir()]) == 3
    assert train.main([*args, "--images", "32"]) == 0
    assert "resuming" in capsys.readouterr().out


def test_what_cannot_be_measured_is_said_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first step, in one line; the run goes on without. `fastgan evaluate` refuses it in the same words."""
    more = ("--extractor", "digits", "--channels", "3")
    assert train.main(command(write_set(tmp_path / "set"), tmp_path / "run", *more)) == 0
    said = capsys.readouterr().out
    line = "extractor is digits, which sees gray images: these have 3 channels; give --extractor auto"
    assert said.index(f"training goes on without evaluation: {line}\n") < said.index("done")
    assert cli.main(["evaluate", str(tmp_path / "run"), "--extractor", "digits", "--images", "8"]) == 2
    assert capsys.readouterr().err == f"fastgan: error: {line}\n"


@pytest.mark.parametrize(("fails", "other"), [(False, 1), (True, 1), (False, 0)])
def test_all_processes_leave_an_evaluation_out_together(
    monkeypatch: pytest.MonkeyPatch, fails: bool, other: int
) -> None:
    """Whoever fails of two, all raise the same kind, after both have been asked; alone it is the error itself."""

    def work() -> None:
        with all_or_none():
            if fails:
                raise torch.OutOfMemoryError("2 GiB")

    with pytest.raises(torch.OutOfMemoryError) if fails else contextlib.nullcontext():
        work()
    monkeypatch.setattr(features, "all_reduce_min", lambda number: min(number, other))
    monkeypatch.setattr(features, "rank_and_world_size", lambda: (0, 2))
    text = "2 GiB" if fails else "another process failed"
    is_good = not fails and other
    with contextlib.nullcontext() if is_good else pytest.raises(EvaluationFailed, match=text):
        work()


def test_evaluate_refuses_what_it_cannot_see(tmp_path: Path) -> None:
    """In one line that names the extractor."""
    dataset = FolderDataset(write_set(tmp_path / "set"), (28, 28), 4)
    digits = extractors.load("digits", CPU)
    assert "which sees gray images" in refusal(lambda: Evaluator(Config(), dataset, digits, CPU))
