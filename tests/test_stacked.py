"""StackedMNIST: which images, how fast they come, and a run on them."""

import struct
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, refusal
from torch import Tensor

from fastgan import cli, presets
from fastgan.commands import train
from fastgan.data import named
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader, choose_loader, num_images, open_dataset
from fastgan.data.named import IDX_FILES, IdxDataset
from fastgan.data.preparation import inputs
from fastgan.data.stacked import NAME, StackedDataset
from fastgan.runs.rows import read_rows

COUNTS = [3, 9, 5, 4, 7, 1, 6, 8, 2, 5]  # of the ten digits: far from balanced


def fake_digits(seed: int = 0) -> ArrayDataset:
    """Fifty shuffled images: all pixels of an image are its number, but for the first row, which is its label."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(10), COUNTS))
    images = np.broadcast_to(np.arange(1, 51, dtype=np.uint8)[:, None, None], (50, 28, 28)).copy()
    images[:, 0] = labels[:, None]
    return ArrayDataset("mnist", torch.from_numpy(images)[:, None], torch.from_numpy(labels))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose MNIST are the fake digits."""
    digits = fake_digits()
    assert digits.labels is not None
    files = {
        name: bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        for name, array in zip(
            IDX_FILES, [digits.images[:, 0].numpy(), digits.labels.to(torch.uint8).numpy()] * 2, strict=True
        )
    }
    folder = tmp_path / "cache" / "mnist"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    md5s = {name: md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(named, "IDX_DATASETS", {"mnist": IdxDataset("mnist", md5s, torchvision_class="MNIST")})
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(**run: object):
    debug = presets.get("debug")
    data = replace(debug.data, data=NAME, channels=3, image_size=(32, 32), batch_size=50)
    return replace(debug, data=data, run=replace(debug.run, **run))


# The images


def test_pixels_are_three_padded_digits() -> None:
    """Each channel is a digit of the class that the label names, in the middle of zeros; channels last in memory."""
    digits = fake_digits()
    stacked = StackedDataset(digits, 5000)
    items = torch.randint(5000, (700,), generator=torch.Generator().manual_seed(1))
    images = stacked.pixels(items)
    assert images.shape == (700, 3, 32, 32) and images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (len(stacked), stacked.channels, stacked.image_size, stacked.name) == (5000, 3, (32, 32), "stacked-mnist")
    border = images.clone()
    border[:, :, 2:30, 2:30] = 0
    assert not border.any()
    numbers = images[:, :, 3, 2].long() - 1  # which of the fifty, [B, 3]
    assert torch.equal(images[:, :, 2:30, 2:30], digits.images[numbers, 0])
    assert digits.labels is not None
    a, b, c = digits.labels[numbers].T
    assert torch.equal(stacked.labels[items], 100 * a + 10 * b + c)
    assert stacked.labels.dtype == torch.int64 and stacked.labels.shape == (5000,)


def test_modes_are_exactly_uniform() -> None:
    """Of a thousand times n images each mode has n, though the digits' own frequencies differ."""
    assert StackedDataset(fake_digits(), 7000).labels.bincount().tolist() == [7] * 1000


def chosen(stacked: StackedDataset, items: Tensor) -> Tensor:
    """Which of the fake digits make each image, [B, 3]."""
    return stacked.pixels(items)[:, :, 3, 2].long() - 1


def test_digits_are_uniform_in_their_class() -> None:
    """In every channel each digit is drawn as often as the others of its class, within five sigma."""
    stacked = StackedDataset(fake_digits(), 100_000)
    numbers = chosen(stacked, torch.arange(100_000))
    labels = fake_digits().labels
    assert labels is not None
    for channel in range(3):
        found = numbers[:, channel].bincount(minlength=50).double()
        share = 1 / torch.tensor(COUNTS)[labels].double()
        wanted = 10_000 * share
        sigma = (wanted * (1 - share)).sqrt()
        assert ((found - wanted).abs() <= 5 * sigma).all()


def test_channels_are_independent() -> None:
    """The digit of a channel tells nothing of another channel's, nor of the next image's of the same mode."""
    stacked = StackedDataset(fake_digits(), 200_000)
    same_mode = torch.arange(111, 200_000, 1000)  # nine digits each to choose from
    large = StackedDataset(fake_digits(), 9_000_000).pixels(torch.arange(111, 9_000_000, 1000))[:, :, 3, 2].double()
    assert stacked.labels[same_mode].unique().tolist() == [111]
    pairs = torch.corrcoef(torch.cat([large[:-1].T, large[1:].T]))  # [6, 6]
    assert (pairs - torch.eye(6)).abs().max() < 5 / len(large) ** 0.5


def test_image_is_a_function_of_its_number() -> None:
    """An image doesn't depend on the batch, on the set's size, or on torch's random state."""
    stacked = StackedDataset(fake_digits(), 3000)
    whole = stacked.pixels(torch.arange(3000))
    torch.manual_seed(99)
    items = torch.randperm(3000)[:40]
    assert torch.equal(stacked.pixels(items), whole[items])
    assert torch.equal(StackedDataset(fake_digits(), 9000).pixels(items), whole[items])
    assert stacked.pixels(torch.arange(0)).shape == (0, 3, 32, 32)


def test_pinned_images() -> None:
    """The fake digits that make the first images are what they were in the first version."""
    found = chosen(StackedDataset(fake_digits(), 3000), torch.tensor([0, 1, 789, 2999]))
    assert found.tolist() == [[4, 27, 10], [27, 27, 40], [20, 34, 42], [29, 29, 30]]


def test_content_hash() -> None:
    """The hash is stable, and another for other digits, other labels of them, or another number of images."""
    digits = fake_digits()
    assert digits.labels is not None
    first = StackedDataset(digits, 3000).content_hash()
    assert first == StackedDataset(fake_digits(), 3000).content_hash() and len(first) == 16
    others = {
        StackedDataset(digits, 4000).content_hash(),
        StackedDataset(ArrayDataset("mnist", digits.images ^ 1, digits.labels), 3000).content_hash(),
        StackedDataset(ArrayDataset("mnist", digits.images, 9 - digits.labels), 3000).content_hash(),
    }
    assert len(others) == 3 and first not in others


# As a named set


def test_named_set_is_drawn_of_cached_mnist(cache: Path) -> None:
    """By its name it has a million images of MNIST's digits, and nothing is written; its test split is another."""
    before = sorted(cache.rglob("*"))
    assert named.get(NAME) == cache / "mnist"
    assert num_images(config()) == named.num_images(NAME) == 1_000_000
    source = open_dataset(config())
    assert isinstance(source, StackedDataset) and len(source) == 1_000_000
    items = torch.arange(999_000, 1_000_000)
    assert torch.equal(source.pixels(items), StackedDataset(fake_digits()).pixels(items))
    assert len(named.open_named(NAME, "test")) == 100_000
    assert isinstance(named.open_named("mnist"), ArrayDataset)
    assert sorted(cache.rglob("*")) == before


def test_it_is_not_prepared(cache: Path, tmp_path: Path) -> None:
    """Asked to prepare it, one line says that it needs none."""
    assert "give --data stacked-mnist" in refusal(lambda: inputs.open_archive(NAME, tmp_path / "set"))


def test_loader_draws_in_the_training_process(cache: Path) -> None:
    """The loader chosen keeps nothing and starts no processes; another one that is asked for gives the same batches."""
    source = StackedDataset(fake_digits(), 2000)
    assert choose_loader(config(), source) == ("torch", "drawn batch by batch")
    drawn, kept = (build_loader(config(loader=loader), source, DEVICE) for loader in ("auto", "in_memory"))
    assert drawn._num_workers == 0
    for place in (0, 50, 1950, 2000, 700):
        ours, theirs = drawn.batch(place), kept.batch(place)
        assert torch.equal(ours.pixels, theirs.pixels)
        assert ours.labels is not None and theirs.labels is not None and torch.equal(ours.labels, theirs.labels)


# A run


@pytest.mark.usefixtures("keep_signal_handlers")
def test_run_counts_modes(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on it evaluates without any download: modes, KL and its floor, to log, console and evaluation.jsonl."""
    run_dir = tmp_path / "run"
    options = ["--preset", "debug", "--data", NAME, "--channels", "3", "--image-size", "32", "32", "--images", "64"]
    assert train.main([*options, "--eval-every", "64", "--eval-images", "60", "--run-dir", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "1,000,000 images of stacked-mnist; loader torch" in said and "kl_floor 8.325" in said
    row = next(row for row in read_rows(run_dir / "log.jsonl") if "metrics/modes" in row)
    assert 1 <= row["metrics/modes"] <= 60 and row["metrics/kl"] > 2
    assert row["metrics/kl_floor"] == pytest.approx(999 / 120)
    assert cli.main(["evaluate", str(run_dir), "--images", "60"]) == 0
    found = read_rows(run_dir / "evaluation.jsonl")[-1]
    assert found["metrics"] == {name: row[f"metrics/{name}"] for name in ("modes", "kl", "kl_floor")}
    assert found["protocol"]["data"] == NAME and found["protocol"]["num_fakes"] == 60
    assert not (cache / "statistics").exists()


def test_other_sizes_are_refused(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config of gray 28x28 images is told which flags the set needs."""
    assert cli.main(["train", "--preset", "debug", "--data", NAME, "--run-dir", str(tmp_path / "run")]) == 2
    assert "--channels 3 --image-size 32 32" in capsys.readouterr().err
