"""What the benchmarks' scripts keep in step with one another."""

import itertools
import os
import signal
import subprocess
import sys
import time
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


@pytest.mark.slow
def test_gpu_acceptance_runs_where_it_can():
    """Without a GPU it says so; with --anyway its parts run on the CPU, each in a process of its own."""
    command = [BENCHMARKS / "gpu_acceptance.sh"]
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "torch finds no GPU" in refused.stderr
    run = [*command, "--anyway", "--parts", "kernels"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("| right |") == 5 * 3 * 2 + 1 and "| WRONG |" not in done.stdout


PARTS = """
import os, sys, time
import jobs
from jobs import Part, Stage, check

def good(name="good"):
    yield check(name, True, "")

def crashes():
    yield check("before the crash", True, "")
    os._exit(7)

def hangs(turn=False):
    if turn:
        jobs.turn()
    yield check("before the hang", True, "")
    time.sleep(600)

def waits(name):
    jobs.turn()
    began = time.time()
    time.sleep(0.3)
    yield jobs.Row("turns", {"name": name, "began": began, "ended": time.time()})

parts = {
    "good": Part(good, Stage.EARLY, 60), "crashes": Part(crashes, Stage.EARLY, 60),
    "hangs": Part(hangs, Stage.EARLY, 2), "hangs in its turn": Part(lambda: hangs(True), Stage.TURN, 2),
    "first": Part(lambda: waits("first"), Stage.TURN, 60), "second": Part(lambda: waits("second"), Stage.TURN, 60),
    "third": Part(lambda: waits("third"), Stage.TURN, 60, wave=2),
    "late": Part(good, Stage.LATE, 60),
}
if __name__ == "__main__":
    jobs.play(parts[sys.argv[1]])
"""


@pytest.fixture
def play_parts(monkeypatch, tmp_path):
    """Run the named parts of PARTS within so many seconds; return their rows, (part, row), in the order they came."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "acceptance_parts", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    script = tmp_path / "acceptance_parts.py"
    script.write_text(PARTS)
    import jobs
    from acceptance_parts import parts

    def play(names, seconds, most=4):
        rows = []
        command = [sys.executable, str(script)]
        found = [jobs.Job(name, parts[name], [*command, name], tmp_path) for name in names]
        runner = jobs.Runner(found, time.monotonic() + seconds, most, 8.0, lambda part, row: rows.append((part, row)))
        runner.run()
        for job in found:
            assert job.process is None or job.process.poll() is not None, f"{job.name} is left"
        return rows

    return play


def cells(rows, part):
    return [(row["cells"]["what"], row["right"]) for name, row in rows if name == part]


def test_a_part_that_fails_spoils_no_other(play_parts):
    """A crash, and a part beyond its limit, leave the rows before them; the next ones run."""
    rows = play_parts(["crashes", "hangs", "good", "late"], 60)
    assert cells(rows, "crashes") == [("before the crash", True), ("the whole part", False)]
    assert cells(rows, "hangs") == [("before the hang", True), ("the whole part", False)]
    assert cells(rows, "good") == cells(rows, "late") == [("good", True)]


@pytest.mark.slow
def test_turns_are_taken_one_after_the_other(play_parts):
    """Parts get ready together but are timed alone, in the order given, wave by wave; one that never ends is ended."""
    rows = play_parts(["third", "hangs in its turn", "second", "first"], 60)
    assert cells(rows, "hangs in its turn")[0] == ("before the hang", True)
    turns = [row["cells"] for _, row in rows if row["table"] == "turns"]
    assert [turn["name"] for turn in turns] == ["second", "first", "third"]
    assert all(one["ended"] <= other["began"] for one, other in itertools.pairwise(turns))


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 4])
def test_the_time_is_kept(play_parts, most):
    """The end comes on time, and what didn't fit is said; what was found before is kept."""
    began = time.monotonic()
    rows = play_parts(["good", "hangs in its turn", "first", "late"], 6, most)
    assert time.monotonic() - began < 9
    assert cells(rows, "good") == [("good", True)]
    assert ("before the hang", True) in cells(rows, "hangs in its turn")
    assert {part for part, _ in rows} == {"good", "hangs in its turn", "first", "late"}
    assert not [row for _, row in rows if row["right"] is False]


@pytest.mark.slow
def test_a_stop_leaves_rows_and_no_process(tmp_path):
    """SIGTERM during the acceptance ends all its processes; the rows so far lie in the folder asked for."""
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "FASTGAN_PACK": str(tmp_path)}
    command = [BENCHMARKS / "gpu_acceptance.sh", "--anyway", "--parts", "kernels", "memory", "--copy-to", tmp_path]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = tmp_path / "rows.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.read_text().count("\n") > 3):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143
    (results,) = tmp_path.glob("gpu-acceptance-*.md")
    assert results.read_text().count("| right |") >= 4


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
