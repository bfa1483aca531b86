"""What ends a run as diverged: the first loss or any weight that isn't finite, seen at once and by all processes."""

from dataclasses import replace
from pathlib import Path

import divergence_worker
import pytest
import torch
from conftest import DEVICE
from forks import ForkServer

from fastgan import networks, presets
from fastgan.data import named
from fastgan.data.loaders import build_loader
from fastgan.errors import Diverged
from fastgan.training.trainer import MIN_SCALE, Trainer

READINGS = ("item", "tolist", "__float__", "__bool__", "__int__", "cpu", "numpy")


def make() -> Trainer:
    config = presets.get("debug")
    config = replace(config, networks=replace(config.networks, width=1 / 32))
    return Trainer(config, networks.build(config, DEVICE), build_loader(config, named.load("toy"), DEVICE))


def step(trainer: Trainer, **planted: float) -> None:
    """Train for a step whose terms of these names are others."""
    before = trainer.images_seen
    terms = trainer.train_step(trainer.loader.batch(before))
    trainer.meter.add(terms | {name: torch.tensor(value, device=DEVICE) for name, value in planted.items()}, before)


def scaled() -> Trainer:
    """A trainer that scales its losses, as float16 wants it."""
    trainer = make()
    trainer.G.enable_loss_scaling()
    trainer.D.enable_loss_scaling()
    return trainer


def set_scale(trainer: Trainer, scale: float) -> None:
    assert trainer.D.scaler is not None
    state = trainer.D.scaler.state_dict()
    trainer.D.scaler.load_state_dict(state | {"scale": scale})


def test_a_check_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many weights there are, one value is asked of the device."""
    trainer, asked = make(), []
    step(trainer)
    for name in READINGS:
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *args, read=read: (asked.append(1), read(*args))[1])
    trainer.check_finite()
    assert len(asked) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("net", ["G", "D", "ema"])
def test_any_weight_that_is_not_finite(net: str, value: float) -> None:
    """In either player or G's average, in the last of its parameters, among finite ones."""
    trainer = make()
    with torch.no_grad():
        list(getattr(trainer, net).net.parameters())[-1].view(-1)[-1] = value
    with pytest.raises(Diverged, match=r"since step 1 \(0 images\)"):
        trainer.check_finite()


def test_large_weights_are_finite() -> None:
    """Weights whose sum or square float32 doesn't hold raise no alarm."""
    trainer = make()
    with torch.no_grad():
        for parameter in trainer.G.net.parameters():
            parameter.fill_(3e38)
    trainer.check_finite()


def test_overflow_in_a_scaled_run_goes_on() -> None:
    """Terms of steps that float16 left out are no divergence, and no part of the means."""
    trainer = scaled()
    before = [parameter.detach().clone() for parameter in trainer.D.net.parameters()]
    overflow = next(trainer.D.net.parameters()).register_hook(lambda grad: grad * float("inf"))
    step(trainer, slope=float("inf"))
    overflow.remove()
    assert all(map(torch.equal, before, trainer.D.net.parameters()))
    trainer.check_finite()
    step(trainer, slope=3.0)
    trainer.check_finite()
    assert trainer.meter.read()["slope"] == 3.0


def test_scaled_run_that_overflows_for_ever_is_diverged() -> None:
    """Bad weights and a scale that has fallen below what float16 holds end it: no step would be taken again."""
    trainer = scaled()
    set_scale(trainer, MIN_SCALE)
    trainer.check_finite()
    set_scale(trainer, MIN_SCALE / 2)
    with pytest.raises(Diverged):
        trainer.check_finite()
    trainer = scaled()
    with torch.no_grad():
        next(trainer.G.net.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(Diverged):
        trainer.check_finite()


@pytest.mark.slow
def test_all_processes_end_alike(tmp_path: Path, fork_server: ForkServer) -> None:
    """A loss that is no number on one of two processes ends both, and both name the step in which it was."""
    fork_server.launch(2, divergence_worker.main, tmp_path)
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first == second and "since step 2 (" in first
