"""Twenty steps of every preset, made tiny, give on a CPU the losses that they gave when they were written down.

A change that is meant to change what a preset learns renews them: `python tests/test_golden.py` writes all of
tests/golden/*.json, `python tests/test_golden.py NAME ...` those of the named presets. Look at the difference.
"""

import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgan import networks, presets
from fastgan.config import Config
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader
from fastgan.networks.r3gan import stages_for
from fastgan.training.trainer import Trainer
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

FOLDER = Path(__file__).parent / "golden"
# An epoch ends in between, with a partial batch where the preset keeps it, and a burn-in.
STEPS, BATCH, NUM_IMAGES = 20, 8, 100
# One and two threads agree to 2e-7 under Adam, and to 1.2e-3 under RMSprop, whose first steps are nearly the signs of
# the gradients: rounding turns those that are nearly 0. Other processors round otherwise.
TOLERANCE = {"adam": 1e-4, "rmsprop": 5e-3}


def tiny(config: Config) -> Config:
    """The preset with its objective and optimizer, on small images with narrow networks and small batches.

    What counts in images (burn-in, half-lives) shrinks to the few images that there are; all is computed in float32.
    """
    data, nets, optimizer = config.data, config.networks, config.optimizer
    if nets.network == "r3gan":
        size = (16 * nets.stem, 16 * nets.stem)
        count = stages_for((16, 16))[1]
        nets = replace(nets, stages=(16,) * count, width=1.0, group_width=min(nets.group_width, 8), z_dim=8)
    elif nets.network == "dcgan":
        size, nets = (12, 12), replace(nets, stages=(16, 8), z_dim=8)
    elif nets.network == "dcgan128":
        size, nets = (128, 128), replace(nets, width=1 / 32)
    else:
        size, nets = (12, 12), replace(nets, width=min(nets.width, 1 / 8))
    half_lives = tuple(min(half_life, 20.0 * (number + 1)) for number, half_life in enumerate(optimizer.ema_half_lives))
    return replace(
        config,
        data=replace(data, image_size=size, batch_size=BATCH),
        networks=replace(nets, precision="float32", num_classes=min(nets.num_classes, 10)),
        optimizer=replace(optimizer, burn_in=min(optimizer.burn_in, 120), ema_half_lives=half_lives),
    )


def pictures(config: Config) -> ArrayDataset:
    """NUM_IMAGES pictures of noise that is brighter on one side, the same on every machine, with classes to match."""
    (height, width), channels = config.data.image_size, config.data.channels
    keys = rng.keys(0, RngStream.TOY, torch.arange(NUM_IMAGES))
    noise = rng.bits(keys, channels * height * width).view(NUM_IMAGES, channels, height, width) >> 56
    slope = torch.arange(width) * 128 // width
    labels = torch.arange(NUM_IMAGES) % config.networks.num_classes if config.networks.num_classes else None
    return ArrayDataset("noise", ((noise + 128) // 2 + slope).to(torch.uint8), labels)


def trainer_of(name: str) -> Trainer:
    config = tiny(presets.get(name))
    return Trainer(config, networks.build(config), build_loader(config, pictures(config), torch.device("cpu")))


@functools.cache
def trained(name: str) -> tuple[Trainer, dict[str, list[float]]]:
    """A trainer after all steps, and the losses of both players in each."""
    trainer = trainer_of(name)
    steps = [trainer.train_step(trainer.loader.batch(trainer.images_seen)) for _ in range(STEPS)]
    return trainer, {key: [step[key].item() for step in steps] for key in ("loss/D", "loss/G")}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """At this size a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_golden_curve(name: str) -> None:
    """Every preset, made tiny, has the losses of its golden file in each of its steps."""
    file = FOLDER / f"{name}.json"
    assert file.exists(), f"{file} is missing: write it with `python tests/test_golden.py {name}` and commit it"
    golden, (_, found) = json.loads(file.read_text()), trained(name)
    tolerance = TOLERANCE[presets.get(name).optimizer.optimizer]
    assert found.keys() == golden.keys()
    for key, wanted in golden.items():
        assert found[key] == pytest.approx(wanted, rel=tolerance, abs=tolerance), (
            f"{key} of {name}: if this is meant, renew with `python tests/test_golden.py {name}` and say why"
        )


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_step_moves_every_parameter(name: str) -> None:
    """No parameter lacks a gradient in a step with penalties or one without: DDP would wait for it."""
    trainer, _ = trained(name)
    for player in (trainer.G, trainer.D):
        for parameter in player.net.parameters():
            assert player.optimizer.state[parameter]["step"] == STEPS


def test_no_golden_file_without_its_preset() -> None:
    """A golden file that no preset belongs to is forgotten: remove it."""
    assert {file.stem for file in FOLDER.glob("*.json")} <= set(presets.PRESETS)


def write(names: list[str]) -> None:
    """The golden files are those of the code as it is."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        losses = {key: [float(f"{loss:.7g}") for loss in values] for key, values in trained(name)[1].items()}
        (FOLDER / f"{name}.json").write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:] or sorted(presets.PRESETS))
