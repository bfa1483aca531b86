"""Convolutions by Fourier transforms are torch's own in everything but speed."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastgan import networks, presets
from fastgan.networks import fourier

MAKERS: dict[str, tuple[Callable[..., nn.Module], dict[str, int]]] = {
    "same": (fourier.Conv2d, {"kernel_size": 5, "padding": 2}),
    "small kernel": (fourier.Conv2d, {"kernel_size": 3, "padding": 1}),
    "half": (fourier.DownConv, {"kernel_size": 5, "stride": 2, "padding": 2}),
    "double": (fourier.UpConv, {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": 1}),
}


def plain(layer: nn.Module, x: Tensor) -> Tensor:
    """What torch's layer of these weights gives."""
    (kind,) = type(layer).__bases__
    result: Tensor = kind.forward(layer, x)  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("size", [(4, 6), (14, 14), (6, 8), (2, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_torchs(
    kind: str, size: tuple[int, int], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, and gradients in image, weights and bias, at sides even and uneven, equal to rounding in float64."""
    monkeypatch.setattr(fourier, "PAYS", 0.0)
    torch.manual_seed(0)
    make, options = MAKERS[kind]
    layer = make(3, 5, bias=bias, **options).double()
    if kind != "half":
        size = (size[0] + 1, size[1])
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    found, wanted = layer(x), plain(layer, x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    slope = torch.randn_like(wanted)
    needed = [x, *layer.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found, needed, slope), torch.autograd.grad(wanted, needed, slope), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", MAKERS)
def test_gradients_of_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties may differentiate through the layers twice."""
    monkeypatch.setattr(fourier, "PAYS", 0.0)
    torch.manual_seed(0)
    make, options = MAKERS[kind]
    layer = make(1, 2, **options).double()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_mnist28_computes_what_it_did() -> None:
    """The reference networks at full width in float32 take this form, and give torch's images and logits to 1e-5."""
    G, D = networks.build(presets.get("mnist28"))
    z = torch.randn(256, 100, generator=torch.Generator().manual_seed(0))
    plain_G, plain_D = copy.deepcopy(G), copy.deepcopy(D)
    for net in (plain_G, plain_D):
        for layer in net.modules():
            if isinstance(layer, fourier.Conv2d | fourier.DownConv | fourier.UpConv):
                layer.__class__ = type(layer).__bases__[0]
    with torch.no_grad():
        images, wanted = G(z), plain_G(z)
        assert not torch.equal(images, wanted), "the plain form was taken"
        torch.testing.assert_close(images, wanted, rtol=0, atol=1e-5)
        logits, wanted = D(images), plain_D(images)
        assert not torch.equal(logits, wanted), "the plain form was taken"
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


def test_plain_where_it_does_not_pay() -> None:
    """A large picture, few channels, a single image, and a device that isn't a CPU get torch's own convolution."""
    pays = fourier.is_faster
    assert pays(torch.empty(256, 1), (7, 7), 5, 25, (256, 128))
    assert not pays(torch.empty(256, 1), (64, 64), 5, 25, (256, 128))
    assert not pays(torch.empty(256, 1), (7, 7), 5, 25, (8, 8))
    assert not pays(torch.empty(1, 1), (7, 7), 5, 25, (256, 128))
    assert not pays(torch.empty(256, 1, device="meta"), (7, 7), 5, 25, (256, 128))


def test_training_after_sampling() -> None:
    """A network that first drew samples in inference mode, as training's first grid does, can be trained afterwards."""
    fourier._basis.cache_clear()
    layer = fourier.Conv2d(64, 64, kernel_size=5, padding=2)
    x = torch.randn(64, 64, 7, 7)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and bool(layer.weight.grad.any())


def test_compiled_layers_are_whole_graphs() -> None:
    """Where it would pay, compiled code has torch's convolution, in one graph, with the same numbers to 1e-5."""
    layer, x = fourier.Conv2d(64, 64, kernel_size=5, padding=2), torch.randn(64, 64, 7, 7)
    assert fourier.is_faster(x, (7, 7), 5, 25, (64, 64))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-5)
