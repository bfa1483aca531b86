import math

import pytest
import torch
import torch.nn.functional as F

from fastgan.losses import LOSSES


def test_nonsaturating_is_binary_cross_entropy_on_logits():
    """D's loss is the sum of its real and fake cross-entropies, G's the cross-entropy of fakes called real."""
    loss = LOSSES["nonsaturating"]
    real, fake = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    bce = F.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    wanted = bce(real, ones, reduction="none") + bce(fake, zeros, reduction="none")
    torch.testing.assert_close(loss.d(real, fake), wanted)
    torch.testing.assert_close(loss.g(fake), bce(fake, ones, reduction="none"))


def test_nonsaturating_at_cannot_tell():
    """At logits of zero D's loss is 2 ln 2 and G's ln 2."""
    loss, zeros = LOSSES["nonsaturating"], torch.zeros(3)
    assert loss.d(zeros, zeros).tolist() == pytest.approx([2 * math.log(2)] * 3)
    assert loss.g(zeros).tolist() == pytest.approx([math.log(2)] * 3)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name):
    """The gradients of both sides are right, in float64."""
    real, fake = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(LOSSES[name].d, (real, fake))
    assert torch.autograd.gradcheck(LOSSES[name].g, (fake,))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_stay_finite_at_large_logits(name):
    """Logits of a thousand give finite losses and gradients."""
    logits = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    total = LOSSES[name].d(logits, logits).sum() + LOSSES[name].g(logits).sum()
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all()
