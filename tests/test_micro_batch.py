"""How many images go through the networks at a time: by trying, by the run's memory of it, and when memory runs out."""

import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE, refusal

from fastgan import networks, presets
from fastgan.data import named
from fastgan.data.loaders import build_loader
from fastgan.errors import UserError
from fastgan.runs.run_folder import RunFolder
from fastgan.training import micro_batch
from fastgan.training.trainer import Trainer

ALONE = SimpleNamespace(world_size=1, device=torch.device("cpu"), print=print)


def build(size: int | None = None, **objective) -> Trainer:
    config = presets.get("debug")
    config = replace(
        config,
        data=replace(config.data, batch_size=12),
        objective=replace(config.objective, **objective),
        run=replace(config.run, micro_batch=size),
    )
    return Trainer(
        config, networks.build(config, DEVICE), build_loader(config, named.load("toy"), DEVICE), micro_batch=size
    )


def run_short_of_memory(trainer: Trainer, most: int) -> None:
    """From now on D and G's objective have room for so many images at a time."""

    def limited(forward):
        def call(reals, *others):
            if len(reals) > most:
                raise torch.OutOfMemoryError(f"{len(reals)} images")
            return forward(reals, *others)

        return call

    trainer.D.module.forward = limited(trainer.D.module.forward)
    trainer.g_objective.forward = limited(trainer.g_objective.forward)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{side}/{name}": v for side, p in (("G", trainer.G), ("D", trainer.D)) for name, v in p.state_dict().items()
    }


@pytest.fixture
def double() -> Iterator[None]:
    """float64, whose rounding Adam doesn't turn into steps of full size."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("reuse_fakes", [True, False])
def test_training_goes_on_where_memory_runs_out(double, reuse_fakes):
    """The micro-batch is halved until it fits, is reported, and what is learned is what a large memory learns."""
    small, large = (build(reuse_fakes=reuse_fakes) for _ in range(2))
    run_short_of_memory(small, most=4)
    said = []
    small.on_out_of_memory = said.append
    for trainer in (small, large):
        for _ in range(3):
            trainer.train_step(trainer.loader.batch(trainer.images_seen))
    assert said == [6, 3] and small.micro_batch_size == 3
    for name, value in weights(large).items():
        torch.testing.assert_close(weights(small)[name], value, rtol=1e-6, atol=1e-9)


def test_no_room_for_one_image_is_the_users_to_mend():
    trainer = build()
    run_short_of_memory(trainer, most=0)
    with pytest.raises(UserError, match="memory runs out with batch_size 12 and micro_batch 1"):
        trainer.train_step(trainer.loader.batch(0))


@pytest.mark.parametrize("where", ["G's pass over a whole batch", "G's own gradients", "an optimizer's step"])
def test_what_no_micro_batch_helps_is_the_users_to_fix(monkeypatch, where):
    """One line, and the micro-batch stays; an optimizer that may have moved some weights isn't asked again."""
    trainer, calls = build(reuse_fakes=True), []

    def fail(*_):
        calls.append(where)
        raise torch.OutOfMemoryError("2 GiB")

    owner, name = {
        "G's pass over a whole batch": (trainer.G.module, "forward"),
        "G's own gradients": (trainer.G, "backward"),
        "an optimizer's step": (trainer.D, "step"),
    }[where]
    monkeypatch.setattr(owner, name, fail)
    text = refusal(trainer.run)
    assert text.startswith("memory runs out with batch_size 12 where no micro_batch helps") and "2 GiB" in text
    assert len(calls) == 1 and trainer.micro_batch_size is None and trainer.images_seen == 0


def test_several_processes_end_and_remember():
    """The others wait in the middle of a step that can't be played again: a restart goes on with half as many."""
    trainer = build()
    trainer.num_processes = 2
    run_short_of_memory(trainer, most=4)
    said = []
    trainer.on_out_of_memory = said.append
    with pytest.raises(UserError, match="the run has noted 3; give the same command again"):
        trainer.train_step(trainer.loader.batch(0))
    assert said == [3]


def test_trying_finds_the_largest_that_fits():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 10:
            raise torch.OutOfMemoryError

    assert micro_batch.find(64, attempt) == 8
    assert tried == [64, 32, 16, 8]
    with pytest.raises(UserError, match="not even one image fits"):
        micro_batch.find(3, lambda size: attempt(100))


@pytest.mark.parametrize("reuse_fakes", [True, False])
def test_trying_changes_nothing(reuse_fakes):
    trainer = build(reuse_fakes=reuse_fakes)
    before = {name: value.clone() for name, value in weights(trainer).items()}
    micro_batch.try_out(trainer, 5)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert trainer.G.net.training
    assert all(p.requires_grad and p.grad is None for p in (*trainer.G.net.parameters(), *trainer.D.net.parameters()))


@pytest.mark.parametrize(
    ("asked", "known", "size"), [(None, None, 12), (5, None, 5), (5, 3, 3), (2, 3, 2), (None, 4, 4)]
)
def test_the_run_remembers(tmp_path, asked, known, size):
    """The smaller of what was asked for and what was found to fit, on the same devices for the same batch."""
    folder, trainer = RunFolder(tmp_path), build(asked)
    place = {"batch_size": 12, "processes": 1, "device": "CPU"}
    if known is not None:
        folder.micro_batch.write_text(json.dumps(place | {"micro_batch": known}))
    micro_batch.settle(trainer, folder, ALONE)
    assert trainer.micro_batch_size == size
    micro_batch.note_shortage(trainer.config, folder, ALONE, 1)
    assert json.loads(folder.micro_batch.read_text()) == place | {"micro_batch": 1}


@pytest.mark.parametrize(
    "kept", ["", "{}", "[1]", '{"batch_size": 9, "processes": 1, "device": "CPU", "micro_batch": 3}']
)
def test_what_is_of_another_place_or_damaged_is_forgotten(tmp_path, kept):
    folder, trainer = RunFolder(tmp_path), build()
    folder.micro_batch.write_text(kept)
    micro_batch.settle(trainer, folder, ALONE)
    assert trainer.micro_batch_size == 12


def test_batch_norm_in_d_wants_the_whole_batch():
    config = presets.get("faces128")
    with pytest.raises(UserError, match="micro_batch is 4: D of dcgan128 has BatchNorm"):
        replace(config, run=replace(config.run, micro_batch=4))
