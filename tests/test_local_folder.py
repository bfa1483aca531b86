"""Folders and archives as people have them: what is trained on, of which class, and that all else is told."""

import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image

from fastgan import cli
from fastgan.commands import train
from fastgan.data.class_folders import by_folder, find_splits
from fastgan.data.folder import FolderDataset
from fastgan.data.labels import LabelOptions, label_entries
from fastgan.data.local_folder import list_folder
from fastgan.data.preparation.prepare import PrepareOptions, prepare
from fastgan.data.summary import name_classes
from fastgan.errors import UserError
from fastgan.evaluation.sampling import parse_classes
from fastgan.presets import parse_config

DEBUG = ["--preset", "debug", "--network", "dcgan", "--stages", "8", "8", "--channels", "3", "--batch-size", "2"]
DEBUG += ["--eval-every", "0"]
Tree = dict[str, bytes | str]  # a file's bytes, or where a link leads


def picture(seed: int = 0, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)).save(out, kind)
    return out.getvalue()


PNG = picture()


def plant(root: Path, tree: Tree) -> Path:
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.symlink_to(content)
    return root


def pictures(*names: str) -> Tree:
    return {name: picture(number) for number, name in enumerate(names)}


def told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[FolderDataset, list[str]]:
    """The set as `train` sees it, and its summary, which `prepare` tells as well, of the same images and classes."""
    dataset = FolderDataset(folder, (8, 8), 3)
    capsys.readouterr()
    shutil.rmtree(tmp_path / "prepared", ignore_errors=True)
    index = prepare(PrepareOptions(str(folder), tmp_path / "prepared", "8", workers=1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 5 and len(dataset.summary) <= 4
    dataset.pixels(torch.arange(len(dataset)))
    broken = capsys.readouterr().out.count("stands in for it")
    assert (index["num_images"], index["labels"]) == (len(dataset) - broken, dataset.classes)
    same = [line.split(", not used")[0] for line in dataset.summary if not line.startswith("skipped files")]
    assert same == [line for line in lines if line.startswith(("classes: ", "left out: "))]
    return dataset, dataset.summary


CASES: dict[str, tuple[Tree, list[str], list[str]]] = {  # files; a class an image; what the summary says
    "splits above classes": (
        pictures("train/cat/0.png", "train/dog/0.png", "valid/cat/0.png", "valid/dog/1.png"),
        ["cat", "dog"],
        ["classes: 2 (cat 1, dog 1)", "2 in valid, not in train (valid/cat/0.png, valid/dog/1.png)"],
    ),
    "three splits, other case": (
        pictures(*(f"{split}/{kind}/0.png" for split in ("Train", "Val", "Test") for kind in ("cat", "dog"))),
        ["cat", "dog"],
        ["2 in Test, not in Train", "2 in Val, not in Train"],
    ),
    "flat split beside classes": (
        pictures("train/cat/0.png", "train/dog/0.png", "test/0.png"),
        ["cat", "dog"],
        ["1 in test, not in train (test/0.png)"],
    ),
    "flat splits": (pictures("train/0.png", "test/1.png", "cover.png"), [], ["1 in test", "1 in the folder around it"]),
    "splits in a wrapper": (
        pictures("set/train/cat/0.png", "set/train/dog/0.png", "set/test/cat/0.png", "readme.png"),
        ["cat", "dog"],
        ["1 in set/test, not in train", "1 in no class folder (readme.png)"],
    ),
    "classes above splits": (
        pictures("cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/test/0.png"),
        ["cat", "dog"],
        ["1 in cat/test, not in train", "1 in dog/test, not in train"],
    ),
    "decorated splits": (
        pictures("seg_train/seg_train/sea/0.png", "seg_train/seg_train/ice/0.png", "seg_test/seg_test/sea/0.png"),
        ["ice", "sea"],
        ["1 in seg_test, not in seg_train"],
    ),
    "splits of a year": (pictures("train2017/0.png", "val2017/0.png"), [], ["1 in val2017, not in train2017"]),
    "a held-out part among the classes": (
        pictures("cat/0.png", "dog/0.png", "test/cat/0.png", "test/dog/1.png"),
        ["cat", "dog"],
        ["2 in test, not in cat, dog"],
    ),
    "trains": (pictures("car/0.png", "train/0.png", "boat/0.png"), ["boat", "car", "train"], []),
    "wrapper beside another folder": (
        pictures("data/cat/0.png", "data/cat/1.png", "data/dog/0.png", "docs/logo.png"),
        ["cat", "cat", "dog"],
        ["classes: 2 (cat 2, dog 1)", "1 in no class folder (docs/logo.png)"],
    ),
    "stray": (
        pictures("cat/0.png", "dog/0.png", "cover.png"),
        ["cat", "dog"],
        ["skipped files: 1: 1 in no class folder (cover.png)"],
    ),
    "many strays": (
        pictures("cat/0.png", "dog/0.png", "0.png", "1.png"),
        [],
        ["classes: none (2 images lie in no class folder, e.g. 0.png)"],
    ),
    "two levels": (
        pictures("pets/cat/0.png", "pets/dog/0.png", "farm/cow/0.png"),
        ["farm/cow", "pets/cat", "pets/dog"],
        ["classes: 3 (farm/cow 1, pets/cat 1, pets/dog 1)"],
    ),
    "uneven levels": (pictures("cat/0.png", "dog/a/0.png", "dog/b/1.png"), ["cat", "dog", "dog"], []),
    "classes that are numbers": (pictures("1/0.png", "2/0.png", "10/0.png"), ["1", "10", "2"], []),
    "hidden and tools": (
        pictures("cat/0.png", "dog/0.png", "@eaDir/0.png/THUMB_S.png", "__MACOSX/cat/0.png", "lost+found/0.png")
        | pictures(".ipynb_checkpoints/0.png", "$RECYCLE.BIN/0.png", "#recycle/0.png", ".git/0.png", "cat/._0.png")
        | {"Thumbs.db": b"x", "cat/desktop.ini": b"x", "dog/.DS_Store": b"x"},
        ["cat", "dog"],
        ["left out: 11 hidden or of a tool (#recycle, $RECYCLE.BIN, .git, ...)"],
    ),
    "captions": (
        pictures("0.png", "1.png") | {"0.txt": b"a cat", "1.txt": b"P5 is a port", "index.html": b"BM"},
        [],
        ["left out: 3 of no known image format (0.txt, 1.txt, index.html)"],
    ),
    "no endings": (
        {"3f9a": PNG, "photo": picture(1, "JPEG"), "x.jpg_large": picture(2, "JPEG"), "y.jpg?w=100": picture(3, "WEBP")}
        | {"z.JPG ": picture(4, "GIF"), "b": picture(5, "BMP"), "t": picture(6, "TIFF"), "p": picture(7, "PPM")}
        | {"i.ico": b"\0\0\1\0", "a.npy": b"\x93NUMPY", "u.jpg.part": picture(8, "JPEG")[:200]},
        [],
        ["left out: 2 of no known image format (a.npy, i.ico)"],
    ),
    "pointers instead of files": (  # as git leaves them without its extension for large files
        pictures("cat/0.png", "dog/0.png") | {"dog/1.png": b"version https://git-lfs.github.com/spec/v1\n"},
        ["cat", "dog", "dog"],
        ["classes: 2 (cat 1, dog 2)"],
    ),
    "own folders": (
        pictures("0.png", "1.png", "run/grids/0.png", "made/contact-sheet.png")
        | {"run/config.json": b"{}", "made/index.json": b"{}", "made/members.safetensors": b""},
        [],
        ["1 folder of a prepared set (made)", "1 folder of a run (run)"],
    ),
    "a folder of a download cache": (
        pictures("blobs/3f", "blobs/77")
        | {"snapshots/main/cat/0.png": "../../../blobs/3f", "snapshots/main/dog/1.png": "../../../blobs/77"},
        ["cat", "dog"],
        ["left out: 2 there under a link's name (blobs/3f, blobs/77)"],
    ),
    "links in the folder": (
        pictures("cat/0.png", "dog/0.png") | {"dog/1.png": "../cat/0.png", "cat/all": "../dog", "up": ".."},
        ["cat", "dog", "dog"],
        ["1 link to a folder that is there already (cat/all)", "1 link to a folder that holds it (up)"],
    ),
    "broken links": (
        pictures("0.png", "1.png") | {"a.png": "gone.png", "b": "b", "c.png": "d.png", "d.png": "c.png"},
        [],
        ["skipped files: 4: 4 link that leads nowhere or in a circle (a.png, b, c.png, ...)"],
    ),
}


def test_half_of_the_images_is_not_few() -> None:
    """One image beside the class folders is a stray one among three, but none among two."""
    assert by_folder(["0.png", "cat/1.png", "dog/2.png"]).labels == [None, "cat", "dog"]
    assert by_folder(["0.png", "cat/1.png"]).reason == "1 images lie in no class folder, e.g. 0.png"


@pytest.mark.parametrize("case", CASES)
def test_cases(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of folder gives its images, their classes, and lines that say the rest, for `train` and `prepare`."""
    tree, classes, lines = CASES[case]
    dataset, summary = told(plant(tmp_path / "set", tree), tmp_path, capsys)
    if classes:
        assert dataset.labels is not None and dataset.classes is not None
        assert [dataset.classes[number] for number in dataset.labels.tolist()] == classes
    else:
        assert dataset.labels is None
    assert all(line in "\n".join(summary) for line in lines), summary
    assert lines or all(line.startswith("classes: ") for line in summary), summary


def test_archives_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A zip, a tar and a compressed tar give the set and the lines that the folder gives."""
    for case in ("splits above classes", "stray", "hidden and tools", "no endings", "classes above splits"):
        tree = {name: data for name, data in CASES[case][0].items() if isinstance(data, bytes)}
        folder = plant(tmp_path / case / "set", tree)
        wanted = prepare(PrepareOptions(str(folder), tmp_path / case / "0", "8", workers=1))
        with zipfile.ZipFile(tmp_path / case / "set.zip", "w") as archive:
            for name, data in tree.items():
                archive.writestr(name, data)
        for ending, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
            with tarfile.open(tmp_path / case / f"set{ending}", mode) as archive:
                archive.add(folder, "")
        for ending in (".zip", ".tar", ".tar.gz"):
            made = prepare(PrepareOptions(str(folder) + ending, tmp_path / case / f"p{ending}", "8", workers=1))
            for key in ("num_images", "labels", "label_counts", "content_hash", "skipped", "left_out"):
                assert made[key] == wanted[key], (case, ending)
    capsys.readouterr()


def test_shards_of_splits(tmp_path: Path) -> None:
    """Of a folder of shards those of the training part are taken, and the others named."""
    for name in ("set-train-000", "set-train-001", "set-val-000"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            archive.addfile(info := tarfile.TarInfo("0.png"), io.BytesIO(b""))
            assert info.size == 0
            info = tarfile.TarInfo("1.png")
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))
    index = prepare(PrepareOptions(str(tmp_path), tmp_path / "out", "8", workers=1))
    assert index["num_images"] == 2
    assert {one["file"] for one in index["left_out"]} == {"set-val-000.tar/0.png", "set-val-000.tar/1.png"}


@pytest.mark.parametrize("name", ["data/{}-00000-of-00001.parquet", "default/{}/0000.parquet"])
def test_tables_of_splits(tmp_path: Path, name: str) -> None:
    """Of parquet files as the hub lays them out those of the training part are taken, and the others named."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for number, split in enumerate(("train", "test", "validation")):
        path = tmp_path / "set" / name.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({"image": [{"bytes": picture(number), "path": None}]}), path)
    index = prepare(PrepareOptions(str(tmp_path / "set"), tmp_path / "out", "8", workers=1))
    assert index["num_images"] == 1
    assert {one["file"] for one in index["left_out"]} == {name.format("test"), name.format("validation")}


def test_links_out_of_the_folder_are_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links to files and to folders outside are the set's; a folder that two links lead to is entered once."""
    plant(tmp_path / "store", pictures("0.png", "deep/1.png") | {"deep/up": "../..", "deep/again": ".."})
    tree: Tree = {"cat/0.png": "../../store/0.png", "bird": "../store", "bird2": str(tmp_path / "store")}
    dataset, summary = told(plant(tmp_path / "set", tree | pictures("dog/a.png")), tmp_path, capsys)
    assert len(dataset) == 4 and dataset.classes == ["bird", "cat", "dog"]
    assert "1 link to a folder that is there already (bird2)" in summary[-1]
    assert "2 link to a folder that holds it (bird/deep/again, bird/deep/up)" in summary[-1]


def test_the_number_of_classes_chooses_the_level(tmp_path: Path) -> None:
    """Of folders in folders those are classes that are as many as the networks are told, else the lowest."""
    names = ["a/x/0.png", "a/y/0.png", "b/x/0.png"]
    assert by_folder(names).labels == by_folder(names, 7).labels == ["a/x", "a/y", "b/x"]
    assert by_folder(names, 2).labels == ["a", "a", "b"]
    plant(tmp_path, pictures(*names))
    assert FolderDataset(tmp_path, (8, 8), 3, LabelOptions(num_classes=2)).classes == ["a", "b"]


def test_splits_without_a_training_part(tmp_path: Path) -> None:
    """A folder of nothing but held-out splits is refused; two of one kind aren't splits."""
    plant(tmp_path, pictures("val/a/0.png", "test/a/0.png"))
    assert "test, val" in refusal(lambda: FolderDataset(tmp_path, (8, 8), 3))
    assert FolderDataset(tmp_path / "val", (8, 8), 3).labels is None
    assert find_splits(["train_station/0.png", "test_tube/0.png", "sea/0.png"]).held_out == {}


# Broken files


def test_a_stand_in_is_of_the_same_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The image in a broken one's place is of its class, also at the class's end, and the file is told once."""
    tree = pictures("cat/0.png", "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png") | {"cat/2.png": PNG[:60]}
    dataset = FolderDataset(plant(tmp_path / "set", tree), (9, 8), 3)
    images = dataset.pixels(torch.tensor([2, 0, 1, 3, 2]))
    assert any(torch.equal(images[0], images[cat]) for cat in (1, 2)) and torch.equal(images[0], images[4])
    out = capsys.readouterr().out
    assert out.count("cat/2.png") == 1 and "another image of class cat stands in" in out


@pytest.mark.usefixtures("keep_signal_handlers")
def test_a_class_without_a_good_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class of broken files is named by `prepare`, and a run that is told classes refuses it; another may use it."""
    tree = pictures("a/0.png", "b/0.png", "b/1.png") | {"a/0.png": PNG[:60], "a/1.png": b""}
    folder = plant(tmp_path / "set", tree)
    index = prepare(PrepareOptions(str(folder), tmp_path / "made", "28", channels="3", workers=1))
    assert index["label_counts"] == [0, 2] and "(no image of class a)" in capsys.readouterr().out
    flags = [*DEBUG, "--images", "2"]
    for number, data in enumerate((str(folder), str(tmp_path / "made"))):
        data_flags = [*flags, "--data", data, "--run-dir"]
        assert train.main([*data_flags, str(tmp_path / f"told{number}"), "--num-classes", "2"]) == 2
        assert "image of class a" in capsys.readouterr().err
    assert train.main([*flags, "--data", str(folder), "--run-dir", str(tmp_path / "plain")]) == 0


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    """Where the folder goes, that is the error, and not its images one by one."""
    dataset = FolderDataset(plant(tmp_path / "set", pictures("0.png", "1.png")), (8, 8), 3)
    shutil.rmtree(tmp_path / "set")
    assert refusal(lambda: dataset.pixels(torch.tensor([0]))).startswith(f"the folder {tmp_path / 'set'} is gone")


@pytest.mark.slow
def test_loader_processes_tell_once(tmp_path: Path) -> None:
    """A broken file is one line, however many processes read it; an error of theirs is one line, too."""
    names = [f"{kind}/{number}.png" for kind in "ab" for number in range(4)]
    folder = plant(tmp_path / "set", pictures(*names) | {"a/1.png": PNG[:60], "b/3.png": b""})
    command = [sys.executable, "-m", "fastgan.cli", "train", *DEBUG]
    command += ["--data", str(folder), "--loader", "torch", "--workers", "3", "--images", "64"]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "1")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and done.stdout.count("stands in for it") == 2, done.stdout + done.stderr
    for number in range(4):
        (folder / f"a/{number}.png").write_bytes(b"x")
    command += ["--num-classes", "2", "--run-dir", str(tmp_path / "2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "fastgan: error: no image of class a in " in done.stderr


# Class names


def test_class_names_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], keep_signal_handlers: None) -> None:
    """A run prints its classes or says that they aren't used, keeps their names, and samples are asked for by them."""
    folder, run = plant(tmp_path / "set", pictures(*(f"{kind}/{n}.png" for kind in "ab" for n in range(2)))), tmp_path
    flags = [*DEBUG, "--images", "4", "--data", str(folder)]
    assert train.main([*flags, "--run-dir", str(run / "plain")]) == 0
    assert "classes: 2 (a 2, b 2), not used: --num-classes 2 tells the networks\n" in capsys.readouterr().out
    assert train.main([*flags, "--run-dir", str(run / "plain"), "--dry-run"]) == 0
    assert "classes: 2 (a 2, b 2), not used: --num-classes 2 tells the networks\n" in capsys.readouterr().out
    assert train.main([*flags, "--run-dir", str(run / "three"), "--num-classes", "3"]) == 2
    assert "has 2 (a, b)" in capsys.readouterr().err
    assert train.main([*flags, "--run-dir", str(run / "told"), "--num-classes", "2"]) == 0
    assert "classes: 2 (a 2, b 2)\n" in capsys.readouterr().out
    for name, number in (("b", "1"), ("a", "0")):
        for given in (name, number):
            out = ["--class", given, "--seeds", "3", "--out", str(tmp_path / given)]
            assert cli.main(["sample", str(run / "told"), *out]) == 0
        files = [(tmp_path / given / "seed-000003.png").read_bytes() for given in (name, number)]
        assert files[0] == files[1]
    assert cli.main(["sample", str(run / "told"), "--class", "c", "--out", str(tmp_path / "c")]) == 2
    assert "or a name of a, b" in capsys.readouterr().err


def test_class_names_that_are_numbers() -> None:
    """Where all classes are named by numbers, a number is a name: never the place of another class."""
    config = parse_config(["--preset", "debug", "--num-classes", "3"])
    assert parse_classes("10,2", config, ["1", "2", "10"]) == [2, 1]
    assert parse_classes("1-2", config, ["1", "2", "10"]) == [0, 1]
    assert "1, 2, 10" in refusal(lambda: parse_classes("0", config, ["1", "2", "10"]))
    assert parse_classes("0-2", config, ["cat", "dog", "7"]) == [0, 1, 2]
    assert parse_classes("a,b", config, ["a,b", "a", "b"]) == [0]


def test_many_classes_are_shortened() -> None:
    """Of a thousand classes the first ones and the last are named."""
    assert name_classes([*map(str, range(1000))]) == "0, 1, 2, 3, 4, 5, ..., 999"


# All at once


def wild_tree(rng: random.Random, root: Path) -> None:
    """Files of all kinds at random depths, with links to files and folders, inside, outside, nowhere and in circles."""
    folders = [
        "cat",
        "dog",
        "train",
        "test",
        "Valid",
        "data",
        ".git",
        "@eaDir",
        "a b",
        "ü",
        "1",
        "cat/train",
        "cat/test",
    ]
    names = [
        "0.png",
        "1.JPG",
        "cover.png",
        "3f9a",
        "x.jpg_large",
        "notes.txt",
        ".DS_Store",
        "Thumbs.db",
        "i.ico",
        "z.png ",
    ]
    contents: list[Callable[[], bytes]] = [
        lambda: picture(rng.randrange(10**6)),
        lambda: picture(rng.randrange(10**6), "JPEG"),
        lambda: PNG[:60],
        lambda: b"",
        lambda: b"text",
    ]
    outside = plant(root.parent / "outside", pictures("o.png", "sub/p.png"))
    places = [""]
    for _ in range(rng.randrange(3, 12)):
        place = f"{rng.choice(places)}/{rng.choice(folders)}".strip("/")
        (root / place).mkdir(parents=True, exist_ok=True)
        places.append(place)
    for _ in range(rng.randrange(5, 30)):
        path = root / rng.choice(places) / rng.choice(names)
        if os.path.lexists(path):
            continue
        if rng.random() < 0.7:
            path.write_bytes(rng.choices(contents, (6, 3, 1, 1, 1))[0]())
        else:
            target = rng.choice(
                [root / rng.choice(places), outside / "o.png", outside, root / "gone", path, root.parent]
            )
            path.symlink_to(target)


def everything(root: Path) -> set[str]:
    """The names of all files and links under the root, links not followed."""
    return {
        os.path.relpath(os.path.join(folder, name), root)  # noqa: PTH118
        for folder, folders, files in os.walk(root)
        for name in [*files, *(one for one in folders if (Path(folder) / one).is_symlink())]
    }


@pytest.mark.parametrize("seed", range(25))
def test_every_file_is_used_or_told(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of any tree each file is used or told with its reason, never both, and `prepare` says what `train` says."""
    root = tmp_path / "root"
    root.mkdir()
    plant(root, pictures("dog/always.png"))
    wild_tree(random.Random(seed), root)
    source = list_folder(root, None)
    try:
        labelled = label_entries(source)
        dataset = FolderDataset(root, (8, 8), 3)
    except UserError as error:  # only held-out splits, or nothing of the training part
        assert "splits without a train" in str(error) or "holds no images" in str(error)
        return
    used = {entry.name for entry in labelled.entries}
    told_files = [*source.skipped, *labelled.skipped, *source.left_out]
    names = {one.file for one in told_files}
    assert not used & names and all(one.reason for one in told_files)
    for name in everything(root):
        around = {"/".join(name.split("/")[: depth + 1]) for depth in range(name.count("/") + 1)}
        through = any(one.startswith(f"{name}/") for one in used | names)  # of a link to a folder
        is_empty = (root / name).is_dir() and not any((root / name).iterdir())
        assert around & (used | names) or through or is_empty, name
    for name in used | names:
        assert os.path.lexists(root / name), name

    capsys.readouterr()
    dataset.pixels(torch.arange(len(dataset)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "stands in for it" in line]
    broken = {line.removeprefix(f"{root}/").split(": ")[0] for line in lines}
    index = prepare(PrepareOptions(str(root), tmp_path / "out", "8", workers=1))
    assert index["num_images"] == len(used - broken)
    assert {one["file"] for one in (*index["skipped"], *index["left_out"])} == names | broken
