"""bfloat16 and float16 in R3GAN's upper stages: near float32, with float32 weights, logits, images and penalties."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import DEVICE, refusal
from torch import Tensor, nn

from fastgan import networks, presets
from fastgan.commands import train
from fastgan.config import Config
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader
from fastgan.distributed.engines import Engine
from fastgan.distributed.zero import ZeroEngine
from fastgan.networks.r3gan import Conv2d, ConvTranspose2d, Downsample2, R3Block, Upsample2
from fastgan.training.objectives import Metrics
from fastgan.training.penalties import gradient_sq_norm
from fastgan.training.trainer import Trainer

STAGES, NUM_CLASSES = (32, 16, 16), 3


def config_of(precision: str = "bfloat16", float32_stages: int = 1, stem: int = 1) -> Config:
    """The recipe of CIFAR-10 on 16x16 pictures (with a stem: larger), narrow."""
    config = presets.get("cifar10")
    nets = replace(config.networks, stages=STAGES, group_width=8, num_classes=NUM_CLASSES, z_dim=8, stem=stem)
    return replace(
        config,
        data=replace(config.data, image_size=(16 * stem, 16 * stem), batch_size=4),
        networks=replace(nets, precision=precision, float32_stages=float32_stages),
    )


def nets_of(config: Config) -> tuple[nn.Module, nn.Module]:
    """Both networks, with blocks that do something."""
    G, D = networks.build(config, DEVICE)
    torch.manual_seed(1)
    for net in (G, D):
        for block in net.modules():
            if isinstance(block, R3Block):
                nn.init.normal_(block.project.weight, std=0.5 * block.project.in_channels**-0.5)
    return G, D


def inputs() -> tuple[Tensor, Tensor]:
    z = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return z, torch.arange(32, device=DEVICE) % NUM_CLASSES


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.slow
@pytest.mark.parametrize("float32_stages", [0, 1, 2])
@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize(("reduced", "error"), [("bfloat16", 1e-2), ("float16", 3e-3)])
def test_near_float32(float32_stages: int, stem: int, reduced: str, error: float) -> None:
    """Images, logits, R1 through func.grad, and its gradients are near float32's; all of them are float32."""
    z, labels = inputs()
    found = []
    images = torch.empty(0, device=DEVICE)
    for precision in ("float32", reduced):
        G, D = nets_of(config_of(precision, float32_stages, stem))
        made = G(z, labels)
        images = made.detach() if precision == "float32" else images  # both D judge the same
        logits, slopes = gradient_sq_norm(lambda x, D=D: D(x, labels), images)
        (logits + slopes).mean().backward()
        assert all(p.dtype == torch.float32 for net in (G, D) for p in net.parameters())
        gradient = torch.cat([p.grad.flatten() for p in D.parameters()])
        found.append([made.detach(), logits.detach(), slopes.detach(), gradient])
    for wanted, half in zip(*found, strict=True):
        assert half.dtype == torch.float32 and half.isfinite().all()
        assert error / 100 < distance(half, wanted) < error


def test_which_stages_compute_in_bfloat16() -> None:
    """All but the first `float32_stages`, from 4x4 up, of both networks; resamplings go with the higher stage."""
    (z, labels), seen = inputs(), []

    def see(module: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
        seen.append((max(args[0].shape[2], y.shape[2]), y.dtype))

    for float32_stages in range(4):
        seen.clear()
        G, D = nets_of(config_of(float32_stages=float32_stages))
        for module in (*G.trunk, *D.trunk):
            if isinstance(module, R3Block | Upsample2 | Downsample2):
                module.register_forward_hook(see)
        D(G(z, labels), labels)
        assert len(seen) == 2 * (2 * 3 + 2)
        wanted = [torch.float32] * float32_stages + [torch.bfloat16] * (3 - float32_stages)
        for size, dtype in zip((4, 8, 16), wanted, strict=True):
            assert {found for side, found in seen if side == size} == {dtype}


def test_float32_is_as_it_was() -> None:
    """In float32 a convolution is torch's own, bit for bit, whatever `float32_stages` says."""
    x = torch.randn(2, 6, 5, 5)
    for ours, theirs in (
        (Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)),
        (ConvTranspose2d(6, 4, 4, 2, 1, bias=False), nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False)),
    ):
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours(x), theirs(x))
    (z, labels), made = inputs(), []
    for float32_stages in (1, 3):
        G, _ = nets_of(config_of("float32", float32_stages))
        made.append(G(z, labels))
    assert torch.equal(*made)
    G, _ = nets_of(config_of(float32_stages=3))  # all of them
    assert torch.equal(G(z, labels), made[0])


def test_filter_is_exact_in_bfloat16() -> None:
    """The resampling filter's numbers have no rounding in bfloat16."""
    impulse = torch.zeros(1, 1, 4, 4)
    impulse[0, 0, 1, 1] = 1
    for layer in (Upsample2(), Downsample2()):
        assert torch.equal(layer(impulse.bfloat16()).float(), layer(impulse))


def trainer_of(config: Config, device: torch.device = DEVICE) -> Trainer:
    torch.manual_seed(0)
    images = ArrayDataset(
        "noise", torch.randint(0, 256, (24, 3, 16, 16)).to(torch.uint8), torch.arange(24) % NUM_CLASSES
    )
    return Trainer(config, networks.build(config, device), build_loader(config, images, device))


def steps(trainer: Trainer, count: int) -> list[Metrics]:
    return [trainer.train_step(trainer.loader.batch(trainer.images_seen)) for _ in range(count)]


def set_scale(player: Engine, scale: float) -> None:
    assert player.scaler is not None
    player.scaler.load_state_dict(player.scaler.state_dict() | {"scale": scale})


@pytest.mark.slow
@pytest.mark.parametrize("reuse_fakes", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_in_half_precision(precision: str, reuse_fakes: bool) -> None:
    """Three steps of the whole recipe stay finite, move every weight of D and leave weights and averages float32."""
    config = config_of(precision)
    trainer = trainer_of(
        replace(config, objective=replace(config.objective, reuse_fakes=reuse_fakes, reuse_reals=reuse_fakes))
    )
    before = [p.detach().clone() for p in trainer.D.net.parameters()]
    for terms in steps(trainer, 3):
        assert all(term.isfinite().all() and term.dtype == torch.float32 for term in terms.values())
    assert not any(torch.equal(x, y) for x, y in zip(trainer.D.net.parameters(), before, strict=True))
    tensors, _ = trainer.state()
    assert {t.dtype for group in tensors.values() for t in group.values()} == {torch.float32}


@pytest.mark.parametrize("reuse_fakes", [False, True])
def test_scaling_losses_changes_no_step(reuse_fakes: bool) -> None:
    """A scale of 8192 and none give the same losses, norms and weights, but for what float16 rounds to 0 without it."""
    config = config_of("float16")
    config = replace(config, objective=replace(config.objective, reuse_fakes=reuse_fakes, reuse_reals=reuse_fakes))
    scaled, plain = trainer_of(config), trainer_of(config)
    for (_, player), (_, other) in zip(scaled._engines(), plain._engines(), strict=True):
        set_scale(player, 8192.0)
        other.scaler = None
    for found, wanted in zip(steps(scaled, 2), steps(plain, 2), strict=True):
        for name, term in wanted.items():
            assert float(found[name]) == pytest.approx(float(term), rel=2e-2, abs=1e-4), name


def test_step_that_overflows_is_left_out() -> None:
    """The player with too large a scale stays where it is, reports no norm and halves its scale; the other moves."""
    trainer = trainer_of(config_of("float16"))
    set_scale(trainer.G, 1024.0)
    set_scale(trainer.D, 2.0**60)
    before = {side: [p.detach().clone() for p in player.net.parameters()] for side, player in trainer._engines()}
    (terms,) = steps(trainer, 1)
    assert float(terms["grad_norm/D"]) == 0 < float(terms["grad_norm/G"])
    assert (float(terms["loss_scale/D"]), float(terms["loss_scale/G"])) == (2.0**59, 1024.0)
    for side, player in trainer._engines():
        moved = [not torch.equal(x, y) for x, y in zip(player.net.parameters(), before[side], strict=True)]
        assert any(moved) == (side == "G")
    trainer.meter.add(terms, 0)
    trainer.check_finite()


def test_resumed_with_its_scales() -> None:
    """A run in float16 goes on bit for bit, with both players' scales and how long they have held.

    On a CPU: a GPU adds up what augmented pictures' gradients are made of in any order.
    """
    config, cpu = config_of("float16"), torch.device("cpu")
    whole, start = trainer_of(config, cpu), trainer_of(config, cpu)
    for trainer in (whole, start):
        set_scale(trainer.D, 2.0**40)
        steps(trainer, 2)
    rest = trainer_of(config, cpu)
    tensors, state = start.state()
    rest.load_state(tensors, json.loads(json.dumps(state)))
    steps(whole, 1), steps(rest, 1)
    (wanted, wanted_state), (found, found_state) = whole.state(), rest.state()
    assert found_state == wanted_state
    assert found_state["loss_scales"]["D"]["scale"] < 2.0**40
    for file, group in wanted.items():
        assert all(torch.equal(found[file][name], value) for name, value in group.items())


def test_float16_is_on_request_alone() -> None:
    """No preset computes in it, and who asks for it beside a penalty is told why."""
    hint = train._hint(config_of("float16"), 10_000)
    assert hint is not None and "may overflow float16" in hint
    assert train._hint(config_of(), 10_000) is None
    assert {presets.get(name).networks.precision for name in presets.PRESETS} == {"float32", "bfloat16"}


def test_refusals() -> None:
    """Networks that have float32 only say so; differences of bfloat16 logits, which drown in rounding, are refused."""
    config = presets.get("mnist28")
    text = refusal(lambda: networks.build(replace(config, networks=replace(config.networks, precision="bfloat16"))))
    assert text == "precision is 'bfloat16': dcgan28 has float32 only; give it, or --network r3gan"
    player = object.__new__(ZeroEngine)
    player.stage = 2
    assert refusal(player.enable_loss_scaling).startswith("precision is 'float16': engine zero2 doesn't scale")
    config = config_of()
    text = refusal(
        lambda: replace(config, objective=replace(config.objective, penalty_form="finite-difference")),
    )
    assert text.startswith("penalty_form is 'finite-difference': logits in bfloat16 are too coarse")
