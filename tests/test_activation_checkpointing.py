"""Activation checkpointing: less is kept, and nothing else changes."""

import torch
from conftest import refusal

from fastgan import networks
from fastgan.planning import op_counter
from fastgan.presets import parse_config
from fastgan.training.objectives import DiscriminatorObjective, GeneratorObjective

TINY = "--preset cifar10 --data toy --blocks 2 --group-width 8 --batch-size 4 --stages 8 8 8 8"
AGAIN = "--activation-checkpointing"


def gradients(*options: str) -> list[torch.Tensor]:
    """Both players' losses, and all gradients, of one step with R1, R2 and augmentation, where no weight is 0."""
    config = parse_config([*TINY.split(), *options])
    G, D = networks.build(config)
    draws = torch.Generator().manual_seed(0)
    for parameter in (*G.parameters(), *D.parameters()):
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1, generator=draws)
    reals, z = torch.rand(4, 3, 32, 32, generator=draws), torch.randn(4, config.networks.z_dim, generator=draws)
    index, p = torch.arange(4), torch.tensor(0.5)
    fakes = G(z, index)
    d_objective = DiscriminatorObjective(D, config)
    d_objective.one_by_one = True  # as with checkpointing: sums are then of the same numbers in the same order
    d_loss, _ = d_objective(reals, fakes.detach(), index, index, torch.tensor(1.0), p)
    d_loss.backward()
    g_loss, _ = GeneratorObjective(D, config)(reals, fakes, index, index, p)
    g_loss.backward()
    return [d_loss.detach(), g_loss.detach(), *(p.grad for net in (G, D) for p in net.parameters())]


def test_gradients_are_the_same():
    """With exact R1 and R2 every gradient has the same bits."""
    kept, again = gradients("--precision", "float32"), gradients("--precision", "float32", AGAIN)
    assert len(kept) > 50 and all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_gradients_in_bfloat16_are_as_near_as_it_is():
    """The parts of a weight's gradient are added up in float32 instead of bfloat16."""
    kept, again = gradients("--precision", "bfloat16"), gradients("--precision", "bfloat16", AGAIN)
    for a, b in zip(kept, again, strict=True):
        assert (a - b).norm() <= 2**-7 * a.norm()


def test_twice_less_is_kept():
    """Of R3GAN at 256x256 a step keeps less than half, and its fullest moment holds less than half."""
    options = ["--preset", "ffhq256", "--data", "toy"]
    plain, again = (op_counter.count(parse_config([*options, *more]), 4) for more in ((), (AGAIN,)))
    for before, after in ((plain.d_phase, again.d_phase), (plain.g_phase, again.g_phase)):
        assert after.kept < before.kept / 4 and after.peak < before.peak / 2


def test_network_without_such_layers_is_refused():
    """Where nothing could be saved, one line says so."""
    config = parse_config(["--preset", "mnist28-fast", AGAIN])
    assert "dcgan has no layers for it" in refusal(lambda: networks.build(config))
