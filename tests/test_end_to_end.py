"""From images of every kind to samples: prepare, a few steps, PNG files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan import cli

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
NUM = 40
KINDS = {  # mode of the files; size as HxW; channels of the set; mode of the samples
    "gray": ("L", "28", 1, "L"),
    "rgb": ("RGB", "28", 3, "RGB"),
    "rgba": ("RGBA", "28", 4, "RGBA"),
    "gray with transparency": ("LA", "28", 4, "RGBA"),
    "16 bits": ("I;16", "28", 1, "L"),
    "wide": ("RGB", "96x160", 3, "RGB"),
}


def write_images(folder: Path, mode: str) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(NUM):
        if mode == "I;16":
            image = Image.fromarray(random.integers(0, 2**16, (40, 50), np.uint16))
        else:
            bands = len(Image.new(mode, (1, 1)).getbands())
            pixels = random.integers(0, 256, (40, 50, bands), np.uint8)
            image = Image.fromarray(pixels.squeeze(), mode) if mode == "LA" else Image.fromarray(pixels.squeeze())
        image.save(folder / f"{number:03d}.png")


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["in_memory", "dali"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind(tmp_path, kind, loader, capsys):
    """A set of this kind is prepared, trained on for three steps, and sampled as PNGs of its size and channels."""
    mode, size, channels, sample_mode = KINDS[kind]
    write_images(tmp_path / "images", mode)
    assert cli.main(["data", "prepare", str(tmp_path / "images"), str(tmp_path / "set"), "--size", size]) == 0
    height, _, width = size.partition("x")
    shape = (int(height), int(width or height))
    options = ["--preset", "debug", "--data", str(tmp_path / "set"), "--run-dir", str(tmp_path / "run")]
    options += ["--channels", str(channels), "--image-size", str(shape[0]), str(shape[1]), "--loader", loader]
    assert cli.main(["train", *options, "--batch-size", "16", "--images", "48"]) == 0, capsys.readouterr().err
    assert cli.main(["sample", str(tmp_path / "run"), "--seeds", "0-2", "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "seed-000002.png") as image:
        assert image.mode == sample_mode and image.size == shape[::-1]
        assert np.asarray(image).std() > 0
