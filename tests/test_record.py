"""Whether images are still those that a run was trained on; where they lie and what they are called is no matter."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan import cli
from fastgan.commands import sweep, train
from fastgan.errors import EXIT_DONE, EXIT_USER_ERROR
from fastgan.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
TINY = ("--preset", "debug", "--network", "dcgan", "--stages", "16", "--image-size", "8", "8", "--channels", "3")
OPTIONS = (*TINY, "--batch-size", "4", "--eval-every", "0", "--health-every", "0", "--grid-side", "2")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path.with_suffix(".bmp"))  # which all have one size


def pictures(folder: Path, first: int = 0) -> Path:
    """Two classes of four images each."""
    for number in range(8):
        picture(folder / ("cat", "dog")[number // 4] / f"{number}.bmp", first + number)
    return folder


def run(run_dir: Path, data: Path | str, images: int, *options: str) -> int:
    return train.main([*OPTIONS, "--data", str(data), "--run-dir", str(run_dir), "--images", str(images), *options])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, `pics`, and two runs of it that were begun there: `run`, and `told` its classes."""
    folder, here = tmp_path_factory.mktemp("trained"), Path.cwd()
    pictures(folder / "pics")
    os.chdir(folder)
    try:
        assert run(Path("run"), "pics", 8) == run(Path("told"), "pics", 8, "--num-classes", "2") == EXIT_DONE
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "place", copy_function=shutil.copy2))


def resume(place: Path, data: Path | str = "", *options: str, name: str = "run") -> int:
    """Four more images of a run."""
    seen = int(max(path.name for path in (place / name / "checkpoints").iterdir()))
    classes = str(RunFolder(place / name).read_config().networks.num_classes)
    return run(place / name, data or place / "pics", seen + 4, "--num-classes", classes, *options)


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def add(place: Path) -> None:
    picture(place / "pics" / "cat" / "9.bmp", 9)


def delete(place: Path) -> None:
    (place / "pics" / "dog" / "7.bmp").unlink()


def swap(place: Path) -> None:
    """Two images change their names: each would stand in the other's place of every epoch."""
    one, two = place / "pics" / "cat" / "0.bmp", place / "pics" / "cat" / "1.bmp"
    one.rename(place / "aside")
    two.rename(one)
    (place / "aside").rename(two)


def repair(place: Path) -> None:
    """Other pixels of the same size, and the times put back: rsync and tar do that."""
    for path in (place / "pics").rglob("*.bmp"):
        times = path.stat()
        picture(path, 100 + int(path.stem))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace_all(place: Path) -> None:
    shutil.rmtree(place / "pics")
    pictures(place / "pics", first=50)


@pytest.mark.parametrize("change", [add, delete, swap, repair, replace_all])
def test_changed_set(place: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever changed is refused in one line, and nothing of the run with it."""
    before = {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")}
    change(place)
    capsys.readouterr()
    assert resume(place) == EXIT_USER_ERROR
    said = complaint(capsys)
    assert f"{place / 'pics'} isn't what {place / 'run'} was trained on (" in said and "--data-changed ok" in said
    assert {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")} == before


def test_change_on_purpose(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--data-changed ok goes on with a changed set and says so; it is the run's from then on."""
    add(place)
    assert cli.main(["evaluate", str(place / "run"), "--images", "8", "--data", str(place / "pics")]) == EXIT_USER_ERROR
    assert "(8 images then, 9 now): give --data" in complaint(capsys)
    assert resume(place, "", "--data-changed", "ok") == EXIT_DONE
    assert "(8 images then, 9 now): going on with it" in capsys.readouterr().out
    assert resume(place) == EXIT_DONE
    delete(place)
    assert resume(place) == EXIT_USER_ERROR


def touch(place: Path) -> None:
    for path in place.rglob("*.bmp"):
        path.touch()


def copy(place: Path) -> None:
    shutil.copytree(place / "pics", place / "copy")
    shutil.rmtree(place / "pics")
    (place / "copy").rename(place / "pics")


def rename_run(place: Path) -> None:
    (place / "run").rename(place / "pics" / "an old one")  # among the images, too
    (place / "run").symlink_to(place / "pics" / "an old one")


@pytest.mark.parametrize("change", [touch, copy, rename_run])
def test_same_set(place: Path, change: Callable[[Path], None]) -> None:
    """Other times, inodes and names of run folders change nothing."""
    change(place)
    assert resume(place) == EXIT_DONE


def test_classes_are_never_exchanged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A renamed class is refused where a run is told classes, whatever is allowed, and is no matter where it isn't."""
    (place / "pics" / "dog").rename(place / "pics" / "wolf")
    assert resume(place, "", "--data-changed", "ok", name="told") == EXIT_USER_ERROR
    assert "(now without dog and with wolf)" in complaint(capsys)
    assert resume(place) == EXIT_DONE


def test_other_labels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image in another class, in the place that it had, is a change where a run is told classes."""
    (place / "pics" / "cat" / "3.bmp").rename(place / "pics" / "dog" / "3.bmp")
    assert resume(place, name="told") == EXIT_USER_ERROR
    assert "the same images, other labels" in complaint(capsys)
    assert resume(place) == EXIT_DONE
    assert resume(place, "", "--data-changed", "ok", name="told") == EXIT_DONE


def test_elsewhere(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A relative path means the run's own set, from wherever: where another set has that name there, it is refused."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert Path(RunFolder(place / "run").read_config().data.data).is_absolute()
    config = RunFolder(place / "run").config  # the copy's own, not that of what it was copied from
    config.write_text(config.read_text().replace(json.loads(config.read_text())["data"]["data"], str(place / "pics")))
    assert resume(place, "pics") == EXIT_DONE
    assert RunFolder(place / "run").read_config().data.data == str(place / "pics")
    pictures(tmp_path / "other" / "pics", first=20)
    monkeypatch.chdir(tmp_path / "other")
    assert resume(place, "pics") == EXIT_USER_ERROR
    assert f"{tmp_path / 'other' / 'pics'} isn't what" in complaint(capsys)
    for same in (f"{place}/pics/", f"{place}/run/../pics"):
        assert resume(place, same) == EXIT_DONE


def test_moved_set(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A set that moved, to another disk say, is the run's where it is named: to train on, and to evaluate with."""
    config = RunFolder(place / "run").config
    config.write_text(config.read_text().replace(json.loads(config.read_text())["data"]["data"], str(place / "pics")))
    (place / "pics").rename(place / "moved")
    monkeypatch.chdir(place)
    assert cli.main(["evaluate", "run", "--images", "8"]) == EXIT_USER_ERROR
    assert "give --data" in complaint(capsys)
    assert resume(place, "moved") == EXIT_DONE
    assert RunFolder(place / "run").read_config().data.data == str(place / "moved")


def test_run_among_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`--data .` never trains on what fastgan made there, a prepared set's contact sheet neither; all tell of it."""
    monkeypatch.chdir(pictures(tmp_path / "photos"))
    assert cli.main(["data", "prepare", ".", "small", "--size", "8"]) == EXIT_DONE
    for images in (8, 16):
        assert run(Path("run"), ".", images, "--num-classes", "2") == EXIT_DONE
        said = capsys.readouterr().out
        assert "data: 8 images of photos" in said
        for more in ((), ("--grid",)):
            assert cli.main(["sample", "run", "--seeds", "0-1", "--out", "cat", *more]) == EXIT_DONE
    assert "1 folder of a run (run)" in said and "1 folder of a prepared set (small)" in said
    assert "left out: 3 made by fastgan sample (cat/grid.png, cat/seed-000000.png, cat/seed-000001.png)" in said
    assert cli.main(["data", "prepare", ".", str(tmp_path / "all"), "--size", "8"]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "8 images" in said and "folder of a run" in said and "3 made by fastgan sample" in said
    assert run(Path(), ".", 8) == EXIT_USER_ERROR
    assert "run_dir is ., where the images are" in complaint(capsys)
    assert run(tmp_path / "new", tmp_path / "photos" / "run", 8) == EXIT_USER_ERROR
    assert "holds no images" in (said := complaint(capsys)) and "folder of a run" in said


def test_sweep_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that was begun in another folder goes on with its own images."""
    pictures(tmp_path / "pics")
    monkeypatch.chdir(tmp_path)
    args = [*OPTIONS, "--penalty", "r1", "--data", "pics", "--run-dir", str(tmp_path / "sweep"), "--images", "8"]
    first = sweep.runs_of(args)[0]
    assert train.main(list(first.args)) == EXIT_DONE
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for again in sweep.runs_of(args):
        assert again.config.data.data == str(tmp_path / "pics") and str(tmp_path / "pics") in again.args
    assert sweep.sweep([again], lambda args: train.main(list(args)), lambda: False) == [EXIT_DONE]


def test_earlier_version(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without data.json, its path as it was typed, resumes; that nothing was compared is said."""
    folder = RunFolder(place / "run")
    folder.data.unlink()
    plain = json.loads(folder.config.read_text())
    plain["data"]["data"] = "pics"
    del plain["run"]["data_changed"]
    folder.config.write_text(json.dumps(plain))
    monkeypatch.chdir(place)
    assert resume(place, "pics") == EXIT_DONE
    assert "has no hash of the images" in capsys.readouterr().out
    assert folder.data.exists()
    delete(place)
    assert resume(place, "pics") == EXIT_USER_ERROR


@pytest.mark.parametrize("content", ["", "[]", '{"num_images": 8}'])
def test_damaged_record(place: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A data.json that says nothing is one line, not a guess."""
    (place / "run" / "data.json").write_text(content)
    assert resume(place) == EXIT_USER_ERROR
    assert "data.json can't be read" in complaint(capsys)


def test_figures_that_cannot_be_kept(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where evaluation.jsonl can't be written, as in a run folder to read only, the figures are shown all the same."""
    folder = Path(shutil.copytree(debug_run, tmp_path / "run"))
    (folder / "evaluation.jsonl").unlink(missing_ok=True)
    (folder / "evaluation.jsonl").mkdir()
    assert cli.main(["evaluate", str(folder), "--images", "64"]) == EXIT_USER_ERROR
    said = capsys.readouterr()
    assert "fd_digits" in said.out and "these figures aren't kept" in said.err
