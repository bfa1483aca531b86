"""`fastgan new SRC`: what it says of images, and that its commands do what it says."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan import cli
from fastgan.commands import new
from fastgan.commands.new import FIRST_SAMPLES, Timed
from fastgan.planning.preset_choice import with_preset
from fastgan.presets import get, parse_config

PRESET = "preset: mnist28-fast --augment ada --augment-target 0.6 --num-classes 2, made for small gray images"
pytestmark = pytest.mark.usefixtures("keep_signal_handlers", "here", "no_gpu")

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.fixture
def digits(here: Path) -> Path:
    """A folder of two classes of small gray images, with what is no image and what is a broken one."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 28, 28), dtype=np.uint8)
    for number in range(70):
        path = here / "my digits" / ("ones" if number % 2 else "twos") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    (here / "my digits" / "ones" / "notes.txt").write_text("about them")
    (here / "my digits" / "twos" / "linked.png").symlink_to("nowhere")
    return here / "my digits"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training makes 100 images a second and takes a GiB."""
    monkeypatch.setattr(new, "time_steps", lambda config, seconds: Timed(100.0, 1.0))


def said(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[list[str], list[list[str]]]:
    """The lines of what the command says, and the words of the commands at its end."""
    assert cli.main(["new", *args]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert len(lines) <= 15 and max(map(len, lines)) <= 200
    return lines, [shlex.split(line) for line in lines if line.startswith("  ")]


def test_folder(digits: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder's images are counted, with their classes and what is left out, and the one command trains on it by the
    preset that is named; nothing is written.
    """
    before = {*digits.parent.rglob("*")}
    lines, commands = said(capsys, "my digits")
    assert lines[0] == "my digits: 70 gray images of 28x28, no GPU"
    assert lines[1:4] == [
        "classes: 2 (ones 35, twos 35)",
        "left out: 1 of no known image format (ones/notes.txt)",
        "skipped files: 1: 1 link that leads nowhere or in a circle (twos/linked.png)",
    ]
    assert lines[4] == PRESET
    assert commands == [["fastgan", "train", "--data", "my digits"]]
    config = parse_config(with_preset(commands[0][2:]))
    assert (config.preset, config.networks.num_classes) == ("mnist28-fast", 2)
    assert {*digits.parent.rglob("*")} == before


def test_what_to_expect(digits: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Times follow from the speed that was measured, those of the first samples say that they are an estimate."""
    text = "\n".join(said(capsys, "my digits")[0])
    assert re.search(r"^machine: \d+ cores, no GPU, [\d.]+ GiB of memory free$", text, re.MULTILINE)
    assert "speed: 100 images/s, timed just now" in text and "memory: 1.0 GiB" in text
    assert "first recognisable samples: after 2 minutes: an estimate, as MNIST took 15,000 images" in text
    assert "whole run: 1,400 images, 14 seconds" in text


def test_archive(digits: Path, quick: None, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive is prepared first: both commands work one after the other, by the preset that was named."""
    shutil.make_archive("my digits", "zip", digits)
    shutil.rmtree(digits)
    lines, commands = said(capsys, "my digits.zip")
    assert PRESET in lines
    prepare, train = commands
    assert cli.main([*prepare[1:], "--workers", "1"]) == 0
    config = parse_config(with_preset(train[2:]))
    assert (config.preset, config.networks.num_classes, config.data.data) == ("mnist28-fast", 2, "my-digits-28")
    capsys.readouterr()
    lines, commands = said(capsys, "my-digits-28")
    assert lines[0] == "my-digits-28: 70 gray images of 28x28, no GPU, ready to train on"
    assert lines[1] == "classes: 2 (ones 35, twos 35)"
    assert commands == [["fastgan", "train", "--data", "my-digits-28"]]


def test_preparing_pays(
    digits: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder whose decoding takes long at each start is prepared first, and why is said."""
    monkeypatch.setattr(new, "PREPARING_PAYS_S", 0.0)
    lines, (prepare, train) = said(capsys, "my digits")
    assert any(line.startswith("prepare first: ") for line in lines)
    assert shlex.join(prepare) == "fastgan data prepare 'my digits' my-digits-28 --size 28 --channels 1"
    assert train == ["fastgan", "train", "--data", "my-digits-28"]


def test_several_gpus(quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On several GPUs the command is Accelerate's, with a process each."""
    monkeypatch.setattr(new, "_num_gpus", lambda: 4)
    monkeypatch.setattr(new, "_machine", lambda: "machine: 4")
    _, (command,) = said(capsys, "toy")
    assert shlex.join(command) == "accelerate launch --multi_gpu --num_processes 4 -m fastgan.train --data toy"


def test_steps_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """The preset is really trained for the seconds that are given."""
    lines, _ = said(capsys, "toy", "--seconds", "0.01")
    (speed,) = (line for line in lines if line.startswith("speed: "))
    assert float(speed.split()[1].replace(",", "")) > 0
    assert new.time_steps(get("debug"), 0.01).peak_gib > 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "there is no 'nowhere'"),
        (["empty"], "empty: no images"),
        (["broken"], "broken: none of its 1 images can be read"),
        (["toy", "--seconds", "0"], "seconds is 0.0"),
        ([], "SRC"),
    ],
)
def test_mistakes(args: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is one line that names it, with the exit code of a user's mistake."""
    for name in ("empty", "broken"):
        (here / name).mkdir()
    (here / "broken" / "a.png").write_bytes(b"no picture")
    assert cli.main(["new", *args]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and words in shown.err


def test_estimates_are_measured() -> None:
    """For each preset with an estimate the results have a row of that preset after so many images."""
    rows = "".join(path.read_text() for path in RESULTS.glob("*.md"))
    for preset, (images, _) in FIRST_SAMPLES.items():
        assert f"| {preset} | {images:,} |" in rows
