"""Training on images without --preset: which preset is chosen, that it fits, and that a run keeps its own."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan import networks
from fastgan.commands import sweep, train
from fastgan.config import Config
from fastgan.data import named
from fastgan.data.preparation.prepare import PrepareOptions, prepare
from fastgan.planning import preset_choice
from fastgan.planning.preset_choice import NAMED, RULES, Facts, adapt, choose, of_named, with_preset
from fastgan.presets import get, parse_config
from fastgan.runs.run_folder import RunFolder
from fastgan.training import schedules

pytestmark = pytest.mark.usefixtures("keep_signal_handlers", "here", "no_gpu")


def facts(size: tuple[int, int] = (300, 400), images: int = 9_000, channels: int = 3, **others: object) -> Facts:
    return Facts(images, size, **{"is_fixed": False, "channels": channels, "classes": 0, "on_gpu": False, **others})


ROWS = {
    "small gray images": (facts((28, 28), channels=1), "mnist28-fast"),
    "few small gray images, on a GPU": (facts((30, 20), 100, 1, on_gpu=True), "mnist28-fast"),
    "few photos": (facts(images=1_999), "faces128-fast"),
    "few photos, on a GPU": (facts(images=1_999, on_gpu=True), "fewshot"),
    "few large gray images": (facts(images=1_999, channels=1), "faces128-fast"),
    "three digits, on a GPU": (of_named("stacked-mnist", True), "stacked-mnist"),
    "three digits": (of_named("stacked-mnist", False), "stacked-mnist-fast"),
    "icons, on a GPU": (facts((32, 32), on_gpu=True), "cifar10"),
    "icons": (facts((32, 32)), "stacked-mnist-fast"),
    "few icons": (facts((32, 32), 100), "stacked-mnist-fast"),
    "photos": (facts(images=2_000), "faces128-fast"),
    "small photos": (facts((64, 64)), "faces128-fast"),
    "small photos, on a GPU": (facts((127, 400), on_gpu=True), "ffhq64"),
    "photos of middle size, on a GPU": (facts((128, 400), on_gpu=True), "faces128-fast"),
    "photos, on a GPU": (facts((256, 400), on_gpu=True), "ffhq256"),
    "large gray images, on a GPU": (facts((256, 256), channels=1, on_gpu=True), "ffhq256"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str) -> None:
    """Each kind of set gets the preset that is meant for it."""
    seen, wanted = ROWS[name]
    assert choose(seen)[0] == wanted


def test_table_is_covered() -> None:
    """Each rule decides in a row above, and none names a course's preset."""
    chosen = {next(rule for rule in RULES if rule.fits(seen)) for seen, _ in ROWS.values()}
    assert chosen == {*RULES} and not {rule.preset for rule in RULES} & {"mnist28", "faces128", "debug"}


@pytest.mark.parametrize("name", ROWS)
def test_prepared_at_the_presets_size(name: str) -> None:
    """A set that is prepared at the size of its preset gets the same preset, unchanged but for channels and classes."""
    seen, preset = ROWS[name]
    size = get(preset).data.image_size
    again = Facts(seen.images, size, True, seen.channels, seen.classes, seen.on_gpu, seen.name)
    assert choose(again)[0] == preset
    assert not {"--image-size", "--stages", "--gamma"} & {*adapt(preset, again)}


FIXED = {  # size, images, channels, on a GPU
    "tiny": ((16, 16), 10_000, 3, False),
    "gray": ((32, 24), 10_000, 1, False),
    "few": ((128, 128), 100, 4, True),
    "upright": ((160, 96), 10_000, 3, False),
    "middle": ((96, 96), 10_000, 1, True),
    "large": ((512, 512), 10_000, 3, True),
}


@pytest.mark.parametrize("name", FIXED)
def test_any_prepared_set_has_networks(name: str) -> None:
    """Whatever a set's size and channels are, the chosen preset's networks make such images, of as many classes."""
    size, images, channels, on_gpu = FIXED[name]
    seen = Facts(images, size, True, channels, 3, on_gpu)
    preset, _ = choose(seen)
    config = parse_config(["--preset", preset, *adapt(preset, seen)])
    assert (config.data.image_size, config.data.channels) == (size, channels)
    assert config.networks.num_classes == (3 if get(preset).networks.num_classes else 0)
    assert min(networks.sizes(config)) > 0


def test_gamma_goes_with_pixels_and_batches() -> None:
    """A quarter of the pixels has a quarter of gamma, at both ends of its way, and a smaller batch a larger one."""
    for seen, gamma in ((facts((128, 128), is_fixed=True), 37.5), (facts((128, 128), 32, is_fixed=True), 300)):
        config = parse_config(["--preset", "ffhq256", *adapt("ffhq256", seen)])
        assert (config.objective.gamma, config.objective.gamma_end) == (gamma, gamma / 10)
        assert schedules.preset_gamma_note(config) is None and config.data.batch_size == min(256, seen.images)


# By the command


def draw(folder: Path, count: int, size: tuple[int, int], channels: int = 3, classes: Sequence[str] = ("",)) -> None:
    """Save so many images of noise, a class after the other."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8).squeeze()
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)


def chosen(*args: str) -> Config:
    """The settings of `fastgan train` with these arguments."""
    return parse_config(with_preset(args))


def test_photos(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of photos without a preset is trained by the one that suits it, at its size; one line says which
    and why, and flags win over it.
    """
    draw(here / "photos", 6, (40, 50), classes=("cats", "dogs"))
    config = chosen("--data", "photos/", "--batch-size", "4", "--g-lr", "0.5")
    said = capsys.readouterr().out
    assert said.startswith("preset: faces128-fast --batch-size 6 --gamma ")
    assert "--augment ada --augment-target 0.6 (6 RGB images of 40x50, no GPU: made for a CPU" in said
    assert said.count("\n") == 1
    assert config.preset == "faces128-fast" and config.data.image_size == (128, 128)
    assert config.run_dir == Path("runs/photos")
    assert config.data.batch_size == 4 and config.optimizer.g_lr == 0.5
    assert chosen("--data", "photos", "--run-dir=x", "--channels", "1").run_dir == Path("x")
    config = chosen("--data", "photos", "--image-size", "32", "32")
    assert config.data.image_size == (32, 32) and config.preset == "stacked-mnist-fast"


def test_dry_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan begins with the line on the preset and makes nothing."""
    draw(here / "digits", 4, (28, 28), channels=1)
    assert train.main(["--data", "digits", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "preset: mnist28-fast --batch-size 4 --gamma 1.6 "
        "--augment ada --augment-target 0.6 --num-classes 0 (4 gray images of 28x28, no GPU"
    )
    assert "into runs/digits\n" in said and {path.name for path in here.iterdir()} == {"digits"}


def test_a_gpu_counts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU, or a plan is made for some, the preset is one for GPUs."""
    rules = [rule for rule in RULES if rule.preset != "fewshot"]
    monkeypatch.setattr(preset_choice, "RULES", rules)
    draw(here / "photos", 4, (300, 300))
    assert chosen("--data", "photos").preset == "faces128-fast"
    assert parse_config(with_preset(["--data", "photos"], on_gpu=True)).preset == "ffhq256"
    monkeypatch.setattr(preset_choice, "has_gpu", lambda: True)
    assert chosen("--data", "photos").preset == "ffhq256"


def test_prepared_digits(here: Path) -> None:
    """A prepared set keeps its size and its channels, and gives the number of classes where they are told."""
    draw(here / "digits", 8, (20, 20), channels=1, classes=("a", "b"))
    prepare(PrepareOptions("digits", here / "set", "20", workers=1))
    for flags, classes in (("", 2), ("--labels none", 0), ("--condition vector --vector-dim 2", 0)):
        config = chosen("--data", "set", *flags.split())
        assert (config.preset, config.data.image_size, config.data.channels) == ("mnist28-fast", (20, 20), 1)
        assert config.networks.num_classes == classes


def test_a_run_keeps_its_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the run's config.json says of what is learned comes before any choice; how long and how often the run was
    to go does not, and flags win over it.
    """
    draw(here / "photos", 4, (40, 50))
    kept = chosen("--data", "photos", "--gamma", "3", "--minutes", "5")
    RunFolder(here / "runs/photos").open(kept)
    draw(here / "photos", 4, (20, 20), channels=1)  # others by now, under the same names
    capsys.readouterr()
    again = chosen("--data", "photos", "--batch-size", "2")
    assert capsys.readouterr().out == "preset: faces128-fast, with the settings of the run runs/photos\n"
    assert again.differences(kept) == ["batch_size: 2, not 4"] and again.run.minutes is None
    assert chosen("--data", "photos", "--run-dir", "other").preset == "mnist28-fast"
    assert chosen("--data", "photos", "--preset", "debug").objective.gamma is None


@pytest.mark.slow
def test_a_run_resumes(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command resumes the run also where the facts would choose another preset by now."""
    draw(here / "digits", 8, (28, 28), channels=1)
    command = ["--data", "digits", "--health-every", "0", "--eval-every", "0"]
    assert train.main([*command, "--width", "0.1", "--images", "8"]) == 0
    assert capsys.readouterr().out.startswith(
        "preset: mnist28-fast --batch-size 8 --gamma 0.8 "
        "--augment ada --augment-target 0.6 --num-classes 0 (8 gray images of 28x28, no GPU"
    )
    monkeypatch.setattr(preset_choice, "choose", lambda seen: ("fewshot", ""))
    assert train.main([*command, "--images", "16"]) == 0
    assert "resuming runs/digits at 8 of 16 images" in capsys.readouterr().out
    assert train.main([*command, "--images", "16", "--width", "0.2"]) == 2
    assert "other settings (width: 0.2, not 0.1)" in capsys.readouterr().err


def test_all_processes_choose_alike(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process than the main one chooses the same and prints nothing."""
    draw(here / "photos", 4, (40, 50))
    found = with_preset(["--data", "photos"])
    assert capsys.readouterr().out.startswith("preset: ")
    monkeypatch.setenv("RANK", "1")
    assert with_preset(["--data", "photos"]) == found and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--data", "nowhere"],
        ["--data", "empty"],
        ["--data"],
        ["--data", "photos", "--preset", "debug"],
        ["--data", "photos", "--preset=debug"],
        ["--data", "photos", "--help"],
        ["--data", "photos", "--channels", "many"],
        *(["--data", name] for name in NAMED if name != "stacked-mnist"),
    ],
)
def test_what_stays_as_it_was(args: list[str], here: Path) -> None:
    """Nothing is chosen without images, of a named set like MNIST, with a preset, or where the options are wrong."""
    draw(here / "photos", 2, (40, 50))
    (here / "empty").mkdir()
    assert with_preset(args) == args


@pytest.mark.parametrize("place", ["", "a\0b", "x" * 300, "FILE"])
def test_places_without_images(place: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there can be no folder of images training says so in one line, and makes nothing."""
    (here / "FILE").write_text("no folder")
    assert train.main(["--data", place]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("fastgan: error: ")
    assert [path.name for path in here.iterdir()] == ["FILE"]


def test_named_facts() -> None:
    """What is known of the set that is drawn is true."""
    toy, seen = named.load("toy"), of_named("toy", False)
    assert toy.labels is not None
    assert (seen.images, seen.size, seen.channels) == (len(toy), toy.image_size, toy.channels)
    assert seen.classes == len(toy.labels.unique())


def test_a_sweep_chooses_too(here: Path) -> None:
    """A sweep's runs have the preset that suits the images, in a folder of the sweep's own."""
    draw(here / "photos", 40, (40, 50))
    runs = sweep.runs_of(["--data", "photos", "--images", "64"])
    assert [run.config.preset for run in runs] == ["faces128-fast"] * 3
    assert {run.folder.parent for run in runs} == {Path("runs/sweep-photos")}
    assert all(parse_config(run.args) == run.config for run in runs)


def test_docs_have_the_table() -> None:
    """docs/training.md names each preset of the table, in its order."""
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    table = page.split("## Which preset\n")[1].split("\n## ")[0]
    for before, after in itertools.pairwise(
        ("mnist28-fast", "fewshot", "cifar10", "stacked-mnist-fast", "faces128-fast", "ffhq64")
    ):
        assert table.index(f"`{before}`") < table.index(f"`{after}`")
    assert {rule.preset for rule in RULES} - {"stacked-mnist"} <= {*re.findall(r"`([a-z0-9-]+)`", table)}
