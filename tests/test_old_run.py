"""A run that an earlier version began: its folder is in data/, as commit d4c79c0 left it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastgan import cli
from fastgan.commands.doctor import EXIT_FAULT
from fastgan.presets import parse_config
from fastgan.runs.run_folder import RunFolder

OLD = Path(__file__).with_name("data") / "run-of-0.1"
AT_THE_END = OLD.with_name(f"{OLD.name}-G_ema-after-256-images.safetensors")


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_it_resumes_as_its_own_version_went_on(old_run: Path, no_gpu: None) -> None:
    """By the command line that began it; the weights are those that its own version ended with, on a CPU."""
    command = json.loads((old_run / "sessions.jsonl").read_text())["command"]
    args = command.removeprefix("fastgan ").replace("runs/old", str(old_run)).split()
    assert cli.main(args) == 0
    ours, theirs = load_file(old_run / "checkpoints" / f"{256:012d}" / "G_ema.safetensors"), load_file(AT_THE_END)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6, msg=name)
    assert [row["images_seen"] for row in map(json.loads, (old_run / "log.jsonl").read_text().splitlines())][-1] == 256
    assert len((old_run / "sessions.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("which", [[], ["--best"], ["--length", "0.1"]])
def test_it_is_sampled(old_run: Path, tmp_path: Path, which: list[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["sample", str(old_run), "--seeds", "0-3", "--out", str(out), *which]) == 0
    assert len(list(out.glob("*.png"))) == 4


def test_it_is_reported_and_examined(old_run: Path) -> None:
    assert cli.main(["report", str(old_run)]) == 0
    assert "fd_digits" in (old_run / "report.html").read_text()
    assert cli.main(["doctor", str(old_run)]) in (0, EXIT_FAULT)


def test_its_config_is_the_same_again(old_run: Path) -> None:
    """What is read from an old config.json is written as a config that the same reader takes."""
    folder = RunFolder(old_run)
    config = folder.read_config()
    folder.check(config)
    assert config.objective.reuse_fakes
    assert config.run.loader == "in_memory"


def test_its_command_still_works() -> None:
    """Flags and loaders by the names that they had then mean what they meant."""
    old = ["--preset", "debug", "--share-fakes", "--resident-gib=2", "--loader", "resident"]
    new = ["--preset", "debug", "--reuse-fakes", "--in-memory-gib=2", "--loader", "in_memory"]
    assert parse_config(old) == parse_config(new)
    assert parse_config(["--loader=resident"]) == parse_config(["--loader=in_memory"])
    assert not parse_config(["--preset", "mnist28", "--no-share-fakes"]).objective.reuse_fakes
