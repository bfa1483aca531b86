import math

import pytest
import torch
import torch.nn.functional as F

from fastgan import networks, presets
from fastgan.errors import UserError
from fastgan.networks.keras28 import Discriminator28, Generator28
from fastgan.networks.layers import BatchNorm, Dropout
from fastgan.utils import rng


def test_parameter_counts_are_those_of_the_keras_program():
    """G and D of mnist28 have the trainable parameters that Keras's summary of the same layers shows."""
    G, D = networks.build(presets.get("mnist28"))
    dense = 100 * 12544 + 2 * 12544
    convolutions = 256 * 128 * 25 + 2 * 128 + 128 * 64 * 25 + 2 * 64 + 64 * 25
    assert networks.num_parameters(G) == dense + convolutions == 2_305_472
    assert networks.num_parameters(D) == (25 * 64 + 64) + (64 * 128 * 25 + 128) + (6272 + 1) == 212_865


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("width", [1.0, 0.0625])
def test_shapes_and_range(channels, width):
    """G makes [B, C, 28, 28] in [-1, 1], D one logit an image, at any width and number of channels."""
    G, D = Generator28(10, channels, width), Discriminator28(channels, width)
    images = G(3 * torch.randn(5, 10))
    assert images.shape == (5, channels, 28, 28)
    assert images.abs().max() <= 1
    assert D(images).shape == (5,)


def test_weights_start_glorot_uniform():
    """Weights are uniform up to sqrt(6 / (fan in + fan out)), biases 0, norms 1 and 0."""
    G, D = networks.build(presets.get("mnist28"))
    for layer, fans in (
        (G.dense, 100 + 12544),
        (G.conv7, 25 * (256 + 128)),
        (G.up14, 25 * (128 + 64)),
        (D.down7, 25 * (64 + 128)),
    ):
        limit = math.sqrt(6 / fans)
        assert 0.98 * limit < layer.weight.abs().max() <= limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert all((bias == 0).all() for bias in (D.down14.bias, D.down7.bias, D.dense.bias))
    assert (G.norm7.weight == 1).all() and (G.norm7.bias == 0).all()


def test_first_convolution_is_a_transposed_one():
    """G's convolution of stride 1 equals a transposed one whose kernel is mirrored and its channels swapped."""
    G = Generator28(4, 1, width=1 / 32)
    x = torch.randn(2, G.conv7.in_channels, 7, 7)
    mirrored = G.conv7.weight.flip(2, 3).transpose(0, 1)
    torch.testing.assert_close(G.conv7(x), F.conv_transpose2d(x, mirrored, padding=2))


def test_seed_alone_decides_the_first_weights():
    """Equal seeds give equal networks whatever was drawn before; the caller's random state is left as it was."""
    config = presets.get("debug")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = networks.build(config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = networks.build(config)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_builders_refuse_what_they_cannot_make():
    """An unknown network, or a size that the network can't make, is refused by name."""
    from dataclasses import replace

    config = presets.get("debug")
    with pytest.raises(UserError, match=r"unknown network 'resnet': choose from dcgan, dcgan128, dcgan28, r3gan"):
        networks.build(replace(config, networks=replace(config.networks, network="resnet")))
    with pytest.raises(UserError, match=r"image_size is \(30, 32\).*multiples of 4"):
        networks.build(replace(config, data=replace(config.data, image_size=(30, 32))))
    config = presets.get("faces128")
    with pytest.raises(UserError, match=r"image_size is \(64, 128\): the network dcgan128 makes \(128, 128\) only"):
        networks.build(replace(config, data=replace(config.data, image_size=(64, 128))))


def test_dropout_depends_on_the_image_alone():
    """An image loses the same activations in any batch; another layer, another image: others."""
    keys = rng.keys(1, rng.RngStream.NOISE_REALS, torch.arange(6))
    x = torch.ones(6, 8, 5, 3)
    drop = Dropout(0.3, layer=1)
    whole = drop(x, keys)
    assert torch.equal(whole[2:5], drop(x[2:5], keys[2:5]))
    assert not torch.equal(whole, Dropout(0.3, layer=2)(x, keys))
    assert not torch.equal(whole[0], whole[1])


def test_dropout_keeps_the_mean():
    """Each activation survives with probability 1 - p and is scaled by its inverse; without keys nothing happens."""
    x = torch.ones(64, 16, 8, 8)
    drop = Dropout(0.3, layer=1)
    out = drop(x, rng.keys(1, rng.RngStream.NOISE_REALS, torch.arange(64)))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(drop(x, None), x)
    assert torch.equal(drop.eval()(x, torch.arange(64)), x)


def test_batchnorm_on_one_process_is_torchs():
    """Outputs, gradients and running statistics equal torch's BatchNorm2d with the same constants."""
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3, eps=1e-3, momentum=0.01), torch.nn.BatchNorm2d(3, eps=1e-3, momentum=0.01)
    a = torch.randn(4, 3, 5, 5, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    for net, x in ((ours, a), (theirs, b)):
        net(x).square().sum().backward()
    assert torch.equal(a.grad, b.grad)
    assert torch.equal(ours.running_var, theirs.running_var)


def test_batchnorm_of_a_single_value():
    """A channel with one value gives its bias, finite gradients, and running statistics that stay finite."""
    norm = BatchNorm(3, eps=1e-3, momentum=0.01)
    x = torch.randn(1, 3, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert torch.equal(out, norm.bias.expand(1, 3))
    assert x.grad.isfinite().all() and norm.running_var.isfinite().all()
    assert torch.allclose(norm.running_mean, 0.01 * x.detach()[0])
