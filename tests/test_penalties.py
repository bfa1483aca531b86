"""Gradient penalties: against gradients written out by hand, image by image, exact and by finite differences."""

import itertools
import math

import pytest
import torch
from torch import nn

from fastgan import networks
from fastgan.config import Config, DataConfig, NetworkConfig
from fastgan.training.augment import augment
from fastgan.training.penalties import (
    finite_difference_sq_norm,
    gradient_sq_norm,
    wgan_gp_penalty,
    zero_centered_penalty,
)
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

SHAPE = (2, 3, 4)
SIZE = math.prod(SHAPE)
F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Mlp(nn.Module):
    """w3 . tanh(W2 tanh(W1 x + b1) + b2), whose slope in x is W1' diag(1 - h1^2) W2' diag(1 - h2^2) w3."""

    def __init__(self):
        super().__init__()
        shapes = ((7, SIZE), (7,), (5, 7), (5,), (5,))
        self.W1, self.b1, self.W2, self.b2, self.w3 = (
            nn.Parameter(draw(*shape, seed=10 + k) / shape[-1] ** 0.5) for k, shape in enumerate(shapes)
        )

    def forward(self, images):
        h1 = torch.tanh(images.flatten(1) @ self.W1.T + self.b1)
        return torch.tanh(h1 @ self.W2.T + self.b2) @ self.w3

    def slope(self, images):
        """The gradient of each logit in its image, written out: [B, C, H, W]."""
        h1 = torch.tanh(images.flatten(1) @ self.W1.T + self.b1)
        h2 = torch.tanh(h1 @ self.W2.T + self.b2)
        back = ((1 - h2**2) * self.w3) @ self.W2
        return (((1 - h1**2) * back) @ self.W1).view(images.shape)


class Conv(nn.Module):
    """w . softplus(conv(x)), whose slope in x is the transposed convolution of w * sigmoid(conv(x))."""

    def __init__(self):
        super().__init__()
        self.kernel, self.w = nn.Parameter(draw(3, SHAPE[0], 3, 3, seed=20)), nn.Parameter(draw(3, *SHAPE[1:], seed=21))

    def forward(self, images):
        return (self.w * nn.functional.softplus(nn.functional.conv2d(images, self.kernel, padding=1))).sum((1, 2, 3))

    def slope(self, images):
        h = nn.functional.conv2d(images, self.kernel, padding=1)
        back = self.w / (1 + (-h).exp())
        return nn.functional.conv_transpose2d(back, self.kernel, padding=1)


class Linear(nn.Module):
    """v . x + c: the slope is v everywhere."""

    def __init__(self, shape=SHAPE):
        super().__init__()
        self.v, self.c = nn.Parameter(draw(*shape, seed=30)), nn.Parameter(draw(1, seed=31)[0])

    def forward(self, images):
        return (images * self.v).sum((1, 2, 3)) + self.c

    def slope(self, images):
        return self.v.expand(images.shape)


CRITICS = (Mlp, Conv, Linear)


def by_hand(critic, images):
    return critic.slope(images).square().flatten(1).sum(1)


def weight_gradients(critic, loss):
    found = torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, critic.parameters(), strict=True)]


def assert_same(found, wanted, **tolerance):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-9, "atol": 1e-9}))


@pytest.mark.parametrize("make", CRITICS)
def test_exact_slopes_by_hand(make):
    """The logits are the critic's, and the squared norms those of the slope that the formula gives."""
    critic, images = make(), draw(6, *SHAPE)
    logits, norms = gradient_sq_norm(critic, images)
    assert norms.shape == (6,)
    assert_same((logits, norms), (critic(images), by_hand(critic, images)))


PENALTIES = {
    "zero-centred": (lambda norms: zero_centered_penalty(norms, 1.7), lambda slope: 0.85 * (slope**2).sum((1, 2, 3))),
    "one-centred": (
        lambda norms: wgan_gp_penalty(norms, 10.0),
        lambda slope: 10 * ((slope**2).sum((1, 2, 3)) ** 0.5 - 1) ** 2,
    ),
}


@pytest.mark.parametrize("make", CRITICS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_and_their_weight_gradients_by_hand(make, penalty):
    """gamma / 2 |slope|^2 and weight (|slope| - 1)^2, and their gradients in every weight, are the formula's."""
    critic, images = make(), draw(6, *SHAPE)
    ours, formula = PENALTIES[penalty]
    found, wanted = ours(gradient_sq_norm(critic, images)[1]), formula(critic.slope(images))
    assert_same([found], [wanted])
    shares = torch.arange(1, 7, dtype=F64)  # each image with a weight of its own
    assert_same(weight_gradients(critic, (shares * found).sum()), weight_gradients(critic, (shares * wanted).sum()))


def test_a_steep_critic_pays_more():
    """A slope of (3, 4) has the squared norm 25: with gamma 2 R1 costs 25, WGAN-GP's 10 (5 - 1)^2 = 160."""
    critic = Linear((1, 1, 2))
    with torch.no_grad():
        critic.v.copy_(torch.tensor([[[3.0, 4.0]]], dtype=F64))
    _, norms = gradient_sq_norm(critic, draw(2, 1, 1, 2))
    assert norms.tolist() == [25, 25]
    assert zero_centered_penalty(norms, 2.0).tolist() == [25, 25]
    assert wgan_gp_penalty(norms, 10.0).tolist() == pytest.approx([160, 160])


def test_one_centred_at_a_flat_critic():
    """Where D is flat the penalty is its weight, and its gradients are finite numbers."""
    critic = Linear()
    with torch.no_grad():
        critic.v.zero_()
    loss = wgan_gp_penalty(gradient_sq_norm(critic, draw(3, *SHAPE))[1], 10.0)
    assert loss.tolist() == pytest.approx([10.0] * 3, rel=1e-5)
    assert all(g.isfinite().all() for g in weight_gradients(critic, loss.sum()))


def test_gamma_as_a_tensor():
    """A gamma given as a tensor weighs as the number does."""
    norms = draw(4).square()
    assert torch.equal(zero_centered_penalty(norms, torch.tensor(0.3, dtype=F64)), zero_centered_penalty(norms, 0.3))
    assert torch.equal(wgan_gp_penalty(norms, torch.tensor(0.3, dtype=F64)), wgan_gp_penalty(norms, 0.3))


def r3gan_critic():
    """R3GAN's D in float64, all its weights drawn, and images for it."""
    config = Config(
        data=DataConfig(image_size=(8, 8), channels=3),
        networks=NetworkConfig(network="r3gan", stages=(8, 4), blocks=1, group_width=4),
    )
    critic = networks.build(config)[1].double()
    torch.manual_seed(0)
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.3)
    return critic, draw(4, 3, 8, 8)


def test_exact_slopes_are_autograds():
    """torch.func's slopes, and their weight gradients, are those of autograd.grad with create_graph, on R3GAN's D."""
    critic, images = r3gan_critic()
    logits, norms = gradient_sq_norm(critic, images)
    leaf = images.clone().requires_grad_()
    plain_logits = critic(leaf)
    (slope,) = torch.autograd.grad(plain_logits.sum(), leaf, create_graph=True)
    plain = slope.square().sum((1, 2, 3))
    assert_same((logits, norms), (plain_logits, plain))
    ours = weight_gradients(critic, logits.sum() + zero_centered_penalty(norms, 3.0).sum())
    assert_same(ours, weight_gradients(critic, plain_logits.sum() + 1.5 * plain.sum()))
    assert all(g.abs().max() > 0 for g in ours)


def signs(count, batch, shape=SHAPE):
    keys = rng.keys(0, RngStream.DIRECTIONS_REALS, torch.arange(batch))
    return rng.rademacher(keys, count * math.prod(shape)).to(F64).unflatten(1, (count, *shape)).transpose(0, 1)


MEASURES = {
    "exact": lambda critic, images, directions: gradient_sq_norm(critic, images),
    "finite-difference": lambda critic, images, directions: finite_difference_sq_norm(critic, images, directions, 0.02),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_each_image_by_itself(measure):
    """A permuted batch gives permuted logits and slopes, and a batch of one gives its row of the batch."""
    measure = MEASURES[measure]
    critic, images = r3gan_critic()
    directions = signs(2, 4, (3, 8, 8))
    logits, norms = measure(critic, images, directions)
    order = [2, 0, 3, 1]
    assert_same(measure(critic, images[order], directions[:, order]), (logits[order], norms[order]))
    for row in range(4):
        one = slice(row, row + 1)
        assert_same(measure(critic, images[one], directions[:, one]), (logits[one], norms[one]))
    assert len(norms.unique()) == 4


@pytest.mark.parametrize("measure", MEASURES)
def test_images_get_no_gradient(measure):
    """Penalties descend in D's weights alone: images that want a gradient, as fresh fakes do, get none."""
    critic, images = Mlp(), draw(3, *SHAPE).requires_grad_()
    logits, norms = MEASURES[measure](critic, images, signs(1, 3))
    (logits.sum() + norms.sum()).backward()
    assert images.grad is None and critic.W1.grad.abs().max() > 0


@pytest.mark.parametrize("step", [1e-3, 0.02, 1.0])
def test_finite_differences_of_a_linear_critic(step):
    """For a linear critic the estimate is the mean over directions of (u . v)^2, at any step; its weights' too."""
    critic, images, directions = Linear(), draw(5, *SHAPE), draw(3, 5, *SHAPE, seed=1)
    logits, norms = finite_difference_sq_norm(critic, images, directions, step)
    wanted = (directions * critic.v).sum((2, 3, 4)).square().mean(0)
    assert_same((logits, norms), (critic(images), wanted))
    assert_same(weight_gradients(critic, norms.sum()), weight_gradients(critic, wanted.sum()))


def test_finite_differences_converge_as_the_square_of_the_step():
    """With the direction held, a step half as long brings the estimate four times nearer to (u . slope)^2."""
    critic, images, directions = Mlp(), draw(8, *SHAPE), signs(4, 8)
    wanted = (directions * critic.slope(images)).sum((2, 3, 4)).square().mean(0)
    errors = [
        float((finite_difference_sq_norm(critic, images, directions, step)[1] - wanted).abs().mean().detach())
        for step in (0.08, 0.04, 0.02, 0.01)
    ]
    for longer, shorter in itertools.pairwise(errors):
        assert longer / shorter == pytest.approx(4, rel=0.1)
    assert errors[-1] < 1e-3 * float(wanted.mean().detach())


def test_finite_differences_converge_as_directions_grow():
    """Over many random directions the estimates' mean is the exact slope within four standard errors, and the weights'.

    With entries of -1 and 1 the variance of (u . v)^2 is 2 (|v|^4 - sum v^4).
    """
    critic, images, count = Mlp(), draw(4, *SHAPE), 4000
    slope = critic.slope(images).flatten(1)
    exact = slope.square().sum(1)
    error = (2 * (exact**2 - slope.pow(4).sum(1)) / count).sqrt().detach()
    _, norms = finite_difference_sq_norm(critic, images, signs(count, 4), 1e-3)
    assert ((norms - exact).abs() < 4 * error).all()
    assert (error < 0.03 * exact).all()  # which says something
    wanted = torch.cat([g.flatten() for g in weight_gradients(critic, exact.sum())])
    found = torch.cat([g.flatten() for g in weight_gradients(critic, norms.sum())])
    assert (found - wanted).norm() < 0.1 * wanted.norm()


def test_finite_differences_take_one_pass():
    """The critic is asked once, for the images and both ends of every direction, and answers with the logits first."""
    critic, images, directions, asked = Mlp(), draw(5, *SHAPE), signs(3, 5), []

    def ask(x):
        asked.append(x)
        return critic(x)

    logits, _ = finite_difference_sq_norm(ask, images, directions, 0.5)
    assert len(asked) == 1 and asked[0].shape == (35, *SHAPE)
    assert_same(
        [asked[0][:5], asked[0][5:10], asked[0][20:25]],
        [images, images + directions[0] / 2, images - directions[0] / 2],
    )
    assert_same([logits], [critic(images)])


@pytest.mark.parametrize("measure", MEASURES)
def test_slopes_are_those_of_the_images_before_augmentation(measure):
    """An augmentation that multiplies images by 2 doubles the slope, so the squared norm is four times as large."""
    critic, images, directions = Linear(), draw(4, *SHAPE), signs(2, 4)
    plain, doubled = (
        MEASURES[measure](function, images, directions)[1] for function in (critic, lambda x: critic(2 * x + 0.3))
    )
    assert_same([doubled], [4 * plain])


def test_slopes_through_adas_warp():
    """Through ADA, geometry and colours, exact slopes are autograd's in the images that went in, weights' included."""
    critic, images = r3gan_critic()
    keys = rng.keys(0, RngStream.AUGMENT_D, torch.arange(4))

    def judge(x):
        return critic(augment(x, keys, 0.8, "ada"))

    _, norms = gradient_sq_norm(judge, images)
    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(judge(leaf).sum(), leaf, create_graph=True)
    assert_same([norms], [slope.square().sum((1, 2, 3))])
    assert not torch.allclose(norms, gradient_sq_norm(critic, augment(images, keys, 0.8, "ada"))[1], rtol=0.05)
    assert_same(weight_gradients(critic, norms.sum()), weight_gradients(critic, slope.square().sum()))
