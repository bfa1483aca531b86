"""What the benchmarks' scripts keep in step with one another."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_readme_shows_the_results():
    """README's table is what benchmarks/summary.py makes of the files in results/."""
    assert subprocess.run([sys.executable, BENCHMARKS / "summary.py", "--check"], check=False).returncode == 0


def test_every_script_is_in_the_list():
    """benchmarks/README.md has a row for every script that is run."""
    text = (BENCHMARKS / "README.md").read_text()
    library = {"harness.py", "steps.py", "jobs.py", "plain_gan.py", "gpu_acceptance.py"}
    scripts = {path.name for path in BENCHMARKS.iterdir() if path.suffix in (".py", ".sh")} - library
    assert not {name for name in scripts if f"`{name}`" not in text}


def test_gpu_acceptance_runs_where_it_can():
    """Without a GPU it says so; with --anyway its parts run on the CPU, each in a process of its own."""
    command = [BENCHMARKS / "gpu_acceptance.sh"]
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "torch finds no GPU" in refused.stderr
    run = [*command, "--anyway", "--parts", "kernels"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("| right |") == 7 * 3 * 2 + 1 and "| WRONG |" not in done.stdout


@pytest.fixture
def bench_quality(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_quality

    return bench_quality


def racer(scores):
    """Of one seed, with its distances by the images after which it has them."""
    return SimpleNamespace(marks=sorted(scores), rows=[{"mark": mark, "fd_digits": fd} for mark, fd in scores.items()])


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (2.0, "fast has it after 10.0 s, 8 times as fast."),  # the median is 2.5 after 1,000 images
        (4.0, "fast has it after 20.0 s, 4 times as fast."),  # not before 2,000, as it is 3.5 after 1,000
    ],
)
def test_race_is_judged_by_medians_and_speeds(bench_quality, second, said):
    """Who is first past the reference's median at its end, in seconds of each recipe's own speed."""
    slow = [racer({1000: 9.0, 8000: score}) for score in (2.9, 3.0, 7.0)]
    fast = [racer({1000: score, 2000: 1.0}) for score in (3.0, second)]
    race = {"slow": slow, "fast": fast}
    verdict = bench_quality.verdicts(race, {"slow": 100.0, "fast": 100.0}, "fd_digits")
    assert verdict == ["slow has fd_digits 3.00 after 80 s (3 seeds).", said]
    faster = bench_quality.verdicts(race, {"slow": 100.0, "fast": 200.0}, "fd_digits")[1]
    assert float(faster.split()[4]) == float(said.split()[4]) / 2


def test_race_that_is_not_won(bench_quality):
    """A recipe that never has the score doesn't get a time."""
    race = {"slow": [racer({1000: 3.0})], "fast": [racer({1000: 3.5})]}
    assert bench_quality.verdicts(race, dict.fromkeys(race, 100.0), "fd_digits")[1] == "fast has it not yet."
