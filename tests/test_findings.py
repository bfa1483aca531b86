"""What shows of single files while they are read is told once a run, by whichever process or session finds it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_pixels import file_of
from test_tones import put, tiff

from fastgan import cli
from fastgan.commands import train
from fastgan.data import survey
from fastgan.data.findings import FILE, Findings
from fastgan.data.folder import FolderDataset
from fastgan.data.prepared import PreparedDataset

SIZE = 8
DEBUG = ["--preset", "debug", "--network", "dcgan", "--stages", "8", "--channels", "3", "--batch-size", "2"]
DEBUG += ["--image-size", str(SIZE), str(SIZE), "--eval-every", "0", "--health-every", "0"]
TRAIN = Path(__file__).parents[1] / "fastgan" / "train.py"


def plain(seed: int) -> bytes:
    return file_of(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)))


def deep(top: int) -> bytes:
    """Grey of 16 bits up to `top`."""
    return tiff((np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE) * top).astype("u2"))


def clear(ink: int) -> bytes:
    return file_of(Image.new("RGBA", (SIZE, SIZE), (ink, ink, ink, 0)))


def broken_set(folder: Path) -> Path:
    files = {f"{number}.png": plain(number) for number in range(8)}
    return put(folder, files | {"3.png": plain(3)[:60], "6.png": b""})


def test_findings_are_new_once(tmp_path: Path) -> None:
    """Of many threads with handles of their own one is the first; a torn row is passed over; nothing is lost without
    a folder, or one that can't be written.
    """
    firsts: list[bool] = []
    each = [Findings(tmp_path) for _ in range(6)]

    def add(findings: Findings) -> None:
        firsts.extend(findings.add(f"{number}.png", "broken") for number in range(20))

    threads = [threading.Thread(target=add, args=(findings,)) for findings in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(firsts) == 20 and len((tmp_path / FILE).read_text().splitlines()) == 20
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"kind": "bro')
    later = Findings(tmp_path)
    assert later.counts() == {"broken": 20} and not later.add("3.png", "broken") and later.add("a.png", "clipped")
    assert Findings(tmp_path).counts() == each[0].counts() == {"broken": 20, "clipped": 1}
    for findings in (Findings(None), Findings(tmp_path / "none")):
        assert findings.add("a.png", "broken") and not findings.add("a.png", "broken")
        assert findings.counts() == {"broken": 1}


@pytest.mark.slow
def test_ranks_and_loader_processes_tell_once(tmp_path: Path) -> None:
    """Two ranks that read the set by two processes each say one line a broken file."""
    folder = broken_set(tmp_path / "set")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [str(TRAIN), *DEBUG, "--data", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += ["--loader", "torch", "--workers", "2", "--images", "16", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("stands in for it") == 2, done.stdout


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first and the last image of a set are looked at."""
    monkeypatch.setattr(survey, "SAMPLE", 2)


MISSED = [
    "transparency: 2 of 6 images have it, none of those looked at first; laid on black (--background to change it)",
    "values: 3 of 6 images go beyond 0 to 1023, none of those looked at first; they are clipped (--range LOW:HIGH to change it)",  # noqa: E501
]


def odd_set(folder: Path, kind: int) -> Path:
    if kind == 0:
        return put(folder, {f"{n}.png": clear(200) if n in (2, 3) else plain(n) for n in range(6)})
    return put(folder, {f"{n}.tif": deep(4095 if n in (1, 2, 4) else 1000) for n in range(6)})


def missed_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if "looked at first" in line]


@pytest.mark.usefixtures("keep_signal_handlers", "small_sample")
def test_a_run_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken file is one line in the first session, and none when a later one reads it again; what the sample of the
    set missed is counted once all is read, and said again at a later session's start. The run's folder lists the files.
    """
    files = {f"{number}.png": clear(200) if number in (2, 5) else plain(number) for number in range(8)}
    source, run = put(tmp_path / "set", files | {"3.png": plain(3)[:60], "6.png": b""}), tmp_path / "run"
    args = [*DEBUG, "--data", str(source), "--run-dir", str(run), "--loader", "torch", "--workers", "0"]
    assert train.main([*args, "--images", "16"]) == 0
    said = capsys.readouterr().out
    line = MISSED[0].replace("6 images", "8 images")
    assert said.count("stands in for it") == 2 and missed_in(said) == [line]
    later = FolderDataset(source, (SIZE, SIZE), 3, run_dir=run)
    later.pixels(torch.arange(8))
    assert line in later.summary and not later.missed() and not capsys.readouterr().out
    rows = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    found = {("broken", "3.png"), ("broken", "6.png"), ("transparent", "2.png"), ("transparent", "5.png")}
    assert {(row["kind"], row["file"]) for row in rows} == found


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("kind", [0, 1])
def test_what_the_sample_missed_is_counted(tmp_path: Path, kind: int, capsys: pytest.CaptureFixture[str]) -> None:
    """`prepare` and a folder that is trained on say in the same line how many images are transparent, or out of the
    range that was found, where none of the sample is; nothing where that was asked for.
    """
    source = odd_set(tmp_path / "set", kind)
    prepare = ["data", "prepare", str(source)]
    options = ["--size", str(SIZE), "--workers", "1", "--channels", "3"]
    assert cli.main([*prepare, str(tmp_path / "made"), *options]) == 0
    assert missed_in(capsys.readouterr().out) == [MISSED[kind]]
    dataset = FolderDataset(source, (SIZE, SIZE), 3)
    pixels = dataset.pixels(torch.arange(6))
    assert (dataset.missed(), dataset.missed()) == ([MISSED[kind]], [])
    asked = ("--background", "black") if kind == 0 else ("--range", "0:1023")
    assert cli.main([*prepare, str(tmp_path / "asked"), *options, *asked]) == 0
    assert not missed_in(capsys.readouterr().out)
    for name in ("made", "asked"):
        assert torch.equal(PreparedDataset(tmp_path / name).pixels(torch.arange(6)), pixels)
