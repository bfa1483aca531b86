from dataclasses import replace

import pytest
import torch
from conftest import DEVICE

from fastgan import networks, presets
from fastgan.config import NetworkConfig, ObjectiveConfig
from fastgan.data import named
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader, check
from fastgan.errors import Diverged, Stopped, UserError
from fastgan.training import schedules
from fastgan.training.trainer import Hook, Trainer
from fastgan.utils.rng import RngStream

TOY = named.load("toy")


def make(batch_size=32, device=DEVICE, **objective):
    config = presets.get("debug")
    config = replace(
        config,
        data=replace(config.data, batch_size=batch_size),
        objective=replace(config.objective, **objective),
    )
    return Trainer(config, networks.build(config, device), build_loader(config, TOY, device))


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def step(trainer):
    return trainer.train_step(trainer.loader.batch(trainer.images_seen))


def test_discriminator_phase_leaves_g_as_it_was():
    """After D's phase D has moved, and G has its old weights, statistics and no gradients."""
    trainer = make()
    batch = trainer.loader.batch(0)
    hparams = schedules.evaluate(trainer.config, 0, 32, 0)
    fakes = trainer.generate(trainer.G.module, batch, RngStream.LATENTS_D)
    G, D = trainer.G.net, trainer.D.net
    g_before, d_before = {k: v.clone() for k, v in G.state_dict().items()}, weights(D)
    trainer.discriminator_phase(batch, fakes, hparams)
    assert same(G.state_dict().values(), g_before.values())
    assert all(p.grad is None for p in G.parameters())
    assert not any(torch.equal(x, y) for x, y in zip(weights(D), d_before, strict=True))


def test_generator_phase_leaves_d_as_it_was():
    """After G's phase every weight of G has moved; D has its old weights, gets no gradients, and is trainable again."""
    trainer = make()
    batch = trainer.loader.batch(0)
    hparams = schedules.evaluate(trainer.config, 0, 32, 0)
    fakes = trainer.generate(trainer.G.module, batch, RngStream.LATENTS_D)
    before, d_before = weights(trainer.G.net), weights(trainer.D.net)
    trainer.generator_phase(batch, fakes, hparams)
    assert not any(torch.equal(x, y) for x, y in zip(weights(trainer.G.net), before, strict=True))
    assert same(weights(trainer.D.net), d_before)
    assert all(p.grad is None and p.requires_grad for p in trainer.D.net.parameters())


def test_shared_fakes_are_those_of_a_second_pass(monkeypatch):
    """One pass of G for both phases gives the weights that two passes over the same latents give."""
    shared, separate = make(reuse_fakes=True), make(reuse_fakes=False)
    original = separate.generate
    monkeypatch.setattr(separate, "generate", lambda G, batch, stream: original(G, batch, RngStream.LATENTS_D))
    for trainer in (shared, separate):
        for _ in range(3):
            step(trainer)
    for a, b in zip(weights(shared.G.net), weights(separate.G.net), strict=True):
        torch.testing.assert_close(a, b)


def test_separate_phases_draw_their_own_latents():
    """Without sharing, D and G see fakes of different latents."""
    trainer = make(reuse_fakes=False)
    batch = trainer.loader.batch(0)
    a, b = (trainer.generate(trainer.G.net, batch, stream) for stream in (RngStream.LATENTS_D, RngStream.LATENTS_G))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("reuse_reals", [True, False])
def test_g_compares_with_its_own_reals(reuse_reals, micro_batch):
    """D sees the batch's reals; G's phase sees them again, or those of its own, its fakes having their classes."""
    config = presets.get("debug")
    config = replace(
        config,
        data=replace(config.data, batch_size=12),
        networks=NetworkConfig(network="dcgan", z_dim=8, stages=(8, 4), num_classes=10),
        objective=ObjectiveConfig(loss="relativistic", reuse_reals=reuse_reals),
    )
    source = ArrayDataset("toy", TOY.images, torch.arange(len(TOY)) % 10)
    trainer = Trainer(
        config, networks.build(config, DEVICE), build_loader(config, source, DEVICE), micro_batch=micro_batch
    )
    seen = {"D": [], "G": [], "classes": []}
    trainer.d_objective.register_forward_pre_hook(lambda _, given: seen["D"].append(given[0]))
    trainer.g_objective.register_forward_pre_hook(lambda _, given: seen["G"].append(given[0]))

    def note_classes(_, given, images):
        if images.requires_grad:  # in G's phase
            seen["classes"].append(given[1])

    trainer.G.net.register_forward_hook(note_classes)
    batch = trainer.loader.batch(0)
    trainer.train_step(batch)
    assert torch.equal(torch.cat(seen["D"]), batch.reals) and torch.equal(torch.cat(seen["G"]), batch.for_g.reals)
    assert torch.equal(batch.reals, batch.for_g.reals) == reuse_reals
    assert torch.equal(torch.cat(seen["classes"]), batch.for_g.labels)


def test_terms_are_those_of_the_formulas():
    """The logged losses equal binary cross-entropy on the logged networks' own logits."""
    trainer = make(batch_size=16)
    trainer.D.net.eval()  # no dropout, so that the logits can be taken again
    batch = trainer.loader.batch(0)
    fakes = trainer.generate(trainer.G.net, batch, RngStream.LATENTS_D)
    real_logits, fake_logits = trainer.D.net(batch.reals), trainer.D.net(fakes)
    terms = trainer.discriminator_phase(batch, fakes, schedules.evaluate(trainer.config, 0, 16, 0))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    wanted = bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))
    torch.testing.assert_close(terms["loss/D"], wanted.detach())
    torch.testing.assert_close(terms["logits/real"], real_logits.mean().detach())


def test_ema_is_a_hand_written_average():
    """G_ema equals the recursion beta * average + (1 - beta) * weights with beta = 0.5 ** (batch / half-life)."""
    trainer = make()
    average = [w.double() for w in weights(trainer.ema.net)]
    for _ in range(5):
        seen = trainer.images_seen
        step(trainer)
        half_life = min(500, 0.05 * seen)
        beta = 0.5 ** (32 / half_life) if half_life else 0.0
        average = [beta * a + (1 - beta) * w.double() for a, w in zip(average, weights(trainer.G.net), strict=True)]
    for a, b in zip(average, weights(trainer.ema.net), strict=True):
        torch.testing.assert_close(b, a.float(), rtol=1e-5, atol=1e-7)


def test_without_half_life_the_average_is_g():
    """A half-life of 0 makes G_ema a copy of G, statistics included."""
    config = presets.get("debug")
    config = replace(config, optimizer=replace(config.optimizer, ema_half_lives=()))
    trainer = Trainer(config, networks.build(config, DEVICE), build_loader(config, TOY, DEVICE))
    step(trainer)
    assert same(trainer.ema.net.state_dict().values(), trainer.G.net.state_dict().values())


def test_epoch_ends_with_a_partial_batch():
    """1,000 images at batch 256 are three batches of 256 and one of 232; the next epoch starts afresh."""
    trainer = make(batch_size=256)
    sizes = []
    seen = 0
    for _ in range(5):
        sizes.append(trainer.loader.batch(seen).global_size)
        seen += sizes[-1]
    assert sizes == [256, 256, 256, 232, 256]


GOLDEN_STEPS = (0, 1, 9, 29)
GOLDEN_TOLERANCE = (1e-5, 1e-4, 1e-3, 2e-2)  # Adam magnifies rounding, which differs between processors
GOLDEN_D = (1.482733, 1.332745, 0.940112, 0.815411)
GOLDEN_G = (0.677901, 0.670860, 0.698910, 1.177242)


def test_golden_curve():
    """Thirty steps of the debug preset give, on a CPU, the losses that they gave when this test was written."""
    trainer = make(device=torch.device("cpu"))
    curve = [step(trainer) for _ in range(30)]
    for name, golden in (("loss/D", GOLDEN_D), ("loss/G", GOLDEN_G)):
        for place, wanted, tolerance in zip(GOLDEN_STEPS, golden, GOLDEN_TOLERANCE, strict=True):
            assert curve[place][name].item() == pytest.approx(wanted, rel=tolerance)


def test_events_happen_when_their_multiple_is_passed():
    """An event is due at the steps that pass a multiple of its interval, and in the order given."""
    trainer = make()
    trainer.config = replace(trainer.config, run=replace(trainer.config.run, images=160))
    seen = []
    trainer.run(
        [
            Hook(64, lambda t: seen.append(("a", t.images_seen))),
            Hook(50, lambda t: seen.append(("b", t.images_seen))),
        ]
    )
    assert seen == [("a", 64), ("b", 64), ("a", 128), ("b", 128), ("b", 160)]


def test_stop_request_ends_after_the_step():
    """A request during a step ends the run after it, unless it was the last step anyway."""
    trainer = make()
    trainer.config = replace(trainer.config, run=replace(trainer.config.run, images=96))
    with pytest.raises(Stopped):
        trainer.run(should_stop=lambda: trainer.images_seen >= 64)
    assert trainer.images_seen == 64
    trainer.run(should_stop=lambda: True)
    assert trainer.images_seen == 96


def test_non_finite_losses_name_their_step():
    """A NaN loss is noticed at the next check, which names the step where it first came up."""
    trainer = make()
    for number in range(4):
        terms = step(trainer)
        if number == 2:
            terms["loss/D"] = torch.full_like(terms["loss/D"], float("nan"))
        trainer.meter.add(terms, trainer.images_seen - 32)
    with pytest.raises(Diverged, match=r"since step 3 \(64 images\)"):
        trainer.check_finite()


def test_non_finite_weights_are_noticed():
    """An infinite weight is noticed although every loss so far was finite."""
    trainer = make()
    with torch.no_grad():
        next(trainer.G.net.parameters())[0, 0] = float("inf")
    with pytest.raises(Diverged):
        trainer.check_finite()


def test_data_that_does_not_fit_is_refused():
    """A batch larger than the set, or images of another shape, are refused with both values."""
    config = presets.get("debug")
    with pytest.raises(UserError, match="batch_size is 1001: the data set toy has only 1000 images"):
        check(replace(config, data=replace(config.data, batch_size=1001)), TOY)
    with pytest.raises(UserError, match="--channels 1 --image-size 28 28"):
        check(replace(config, data=replace(config.data, channels=3)), TOY)


READINGS = ("item", "tolist", "__float__", "__bool__", "__int__", "cpu", "numpy")


def test_a_step_reads_nothing_back(monkeypatch):
    """Between two rows of the board no tensor's value is asked for: on a GPU that would wait for the device."""
    trainer = make()
    step(trainer)
    batch = trainer.loader.batch(trainer.images_seen)

    def refuse(*_):
        raise AssertionError("a step asked for a tensor's value")

    for name in READINGS:
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with pytest.raises(AssertionError, match="asked for"):
        float(torch.ones(()))  # the trap works
    trainer.meter.add(trainer.train_step(batch), 32)
