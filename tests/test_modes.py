"""Scores of histograms by hand, and what the shipped classifier makes of images."""

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastgan import networks, presets
from fastgan.data import named
from fastgan.data.stacked import StackedDataset
from fastgan.errors import UserError
from fastgan.evaluation import extractors, fidelity, modes
from fastgan.evaluation.evaluator import Evaluator
from fastgan.evaluation.extractors import Extractor
from fastgan.evaluation.modes import score

CPU = torch.device("cpu")  # whose rounding no verdict about a digit depends on


@pytest.fixture(scope="module")
def digits() -> Extractor:
    return extractors.load("digits", CPU)


class Label(torch.nn.Module):
    """Instead of the classifier: a 28x28 image's class is its value in the middle, and nothing else is looked at."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.shape[1:] == (1, 28, 28)
        return images.flatten(1).float(), torch.nn.functional.one_hot(images[:, 0, 14, 14].long(), 10).float() * 9


# Scores


def test_uniform_histogram() -> None:
    """All modes equally often: KL is 0, exactly, and all 1000 are there."""
    assert score(torch.full((1000,), 25)) == (1000, pytest.approx(0, abs=1e-12), 999 / 50_000, 25_000)


@pytest.mark.parametrize("lost", [1, 2, 250, 500, 990, 999])
def test_lost_modes(lost: int) -> None:
    """Where k of the 1000 modes are left, equally often, KL is log(1000 / k): half log 2, a single one log 1000."""
    counts = torch.zeros(1000, dtype=torch.int64)
    counts[torch.randperm(1000)[lost:]] = 64
    found = score(counts)
    assert found.modes == 1000 - lost
    assert found.kl == pytest.approx(math.log(1000 / (1000 - lost)), rel=1e-9)


def test_two_modes_by_hand() -> None:
    """Of four modes three and one image: KL = 3/4 log 3 + 1/4 log 1; floor 3/8."""
    found = score(torch.tensor([3, 0, 1, 0]))
    assert found == (2, pytest.approx(0.75 * math.log(3)), 0.375, 4)
    assert found.kl - found.floor == pytest.approx(0.75 * math.log(3) - 0.375)


def test_mixture_by_hand() -> None:
    """A mode with half of all images beside 999 others: KL = 1/2 log 500 + 1/2 log(1000 / 1998)."""
    counts = torch.ones(1000, dtype=torch.int64)
    counts[7] = 999
    assert score(counts).kl == pytest.approx(0.5 * math.log(500) + 0.5 * math.log(1000 / 1998))


@pytest.mark.parametrize("num_images", [25_600, 102_400])
def test_exact_sampling_is_at_the_floor(num_images: int) -> None:
    """A perfect generator has KL about (K - 1) / 2N, 0.0195 of 25,600 and 0.0049 of 102,400, within statistics.

    2 N KL is nearly chi-squared with 999 degrees of freedom, so KL's standard deviation is sqrt(999 / 2) / N.
    """
    draws = torch.Generator().manual_seed(3)
    scores = [score(torch.randint(1000, (num_images,), generator=draws).bincount(minlength=1000)) for _ in range(40)]
    sigma = math.sqrt(999 / 2) / num_images
    assert all(found.modes == 1000 and abs(found.kl - found.floor) < 5 * sigma for found in scores)
    mean = sum(found.kl for found in scores) / len(scores)
    second_order = 999 * 1000 / (12 * num_images**2)  # of the bias: Harris 1975
    assert abs(mean - scores[0].floor - second_order) < 4 * sigma / math.sqrt(len(scores))


def test_kl_doesnt_depend_on_the_order_of_modes() -> None:
    """Only how often modes come matters, not which, and a histogram of one image is log K."""
    counts = torch.randint(0, 9, (1000,), generator=torch.Generator().manual_seed(0))
    shuffled = score(counts[torch.randperm(1000)])
    assert shuffled == score(counts)._replace(kl=pytest.approx(shuffled.kl))
    assert score(torch.eye(10, dtype=torch.int64)[4]).kl == pytest.approx(math.log(10))


# Images


def test_each_channel_is_classified_in_its_place() -> None:
    """Mode 100 a + 10 b + c has a in R, b in G, c in B; the middle 28x28 is looked at; batches don't matter."""
    fake = Extractor("digits", "0", 784, Label())
    wanted = torch.randint(1000, (90,), generator=torch.Generator().manual_seed(0))
    images = torch.zeros(90, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 16, 16] = (wanted[:, None] // torch.tensor([100, 10, 1]) % 10).to(torch.uint8)
    for layout in (images, images.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(modes.stacked_modes(layout, fake), wanted)
        for batch_size in (90, 7):
            assert torch.equal(modes.mode_counts(layout.split(batch_size), fake), wanted.bincount(minlength=1000))


def legibility(batches: Iterable[Tensor], digits: Extractor) -> modes.Legibility:
    counts = [modes.legible_counts(digits(batch)[1]) for batch in batches]
    return modes.legibility_from(torch.stack(counts).sum(0))


def mnist_test() -> tuple[Tensor, Tensor]:
    try:
        test_set = named.load("mnist", "test")
    except UserError as error:
        pytest.skip(str(error))
    assert test_set.labels is not None
    return test_set.images, test_set.labels


def test_real_stacked_images_are_recognised(digits: Extractor) -> None:
    """On unseen digits, stacked, the classifier finds the mode of at least 97 in 100 images (of all: 98.9)."""
    mnist_test()
    stacked = named.open_named("stacked-mnist", "test")
    assert isinstance(stacked, StackedDataset)
    found = torch.cat([modes.stacked_modes(stacked.pixels(items), digits) for items in torch.arange(1000).split(250)])
    assert (found == stacked.labels[:1000]).double().mean() >= 0.97


@pytest.fixture(scope="module")
def real_modes(digits: Extractor) -> Tensor:
    """The modes that the classifier sees in 8,000 real images, 8 of each mode."""
    mnist_test()
    stacked = named.open_named("stacked-mnist")
    return torch.cat([modes.stacked_modes(stacked.pixels(items), digits) for items in torch.arange(8000).split(500)])


@pytest.mark.slow
def test_real_data_have_all_modes_at_the_floor(real_modes: Tensor) -> None:
    """Of real images, as many of each mode, all 1000 are found, and KL is far below what a sampler's chance leaves.

    The data's modes are exactly balanced, so that only the classifier's errors make KL: some 1 image in 100.
    """
    found = score(real_modes.bincount(minlength=1000))
    assert found.modes == 1000 and found.kl < 0.1 * found.floor


@pytest.mark.slow
def test_a_sampler_of_real_images_is_at_the_floor(real_modes: Tensor) -> None:
    """Of real images drawn by chance KL is within 10% of the floor, the classifier's errors included."""
    drawn = torch.randint(len(real_modes), (8000,), generator=torch.Generator().manual_seed(0))
    found = score(real_modes[drawn].bincount(minlength=1000))
    assert found.modes > 990 and found.kl == pytest.approx(found.floor, rel=0.1)


def test_a_sampler_that_misses_100_modes(digits: Extractor) -> None:
    """Of known modes without 100, exactly the 900 others are found: with labels known, no error blurs the count."""
    fake = Extractor("digits", "0", 784, Label())
    kept = torch.arange(1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(0)) >= 100]
    classes = kept.repeat(20)[:, None] // torch.tensor([100, 10, 1]) % 10
    images = classes[:, :, None, None].expand(-1, -1, 32, 32).to(torch.uint8)
    found = score(modes.mode_counts(images.split(500), fake))
    assert found.modes == 900 and found.kl == pytest.approx(math.log(1000 / 900))


def test_real_digits_are_legible(digits: Extractor) -> None:
    """Of unseen MNIST digits at least 98% are classified with confidence, and classes come as often as they are."""
    images, labels = (part[:2000] for part in mnist_test())
    found = legibility(images.split(300), digits)
    assert 0.98 <= found.confident <= 1
    shares = labels.bincount(minlength=10).double() / len(labels)
    assert torch.allclose(torch.tensor(found.class_shares, dtype=torch.float64), shares, atol=0.005)


def test_what_is_no_digit_shows_in_the_classes(digits: Extractor) -> None:
    """The classifier is sure of noise, too, so the confident share alone proves nothing: all noise is one class."""
    noise = torch.randint(0, 256, (200, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = legibility([noise], digits)
    assert found.confident > 0.9 and max(found.class_shares) > 0.9


def test_legibility_by_hand() -> None:
    """Of four images one is 0.9 sure and counts, one a little less; shares are those of the largest logits."""
    probabilities = torch.full((4, 10), 1e-9)
    probabilities[0, 3], probabilities[0, 4] = 0.9001, 0.0999
    probabilities[1, 3], probabilities[1, 4] = 0.8999, 0.1001
    probabilities[2] = 0.1
    probabilities[2, 9] = 0.11
    probabilities[3, 0] = 1.0
    found = modes.legibility_from(modes.legible_counts(probabilities.log()))
    assert found.confident == 0.5
    assert found.class_shares == [0.25, 0, 0, 0.5, 0, 0, 0, 0, 0, 0.25]


def test_evaluation_tells_legibility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Extractor) -> None:
    """A run on gray 28x28 images is told, beside the distances, the legibility of the very images it generates."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    config = presets.get("debug")
    G, _ = networks.build(config)
    metrics = Evaluator(config, named.load("toy"), digits, CPU)(G.eval(), 120)
    wanted = legibility([fidelity.images_of(G, range(120), config.networks.z_dim, CPU)], digits)
    assert metrics["confident_digits"] == wanted.confident
    assert metrics["min_class_share_digits"] == min(wanted.class_shares)
    assert metrics["max_class_share_digits"] == max(wanted.class_shares) > 0
    assert "fd_digits" in metrics and "modes" not in metrics


def test_score_is_the_same_on_any_batches(digits: Extractor) -> None:
    """Legibility doesn't depend on how the images are dealt into batches."""
    images = torch.randint(0, 256, (60, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert legibility([images], digits) == legibility(images.split(7), digits)
