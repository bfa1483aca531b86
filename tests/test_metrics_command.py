"""`fastgan metrics A B`: any images against any others, with the figures of `evaluate`; statistics files."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, refusal
from PIL import Image
from test_metrics import RegisteredInFloat64, reference, strokes, torch_fidelity_says
from test_metrics_alpha import Painter, means  # noqa: F401
from torch import Tensor

from fastgan import cli, presets
from fastgan.commands import train
from fastgan.commands.evaluate import EvaluateOptions, evaluate
from fastgan.commands.export import ExportOptions, export
from fastgan.commands.metrics import MetricsOptions, metrics
from fastgan.commands.sample import SampleOptions, sample
from fastgan.data import npz
from fastgan.data.images import ArrayDataset
from fastgan.data.listed import ListedDataset
from fastgan.data.local_folder import list_folder
from fastgan.data.preparation.prepare import PrepareOptions, prepare
from fastgan.data.stacked import StackedDataset
from fastgan.evaluation import comparison, extractors, features
from fastgan.evaluation.comparison import Comparison
from fastgan.evaluation.evaluator import Evaluator
from fastgan.evaluation.extractors import Extractor
from fastgan.evaluation.generated_set import open_generated
from fastgan.evaluation.sampling import CheckpointSelector
from fastgan.evaluation.saved_statistics import read_statistics

pytestmark = pytest.mark.usefixtures("keep_signal_handlers")
NUM = 100  # images on the generated side: one batch


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write_images(folder: Path, images: Tensor) -> Path:
    """A PNG of each of the images [N, C, H, W], by number."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(folder / f"{number:05d}.png")
    return folder


def write_npz(path: Path, images: Tensor) -> Path:
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=np.arange(len(images)) % 10)
    return path


@pytest.fixture(scope="module")
def fakes() -> Tensor:
    return strokes(NUM, seed=1)


@pytest.fixture(scope="module")
def reals() -> Tensor:
    return torch.cat([strokes(120, seed=2), strokes(121, seed=3, width=6)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, fakes: Tensor, reals: Tensor) -> Path:
    """The two sets as folders, and as archives, prepared and .npz."""
    folder = tmp_path_factory.mktemp("sets")
    for name, images in (("fakes", fakes), ("reals", reals)):
        write_images(folder / name, images)
        write_npz(folder / f"{name}.npz", images)
        prepare(PrepareOptions(str(folder / name), folder / f"{name}-prepared", "28", workers=1))
        with (
            zipfile.ZipFile(folder / f"{name}.zip", "w") as archive,
            tarfile.open(folder / f"{name}.tgz", "w:gz") as tar,
        ):
            for path in sorted((folder / name).iterdir()):
                archive.write(path, path.name)
                tar.add(path, path.name)
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, float]:
    return metrics(MetricsOptions(str(folder / "fakes"), str(folder / "reals")))


def test_figures_are_those_of_evaluate(figures: dict[str, float], fakes: Tensor, reals: Tensor) -> None:
    """Two folders have every figure that a run's evaluation has whose G makes the images of the one."""
    digits = extractors.load("digits", DEVICE)
    evaluator = Evaluator(presets.get("debug"), ArrayDataset("reals", reals), digits, DEVICE)
    wanted = evaluator(Painter(fakes.to(DEVICE)), NUM)
    assert figures.keys() == wanted.keys() and figures == pytest.approx(wanted, rel=1e-6)
    assert 0 < figures["recall_digits"] < 1 < figures["fd_digits"]


def test_figures_are_those_of_torch_fidelity(figures: dict[str, float], fakes: Tensor, reals: Tensor) -> None:
    """They are those of torch_fidelity.calculate_metrics, too."""
    wanted = torch_fidelity_says(fakes, reals, RegisteredInFloat64, subset_size=NUM)
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_many_images_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    """So they are of 2,000 images."""
    fakes, reals = strokes(2000, seed=1), torch.cat([strokes(1000, seed=2), strokes(1000, seed=3, width=6)])
    found = metrics(MetricsOptions(str(write_images(tmp_path / "a", fakes)), str(write_images(tmp_path / "b", reals))))
    wanted = torch_fidelity_says(fakes, reals, RegisteredInFloat64)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("generated", "real"),
    [
        ("fakes.npz", "reals.zip"),
        ("fakes.zip", "reals-prepared"),
        ("fakes.tgz", "reals.npz"),
        ("fakes-prepared", "reals.tgz"),
    ],
)
def test_images_may_lie_anywhere(folder: Path, figures: dict[str, float], generated: str, real: str) -> None:
    """In archives, in ADM's layout and prepared, generated or real, the same images have the same figures."""
    found = metrics(MetricsOptions(str(folder / generated), str(folder / real)))
    assert found == pytest.approx(figures, rel=1e-6)


def test_a_run_has_the_figures_of_evaluate(
    debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run against its own set, its export, its samples, also as .npz: figures as of `evaluate`; --out keeps them."""
    run = Path(shutil.copytree(debug_run, tmp_path / "run"))
    wanted = evaluate(EvaluateOptions(run, images=120))
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "NUM_NEIGHBOR_IMAGES", 50)  # of which seeds aren't drawn at random
        assert cli.main(["metrics", str(run), "toy", "--images", "120", "--out", str(tmp_path / "out.json")]) == 0
    row, said = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert row["metrics"] == pytest.approx(wanted, rel=1e-9)
    protocol = row["protocol"]
    assert protocol["extractor"] == "digits" and protocol["fakes"]["num_images"] == 120
    assert protocol["reals"]["data"] == "toy" and protocol["kid_subset_size"] == 120 and row["session"]["packages"]
    assert "real: toy, 1,000 images of 28x28, L" in said and "extractor digits; extractor_weights 4e9a" in said
    sample(SampleOptions(run, "0-119", tmp_path / "samples", npz=tmp_path / "samples.npz"))
    for generated in (tmp_path / "samples", tmp_path / "samples.npz", export(ExportOptions(run))):
        found = metrics(MetricsOptions(str(generated), "toy", images=120))
        assert found == pytest.approx(wanted, rel=1e-6), generated


@pytest.mark.slow
def test_a_run_with_classes_has_those_of_its_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """G is told the data set's classes, as `evaluate` has them; without the set they take turns, which is said."""
    data, run = tmp_path / "data", tmp_path / "run"
    for name, count in (("a", 10), ("b", 30)):
        write_images(data / name, strokes(count, seed=count))
    flags = ["--preset", "debug", "--network", "dcgan", "--stages", "8", "8", "--num-classes", "2", "--eval-every", "0"]
    assert train.main([*flags, "--data", str(data), "--batch-size", "8", "--images", "16", "--run-dir", str(run)]) == 0
    wanted = evaluate(EvaluateOptions(run, images=40))
    assert metrics(MetricsOptions(str(run), str(data), images=40)) == pytest.approx(wanted, rel=1e-6)
    moved = str(data.rename(tmp_path / "moved"))
    capsys.readouterr()
    for now, counts in ((moved, [10, 30]), (None, [20, 20])):
        found = open_generated(run, 40, CheckpointSelector(), now, DEVICE)
        assert found._conditions is not None and found._conditions.bincount().tolist() == counts
    assert "take turns, as its data set can't be read" in capsys.readouterr().out


def test_modes_are_counted(reals: Tensor) -> None:
    """Against stacked-mnist, the digits extractor counts the modes of the images as an evaluation does."""
    stacked = StackedDataset(ArrayDataset("toy", reals, torch.arange(len(reals)) % 10), 500)
    digits = extractors.load("digits", DEVICE)
    images = ArrayDataset("images", stacked.pixels(torch.arange(NUM)).contiguous())
    found, gaussian = Comparison([images, stacked], "digits", digits, DEVICE).measure()
    wanted = Evaluator(presets.get("debug"), stacked, digits, DEVICE)(Painter(images.images.to(DEVICE)), NUM)
    assert found == wanted and found["modes"] >= 1 and gaussian is None
    gray = ArrayDataset("gray", images.images[:, :1])
    text = refusal(lambda: Comparison([gray, stacked], "digits", digits, DEVICE))
    assert text == "gray has 1 channels: stacked-mnist's modes are counted in RGB"


def test_of_many_files_a_random_part_stands_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neighbours are of fewer images than a sorted folder holds, they are of all its kinds."""
    for module in (comparison, features):
        monkeypatch.setattr(module, "NUM_NEIGHBOR_IMAGES", 60)
    monkeypatch.setattr(comparison, "real_statistics", uncached)
    found = metrics(MetricsOptions(str(folder / "reals"), str(folder / "reals.zip")))
    assert found["recall_digits"] > 0.7


def uncached(*args):
    from fastgan.evaluation.distances import radii
    from fastgan.evaluation.reference import RealStatistics, collect_set

    found = collect_set(*args, is_shuffled=True)
    return RealStatistics(found.gaussian, found.features, radii(found.features), found.num_images)


def values_of(images: Tensor) -> np.ndarray:
    return extractors.load("digits", DEVICE)(images.to(DEVICE))[0].double().cpu().numpy()


def test_statistics_go_round(folder: Path, tmp_path: Path, figures: dict[str, float], reals: Tensor) -> None:
    """Saved statistics are numpy's mean and covariance, with a protocol in JSON, and have the set's distance."""
    path = tmp_path / "reals.npz"
    assert metrics(MetricsOptions(str(folder / "reals"), save_statistics=path)) == {}
    values = values_of(reals)
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {"mu", "sigma", "protocol"}
        np.testing.assert_allclose(arrays["mu"], values.mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(arrays["sigma"], np.cov(values, rowvar=False), rtol=1e-6, atol=1e-9)
        protocol = json.loads(str(arrays["protocol"]))
    assert protocol["extractor"] == "digits" and protocol["num_images"] == len(reals) == 241
    assert protocol["transform"] == "/ 255" and protocol["extractor_weights"] and protocol["image_size"] == [28, 28]
    wanted = pytest.approx(figures["fd_digits"], rel=1e-6)
    assert metrics(MetricsOptions(str(folder / "fakes"), str(path))) == {"fd_digits": wanted}
    both = tmp_path / "fakes.npz"
    metrics(MetricsOptions(str(path), str(folder / "fakes"), save_statistics=both))  # the last of the two is saved
    assert metrics(MetricsOptions(str(both), str(path))) == {"fd_digits": wanted}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_other_programs_statistics(folder: Path, tmp_path: Path, capsys, fakes: Tensor, reals: Tensor, dtype) -> None:
    """mu and sigma of another program have the distance of its formula, scipy's root of the product's."""
    more = torch.cat([fakes, strokes(60, seed=8)])  # more than features, for the formula's sake
    values = values_of(reals)
    path = tmp_path / "theirs.npz"
    np.savez(path, mu=values.mean(0).astype(dtype), sigma=np.cov(values, rowvar=False).astype(dtype))
    options = MetricsOptions(str(write_images(tmp_path / "more", more)), str(path), extractor="digits")
    rel = 1e-6 if dtype is np.float64 else 1e-4
    assert metrics(options) == {"fd_digits": pytest.approx(reference(values_of(more), values), rel=rel)}
    said = capsys.readouterr().out
    assert "theirs.npz doesn't say which network its statistics are of: taken for digits's" in said
    assert "left_out all but the Frechet distance, as" in said and "an unknown number of images" in said


def test_statistics_of_two_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files need no extractor: of as many numbers as Inception's they have an FID, others an FD without a name."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(comparison, "INCEPTION_FEATURES", 13)
    for width, name in ((13, "fid_inception"), (12, "fd_unknown")):
        paths = [tmp_path / f"{width}-{number}.npz" for number in range(2)]
        for path in paths:
            np.savez(path, mu=random.normal(size=width), sigma=np.diag(random.uniform(1, 2, width)))
        a, b = ({**np.load(path)} for path in paths)
        roots = np.sqrt(np.diag(a["sigma"])) - np.sqrt(np.diag(b["sigma"]))
        wanted = np.square(a["mu"] - b["mu"]).sum() + np.square(roots).sum()
        assert metrics(MetricsOptions(*map(str, paths))) == {name: pytest.approx(wanted, rel=1e-8)}


def test_alpha_lies_on_the_real_ones_background(tmp_path: Path, means: Extractor, capsys) -> None:  # noqa: F811
    """Images with alpha, of a folder or not, measure as they look on the real ones' background, which is said."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (12, 4, 28, 28), np.uint8))
    pixels[:, :3] //= 4  # dark ones, which lie on white
    light = pixels.clone()
    light[:, :3] = 255 - light[:, :3]  # which would lie on black for themselves
    sides = [str(write_images(tmp_path / "light", light)), str(write_images(tmp_path / "real", pixels))]
    sides.append(str(write_npz(tmp_path / "light.npz", light)))
    for ground in ("auto", "#3060c0"):
        listed = ListedDataset("real", list_folder(tmp_path / "real", None), None, ground)
        colour = torch.tensor(list(bytes.fromhex(listed.tones.background[1:]))).view(3, 1, 1)
        flat = [(s[:, :3] * (s[:, 3:] / 255) + colour * (1 - s[:, 3:] / 255)).round().byte() for s in (light, pixels)]
        flats = [str(write_images(tmp_path / f"{ground}-{name}", images)) for name, images in enumerate(flat)]
        wanted = metrics(MetricsOptions(*flats, extractor="efficientnet"))
        for generated in (sides[0], sides[2]):
            found = metrics(MetricsOptions(generated, sides[1], extractor="efficientnet", background=ground))
            assert found == pytest.approx(wanted, rel=1e-6), (ground, generated)
        said = capsys.readouterr().out
        assert f"background {listed.tones.background}" in said
        assert len({*re.findall(r"laid on (\S+)", said)}) == 1
    assert wanted["fd_efficientnet"] > 1


def test_size_fits_images_as_training_does(tmp_path: Path) -> None:
    """--size crops and resizes images of any sizes as training on their folder does; without it they are refused."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 40, 60), np.uint8))
    mixed = write_images(tmp_path / "mixed", images)
    Image.new("RGB", (50, 70)).save(mixed / "other.png")
    listed = ListedDataset("mixed", list_folder(mixed, None), (20, 20))
    from fastgan.data.folder import FolderDataset

    trained_on = FolderDataset(mixed, (20, 20), 3)
    assert torch.equal(listed.pixels(torch.arange(10)), trained_on.pixels(torch.arange(10)))
    assert listed.content_hash() == trained_on.content_hash()
    text = refusal(lambda: metrics(MetricsOptions(str(mixed), "toy")))
    assert text.endswith("differ in size (9 of 40x60, 1 of 70x50): give --size 40, say, to crop and resize them")


def test_npz_arrays_are_mapped(tmp_path: Path) -> None:
    """What np.savez wrote is mapped, at its place in the file; compressed arrays and Fortran's order are read, too."""
    values = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    np.savez(tmp_path / "a.npz", other=np.arange(7), arr_0=values)
    np.savez_compressed(tmp_path / "b.npz", arr_0=values)
    np.savez(tmp_path / "c.npz", arr_0=np.asfortranarray(values))
    for name, is_mapped in (("a", True), ("b", False), ("c", True)):
        found = npz.read_array(tmp_path / f"{name}.npz", "arr_0")
        assert np.array_equal(found, values) and isinstance(found, np.memmap) == is_mapped
        assert torch.equal(
            npz.read_images(tmp_path / f"{name}.npz").images, torch.from_numpy(values).permute(0, 3, 1, 2)
        )


def statistics(path: Path, **changes: object) -> Path:
    """A file of ours, of 12 features, some of it changed."""
    good = {"mu": np.zeros(12), "sigma": np.eye(12)} | changes
    np.savez(path, **good)  # type: ignore[arg-type]
    return path


OURS = {"extractor": "digits", "extractor_weights": "x", "transform": "y", "data": "z"}
OURS |= {"num_images": 5, "channels": 1, "image_size": [28, 28]}


def bad_sides() -> dict[str, tuple[Callable[[Path], object], str]]:
    """By name: what makes B, and what is said of it."""
    asymmetric, endless, negative = np.eye(12), np.eye(12), -np.eye(12)
    asymmetric[0, 1], endless[2, 3:5] = 0.5, np.nan
    protocol = {name: np.array(text) for name, text in (("protocol", "{"),)}
    other = {"protocol": np.array(json.dumps(OURS | {"extractor": "efficientnet"}))}
    weights = {"mu": np.zeros(96), "sigma": np.eye(96), "protocol": np.array(json.dumps(OURS))}
    return {
        "square": (lambda p: statistics(p, sigma=np.ones((12, 11))), "a mean is float [F], a covariance float [F, F]"),
        "nothing": (lambda p: statistics(p, mu=np.zeros(0), sigma=np.eye(0)), "mu is float64 [0]"),
        "whole": (lambda p: statistics(p, mu=np.zeros(12, int)), "mu is int64 [12]"),
        "nan": (lambda p: statistics(p, sigma=endless), "2 numbers of sigma aren't finite"),
        "asymmetric": (lambda p: statistics(p, sigma=asymmetric), "sigma isn't symmetric"),
        "negative": (lambda p: statistics(p, sigma=negative), "sigma has negative eigenvalues"),
        "pickle": (lambda p: statistics(p, mu=np.array([{}])), "mu holds pickled objects, which are never loaded"),
        "half": (lambda p: np.savez(p, mu=np.zeros(12)), "the array sigma can't be read"),
        "keys": (lambda p: np.savez(p, x=np.zeros(12)), "has the arrays x: give images as arr_0, or statistics as mu"),
        "empty": (lambda p: p.write_bytes(b"no zip"), "is no whole .npz file"),
        "protocol": (lambda p: statistics(p, **protocol), "its protocol isn't one that fastgan writes"),
        "dimension": (statistics, "b.npz differ in the number of features, 96 and 12: give the --extractor"),
        "extractor": (
            lambda p: statistics(p, **other),
            "b.npz differ in the extractor, digits and efficientnet: give the --extractor",
        ),
        "weights": (
            lambda p: statistics(p, **weights),
            "b.npz differ in the extractor weights, 4e9a042243da1792 and x: figures",
        ),
        "layout": (lambda p: np.savez(p, arr_0=np.zeros((9, 1, 28, 28), np.uint8)), "arr_0 is uint8 [9, 1, 28, 28]"),
        "float": (
            lambda p: np.savez(p, arr_0=np.zeros((9, 28, 28, 1))),
            "arr_0 is float64 [9, 28, 28, 1]: give images",
        ),
        "none": (lambda p: np.savez(p, arr_0=np.zeros((0, 28, 28, 1), np.uint8)), "arr_0 is uint8 [0, 28, 28, 1]"),
        "size": (
            lambda p: np.savez(p, arr_0=np.zeros((9, 30, 28, 1), np.uint8)),
            "differ in the image size, 28x28 and 30x28: give --size",
        ),
        "one": (lambda p: np.savez(p, arr_0=np.zeros((1, 28, 28, 1), np.uint8)), "and 1 real images: metrics need two"),
    }


@pytest.mark.parametrize("name", bad_sides())
def test_a_wrong_file_is_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    """Which names the file, what is wrong with it, and the remedy."""
    make, wanted = bad_sides()[name]
    make(tmp_path / "b.npz")
    options = MetricsOptions(str(folder / "fakes"), str(tmp_path / "b.npz"), extractor="digits")
    text = refusal(lambda: metrics(options))
    assert (wanted in text and "b.npz" in text) or name == "one", text


def test_what_cannot_be_measured_is_one_line(folder: Path, tmp_path: Path, debug_run: Path) -> None:
    """Nothing, an empty folder, sets that aren't resized, options that make no sense: each says what to give."""
    (tmp_path / "empty").mkdir()
    saved = statistics(tmp_path / "saved.npz")
    fakes = str(folder / "fakes")

    def said(*args: str, **options: object) -> str:
        return refusal(lambda: metrics(MetricsOptions(*args, **options)))  # type: ignore[arg-type]

    assert "there is no 'nothing': give a folder, a zip or tar" in said("nothing", fakes)
    assert "holds no images" in said(str(tmp_path / "empty"), fakes)
    assert "and only images of folders and archives are resized" in said(fakes, str(folder / "reals.npz"), size="14")
    assert "give --size" in said(str(debug_run), str(write_images(tmp_path / "big", torch.zeros(2, 1, 30, 30).byte())))
    (tmp_path / "their.pkl").touch()
    assert "their.pkl holds pickled objects, which are never loaded" in said(fakes, str(tmp_path / "their.pkl"))
    assert "background is 'red'" in said(fakes, fakes, background="red")
    assert "B is missing" in said(fakes)
    assert "ends in .npz" in said(fakes, save_statistics=tmp_path / "x.txt")
    assert "holds statistics already" in said(fakes, str(saved), save_statistics=tmp_path / "x.npz")
    assert "give a file in a folder that is there" in said(fakes, fakes, out=tmp_path / "none" / "x.json")
    assert "which sees gray images" in said(
        str(write_images(tmp_path / "rgb", torch.zeros(2, 3, 28, 28).byte())), "toy", extractor="digits"
    )
    assert "ours.npz and --extractor differ in the extractor, digits and efficientnet" in said(
        *[str(statistics(tmp_path / "ours.npz", protocol=np.array(json.dumps(OURS))))] * 2, extractor="efficientnet"
    )


def test_a_broken_image_isnt_stood_in_for(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no image is left out and told; an image that ends early is refused by name."""
    images = Path(shutil.copytree(folder / "fakes", tmp_path / "images"))
    (images / "00007.png").write_bytes(b"no image")
    (images / "notes.txt").write_text("of no interest")
    assert metrics(MetricsOptions(str(images), "toy"))["fd_digits"] > 0
    said = capsys.readouterr().out
    assert "99 images of 28x28" in said and "left out: " in said and "00007.png" in said and "notes.txt" in said
    whole = (images / "00008.png").read_bytes()
    (images / "00008.png").write_bytes(whole[: len(whole) // 2])
    text = refusal(lambda: metrics(MetricsOptions(str(images), "toy")))
    assert text.startswith("00008.png in ") and "damaged" in text


def test_the_extractor_is_that_of_the_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto: what ours name; Inception where another program's have 2048 numbers; else by the images."""
    gray = ArrayDataset("gray", strokes(4, seed=1))
    ours = read_statistics(
        statistics(tmp_path / "a.npz", protocol=np.array(json.dumps(OURS | {"extractor": "dinov2"})))
    )
    assert comparison.choose_extractor("auto", [gray, ours], None) == "dinov2"
    theirs = ours._replace(protocol={}, gaussian=ours.gaussian._replace(mean=torch.zeros(2048)))
    assert comparison.choose_extractor("auto", [theirs, gray], None) == "inception"
    assert comparison.choose_extractor("inception_clean", [theirs, gray], None) == "inception_clean"
    assert comparison.choose_extractor("auto", [gray, gray], None) == "digits"
    monkeypatch.setattr(extractors, "has_efficientnet", lambda: False)
    assert (
        comparison.choose_extractor("auto", [gray, ArrayDataset("rgb", torch.zeros(2, 3, 28, 28))], None) == "inception"
    )


@pytest.mark.slow
def test_two_processes_measure_together(folder: Path, tmp_path: Path, figures: dict[str, float]) -> None:
    """A launch has one process's figures, writes its files once, and prints each line once."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "fastgan.cli", "metrics", str(folder / "fakes")]
    command += [str(folder / "reals.tgz"), "--out", str(tmp_path / "out.json")]
    command += ["--save-statistics", str(tmp_path / "saved.npz")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == pytest.approx(figures, rel=1e-6)
    assert done.stdout.count("fd_digits") == 1 and done.stdout.count("generated: ") == 1
    assert read_statistics(tmp_path / "saved.npz").protocol["num_images"] == 241
