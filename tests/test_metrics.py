import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from fastgan.data.images import ArrayDataset
from fastgan.data.sampler import Sampler
from fastgan.errors import UserError
from fastgan.evaluation import distances, extractors, fidelity
from fastgan.evaluation.distances import frechet
from fastgan.evaluation.features import Collector, collect, gaussian_of, gaussian_of_few
from fastgan.evaluation.reference import Subset, real_statistics

CPU = torch.device("cpu")  # where the figures of other programs are computed, too


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def extractor():
    return extractors.load("digits", CPU)


def strokes(num: int, seed: int, width: int = 3) -> torch.Tensor:
    """Gray uint8 images of one random bar each."""
    random = np.random.default_rng(seed)
    images = np.zeros((num, 1, 28, 28), np.uint8)
    for image, (row, column) in zip(images, random.integers(2, 18, (num, 2)), strict=True):
        image[0, row : row + 8, column : column + width] = random.integers(128, 256)
    return torch.from_numpy(images)


class Registered(FeatureExtractorBase):
    """The digits extractor in torch-fidelity's clothes."""

    dtype = torch.float32

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.extractor = extractors.load("digits", CPU)

    @staticmethod
    def get_provided_features_list():
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 1, 28, 28, dtype=torch.uint8)

    def forward(self, images):
        features, logits = self.extractor(images)
        found = {"features": features.to(self.dtype), "logits": logits}
        return tuple(found[name] for name in self.features_list)


class RegisteredInFloat64(Registered):
    """The same features, of which torch-fidelity then computes everything in float64."""

    dtype = torch.float64


class Plain(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        return self.images[item]


def torch_fidelity_says(fakes, reals, registered=Registered, subsets=100, subset_size=1000):
    """Its own figures, by our names; the reals in the order of which we take KID's subsets."""
    if registered.__name__ not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(registered.__name__, registered)
    found = torch_fidelity.calculate_metrics(
        input1=Plain(fakes),
        input2=Plain(reals[Sampler(len(reals), seed=0).dataset_indices(range(len(reals)))]),
        feature_extractor=registered.__name__,
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        prc=True,
        cache=False,
        save_cpu_ram=len(fakes) < 1000,  # of few images, whose reading by processes would take longer
        verbose=False,
    )
    return {ours: found[theirs] for ours, theirs in THEIR_NAMES.items()}


THEIR_NAMES = {
    "fd_digits": "frechet_inception_distance",
    "kid_digits": "kernel_inception_distance_mean",
    "kid_std_digits": "kernel_inception_distance_std",
    "is_digits": "inception_score_mean",
    "is_std_digits": "inception_score_std",
    "precision_digits": "precision",
    "recall_digits": "recall",
}


def collected(images, extractor, batch_size=100):
    return collect(extractor, len(images), lambda numbers: images[numbers.start : numbers.stop], CPU, batch_size)


def measured(fakes, reals, extractor, batch_size=100):
    statistics = real_statistics(ArrayDataset("strokes", reals), extractor, CPU, batch_size)
    return fidelity.measure(collected(fakes, extractor, batch_size), statistics, extractor)


@pytest.fixture(scope="module")
def two_sets():
    """Of the reals' two kinds the fakes are of one only: precise, with half the recall. No batch divides them."""
    return strokes(1103, seed=1), torch.cat([strokes(650, seed=2), strokes(651, seed=3, width=6)])


def test_figures_are_those_of_torch_fidelity(cache, extractor, two_sets):
    """Every metric equals torch_fidelity.calculate_metrics on the same images, in its float32, whose KID rounds, and in
    float64; real and fake aren't swapped."""
    found = measured(*two_sets, extractor, batch_size=77)
    for registered, rel in ((Registered, 1e-6), (RegisteredInFloat64, 1e-7)):
        wanted = torch_fidelity_says(*two_sets, registered)
        for name, value in wanted.items():
            rounds = {"kid_digits": 1e-5, "kid_std_digits": 1e-3} if registered is Registered else {}
            assert found[name] == pytest.approx(value, rel=rounds.get(name, rel)), (registered, name)
    assert found["precision_digits"] > 0.8 and found["recall_digits"] < 0.7
    assert found["coverage_digits"] < 0.7


def test_roles_matter(cache, extractor, two_sets):
    """With real and fake swapped, precision and recall change places and the inception score is the other set's."""
    fakes, reals = two_sets
    found, swapped = measured(fakes, reals, extractor), measured(reals, fakes, extractor)
    assert swapped["precision_digits"] == pytest.approx(found["recall_digits"], abs=1e-12)
    assert swapped["recall_digits"] == pytest.approx(found["precision_digits"], abs=1e-12)
    assert abs(swapped["is_digits"] - found["is_digits"]) > 1e-3
    assert abs(swapped["coverage_digits"] - found["coverage_digits"]) > 0.1


def sqrt_trace(a, b):
    """Tr sqrt(a b) of covariances of full rank, in float64."""
    from scipy.linalg import sqrtm  # of the extra dev

    return sqrtm(a @ b).real.trace()


def reference(x, y):
    """The squared Frechet distance of features, as numpy and scipy have it; of more images than features."""
    a, b = (np.cov(features, rowvar=False) for features in (x, y))
    return np.square(x.mean(0) - y.mean(0)).sum() + a.trace() + b.trace() - 2 * sqrt_trace(a, b)


def gaussian(features):
    values = torch.from_numpy(features)
    return gaussian_of(len(values), values.sum(0), values.T @ values)


@pytest.mark.parametrize(("num", "width"), [(500, 12), (4000, 96), (300, 64)])
def test_distance_is_that_of_scipy(num, width):
    """The Frechet distance of any features equals scipy's in float64 to 1e-8, whatever their means and scales."""
    random = np.random.default_rng(width)
    scales = np.exp(random.normal(size=width))
    x = (random.normal(size=(num, width)) @ random.normal(size=(width, width))) * scales + 3
    y = random.normal(size=(num + 7, width)) * scales + random.normal(size=width)
    assert frechet(gaussian(x), gaussian(y)) == pytest.approx(reference(x, y), rel=1e-8)


def test_singular_covariances():
    """Features in a subspace, of fewer images than features, have the distance that they have in the subspace."""
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.normal(size=(96, 8)))
    x, y = random.normal(size=(40, 8)) * 2 + 1, random.normal(size=(30, 8))
    assert frechet(gaussian(x @ basis.T), gaussian(y @ basis.T)) == pytest.approx(reference(x, y), rel=1e-8)
    assert frechet(gaussian(x @ basis.T), gaussian(x @ basis.T)) == pytest.approx(0, abs=1e-10)
    few = [gaussian_of_few(torch.from_numpy(features @ basis.T)) for features in (x, y)]
    assert frechet(*few) == pytest.approx(reference(x, y), rel=1e-8)
    assert frechet(few[0], gaussian(y @ basis.T)) == pytest.approx(reference(x, y), rel=1e-8)
    still = np.ones((20, 96))  # one image, again and again: no covariance at all
    assert frechet(gaussian(still), gaussian(still * 3)) == pytest.approx(4 * 96, rel=1e-12)


def test_few_images_are_measured(cache, extractor):
    """Of fewer images than features, collected or summed up, the distance is the same, and of themselves 0."""
    few = strokes(70, seed=1)
    found, values = collected(few, extractor), extractor(few)[0].double()
    summed = gaussian_of(70, values.sum(0), values.T @ values)
    reals = collected(strokes(400, seed=2), extractor).gaussian
    assert frechet(found.gaussian, reals) == pytest.approx(frechet(summed, reals), rel=1e-8)
    assert frechet(found.gaussian, summed) == pytest.approx(0, abs=1e-10)


def test_kernel_by_brute_force():
    """The kernel distance is the unbiased one over all pairs of each subset, blocks or not; here the whole set."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(613, 5)), random.normal(size=(613, 5)) + 0.2

    def mean(a, b, same=False):
        values = (a @ b.T / 5 + 1) ** 3
        return values[~np.eye(len(a), dtype=bool)].mean() if same else values.mean()

    wanted = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y)
    value, deviation = distances.kernel(torch.from_numpy(x), torch.from_numpy(y), subsets=2)
    assert value == pytest.approx(wanted, rel=1e-9) and deviation == pytest.approx(0, abs=1e-12)


def test_few_images_are_said(extractor):
    """Where images are no more than features, one line a side says so; where they are more, nothing is said."""
    assert fidelity.warnings(97, 97, extractor) == []
    (line,) = fidelity.warnings(1000, 96, extractor)
    assert line.startswith("96 real images for 96 features of digits: their covariance is singular")
    assert len(fidelity.warnings(5, 5, extractor)) == 2


def test_neighbours_by_brute_force():
    """Precision, recall, density and coverage are what their papers' formulas give, image by image."""
    random = np.random.default_rng(0)
    fakes, reals = random.normal(size=(41, 3)), random.normal(size=(53, 3)) * 1.5 + 0.3

    def apart(a, b):
        return np.sqrt(np.square(a - b).sum())

    def radius(features, number, k):
        return sorted(apart(features[number], other) for i, other in enumerate(features) if i != number)[k - 1]

    def inside(point, features, k):
        return [apart(point, center) <= radius(features, i, k) for i, center in enumerate(features)]

    wanted = (
        np.mean([any(inside(fake, reals, 3)) for fake in fakes]),
        np.mean([any(inside(real, fakes, 3)) for real in reals]),
        np.sum([sum(inside(fake, reals, 5)) for fake in fakes]) / (5 * len(fakes)),
        np.mean(np.any([inside(fake, reals, 5) for fake in fakes], axis=0)),
    )
    x, y = torch.from_numpy(fakes), torch.from_numpy(reals)
    assert distances.neighbors(x, y, distances.radii(y)) == pytest.approx(wanted)


def test_copies_lie_on_the_reals():
    """Of the reals themselves everything is 1 but density, which counts the balls around each: about 1."""
    reals = torch.from_numpy(np.random.default_rng(0).normal(size=(1500, 4)))
    found = distances.neighbors(reals, reals, distances.radii(reals))
    assert found[:2] == (1, 1) and found.coverage == 1 and found.density == pytest.approx(6 / 5)  # itself and five


def test_statistics_are_kept_by_content(cache, extractor, monkeypatch):
    """A second measurement of the same images extracts nothing; other images, weights or transforms are extracted."""
    reals = ArrayDataset("strokes", strokes(200, seed=3))
    first = real_statistics(reals, extractor, CPU)
    calls = []
    add = Collector.add
    monkeypatch.setattr(Collector, "add", lambda *args: calls.append(1) or add(*args))
    again = real_statistics(ArrayDataset("other name", reals.images.clone()), extractor, CPU)
    assert not calls and torch.equal(first.gaussian.root, again.gaussian.root)
    assert torch.equal(first.features, again.features) and torch.equal(first.radii, again.radii)
    others = (
        (ArrayDataset("strokes", strokes(200, seed=4)), extractor),
        (reals, extractor._replace(version="other")),
        (reals, extractor._replace(transform="other")),
    )
    for source, other in others:
        calls.clear()
        real_statistics(source, other, CPU)
        assert calls
    for file in (cache / "statistics").iterdir():
        file.write_bytes(b"broken")
    assert torch.equal(real_statistics(reals, extractor, CPU).gaussian.mean, first.gaussian.mean)


def test_a_full_disk_is_no_error(cache, extractor, monkeypatch):
    """Where the cache can't be written the statistics are there all the same."""
    (cache / "statistics").write_text("in the way")
    assert real_statistics(ArrayDataset("strokes", strokes(120, seed=3)), extractor, CPU).num_images == 120


def test_part_of_a_set(cache):
    """A class's images are those of the set, under a hash of their own."""
    whole = ArrayDataset("strokes", strokes(30, seed=3), torch.arange(30) % 3)
    parts = [Subset(whole, (whole.labels == number).nonzero().flatten(), "part") for number in range(3)]
    assert torch.equal(parts[1].pixels(torch.tensor([0, 9])), whole.images[[1, 28]])
    assert len({part.content_hash() for part in (whole, *parts)}) == 4 and [len(part) for part in parts] == [10] * 3
    assert set(parts[2].labels.tolist()) == {2}


def test_distance_orders_sets_sensibly(cache, extractor):
    """More images of the same kind are nearest; noisy ones, and others, are far."""
    same, noisy, other = strokes(600, seed=6), strokes(600, seed=7), strokes(600, seed=8, width=9)
    noisy = (noisy.int() + torch.randint(0, 60, noisy.shape)).clamp(0, 255).to(torch.uint8)
    reals = real_statistics(ArrayDataset("strokes", strokes(600, seed=5)), extractor, CPU)
    found = [frechet(collected(images, extractor).gaussian, reals.gaussian) for images in (same, noisy, other)]
    assert found[0] < 0.2 * min(found[1:])


def test_generated_images_are_those_of_the_seeds():
    """The images that are measured are those of seeds 0, 1, 2 …, whatever the batch, in 8 bits."""
    G = torch.nn.Sequential(torch.nn.Linear(5, 28 * 28), torch.nn.Unflatten(1, (1, 28, 28)), torch.nn.Tanh()).eval()
    whole = fidelity.images_of(G, range(300), 5, CPU)
    few = fidelity.images_of(G, range(3), 5, CPU)
    assert whole.dtype == torch.uint8 and len(whole) == 300
    assert (whole[:3].int() - few.int()).abs().max() <= 1  # matrix products of other sizes may round otherwise


def test_too_few_images_are_refused():
    """One image a side has no covariance: refused by name."""
    with pytest.raises(UserError, match="1 generated and 20 real images: metrics need two of each"):
        fidelity.require_enough(1, 20)
    fidelity.require_enough(2, 20)
