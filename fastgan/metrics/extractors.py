"""Images to features: the networks that metrics look through, by name."""

from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import safetensors.torch
import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.data import stacked
from fastgan.errors import UserError
from fastgan.metrics.digits import NUM_FEATURES, DigitsNet

DIGITS_SHA256 = "4e9a042243da179257d2d18886f1f6f35fbaafd001fe7c4f13713ef80013a6d4"
INCEPTION_FEATURES = 2048
INCEPTION_SHA256_PREFIX = "6726825d"  # as the published file's name has it


class Extractor(NamedTuple):
    """A network that maps uint8 images [B, C, H, W] to features [B, F] and class logits [B, K], both float32."""

    name: str
    version: str  # a hash of the weights
    num_features: int
    net: nn.Module

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(images)
        return features.float(), logits.float()


def name_for(config: Config) -> str:
    """The extractor that the config asks for: of `auto`, the one that fits the images."""
    if config.run.extractor != "auto":
        return config.run.extractor
    is_gray28 = (config.data.channels, config.data.image_size) == (1, (28, 28))
    return "digits" if is_gray28 or config.data.data == stacked.NAME else "inception"


def load(name: str, device: torch.device, inception_weights: Path | None = None) -> Extractor:
    """The extractor, ready on the device. Raises UserError where its weights aren't to be had or are damaged."""
    if name == "digits":
        return _digits(device)
    if name == "inception":
        return _inception(device, inception_weights)
    raise UserError(f"unknown extractor {name!r}: choose from digits, inception")


def _digits(device: torch.device) -> Extractor:
    data = resources.files("fastgan.metrics").joinpath("digits.safetensors").read_bytes()
    version = sha256(data).hexdigest()
    if version != DIGITS_SHA256:
        raise UserError("the digits extractor's weights are damaged: install fastgan again")
    net = DigitsNet()
    net.load_state_dict(safetensors.torch.load(data))
    return Extractor("digits", version[:16], NUM_FEATURES, _ready(net, device))


class _Inception(nn.Module):
    """torch-fidelity's Inception for gray images too, which it sees as RGB of three equal channels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)
        return features, logits


def _inception(device: torch.device, path: Path | None) -> Extractor:
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    path = path or _find_inception(inception.URL_INCEPTION_V3)
    try:
        version = sha256(path.read_bytes()).hexdigest()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # torch-fidelity would unpickle the file; it is handed what was loaded without.
        with mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: weights):
            net = inception.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], verbose=False
            )
    except Exception as error:  # whatever a wrong file makes them raise, the remedy is the same
        raise UserError(f"cannot use the Inception weights {path} ({_one_line(error)}): give another file") from None
    return Extractor("inception", version[:16], INCEPTION_FEATURES, _ready(_Inception(net), device))


def _find_inception(url: str) -> Path:
    """torch-fidelity's weights in torch.hub's cache, downloaded if they aren't there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), INCEPTION_SHA256_PREFIX, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"no Inception weights (the download failed: {_one_line(error)}): put {path.name} into {path.parent}, "
                "or name it with --inception-weights, or take --extractor digits for digit-like images"
            ) from None
    return path


def _ready(net: nn.Module, device: torch.device) -> nn.Module:
    return net.to(device).eval().requires_grad_(False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
