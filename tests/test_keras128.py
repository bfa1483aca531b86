"""The preset faces128: its networks, its steps, its resume."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import DEVICE

from fastgan import networks, presets
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader
from fastgan.data.sampler import batch_positions, num_steps
from fastgan.networks.keras128 import Discriminator128, Generator128
from fastgan.training.trainer import Trainer

NUM_PHOTOGRAPHS = 9090


def pictures(num_images, channels=3):
    """Discs of many sizes and shades, [N, C, 128, 128]."""
    number = torch.arange(num_images * channels, dtype=torch.float64).view(num_images, channels, 1, 1)
    y = torch.linspace(-1, 1, 128, dtype=torch.float64)[:, None]
    radius = 0.3 + 0.4 * torch.frac(number * 0.618)
    distance = (y.square() + y.T.square()).sqrt()
    return ArrayDataset("discs", (255 * torch.frac(number * 0.382) * (distance < radius)).to(torch.uint8))


def make(num_images=40, batch_size=16, **optimizer):
    config = presets.get("faces128")
    config = replace(
        config,
        data=replace(config.data, batch_size=batch_size),
        networks=replace(config.networks, width=1 / 16),
        optimizer=replace(config.optimizer, **optimizer),
    )
    return Trainer(config, networks.build(config, DEVICE), build_loader(config, pictures(num_images), DEVICE))


def step(trainer):
    return trainer.train_step(trainer.loader.batch(trainer.images_seen))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("width", [1 / 16, 1 / 256])
def test_shapes_and_range(channels, width):
    """G makes [B, C, 128, 128] in [-1, 1], D one logit an image, at any width and number of channels."""
    G, D = Generator128(10, channels, width), Discriminator128(channels, width)
    images = G(3 * torch.randn(2, 10))
    assert images.shape == (2, channels, 128, 128)
    assert images.abs().max() <= 1
    assert D(images).shape == (2,)


def test_parameter_counts():
    """G and D of faces128 have the parameters of the layers that the docstrings tell of."""
    G, D = networks.build(presets.get("faces128"))
    between = 16 * (32 * 64 + 64 * 128 + 128 * 256)  # the three convolutions that both have
    dense = 100 * 8 * 8 * 256
    assert networks.num_parameters(G) == dense + between + 2 * (256 + 128 + 64 + 32) + (16 * 32 * 3 + 3) == 2_329_027
    first, last = 16 * 3 * 32 + 32, 8 * 8 * 256 + 1
    assert networks.num_parameters(D) == first + between + 2 * (64 + 128 + 256) + last == 706_977


def test_weights_start_glorot_uniform():
    """Weights are uniform up to sqrt(6 / (fan in + fan out)), biases 0."""
    G, D = networks.build(presets.get("faces128"))
    for layer, fans in ((G.dense, 100 + 16384), (G.up16, 16 * 384), (D.down8, 16 * 384), (D.dense, 16385)):
        limit = math.sqrt(6 / fans)
        assert 0.98 * limit < layer.weight.abs().max() <= limit
    assert all((bias == 0).all() for bias in (G.up128.bias, D.down64.bias, D.dense.bias))


def test_networks_are_channels_last_throughout():
    """No activation that a convolution gets is laid out again: in memory they all are channels last."""
    G, D = networks.build(make().config)
    seen = []
    for net in (G, D):
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    D(G(torch.randn(2, 100)))
    assert len(seen) == 8
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_confidence_and_its_cross_entropy():
    """The objective's loss on logits is Keras's on their sigmoid."""
    trainer = make()
    trainer.D.net.eval()
    batch = trainer.loader.batch(0)
    confidence = torch.sigmoid(trainer.D.net(batch.reals))
    loss = trainer.D.module.loss.d(trainer.D.net(batch.reals), trainer.D.net(batch.reals))
    torch.testing.assert_close(loss, -confidence.log() - (1 - confidence).log())


def test_an_epoch_of_the_photographs():
    """9,090 images at batch 32 are 285 steps, the last of two images."""
    data = presets.get("faces128").data
    assert num_steps(NUM_PHOTOGRAPHS, NUM_PHOTOGRAPHS, data.batch_size, data.keep_partial_batch) == 285
    last = batch_positions(284 * 32, NUM_PHOTOGRAPHS, data.batch_size, data.keep_partial_batch)
    assert list(last) == [9088, 9089]


@pytest.mark.parametrize("rest", [1, 2])
def test_small_last_batch(rest):
    """A last batch of two images, or of one, trains as any other: all values stay finite and the weights move."""
    trainer = make(num_images=16 + rest)
    step(trainer)
    before = trainer.G.net.dense.weight.clone(), trainer.D.net.dense.weight.clone()
    terms = step(trainer)
    assert trainer.images_seen == 16 + rest
    assert all(term.isfinite() for term in terms.values())
    for net in (trainer.G.net, trainer.D.net):
        assert all(value.isfinite().all() for value in net.state_dict().values())
    assert not torch.equal(before[0], trainer.G.net.dense.weight)
    assert not torch.equal(before[1], trainer.D.net.dense.weight)


def test_resumed_is_never_stopped():
    """A trainer that takes over another's state in mid-epoch ends with the same bits as one that went on."""
    settings = {"num_images": 20, "batch_size": 8, "lr_decay": 0.1}
    straight, first = make(**settings), make(**settings)
    for _ in range(6):
        step(straight)
    for _ in range(4):
        step(first)
    tensors, state = first.state()
    assert {name.rsplit("/", 1)[1] for name in tensors["optimizers"]} == {"step", "square_avg"}
    resumed = make(**settings)
    resumed.load_state(tensors, state)
    for _ in range(2):
        step(resumed)
    (wanted, wanted_state), (got, got_state) = straight.state(), resumed.state()
    assert got_state == wanted_state
    for name, group in wanted.items():
        assert group.keys() == got[name].keys()
        assert all(torch.equal(value, got[name][key]) for key, value in group.items())


def test_state_lies_as_its_parameters_do():
    """After a resume each mean of squared gradients has its parameter's strides: none is laid out again in a step."""
    trainer, resumed = make(), make()
    step(trainer)
    tensors, state = trainer.state()
    contiguous = {name: {key: value.contiguous() for key, value in group.items()} for name, group in tensors.items()}
    resumed.load_state(contiguous, state)
    for player in (resumed.G, resumed.D):
        for parameter, values in player.optimizer.state.items():
            assert values["square_avg"].stride() == parameter.stride()
