"""What each player descends: the sum of its parts written out, equal augmentation of a pair, noise of each image."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastgan import networks
from fastgan.config import Config, DataConfig, NetworkConfig, ObjectiveConfig
from fastgan.training import objectives, schedules
from fastgan.training.augment import augment
from fastgan.training.losses import LOSSES
from fastgan.training.objectives import DiscriminatorObjective, GeneratorObjective
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

F64 = torch.float64
BATCH = 6
INDEX = torch.arange(100, 100 + BATCH)


def config_of(network="r3gan", **objective):
    config = Config(
        seed=3,
        data=DataConfig(image_size=(8, 8), channels=3),
        networks=NetworkConfig(network="r3gan", stages=(16, 16), blocks=1, group_width=16),
        objective=ObjectiveConfig(**objective),
    )
    if network == "dcgan28":  # has Dropout
        config = replace(
            config, networks=NetworkConfig(network="dcgan28", width=1 / 16), data=replace(config.data, channels=3)
        )
    return config


def discriminator(config):
    """D in float64 with all its weights drawn, so that no block is the identity."""
    D = networks.build(config)[1].double()
    torch.manual_seed(0)
    for parameter in D.parameters():
        nn.init.normal_(parameter, std=0.25)
    return D


def make(**settings):
    config = config_of(**settings)
    D = discriminator(config)
    return DiscriminatorObjective(D, config), GeneratorObjective(D, config)


def images():
    """Reals and fakes, float64."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(BATCH, 3, 8, 8, dtype=F64, generator=generator).mul(0.5).clamp(-1, 1) for _ in range(2))


def slopes(judge, x):
    """Each logit's gradient in its image, differentiable in the weights."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(judge(leaf).sum(), leaf, create_graph=True)[0]


def squared_norm(gradient):
    return (gradient * gradient).sum((1, 2, 3))


def gradients(net, loss):
    return torch.autograd.grad(loss, list(net.parameters()))


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["relativistic", "nonsaturating"])
@pytest.mark.parametrize("kind", ["none", "ada"])
def test_ds_objective_written_out(form, kind):
    """D descends adversarial + gamma / 2 (|slope at x|^2 + |slope at G(z)|^2) + centring (a + b)^2, and weighs so."""
    gamma, p = 0.7, 0.5 * (kind != "none")
    objective, _ = make(loss=form, penalty="r1+r2", logit_centring=0.03, augment=kind)
    D, (reals, fakes) = objective.D, images()
    keys = rng.keys(3, RngStream.AUGMENT_D, INDEX)

    def judge(x):
        return D(augment(x, keys, p, kind))

    a, b = judge(reals), judge(fakes)
    sigmoid = torch.sigmoid
    adversarial = -sigmoid(a - b).log() if form == "relativistic" else -sigmoid(a).log() - (1 - sigmoid(b)).log()
    r1, r2 = squared_norm(slopes(judge, reals)), squared_norm(slopes(judge, fakes))
    wanted = (adversarial + gamma / 2 * (r1 + r2) + 0.03 * (a + b) ** 2).mean()
    loss, terms = objective(reals, fakes, None, INDEX, gamma, p)
    assert_same([loss], [wanted])
    assert_same(gradients(D, loss), gradients(D, wanted))
    parts = {"loss/D": adversarial, "logits/real": a, "logits/fake": b, "penalty/r1": r1, "penalty/r2": r2}
    for name, part in parts.items():
        assert_same([terms[name]], [part.mean().detach()])
    assert not any(term.requires_grad for term in terms.values())
    if kind == "none":
        assert set(terms) == set(parts)
    else:
        sign = (a - b if form == "relativistic" else a).sign().mean().detach()  # what ADA's p may follow
        assert terms["augment/r"] == sign


def test_r1_alone():
    """With the penalty r1 the fakes' slope costs nothing and isn't measured."""
    objective, _ = make(penalty="r1")
    reals, fakes = images()
    loss, terms = objective(reals, fakes, None, INDEX, 0.7)
    plain, _ = objective(reals, fakes, None, INDEX, 0.0)
    assert "penalty/r2" not in terms
    assert_same([loss], [plain + 0.35 * squared_norm(slopes(objective.D, reals)).mean()])


@pytest.mark.parametrize("penalty", ["r1", "r1+r2", "wgan-gp"])
def test_gamma_0_leaves_the_penalty_out(penalty):
    """With a gamma of 0 the objective is that without a penalty, to the bit, and D is asked no more often."""
    objective, _ = make(penalty=penalty)
    plain, _ = make(penalty="none")
    calls = []
    objective.D.register_forward_hook(lambda *_: calls.append(1))
    loss, terms = objective(*images(), None, INDEX, 0.0)
    wanted, plain_terms = plain(*images(), None, INDEX, 0.7)
    assert len(calls) == 1  # of reals and fakes together
    assert terms.keys() == plain_terms.keys()
    assert torch.equal(loss, wanted)
    for a, b in zip(gradients(objective.D, loss), gradients(plain.D, wanted), strict=True):
        assert torch.equal(a, b)


def test_wgan_gp_written_out():
    """WGAN-GP descends b - a + weight (|slope| - 1)^2 on mixes u x + (1 - u) G(z), u of each image's own number."""
    objective, _ = make(loss="wasserstein", penalty="wgan-gp")
    D, (reals, fakes) = objective.D, images()
    u = rng.uniform(rng.keys(3, RngStream.MIX, INDEX), 1)[:, :, None, None]
    assert 0 <= u.min() < u.max() < 1
    norm = squared_norm(slopes(D, u * reals + (1 - u) * fakes)).sqrt()
    wanted = (D(fakes) - D(reals) + 10 * (norm - 1) ** 2).mean()
    loss, terms = objective(reals, fakes, None, INDEX, 10.0)
    assert_same([loss, terms["penalty/slope"]], [wanted, norm.mean().detach()])
    assert_same(gradients(D, loss), gradients(D, wanted))


@pytest.mark.parametrize("form", ["exact", "finite-difference"])
@pytest.mark.parametrize("penalty", ["none", "r1", "r1+r2", "wgan-gp"])
def test_reals_and_fakes_at_once_or_by_themselves(penalty, form):
    """Loss, terms and gradients are the same whether D sees both as one batch or one after the other."""
    if penalty in ("none", "wgan-gp") and form != "exact":
        return
    objective, _ = make(penalty=penalty, penalty_form=form, augment="ada", augment_pairs=False)
    found = []
    for objective.one_by_one in (False, True):
        loss, terms = objective(*images(), None, INDEX, 0.7, 0.5)
        found.append([loss.detach(), *(terms[name] for name in sorted(terms)), *gradients(objective.D, loss)])
    assert_same(*found)


def test_lazy_penalty_has_the_gradient_of_every_step():
    """With weights held still, the mean over a cycle of lazy steps is the gradient with the penalty at every step."""
    config = config_of(penalty="r1", gamma=0.7, penalty_every=4)
    D = discriminator(config)
    objective = DiscriminatorObjective(D, config)
    gammas = [schedules.evaluate(config, step * BATCH, BATCH, step).gamma for step in range(4)]
    assert gammas == [2.8, 0, 0, 0]
    found = [gradients(D, objective(*images(), None, INDEX, gamma)[0]) for gamma in gammas]
    wanted = gradients(D, objective(*images(), None, INDEX, 0.7)[0])
    assert_same([sum(each) / 4 for each in zip(*found, strict=True)], wanted)


def parts(seen: list[torch.Tensor], size: int = BATCH) -> list[torch.Tensor]:
    """D's logits of reals and of fakes, which its own objective shows it as one batch."""
    return [part.detach() for logits in seen for part in logits[: 2 * size].split(size)]


@pytest.mark.parametrize("kind", ["ada", "ada-upright", "diffaugment"])
def test_a_pair_gets_the_same_augmentation(kind):
    """Equal images at the same place of the batch get equal logits as a real and as a fake, though they are changed."""
    both = make(loss="relativistic", augment=kind)
    reals, _ = images()
    logits = {}
    for objective in both:
        seen = []
        handle = objective.D.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        loss, _ = objective(reals, reals, None, INDEX, augment_p=1.0)
        handle.remove()
        seen = parts(seen)
        assert_same(seen[:1], seen[1:])
        assert loss.item() == pytest.approx(math.log(2), rel=1e-12)
        logits[objective] = seen[0]
        assert not torch.isclose(seen[0], objective.D(reals), rtol=1e-3).all()
    assert not torch.isclose(*logits.values(), rtol=1e-3).all()  # the two phases draw for themselves


@pytest.mark.parametrize("kind", ["ada", "diffaugment", "r3gan"])
def test_reals_and_fakes_may_be_augmented_independently(kind):
    """Without pairs D's fakes and G's fakes get changes of their own; the reals of both phases those of pairs."""
    reals, _ = images()
    seen = {}
    for pairs in (True, False):
        for number, objective in enumerate(make(loss="relativistic", augment=kind, augment_pairs=pairs)):
            logits = seen[number, pairs] = []
            handle = objective.D.register_forward_hook(lambda _, inputs, output, logits=logits: logits.append(output))
            objective(reals, reals, None, INDEX, augment_p=1.0)
            handle.remove()
    for number in range(2):
        (real, paired), (same_real, independent) = parts(seen[number, True]), parts(seen[number, False])
        assert_same([real, real], [same_real, paired])
        assert not torch.isclose(real, independent, rtol=1e-3).all()
    assert not torch.isclose(parts(seen[0, False])[1], parts(seen[1, False])[1], rtol=1e-3).all()


@pytest.mark.parametrize("p", [0.0, torch.tensor(0.0)])
def test_no_augmentation_is_the_identity(p):
    """`augment="none"` at any strength, and any kind at p = 0, give the objectives of plain images, to the bit."""
    plain = [objective(*images(), None, INDEX) for objective in make()]
    for kind, strength in (("none", 1.0), ("ada", p), ("diffaugment", p)):
        for objective, (wanted, _) in zip(make(augment=kind), plain, strict=True):
            assert torch.equal(objective(*images(), None, INDEX, augment_p=strength)[0], wanted)


@pytest.mark.parametrize("form", LOSSES)
def test_gs_objective_written_out(form):
    """G descends its loss of D's logits, its gradient reaches the fakes, and D's weights get none of it."""
    penalty = "r1+r2" if form == "relativistic" else "none"
    _, objective = make(loss=form, penalty=penalty, logit_centring=0.3)
    D, (reals, fakes) = objective.D, images()
    ours, plain = fakes.clone().requires_grad_(), fakes.clone().requires_grad_()
    a, b = D(reals).detach(), D(plain)
    sigmoid = torch.sigmoid
    wanted = {
        "nonsaturating": lambda: -sigmoid(b).log(),
        "least-squares": lambda: (b - 1) ** 2 / 2,
        "hinge": lambda: -b,
        "wasserstein": lambda: -b,
        "relativistic": lambda: -sigmoid(b - a).log(),
    }[form]().mean()
    loss, terms = objective(reals, ours, None, INDEX)
    assert_same([loss], [wanted])
    assert set(terms) == {"loss/G"} and torch.equal(terms["loss/G"], loss.detach())
    loss.backward()
    assert_same([ours.grad], torch.autograd.grad(wanted, plain))
    assert all(p.grad is None and p.requires_grad for p in D.parameters())


def test_gs_objective_leaves_ds_gradients():
    """Gradients that D has when G's phase begins are there when it ends, bit for bit."""
    d_objective, g_objective = make(loss="relativistic", penalty="r1+r2")
    reals, fakes = images()
    d_objective(reals, fakes, None, INDEX, 0.7)[0].backward()
    before = [p.grad.clone() for p in d_objective.D.parameters()]
    g_objective(reals, fakes.requires_grad_(), None, INDEX)[0].backward()
    for p, gradient in zip(d_objective.D.parameters(), before, strict=True):
        assert torch.equal(p.grad, gradient)


def test_g_asks_for_reals_only_where_it_needs_them():
    """G's phase judges reals for the relativistic loss alone."""
    for form, passes in (("relativistic", 2), ("nonsaturating", 1)):
        _, objective = make(loss=form)
        calls = []
        objective.D.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        objective(*images(), None, INDEX)
        assert len(calls) == passes


class SmoothD(nn.Module):
    """Without kinks, at which the weight gradient of a difference is another one than that of the slope."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 1)).double()

    def forward(self, images, labels=None, keys=None):
        return self.net(images)[:, 0]


@pytest.mark.parametrize("kind", ["none", "ada"])
def test_finite_difference_objective_is_the_exact_one_on_average(kind, monkeypatch):
    """Over many directions the penalties and the objective's weight gradient are near the exact ones."""
    monkeypatch.setattr(objectives, "FD_DIRECTIONS", 600)
    p, D = 0.5 * (kind != "none"), SmoothD()
    found = {}
    for form in ("exact", "finite-difference"):
        objective = DiscriminatorObjective(
            D, config_of(loss="relativistic", penalty="r1+r2", penalty_form=form, augment=kind)
        )
        loss, terms = objective(*images(), None, INDEX, 20.0, p)
        found[form] = terms, torch.cat([g.flatten() for g in gradients(D, loss)])
    (terms, gradient), (fd_terms, fd_gradient) = found.values()
    assert terms.keys() == fd_terms.keys()
    for name, term in terms.items():
        assert fd_terms[name].item() == pytest.approx(term.item(), rel=0.1 if "penalty" in name else 1e-9)
    assert (fd_gradient - gradient).norm() < 0.1 * gradient.norm()


def test_directions_differ():
    """Each image, each role and each step has directions of its own."""
    asked = []
    objective, _ = make(penalty="r1+r2", penalty_form="finite-difference")
    objective.D.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    x = torch.zeros(BATCH, 3, 8, 8, dtype=F64)
    for index in (INDEX, INDEX + BATCH):
        objective(x, x, None, index, 1.0)
    _, above, below = asked[0].split(2 * BATCH)  # of reals and fakes
    moves = torch.cat([seen[2 * BATCH : 4 * BATCH].flatten(1).sign() for seen in asked])
    assert len(asked) == 2 and len(moves.unique(dim=0)) == 4 * BATCH
    assert_same([above], [-below])
    assert above.abs().unique().tolist() == [objectives.FD_STEP]


@pytest.mark.parametrize("penalty", ["exact", "finite-difference"])
def test_noise_is_each_images_own(penalty):
    """Dropout follows the images' numbers: the same logit in any batch, another as a fake, penalty or not."""
    config = config_of("dcgan28", penalty="r1+r2", penalty_form=penalty)
    objective = DiscriminatorObjective(networks.build(config)[1].double().train(), config)
    x = torch.randn(1, 3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(1)).repeat(BATCH, 1, 1, 1)
    seen = []
    objective.D.register_forward_hook(lambda _, inputs, output: seen.append(output))
    order = torch.tensor([3, 0, 5])
    for index in (INDEX, INDEX[order]):
        for gamma in (0.0, 1.0):
            objective(x[: len(index)], x[: len(index)], None, index, gamma)
    plain_reals, plain_fakes, reals, fakes = parts(seen[:2])
    assert len(plain_reals.unique()) == BATCH  # the same picture under different noise
    assert not torch.isclose(plain_reals, plain_fakes).any()
    assert_same([reals, fakes], [plain_reals, plain_fakes])
    for other, wanted in zip(
        parts(seen[2:], len(order)), (plain_reals, plain_fakes, plain_reals, plain_fakes), strict=True
    ):
        assert_same([other], [wanted[order]])


def test_both_ends_of_a_difference_have_the_same_noise():
    """A finite difference under Dropout measures the slope, not the noise: it is near the exact one, on average."""
    found = {}
    for form in ("exact", "finite-difference"):
        config = config_of("dcgan28", penalty="r1", penalty_form=form)
        objective = DiscriminatorObjective(networks.build(config)[1].double().train(), config)
        x = torch.randn(500, 3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(1)).mul(0.5)
        _, terms = objective(x, x, None, torch.arange(500), 1.0)
        found[form] = terms["penalty/r1"].item()
    assert found["finite-difference"] == pytest.approx(found["exact"], rel=0.2)


@pytest.mark.parametrize("penalty_form", ["exact", "finite-difference"])
def test_classes_reach_d(penalty_form):
    """Labels go to D with every version of their image."""
    config = config_of(penalty="r1+r2", penalty_form=penalty_form)
    config = replace(config, networks=replace(config.networks, num_classes=5))
    objective = DiscriminatorObjective(discriminator(config), config)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    given = []
    objective.D.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1].tolist()))
    _, terms = objective(*images(), labels, INDEX, 1.0)
    copies = 1 if penalty_form == "exact" else 3
    assert given == [2 * copies * labels.tolist()]
    reals, _ = images()
    assert_same([terms["logits/real"]], [objective.D(reals, labels).mean().detach()])
