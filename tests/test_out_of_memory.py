"""What happens around the steps where memory runs out: in smaller parts, or left out, and training goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import refusal
from torch import Tensor, nn

from fastgan.commands import train
from fastgan.evaluation.evaluator import Evaluator
from fastgan.monitor.asides import Asides
from fastgan.monitor.health import Health
from fastgan.monitor.hooks import Hooks
from fastgan.runs.rows import read_rows
from fastgan.training.ema import Ema

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
TINY = ("--preset", "debug", "--width", "0.03125", "--images", "96", "--health-every", "32", "--grid-every", "32")
EVALUATED = ("--eval-every", "32", "--eval-images", "100", "--eval-curve-images", "50", "--extractor", "digits")


def short_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("2 GiB")


@pytest.mark.parametrize(
    ("what", "owner", "method"),
    [("grid", Hooks, "_draw"), ("health", Health, "__call__"), ("evaluation", Evaluator, "__call__")],
)
def test_training_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, what: str, owner: Any, method: str
) -> None:
    """Each time one line says so; the other events, and the checkpoint, are as ever."""
    monkeypatch.setattr(owner, method, short_of_memory)
    assert train.main([*TINY, *EVALUATED, "--run-dir", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "memory ran out" in line]
    places = {"grid": [0, 32, 64, 96], "health": [32, 64, 96], "evaluation": [32, 64, 96]}[what]
    assert lines == [f"memory ran out in {what} at {place} images, which is left out: 2 GiB" for place in places]
    rows = read_rows(tmp_path / "run" / "performance.jsonl") + read_rows(tmp_path / "run" / "log.jsonl")
    assert any("health/diversity" in row for row in rows) == (what != "health")
    assert any("metrics/fd_digits" in row for row in rows) == (what != "evaluation")
    assert len(list((tmp_path / "run" / "grids").glob("*.png"))) == (0 if what == "grid" else 4)
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_all_is_done_in_smaller_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Where three images fit through G's average at a time, nothing is left out, and figures are those of a large
    memory.
    """

    def rows(name: str) -> list[dict[str, Any]]:
        assert train.main([*TINY, *EVALUATED, "--run-dir", str(tmp_path / name)]) == 0
        files = (tmp_path / name / "performance.jsonl", tmp_path / name / "log.jsonl")
        found = [row for file in files for row in read_rows(file)]
        return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in found]

    wanted = rows("large")

    class Small(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor, *labels: Tensor) -> Tensor:
            if len(z) > 3:
                short_of_memory()
            images: Tensor = self.net(z, *labels)
            return images

    monkeypatch.setattr(Ema, "net", property(lambda ema: Small(ema.nets[0]).eval()))
    found = rows("small")
    assert "memory ran out" not in capsys.readouterr().out
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-3)
    assert len(list((tmp_path / "small" / "grids").glob("*.png"))) == 4


def test_evaluation_of_several_processes_is_not_left_out_on_one() -> None:
    """The others would wait for its part: the run ends with one line."""
    asides = Asides(SimpleNamespace(world_size=2), print)  # type: ignore[arg-type]

    def evaluate() -> None:
        with asides.optional("evaluation"):
            short_of_memory()

    assert refusal(evaluate).startswith("memory runs out in an evaluation, of which each process has a part (2 GiB)")
