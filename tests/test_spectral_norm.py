"""Spectral norm of D: every layer's largest singular value is 1, through penalties, training and checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import DEVICE
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastgan import networks, presets
from fastgan.config import Config
from fastgan.data import named
from fastgan.data.loaders import build_loader
from fastgan.networks.layers import SpectralNorm, add_spectral_norm, power_iteration
from fastgan.runs.checkpoint import Checkpoints
from fastgan.training.penalties import gradient_sq_norm
from fastgan.training.trainer import Trainer

FAMILIES = ("dcgan28", "r3gan")  # and dcgan128, which trains on other images


def config_of(network: str, penalty: str = "r1") -> Config:
    config = presets.get("debug")
    config = replace(config, data=replace(config.data, batch_size=8))
    nets = replace(config.networks, network=network, spectral_norm=True, stages=(16, 8, 8), group_width=8)
    if network == "dcgan128":
        config = replace(config, data=replace(config.data, image_size=(128, 128)))
    return replace(
        config,
        networks=replace(nets, stages=nets.stages if network == "r3gan" else ()),
        objective=replace(config.objective, loss="hinge", penalty=penalty, gamma=1.0),
    )


def trainer_of(network: str) -> Trainer:
    config = config_of(network)
    return Trainer(config, networks.build(config, DEVICE), build_loader(config, named.load("toy"), DEVICE))


def train(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.train_step(trainer.loader.batch(trainer.images_seen))


def layers(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def largest(weight: Tensor) -> float:
    """By a whole singular value decomposition."""
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2))


@pytest.mark.parametrize("network", ["dcgan28", "dcgan128", "r3gan"])
def test_every_layer_of_d(network: str) -> None:
    """At the start every linear layer and convolution of D has a largest singular value of about 1; G is as ever."""
    config = config_of(network, "none")
    G, D = networks.build(config, DEVICE)
    assert len(layers(D)) >= 3
    for layer in layers(D):
        assert isinstance(layer.parametrizations.weight[0], SpectralNorm)
        assert largest(layer.weight) == pytest.approx(1, abs=0.1)
    plain = networks.build(replace(config, networks=replace(config.networks, spectral_norm=False)), DEVICE)
    assert all(torch.equal(x, y) for x, y in zip(G.parameters(), plain[0].parameters(), strict=True))
    assert networks.num_parameters(D) == networks.num_parameters(plain[1])
    assert networks.sizes(config) == tuple(map(networks.num_parameters, (G, D)))


@pytest.mark.parametrize("network", FAMILIES)
def test_training_with_r1(network: str) -> None:
    """After twenty steps with exact R1 the weights have moved, and the largest singular values still are about 1."""
    trainer = trainer_of(network)
    D = trainer.D.net
    before = [layer.parametrizations.weight.original.detach().clone() for layer in layers(D)]
    train(trainer, 20)
    trainer.check_finite()
    for layer, old in zip(layers(D), before, strict=True):
        assert not torch.equal(layer.parametrizations.weight.original, old)
        assert largest(layer.weight) == pytest.approx(1, abs=0.05)


def test_against_torch() -> None:
    """With its singular vectors, weights and all gradients are those of torch's own."""
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
    theirs.load_state_dict(ours.state_dict())
    add_spectral_norm(ours)
    spectral_norm(theirs).eval()
    mine, other = ours.parametrizations.weight[0], theirs.parametrizations.weight[0]
    other._u.copy_(mine.u)
    other._v.copy_(mine.v)
    x = torch.randn(2, 3, 7, 7)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.parametrizations.weight.original.grad, theirs.parametrizations.weight.original.grad)


def test_penalty_inside_func_grad() -> None:
    """R1 through func.grad equals autograd's create_graph, and neither it nor a forward pass changes the norms."""
    _, D = networks.build(config_of("r3gan"))
    before = {name: value.clone() for name, value in D.state_dict().items()}
    images = torch.randn(4, 1, 28, 28)
    _, slopes = gradient_sq_norm(D, images)
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    torch.testing.assert_close(slopes, gradient.square().sum([1, 2, 3]))
    weights = list(D.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(slopes.sum(), weights, materialize_grads=True),
        torch.autograd.grad(gradient.square().sum(), weights, materialize_grads=True),
    )
    assert all(torch.equal(value, before[name]) for name, value in D.state_dict().items())


def test_follow_finds_the_largest_singular_value() -> None:
    """Many power iterations end at the singular value that a decomposition finds; a net without norms is left alone."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(9, 7), nn.ReLU())
    power_iteration(layer)
    add_spectral_norm(layer)
    for _ in range(300):
        power_iteration(layer)
    assert largest(layer[0].weight) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("network", FAMILIES)
def test_checkpoint(network: str, tmp_path: Path) -> None:
    """A run that goes on from a checkpoint on disk is the run that never stopped, bit for bit, layouts included."""
    whole = trainer_of(network)
    train(whole, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(*whole.state())
    snapshot = checkpoints.latest()
    assert snapshot is not None
    resumed = trainer_of(network)
    resumed.load_state(snapshot.tensors, snapshot.state)
    train(whole, 2)
    train(resumed, 2)
    for name, value in whole.D.net.state_dict().items():
        assert torch.equal(value, resumed.D.net.state_dict()[name]), name
    convolution = next(layer for layer in layers(whole.D.net) if layer.weight.dim() == 4 and layer.weight.shape[1] > 1)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
