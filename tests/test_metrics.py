import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from fastgan.data import sources
from fastgan.data.images import ImageSet
from fastgan.errors import UserError
from fastgan.metrics import digits, extractors, fidelity

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
        return tuple({"features": features, "logits": logits}[name] for name in self.features_list)


def test_figures_are_those_of_torch_fidelity(cache, extractor):
    """Every metric equals torch_fidelity.calculate_metrics on the same images, and real and fake aren't swapped."""
    fakes = strokes(1100, seed=1)  # of the reals' two kinds one only: precise, with half the recall
    reals = torch.cat([strokes(650, seed=2), strokes(650, seed=3, width=6)])
    torch_fidelity.register_feature_extractor("fastgan-digits", Registered)
    wanted = torch_fidelity.calculate_metrics(
        input1=_Plain(fakes),
        input2=_Plain(reals),
        feature_extractor="fastgan-digits",
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        cache=False,
        verbose=False,
    )
    statistics = fidelity.real_statistics(ImageSet("strokes", reals), extractor, CPU)
    statistics = statistics._replace(features=extractor(reals)[0])  # in their order, as KID's subsets depend on it
    found = fidelity.measure(*fidelity.extract(extractor, fakes.split(77)), statistics, "digits")
    for ours, theirs in (
        ("fd_digits", "frechet_inception_distance"),
        ("kid_digits", "kernel_inception_distance_mean"),
        ("kid_std_digits", "kernel_inception_distance_std"),
        ("is_digits", "inception_score_mean"),
        ("is_std_digits", "inception_score_std"),
        ("precision_digits", "precision"),
        ("recall_digits", "recall"),
    ):
        assert found[ours] == pytest.approx(wanted[theirs], rel=1e-4, abs=1e-6), ours
    assert found["precision_digits"] > 0.8 and found["recall_digits"] < 0.7


class _Plain(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        return self.images[item]


def test_statistics_are_kept_by_content(cache, extractor, monkeypatch):
    """A second measurement of the same images extracts nothing; other images are extracted; a damaged file too."""
    reals = ImageSet("strokes", strokes(200, seed=3))
    first = fidelity.real_statistics(reals, extractor, CPU)
    extract = fidelity.extract
    monkeypatch.setattr(fidelity, "extract", lambda *_: pytest.fail("extracted again"))
    again = fidelity.real_statistics(ImageSet("other name", reals.images.clone()), extractor, CPU)
    assert np.array_equal(first.covariance, again.covariance) and torch.equal(first.features, again.features)
    monkeypatch.setattr(fidelity, "extract", extract)
    other = fidelity.real_statistics(ImageSet("strokes", strokes(200, seed=4)), extractor, CPU)
    assert not np.array_equal(first.mean, other.mean)
    for file in (cache / "statistics").iterdir():
        file.write_bytes(b"broken")
    assert np.array_equal(fidelity.real_statistics(reals, extractor, CPU).mean, first.mean)


def test_distance_orders_sets_sensibly(cache, extractor):
    """More images of the same kind are nearest; noisy ones, and others, are far."""
    same, noisy, other = strokes(600, seed=6), strokes(600, seed=7), strokes(600, seed=8, width=9)
    noisy = (noisy.int() + torch.randint(0, 60, noisy.shape)).clamp(0, 255).to(torch.uint8)
    reals = fidelity.real_statistics(ImageSet("strokes", strokes(600, seed=5)), extractor, CPU)
    distances = [
        fidelity.measure(*fidelity.extract(extractor, images.split(200)), reals, "digits")["fd_digits"]
        for images in (same, noisy, other)
    ]
    assert distances[0] < 0.2 * min(distances[1:])


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
    reals = fidelity.real_statistics(ImageSet("strokes", strokes(20, seed=1)), extractor, CPU)
    with pytest.raises(UserError, match="eval_images is 1"):
        fidelity.measure(*fidelity.extract(extractor, [strokes(1, seed=2)]), reals, "digits")
