"""What the benchmarks' scripts keep in step with one another."""

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_readme_shows_the_results():
    """README's table is what benchmarks/summary.py makes of the files in results/."""
    assert subprocess.run([sys.executable, BENCHMARKS / "summary.py", "--check"], check=False).returncode == 0


def test_every_script_is_in_the_list():
    """benchmarks/README.md has a row for every script that is run."""
    text = (BENCHMARKS / "README.md").read_text()
    library = {"harness.py", "steps.py", "gpu_acceptance.py"}
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
