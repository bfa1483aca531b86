"""D's whole objective, exact R1 and R2 included, with kernels in D: compiled as one graph it is what it is eagerly."""

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from fastgan.config import Config, ObjectiveConfig
from fastgan.kernels.bias_act import bias_act
from fastgan.kernels.resample import downsample2, upsample2
from fastgan.training.objectives import DiscriminatorObjective

BATCH = 3
OPS = {"bias_act", "bias_act_vjp", "bias_act_jvp", "resample"}

SHORT_OPS = {"bias_act", "bias_act_vjp", "resample"}  # of a short D without a penalty


class Critic(nn.Module):
    """A small D that goes through each op, its biases learned; `short`: through two of them."""

    def __init__(self, implementation, short):
        super().__init__()
        torch.manual_seed(0)
        self.implementation, self.short = implementation, short
        self.first, self.second = (nn.Conv2d(c, 4, 3, padding=1, bias=False) for c in (3, 4))
        self.biases = nn.Parameter(torch.randn(4, 4) / 4)
        self.last = nn.Linear(4, 1, bias=False)

    def forward(self, images, labels=None, keys=None):
        way = {"implementation": self.implementation}
        x = bias_act(self.first(images), self.biases[0], gain=1.4, **way)
        x = bias_act(downsample2(x, **way), self.biases[1], clamp=2.0, **way)
        if not self.short:
            x = downsample2(upsample2(x, **way), **way)
            x = bias_act(upsample2(self.second(x), **way), self.biases[2], **way)
            x = bias_act(x.mean((2, 3), keepdim=True), self.biases[3], **way)
        return self.last(x.mean((2, 3)))[:, 0]


def gradients(implementation, gamma, compiled=None, short=False):
    """The loss and its gradients in D's weights."""
    config = Config(seed=3, objective=ObjectiveConfig(loss="relativistic", penalty="r1+r2", augment="none"))
    D = Critic(implementation, short).double()
    objective = DiscriminatorObjective(D, config)
    if compiled is not None:
        torch._dynamo.reset()
        objective = torch.compile(objective, fullgraph=True, backend=compiled)
    generator = torch.Generator().manual_seed(1)
    reals, fakes = (torch.randn(BATCH, 3, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    loss, _ = objective(reals, fakes, None, torch.arange(BATCH), gamma)
    weights = [weight for name, weight in D.named_parameters() if not (short and "second" in name)]
    return [loss.detach(), *torch.autograd.grad(loss, weights)]


def assert_same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_one_graph_with_the_ops_in_it(gamma):
    """Traced whole: the graphs hold the registered ops, and give eager's and the reference's gradients."""
    found = set()
    short = gamma == 0

    def look(graph, _inputs):
        found.update(node.target._opname for node in graph.graph.nodes if "fastgan" in str(node.target))
        return graph

    wanted = gradients("reference", gamma, short=short)
    assert_same(gradients("triton", gamma, short=short), wanted)
    assert_same(gradients("auto", gamma, aot_autograd(fw_compiler=look, bw_compiler=look), short=short), wanted)
    assert found == (SHORT_OPS if short else OPS)


def test_inductor():
    """The same by torch.compile's own compiler, of a shorter D, as it takes its time."""
    assert_same(gradients("auto", 2.0, "inductor", short=True), gradients("reference", 2.0, short=True))
