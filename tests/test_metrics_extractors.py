"""The networks that metrics look through: their weights, features and refusals."""

from importlib import resources

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from test_metrics import CPU, strokes

from fastgan import presets
from fastgan.data import named
from fastgan.errors import UserError
from fastgan.evaluation import digits, extractors, fidelity


@pytest.fixture(scope="module")
def extractor():
    return extractors.load("digits", CPU)


def test_digits_for_inference():
    """The extractor's network is the shipped one, whose normalization became part of its weights."""
    data = resources.files("fastgan.evaluation").joinpath("digits.safetensors").read_bytes()
    plain = digits.DigitsNet().eval()
    plain.load_state_dict(safetensors.torch.load(data))
    images = strokes(50, seed=1)
    with torch.inference_mode():
        wanted = plain(images)
    for mine, theirs in zip(extractors.load("digits", CPU)(images), wanted, strict=True):
        assert (mine - theirs).abs().max() <= 3e-6 * theirs.abs().max()


def test_digits_weights_are_small_and_accurate(extractor):
    """The shipped classifier is under 1 MB and right on at least 99.3% of MNIST's test images."""
    assert len(resources.files("fastgan.evaluation").joinpath("digits.safetensors").read_bytes()) < 1_000_000
    try:
        test_set = named.load("mnist", "test")
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


def check_floats(extractor, images):
    """Floats have the features of equal bytes, and a gradient goes through to them."""
    raw = images.float().requires_grad_()
    features = extractor.net(raw)[0]
    features.sum().backward()
    assert torch.allclose(features, extractor(images)[0], rtol=1e-4, atol=1e-5) and raw.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 2])
def test_digits_with_a_gradient(channels):
    """Floats have digits' features, also laid on a background, with a gradient, to invert by."""
    gray = strokes(2, seed=1)
    images = gray if channels == 1 else torch.cat([gray, torch.full_like(gray, 255)], dim=1)
    check_floats(extractors.with_alpha(extractors.load("digits", CPU), channels, "#808080", CPU), images)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file of the right tensors, with random numbers."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    net = inception.FeatureExtractorInceptionV3.__new__(inception.FeatureExtractorInceptionV3)
    weights = {}

    def keep(self, state_dict, *_, **__):
        weights.update({name: value.clone() for name, value in self.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", keep)
        inception.FeatureExtractorInceptionV3.__init__(net, "inception-v3-compat", ["2048"], verbose=False)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


def test_inception_sees_gray_as_rgb(inception_weights):
    """From a file of the right tensors, gray images and the same as RGB have equal features, 2048 of them; pixels that
    are floats have them too, with a gradient, to invert by.
    """
    extractor = extractors.load("inception", CPU, inception_weights)
    gray = strokes(2, seed=1)
    features, logits = extractor(gray)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert torch.equal(features, extractor(gray.expand(-1, 3, -1, -1))[0])
    check_floats(extractor, gray)


@pytest.mark.parametrize("size", [(64, 64), (300, 400)])
def test_clean_fids_resizing(size):
    """Images are resized as clean-fid does it: each channel by Pillow in floating point, clipped and not rounded."""
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = extractors.resize_clean(images.float(), (299, 299))
    for image, resized in zip(images.numpy(), found.numpy(), strict=True):
        for channel, mine in zip(image, resized, strict=True):
            wanted = Image.fromarray(channel.astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
            np.testing.assert_allclose(mine, np.asarray(wanted).clip(0, 255), atol=1e-4)
            assert np.asarray(wanted).min() < 0 and not np.array_equal(mine, mine.round())


def test_clean_inception_is_inception_of_clean_images(inception_weights):
    """What it sees is (x - 128) / 128 of the images that are resized so, by the same weights; its FID has a name."""
    clean = extractors.load("inception_clean", CPU, inception_weights)
    plain = extractors.load("inception", CPU, inception_weights)
    assert clean.version == plain.version and clean.transform != plain.transform
    assert fidelity.names(clean)[0] == "fid_inception_clean"
    seen = []
    (first,) = [module for name, module in clean.net.named_modules() if name.endswith("Conv2d_1a_3x3")]
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = strokes(1, seed=1)
    features, _ = clean(images)
    wanted = (extractors.resize_clean(images.float(), (299, 299)) - 128) / 128
    assert torch.equal(seen[0], wanted.expand(-1, 3, -1, -1)) and features.shape == (1, 2048)
    assert not torch.equal(features, plain(images)[0])


def test_unknown_extractor_is_one_line():
    """An extractor that isn't there is refused with those that are."""
    with pytest.raises(
        UserError,
        match="unknown extractor 'clip': choose from digits, inception, inception_clean, efficientnet, dinov2",
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
    check_floats(net, gray)
    assert "fd_efficientnet" in fidelity.names(net) and not any("fid" in name for name in fidelity.names(net))
    whole = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    wanted = net.net.net((whole.float() - 127) / 128)
    assert torch.allclose(net(whole)[1], wanted, atol=1e-4)
    monkeypatch.setattr(extractors, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"efficientnet weights .* are damaged"):
        extractors.load("efficientnet", CPU)


def test_efficientnet_is_the_packages_network(monkeypatch):
    """Fused, and in parts, it sees what the network of the package sees."""
    if not extractors.has_efficientnet():
        pytest.skip("the extra efficientnet isn't installed")
    ours = extractors.load("efficientnet", CPU)
    monkeypatch.setattr(extractors, "_fuse_efficientnet", lambda net: net)
    theirs = extractors.load("efficientnet", CPU)
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (ours.part + 1, 3, 40, 30), dtype=torch.uint8, generator=draws)
    for found, wanted in zip(ours(images), theirs.net(images), strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


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
