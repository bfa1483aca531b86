"""--profile: a trace of some steps, and their largest costs."""

import gzip
import json

import pytest
from conftest import EAGER

from fastgan.commands import train
from fastgan.monitor import profiler

STEP = 32  # images


@pytest.mark.usefixtures("keep_signal_handlers")
def test_steps_are_recorded(tmp_path, capsys):
    """The trace holds the recorded steps with their operations; ten costs are shown, the largest first."""
    images = str(STEP * (profiler.SKIPPED + profiler.WARMED + profiler.RECORDED))
    args = ["--preset", "debug", "--images", images, "--run-dir", str(tmp_path), *EAGER]
    assert train.main([*args, "--profile"]) == 0
    (path,) = (tmp_path / "profile").iterdir()
    names = [event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == profiler.RECORDED
    assert any("convolution_backward" in name for name in names)
    costs = [line for line in capsys.readouterr().out.splitlines() if "calls a step" in line]
    shares = [float(line.split("%")[0]) for line in costs]
    assert len(costs) == profiler.SHOWN and shares == sorted(shares, reverse=True) and sum(shares) <= 100.5


@pytest.mark.usefixtures("keep_signal_handlers")
def test_short_run_says_that_nothing_was_recorded(tmp_path, capsys):
    """A run of fewer steps ends well, with a line and no trace."""
    assert train.main(["--preset", "debug", "--images", str(2 * STEP), "--run-dir", str(tmp_path), "--profile"]) == 0
    assert "nothing was recorded" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()
