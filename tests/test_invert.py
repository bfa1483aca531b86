"""Inversion: an image that G made is found again; the command tells what it found, and what isn't to be had."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image, ImageSequence
from test_api import make_run

import fastgan
from fastgan import cli
from fastgan.data.pixels import Transform
from fastgan.data.tones import Tones
from fastgan.evaluation.generator import Generator
from fastgan.evaluation.inversion import read_photos, starts, transform_of

SHORT = ("--steps", "3", "--starts", "2", "--candidates", "8")


@pytest.fixture(scope="module", params=[0, 3], ids=["no classes", "classes"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A small generator."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    make_run(folder, network="dcgan", stages=(8, 8), z_dim=8, num_classes=request.param)
    return fastgan.load(folder)


def test_an_image_of_its_own_is_found_again(tiny: Generator) -> None:
    """An image of a seed that isn't among those tried: its class is found, and the distance falls to nearly nothing."""
    own, extractor = tiny.sample([1000]), "digits" if tiny.num_classes else "none"
    found = tiny.invert(own, extractor=extractor, steps=60, starts=6, candidates=48)
    assert np.array_equal(found.photos, own)
    assert float(found.distances) < 0.01 < 0.1 * float(found.seed_distances.min())
    assert np.abs(found.images.astype(int) - own).mean() < 4 and found.psnr[0] > 30
    assert found.labels is None or found.labels.tolist() == [1000 % 3]
    again = tiny(found.z, found.labels).cpu().permute(0, 2, 3, 1).numpy()
    assert np.abs((again + 1) * 127.5 - found.images).max() <= 1
    (frames,) = found.frames
    assert [frames[0][0], frames[-1][0]] == [0, 60] and len(frames) > 20
    errors = [np.square(image.astype(float) - own[0]).mean() for _, image in frames]
    assert errors[-1] < 0.1 * errors[0]


def test_unit_of_distance(tiny: Generator) -> None:
    """Two random images have a distance of 1 on average, of pixels and features together; a seed and itself have 0."""
    found = tiny.invert(tiny.sample([0, *range(500, 516)]), steps=1, starts=1, candidates=100)
    assert float(found.seed_distances[0, 0]) < 1e-3
    assert 0.9 < float(found.seed_distances[1:].mean()) < 1.1
    assert (found.distances <= found.seed_distances.min(dim=1).values + 1e-3).all()


def test_starts() -> None:
    """The search starts at the nearest seed of each class, then at the nearest of the others."""
    distances = torch.tensor([0.4, 0.1, 0.2, 0.3, 0.9, 0.8])
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert starts(distances, None, 3).tolist() == [1, 2, 3]
    assert starts(distances, labels, 4).tolist() == [1, 3, 5, 2]
    assert starts(distances, labels, 2).tolist() == [1, 3]


def test_only_what_is_asked_for(tiny: Generator) -> None:
    """Of one class, or some, the nearest image of these is found, and no other."""
    own = tiny.sample([1000])
    if not tiny.num_classes:
        assert "knows no classes" in refusal(lambda: tiny.invert(own, classes=1))
        return
    found = tiny.invert(own, classes=["cat", 2], extractor="none", steps=2, starts=4, candidates=24)
    assert found.labels is not None and found.labels.tolist()[0] in (0, 2)


def test_vectors(tmp_path: Path) -> None:
    """A vector that is given is that of the found image."""
    make_run(tmp_path, network="dcgan", stages=(8, 8), condition="vector", vector_dim=2, data="nowhere")
    G = fastgan.load(tmp_path)
    own = G.sample([1000], vectors=[0.5, 1])
    found = G.invert(own, vectors=[0.5, 1], extractor="none", steps=2, starts=2, candidates=8)
    assert found.labels is not None and found.labels.tolist() == [[0.5, 1]]
    assert "give --vector" in refusal(lambda: G.invert(own))


def test_photos_are_made_as_the_data_set_is(tmp_path: Path) -> None:
    """The middle of a photo of another size is taken, in G's channels, whether it is a file, an array or Pillow's."""
    photo = Image.new("RGB", (90, 30), "red")
    photo.paste("white", (25, 0, 65, 30))
    photo.save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), photo, np.asarray(photo)):
        assert torch.equal(read_photos([given], Transform((28, 28), "crop", 1)), torch.full((1, 1, 28, 28), 255).byte())
    gray = read_photos([np.full((28, 28), 7, np.uint8)], Transform((28, 28), "crop", 3))
    assert torch.equal(gray, torch.full((1, 3, 28, 28), 7).byte())
    assert "image 0 is float64 [4, 4, 1]" in refusal(lambda: read_photos([np.zeros((4, 4))], Transform((28, 28))))
    assert "no image to invert" in refusal(lambda: read_photos([], Transform((28, 28))))


def test_transform_of_the_data_set(tmp_path: Path) -> None:
    """A run's set says how a photo is fitted and what lies under transparency; where it is gone, its settings do."""
    images, prepared = tmp_path / "images", tmp_path / "prepared"
    images.mkdir()
    for number in range(3):
        Image.new("RGBA", (40, 30), (0, 0, 0, 40 * number)).save(images / f"{number}.png")
    flags = ["--size", "28", "--fit", "pad", "--background", "#102030", "--workers", "1"]
    assert cli.main(["data", "prepare", str(images), str(prepared), *flags]) == 0
    config = fastgan.configure("debug", channels=3, data=str(prepared))
    assert transform_of(config) == Transform((28, 28), "pad", 3, tones=Tones("#102030"))
    config = fastgan.configure(config, data=str(images))
    assert transform_of(config) == Transform((28, 28), "crop", 3, tones=Tones("#ffffff"))
    config = fastgan.configure(config, data="gone", background="#405060")
    assert transform_of(config) == Transform((28, 28), "crop", 3, tones=Tones("#405060"))


def test_command(debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each photo has a line, a picture, a GIF, and a JSON whose z gives the image; what is far is said to be so."""
    photo, out = tmp_path / "red.png", tmp_path / "out"
    Image.new("RGB", (90, 60), "red").save(photo)
    (tmp_path / "other").mkdir()
    Image.fromarray(fastgan.load(debug_run).sample([5])[0, :, :, 0]).save(tmp_path / "other" / "red.png")
    args = ["invert", str(debug_run), str(photo), str(tmp_path / "other" / "red.png"), "--out", str(out), *SHORT]
    assert cli.main(args) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("red.png: distance ") and "; far: G makes nothing near it" in first
    assert second.endswith(f": {out / 'red-2.png'}") and "; far" not in second and "random seeds" in second
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}.{end}" for name in ("red", "red-2") for end in ("png", "gif", "json")
    )
    facts = json.loads((out / "red-2.json").read_text())
    assert facts["nearest_seed"] == 5 and facts["distance"] < 0.01 < facts["mean_distance_of_seeds"]
    assert facts["search"]["steps"] == 3 and facts["compared"].startswith("pixels, digits ")
    with Image.open(out / "red-2.png") as image:
        shown = np.asarray(image).astype(int)
    raw = fastgan.load(debug_run)(torch.tensor(facts["z"])[None])[0, 0].cpu().numpy()
    scale = (shown.shape[1] - 6) // 2 // 28
    nearest = shown[-28 * scale :: scale, -28 * scale :: scale]
    assert np.abs(nearest - (raw + 1) * 127.5).max() <= 1
    with Image.open(out / "red-2.gif") as gif:
        assert len([*ImageSequence.Iterator(gif)]) >= 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nowhere.png"], "nowhere.png: cannot be read"),
        (["broken.png"], "broken.png: no image of a known format; leave it out"),
        (["a.png", "--class", "1"], "class is 1: the run has no classes"),
        (["a.png", "--starts", "9", "--candidates", "8"], "starts is 9"),
        (["a.png", "--steps", "0"], "steps is 0"),
        (["a.png", "--candidates", "1", "--starts", "1"], "candidates is 1"),
        (["a.png", "--out", "."], "a.png would be overwritten"),
        (["a.png", "--out", "broken.png", *SHORT], "cannot write into broken.png"),
        (
            ["a.png", "--extractor", "inception", "--inception-weights", "broken.png"],
            "cannot use the Inception weights",
        ),
        ([], "photo"),
    ],
)
def test_mistakes(
    debug_run: Path, here: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    """What can't be inverted is one line, and nothing is written."""
    Image.new("L", (28, 28), 9).save("a.png")
    Path("broken.png").write_text("no image")
    assert cli.main(["invert", str(debug_run), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastgan: error: ") and said.count("\n") == 1 and words in said
    assert sorted(path.name for path in here.iterdir()) == ["a.png", "broken.png"]


def test_auto_without_an_extractor(
    debug_run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `auto` finds no extractor, pixels alone are compared, and that is said."""

    def no_network(*_: object) -> None:
        raise fastgan.UserError("no Inception weights")

    monkeypatch.setattr("fastgan.evaluation.extractors.load", no_network)
    Image.new("L", (28, 28), 9).save("a.png")
    assert cli.main(["invert", str(debug_run), "a.png", *SHORT]) == 0
    assert "only pixels are compared: no Inception weights" in capsys.readouterr().out
    assert json.loads((here / "inverted" / "a.json").read_text())["compared"] == "pixels"


@pytest.mark.slow
def test_process(debug_run: Path, here: Path) -> None:
    """The command as a process of its own does its work and says so."""
    Image.new("L", (28, 28), 9).save("a.png")
    command = [sys.executable, "-m", "fastgan.cli", "invert", str(debug_run), "a.png", *SHORT]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("a.png: distance ") and (here / "inverted" / "a.gif").exists()
