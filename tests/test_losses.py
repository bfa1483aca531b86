"""The adversarial losses: values and slopes against the papers' formulas, written out in Python's float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastgan.training.losses import LOSSES, Loss, logit_centring, loss_named

REALS = (-2.5, -0.9, 0.0, 0.4, 0.999, 1.3, 6.0)
FAKES = (1.7, -1.2, 0.0, -0.999, 0.4, -3.0, 5.5)


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


def smoothed(s):
    """Cross-entropy with the target 1 - s for reals, 0 for fakes, and its slopes."""
    return (
        lambda a, b: -(1 - s) * math.log(sigmoid(a)) - s * math.log(1 - sigmoid(a)) - math.log(1 - sigmoid(b)),
        lambda a, b: (sigmoid(a) - (1 - s), sigmoid(b)),
    )


# By loss and side: the value of (a, b) and its slopes in a and in b.
FORMULAS = {
    ("nonsaturating", "d"): (
        lambda a, b: -math.log(sigmoid(a)) - math.log(1 - sigmoid(b)),
        lambda a, b: (sigmoid(a) - 1, sigmoid(b)),
    ),
    ("nonsaturating", "g"): (lambda a, b: -math.log(sigmoid(b)), lambda a, b: (0, sigmoid(b) - 1)),
    ("least-squares", "d"): (lambda a, b: 0.5 * (a - 1) ** 2 + 0.5 * b**2, lambda a, b: (a - 1, b)),
    ("least-squares", "g"): (lambda a, b: 0.5 * (b - 1) ** 2, lambda a, b: (0, b - 1)),
    ("hinge", "d"): (
        lambda a, b: max(0, 1 - a) + max(0, 1 + b),
        lambda a, b: (-1 if a < 1 else 0, 1 if b > -1 else 0),
    ),
    ("hinge", "g"): (lambda a, b: -b, lambda a, b: (0, -1)),
    ("wasserstein", "d"): (lambda a, b: b - a, lambda a, b: (-1, 1)),
    ("wasserstein", "g"): (lambda a, b: -b, lambda a, b: (0, -1)),
    ("relativistic", "d"): (
        lambda a, b: -math.log(sigmoid(a - b)),
        lambda a, b: (sigmoid(a - b) - 1, 1 - sigmoid(a - b)),
    ),
    ("relativistic", "g"): (
        lambda a, b: -math.log(sigmoid(b - a)),
        lambda a, b: (1 - sigmoid(b - a), sigmoid(b - a) - 1),
    ),
}


def pair():
    """Reals' and fakes' logits, float64, and leaves."""
    return tuple(torch.tensor(logits, dtype=torch.float64, requires_grad=True) for logits in (REALS, FAKES))


def check(function, value, slopes):
    """`function` gives one number an image, the formula's, and has its slopes."""
    real, fake = pair()
    losses = function(real, fake)
    wanted = [value(a, b) for a, b in zip(REALS, FAKES, strict=True)]
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(wanted, rel=1e-13, abs=1e-13)
    weights = torch.arange(1.0, 8, dtype=torch.float64)  # each image's loss has to reach its own logits only
    losses.backward(weights)
    for number, leaf in enumerate((real, fake)):
        wanted = [k * slopes(a, b)[number] for k, a, b in zip(range(1, 8), REALS, FAKES, strict=True)]
        found = [0.0] * 7 if leaf.grad is None else leaf.grad.tolist()
        assert found == pytest.approx(wanted, rel=1e-13, abs=1e-13)


def test_every_loss_has_its_formula():
    """The formulas below are of all losses there are, D's and G's."""
    assert set(FORMULAS) == {(name, side) for name in LOSSES for side in ("d", "g")}


@pytest.mark.parametrize(("name", "side"), FORMULAS)
def test_values_and_slopes(name, side):
    """Each loss has the values and the slopes of its paper's formula."""
    check(getattr(LOSSES[name], side), *FORMULAS[name, side])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_mixes_two_cross_entropies(smoothing):
    """With smoothing s a real's loss is 1 - s of the cross-entropy with "real" and s of that with "fake"; G's stays."""
    loss = loss_named("nonsaturating", smoothing)
    check(loss.d, *smoothed(smoothing))
    check(loss.g, *FORMULAS["nonsaturating", "g"])


def test_smoothing_has_its_minimum_at_its_confidence():
    """D descends to logits whose sigmoid is 1 - s, and no further."""
    logit = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    loss_named("nonsaturating", 0.1).d(logit, torch.zeros(1, dtype=torch.float64)).backward()
    assert abs(logit.grad.item()) < 1e-15


def test_nonsaturating_is_binary_cross_entropy_on_logits():
    """D's loss is the sum of torch's real and fake cross-entropies, G's the cross-entropy of fakes called real."""
    loss, (real, fake) = LOSSES["nonsaturating"], pair()
    bce = F.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    wanted = bce(real, ones, reduction="none") + bce(fake, zeros, reduction="none")
    torch.testing.assert_close(loss.d(real, fake), wanted)
    torch.testing.assert_close(loss.g(None, fake), bce(fake, ones, reduction="none"))


@pytest.mark.parametrize("name", ["nonsaturating", "relativistic"])
def test_where_d_cannot_tell(name):
    """At logits of zero each cross-entropy is ln 2: D's non-saturating loss has two, all others one."""
    zeros = torch.zeros(3)
    assert LOSSES[name].d(zeros, zeros).tolist() == pytest.approx([(1 + (name == "nonsaturating")) * math.log(2)] * 3)
    assert LOSSES[name].g(zeros, zeros).tolist() == pytest.approx([math.log(2)] * 3)


def test_relativistic_players_mirror_each_other():
    """G's relativistic loss is D's with reals and fakes in each other's place, and sees differences alone."""
    loss, (real, fake) = LOSSES["relativistic"], pair()
    assert torch.equal(loss.g(real, fake), loss.d(fake, real))
    torch.testing.assert_close(loss.d(real + 3, fake + 3), loss.d(real, fake), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.d(real, fake) - loss.g(real, fake), fake - real, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_needing_reals_is_told(name):
    """G's loss can do without reals just where `g_needs_reals` says so."""
    loss, (real, fake) = LOSSES[name], pair()
    if loss.g_needs_reals:
        assert not torch.equal(loss.g(real, fake), loss.g(real + 1, fake))
        with pytest.raises(AssertionError):
            loss.g(None, fake)
    else:
        assert torch.equal(loss.g(None, fake), loss.g(real, fake))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name):
    """The gradients of both sides are those of small differences, in float64."""
    assert torch.autograd.gradcheck(LOSSES[name].d, pair())
    assert torch.autograd.gradcheck(LOSSES[name].g, pair())


@pytest.mark.parametrize("loss", [*LOSSES.values(), loss_named("nonsaturating", 0.1)])
def test_losses_stay_finite_at_large_logits(loss: Loss):
    """Logits of a thousand, of all signs, give finite losses and gradients in float32."""
    real = torch.tensor([-1000.0, -1000.0, 1000.0, 1000.0], requires_grad=True)
    fake = torch.tensor([-1000.0, 1000.0, -1000.0, 1000.0], requires_grad=True)
    total = loss.d(real, fake).sum() + loss.g(real, fake).sum()
    total.backward()
    assert total.isfinite() and real.grad.isfinite().all() and fake.grad.isfinite().all()


def test_wrongly_sure_logits_keep_their_slope():
    """A logit of a thousand on the wrong side costs a thousand and is pulled back with slope 1: it doesn't vanish."""
    real, fake = torch.tensor([-1000.0], requires_grad=True), torch.tensor([1000.0], requires_grad=True)
    loss = LOSSES["nonsaturating"].d(real, fake)
    loss.backward()
    assert (loss.item(), real.grad.item(), fake.grad.item()) == (2000.0, -1.0, 1.0)
    g_logit = torch.tensor([-1000.0], requires_grad=True)
    LOSSES["nonsaturating"].g(None, g_logit).backward()
    assert g_logit.grad.item() == -1.0


def test_logit_centring():
    """The centring term is (a + b)^2: zero for opposite logits, with the slope 2 (a + b) in both."""
    check(logit_centring, lambda a, b: (a + b) ** 2, lambda a, b: (2 * (a + b), 2 * (a + b)))
    assert logit_centring(torch.tensor([3.0]), torch.tensor([-3.0])).item() == 0


def test_unknown_loss():
    """Another name is a KeyError."""
    with pytest.raises(KeyError):
        loss_named("minimax")
