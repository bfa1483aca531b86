"""Training straight from a folder of images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.commands import train
from fastgan.data.folder import FolderDataset
from fastgan.errors import UserError
from fastgan.runs.rows import read_rows


def write_images(folder: Path, num: int, classes: tuple[str, ...] = ("",), size: tuple[int, int] = (40, 30)) -> None:
    random = np.random.default_rng(0)
    for number in range(num):
        path = folder / classes[number % len(classes)] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def test_images_are_fitted_and_labelled(tmp_path):
    """Every image has the size and channels asked for; its class is its folder's number."""
    write_images(tmp_path / "set", 9, ("b", "a", "c"))
    source = FolderDataset(tmp_path / "set", (28, 20), 1)
    assert len(source) == 9 and source.pixels(torch.arange(9)).shape == (9, 1, 28, 20)
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    write_images(tmp_path / "plain", 2)
    assert FolderDataset(tmp_path / "plain", (8, 8), 3).labels is None


def test_exact_pixels_pass(tmp_path):
    """Images that have the size already aren't resampled."""
    write_images(tmp_path / "set", 3)
    source = FolderDataset(tmp_path / "set", (30, 40), 3)
    wanted = np.asarray(Image.open(tmp_path / "set" / "001.png"))
    assert np.array_equal(source.pixels(torch.tensor([1]))[0].permute(1, 2, 0).numpy(), wanted)


def test_broken_file_is_told_of_and_stood_in_for(tmp_path, capsys):
    """A file that can't be read is named once; the next good image takes its place, wherever it is asked for."""
    write_images(tmp_path / "set", 4)
    (tmp_path / "set" / "001.png").write_bytes(b"no image")
    source = FolderDataset(tmp_path / "set", (30, 40), 3)
    images = source.pixels(torch.tensor([0, 1, 2, 1]))
    assert torch.equal(images[1], images[2]) and torch.equal(images[3], images[2])
    assert capsys.readouterr().out.count("001.png") == 1


def test_folders_without_images_are_refused(tmp_path):
    """An empty folder, and one whose images are all broken, are refused by name."""
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="holds no images"):
        FolderDataset(tmp_path, (8, 8), 3)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"no image of .* can be read"):
        FolderDataset(tmp_path, (8, 8), 3).pixels(torch.tensor([0]))


def test_content_hash_follows_the_files(tmp_path):
    """The hash changes when a file does, or the size that is asked for."""
    write_images(tmp_path / "set", 3)
    before = FolderDataset(tmp_path / "set", (8, 8), 3).content_hash()
    assert FolderDataset(tmp_path / "set", (8, 8), 3).content_hash() == before
    assert FolderDataset(tmp_path / "set", (8, 9), 3).content_hash() != before
    (tmp_path / "set" / "000.png").write_bytes((tmp_path / "set" / "001.png").read_bytes() + b" ")
    assert FolderDataset(tmp_path / "set", (8, 8), 3).content_hash() != before


@pytest.mark.usefixtures("keep_signal_handlers")
@pytest.mark.parametrize("loader", ["in_memory", "torch"])
def test_training_reads_a_folder(tmp_path, loader):
    """`--data FOLDER` trains on it, and resumes."""
    write_images(tmp_path / "set", 40, size=(28, 28))
    options = [
        "--preset",
        "debug",
        "--data",
        str(tmp_path / "set"),
        "--channels",
        "3",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    options += ["--loader", loader, "--workers", "0", "--log-every", "20"]
    assert train.main([*options, "--images", "60"]) == 0
    assert train.main([*options, "--images", "100"]) == 0
    assert read_rows(tmp_path / "run" / "log.jsonl")[-1]["images_seen"] >= 100
