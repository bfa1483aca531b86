import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from fastgan import presets
from fastgan.data import sources
from fastgan.data.images import ImageSet
from fastgan.data.order import Order
from fastgan.errors import UserError
from fastgan.metrics import digits, distances, extractors, fidelity
from fastgan.metrics.distances import frechet
from fastgan.metrics.features import Collector, collect, gaussian_of
from fastgan.metrics.reals import Part, real_statistics

CPU = torch.device("cpu")


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


def torch_fidelity_says(fakes, reals, registered=Registered, subsets=100):
    """Its own figures, by our names; the reals in the order of which we take KID's subsets."""
    if registered.__name__ not in FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(registered.__name__, registered)
    found = torch_fidelity.calculate_metrics(
        input1=Plain(fakes),
        input2=Plain(reals[Order(len(reals), seed=0).items(range(len(reals)))]),
        feature_extractor=registered.__name__,
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        kid_subsets=subsets,
        prc=True,
        cache=False,
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
    return collect(extractor, len(images), lambda numbers: images[numbers.start : numbers.stop], CPU, None, batch_size)


def measured(fakes, reals, extractor, batch_size=100):
    statistics = real_statistics(ImageSet("strokes", reals), extractor, CPU, None, batch_size)
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
    """Tr sqrt(a b) of full covariances, in float64, by scipy where it is installed."""
    try:
        from scipy.linalg import sqrtm
    except ImportError:
        return np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return sqrtm(a @ b).real.trace()


def reference(x, y):
    """The squared Frechet distance of features, as numpy and scipy have it."""
    a, b = (np.cov(features, rowvar=False) for features in (x, y))
    return np.square(x.mean(0) - y.mean(0)).sum() + a.trace() + b.trace() - 2 * sqrt_trace(a, b)


def gaussian(features):
    values = torch.from_numpy(features)
    return gaussian_of(len(values), values.sum(0), values.T @ values)


@pytest.mark.parametrize(("num", "width"), [(500, 12), (4000, 96), (300, 64)])
def test_distance_is_that_of_scipy(num, width):
    """The Frechet distance of any features equals a float64 reference to 1e-8, whatever their means and scales."""
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
    still = np.ones((20, 96))  # one image, again and again: no covariance at all
    assert frechet(gaussian(still), gaussian(still * 3)) == pytest.approx(4 * 96, rel=1e-12)


def test_few_images_are_said(extractor):
    """Where images are no more than features, one line a side says so; where they are more, nothing is said."""
    assert fidelity.remarks(97, 97, extractor) == []
    (line,) = fidelity.remarks(1000, 96, extractor)
    assert line.startswith("96 real images for 96 features of digits: their covariance is singular")
    assert len(fidelity.remarks(5, 5, extractor)) == 2


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
    reals = ImageSet("strokes", strokes(200, seed=3))
    first = real_statistics(reals, extractor, CPU)
    calls = []
    add = Collector.add
    monkeypatch.setattr(Collector, "add", lambda *args: calls.append(1) or add(*args))
    again = real_statistics(ImageSet("other name", reals.images.clone()), extractor, CPU)
    assert not calls and torch.equal(first.gaussian.root, again.gaussian.root)
    assert torch.equal(first.features, again.features) and torch.equal(first.radii, again.radii)
    others = (
        (ImageSet("strokes", strokes(200, seed=4)), extractor),
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
    assert real_statistics(ImageSet("strokes", strokes(120, seed=3)), extractor, CPU).num_images == 120


def test_part_of_a_set(cache):
    """A class's images are those of the set, under a hash of their own."""
    whole = ImageSet("strokes", strokes(30, seed=3), torch.arange(30) % 3)
    parts = [Part(whole, (whole.labels == number).nonzero().flatten(), "part") for number in range(3)]
    assert torch.equal(parts[1].pixels(torch.tensor([0, 9])), whole.images[[1, 28]])
    assert len({part.content_hash() for part in (whole, *parts)}) == 4 and [len(part) for part in parts] == [10] * 3
    assert set(parts[2].labels.tolist()) == {2}


def test_distance_orders_sets_sensibly(cache, extractor):
    """More images of the same kind are nearest; noisy ones, and others, are far."""
    same, noisy, other = strokes(600, seed=6), strokes(600, seed=7), strokes(600, seed=8, width=9)
    noisy = (noisy.int() + torch.randint(0, 60, noisy.shape)).clamp(0, 255).to(torch.uint8)
    reals = real_statistics(ImageSet("strokes", strokes(600, seed=5)), extractor, CPU)
    found = [frechet(collected(images, extractor).gaussian, reals.gaussian) for images in (same, noisy, other)]
    assert found[0] < 0.2 * min(found[1:])


def test_generated_images_are_those_of_the_seeds():
    """The images that are measured are those of seeds 0, 1, 2 …, whatever the batch, in 8 bits."""
    G = torch.nn.Sequential(torch.nn.Linear(5, 28 * 28), torch.nn.Unflatten(1, (1, 28, 28)), torch.nn.Tanh()).eval()
    whole = torch.cat(list(fidelity.generate(G, 300, 5, CPU)))
    few = torch.cat(list(fidelity.generate(G, 3, 5, CPU)))
    assert whole.dtype == torch.uint8 and len(whole) == 300
    assert (whole[:3].int() - few.int()).abs().max() <= 1  # matrix products of other sizes may round otherwise


def test_digits_weights_are_small_and_accurate(extractor):
    """The shipped classifier is under 1 MB and right on at least 99.3% of MNIST's test images."""
    from importlib import resources

    assert len(resources.files("fastgan.metrics").joinpath("digits.safetensors").read_bytes()) < 1_000_000
    try:
        test_set = sources.load("mnist", "test")
    except UserError as error:
        pytest.skip(str(error))
    assert digits.accuracy(extractor.net, test_set.images, test_set.labels) >= 0.993


def test_damaged_digits_weights_are_noticed(monkeypatch):
    """Weights with another hash aren't used."""
    monkeypatch.setattr(extractors, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(UserError, match="damaged"):
        extractors.load("digits", CPU)


def test_inception_without_weights_is_one_line(tmp_path, monkeypatch):
    """Where no Inception weights are to be had, the error says in one line where to put them."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match=r"put weights-inception-.*\.pth into .*--inception-weights") as raised:
        extractors.load("inception", CPU)
    assert "\n" not in str(raised.value)


def test_inception_weights_are_never_unpickled(tmp_path):
    """A weights file that holds more than tensors is refused and doesn't run."""
    import pickle

    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (type(trap).touch, (trap,))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"weight": Trap()}))
    with pytest.raises(UserError, match="cannot use the Inception weights"):
        extractors.load("inception", CPU, path)
    torch.save({"weight": Trap()}, path)
    with pytest.raises(UserError, match="cannot use the Inception weights"):
        extractors.load("inception", CPU, path)
    assert not trap.exists()


def test_inception_sees_gray_as_rgb(tmp_path):
    """From a file of the right tensors, gray images and the same as RGB have equal features, 2048 of them."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    net = inception.FeatureExtractorInceptionV3.__new__(inception.FeatureExtractorInceptionV3)
    weights = {}

    def keep(self, state_dict, *_, **__):
        weights.update({name: value.clone() for name, value in self.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", keep)
        inception.FeatureExtractorInceptionV3.__init__(net, "inception-v3-compat", ["2048"], verbose=False)
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    extractor = extractors.load("inception", CPU, path)
    gray = strokes(2, seed=1)
    features, logits = extractor(gray)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert torch.equal(features, extractor(gray.expand(-1, 3, -1, -1))[0])


def test_too_few_images_are_refused(cache, extractor):
    """One image a side has no covariance: refused by name."""
    reals = real_statistics(ImageSet("strokes", strokes(20, seed=1)), extractor, CPU)
    with pytest.raises(UserError, match="eval_images is 1, of 20 real ones"):
        fidelity.measure(collected(strokes(1, seed=2), extractor), reals, extractor)


def test_unknown_extractor_is_one_line():
    """An extractor that isn't there is refused with those that are."""
    with pytest.raises(
        UserError, match="unknown extractor 'clip': choose from digits, inception, efficientnet, dinov2"
    ):
        extractors.load("clip", CPU)


def test_auto_takes_what_is_at_hand(tmp_path, monkeypatch):
    """Digits for gray 28x28; else Inception where its weights are, else efficientnet, else Inception's download."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    faces, gray = presets.get("faces128-fast"), presets.get("debug")
    assert extractors.name_for(gray) == "digits"
    monkeypatch.setattr(extractors, "has_efficientnet", lambda: True)
    assert extractors.name_for(faces) == "efficientnet"
    assert extractors.choose("auto", faces, tmp_path / "weights.pth") == "inception"
    assert extractors.choose("dinov2", faces) == "dinov2"
    monkeypatch.setattr(extractors, "has_efficientnet", lambda: False)
    assert extractors.name_for(faces) == "inception"
    monkeypatch.setattr(extractors, "has_efficientnet", lambda: True)
    path = extractors._inception_path()
    path.parent.mkdir()
    path.touch()
    assert extractors.name_for(faces) == "inception"


def test_efficientnet_isnt_installed(monkeypatch):
    """Where the extra isn't installed, one line says how to install it."""
    monkeypatch.setattr(extractors, "has_efficientnet", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'fastgan\[efficientnet\]'"):
        extractors.load("efficientnet", CPU)


def test_efficientnet_features(monkeypatch):
    """1280 features and ImageNet's classes, of any size; gray is seen as RGB; only the known weights are taken."""
    if not extractors.has_efficientnet():
        pytest.skip("the extra efficientnet isn't installed")
    net = extractors.load("efficientnet", CPU)
    gray = strokes(2, seed=1)
    features, logits = net(gray)
    assert features.shape == (2, 1280) and logits.shape == (2, net.num_classes) == (2, 1000)
    assert torch.equal(features, net(gray.expand(-1, 3, -1, -1))[0])
    assert "fd_efficientnet" in fidelity.names(net) and not any("fid" in name for name in fidelity.names(net))
    whole = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    wanted = net.net.net((whole.float() - 127) / 128)
    assert torch.allclose(net(whole)[1], wanted, atol=1e-4)
    monkeypatch.setattr(extractors, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"efficientnet weights .* are damaged"):
        extractors.load("efficientnet", CPU)


HUBCONF = """
import torch

def dinov2_vitl14(pretrained=True):
    assert not pretrained
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1024))
"""


def test_dinov2_from_the_cache(tmp_path, monkeypatch):
    """Without its source or weights one line says what is missing; with them there are features and no classes."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"no dinov2: .*hubconf.py is missing; torch.hub.load"):
        extractors.load("dinov2", CPU)
    source = tmp_path / extractors.DINO_SOURCE
    source.mkdir()
    (source / "hubconf.py").write_text(HUBCONF)
    with pytest.raises(UserError, match=r"dinov2_vitl14_pretrain.pth is missing"):
        extractors.load("dinov2", CPU)
    path = tmp_path / "checkpoints" / extractors.DINO_WEIGHTS
    path.parent.mkdir()
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot use the dinov2 weights"):
        extractors.load("dinov2", CPU)
    torch.save({"2.weight": torch.randn(1024, 3), "2.bias": torch.randn(1024)}, path)
    found = extractors.load("dinov2", CPU)
    features, logits = found(strokes(2, seed=0))
    assert features.shape == (2, 1024) and logits.shape == (2, 0)
    assert not any(name.startswith("is_") for name in fidelity.names(found)) and "fd_dinov2" in fidelity.names(found)


def test_only_inception_has_an_fid(extractor):
    """The names of all figures end in their extractor's, and only Inception's distance is called FID."""
    assert fidelity.names(extractor)[0] == "fd_digits"
    assert fidelity.names(extractor._replace(name="inception"))[0] == "fid_inception"
    assert all(name.endswith("_digits") for name in fidelity.names(extractor))
