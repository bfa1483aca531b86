"""What a run's health is measured by: each figure on cases whose answer is known, and in runs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import DEVICE
from torch import Tensor, nn

from fastgan import networks, presets
from fastgan.commands import train
from fastgan.config import Config
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader
from fastgan.monitor import asides, health, hooks
from fastgan.monitor.health import Health
from fastgan.runs.rows import read_rows
from fastgan.training.trainer import Trainer


def pictures(count: int = 100, classes: int = 2) -> ArrayDataset:
    """Noise, 12x12, brighter in the later classes."""
    noise = torch.randint(0, 100, (count, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % classes
    return ArrayDataset("noise", (noise + 50 * labels[:, None, None, None]).to(torch.uint8), labels)


def tiny(num_classes: int = 2, preset: str = "mnist28-fast") -> Config:
    config = presets.get(preset)
    nets = config.networks
    nets = replace(nets, width=1 / 8) if nets.network == "dcgan28" else replace(nets, stages=(16, 8), z_dim=8)
    return replace(
        config,
        data=replace(config.data, image_size=(12, 12), batch_size=8),
        networks=replace(nets, num_classes=num_classes),
    )


def trainer_of(config: Config, source: ArrayDataset, steps: int = 3) -> Trainer:
    trainer = Trainer(config, networks.build(config, DEVICE), build_loader(config, source, DEVICE))
    for _ in range(steps):
        trainer.train_step(trainer.loader.batch(trainer.images_seen))
    return trainer


def state(trainer: Trainer) -> list[Tensor]:
    nets = (trainer.G.net, trainer.D.net, trainer.ema.net)
    return [value.clone() for net in nets for value in net.state_dict().values()]


# Figures of known cases


def test_accuracies_by_the_sign() -> None:
    """Reals above the boundary and fakes below it are right; the boundary of least-squares is 0.5."""
    real, fake, average = torch.tensor([1.0, 0.3, -1.0, 2.0]), torch.tensor([-1.0, 0.4]), torch.tensor([0.7])
    assert health.accuracies("nonsaturating", real, fake, average) == {
        **{"d_accuracy_real": 0.75, "d_accuracy_fake": 0.5, "d_accuracy_ema": 0.0}
    }
    assert health.accuracies("least-squares", real, fake, average) == {
        **{"d_accuracy_real": 0.5, "d_accuracy_fake": 1.0, "d_accuracy_ema": 0.0}
    }


@pytest.mark.parametrize("loss", ["relativistic", "wasserstein"])
def test_accuracies_by_pairs(loss: str) -> None:
    """Where logits mean nothing by themselves, pairs in the right order count, whatever is added to all logits."""
    real, fake, average = torch.tensor([101.0, 103.0]), torch.tensor([100.0, 102.0]), torch.tensor([104.0])
    found = health.accuracies(loss, real, fake, average)
    assert found == {"d_accuracy_real": 0.75, "d_accuracy_fake": 0.75, "d_accuracy_ema": 0.0}
    assert health.accuracies(loss, real - 200, fake - 200, average - 200) == found


def test_pairs_that_are_equal_count_half() -> None:
    """A D that says the same of everything is right in half of all pairs."""
    assert health.pairs_above(torch.zeros(3), torch.zeros(5)) == 0.5
    assert health.pairs_above(torch.ones(3), torch.zeros(5)) == 1.0


def test_label_use() -> None:
    """A D that fits classes has 1, one that mixes them up 0, one that likes a class more whatever the image 0.5."""
    images, labels = pictures(64, 3).images.float() / 255, torch.arange(64) % 3
    brightness = (images.mean((1, 2, 3)) * 255 - 50) / 50  # about the class

    def fits(x: Tensor, given: Tensor | None) -> Tensor:
        assert given is not None
        return -(brightness - given).square()

    def mixed(x: Tensor, given: Tensor | None) -> Tensor:
        return -fits(x, given)

    def biased(x: Tensor, given: Tensor | None) -> Tensor:
        assert given is not None
        return given.double() * 5

    for judge, wanted in ((fits, 1.0), (mixed, 0.0), (biased, 0.5)):
        assert health.label_use(judge, images, labels, judge(images, labels)) == wanted


def test_distances() -> None:
    """The mean of the distances of all pairs, and the distance to the nearest."""
    corners = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    assert float(health.pairwise(corners)) == pytest.approx((5 + 4 + 3) / 3)
    assert health.pairwise(corners[:1]) == 0.0
    assert health.nearest(torch.tensor([[0.0, 1.0], [3.0, 4.0]]), corners).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("side", "left"), [(12, 12), (28, 28), (32, 32), (64, 32), (128, 32), (100, 33)])
def test_shrunk(side: int, left: int) -> None:
    """Large images are compared at about 32 pixels a side, small ones as they are."""
    assert health.shrunk(torch.zeros(2, 3, side, side)).shape == (2, 3 * left * left)


def test_saturation() -> None:
    """Values beyond +-0.999 count."""
    assert health.saturation(torch.tensor([-1.0, -0.9995, 0.0, 0.998])) == 0.5


def test_moved() -> None:
    """The copy is a pixel further down and to the right; its first row and column are repeated."""
    image = torch.arange(9.0).view(1, 1, 3, 3)
    assert health.moved(image)[0, 0].tolist() == [[0, 0, 1], [0, 0, 1], [3, 3, 4]]


# Of a trainer


@pytest.mark.parametrize("preset", ["mnist28-fast", "mnist28"])
def test_measuring_changes_nothing(preset: str) -> None:
    """Weights, running statistics and gradients are as they were; the same place has the same figures."""
    config, source = tiny(2 if preset == "mnist28-fast" else 0, preset), pictures()
    trainer = trainer_of(config, source)
    before, measure = state(trainer), Health(config, source, DEVICE)
    first = measure(trainer)
    assert all(torch.equal(a, b) for a, b in zip(before, state(trainer), strict=True))
    assert trainer.G.net.training and trainer.D.net.training
    assert measure(trainer) == first == Health(config, source, DEVICE)(trainer)
    other = trainer_of(config, source)
    for one in (trainer, other):
        one.train_step(one.loader.batch(one.images_seen))
    assert all(torch.equal(a, b) for a, b in zip(state(trainer), state(other), strict=True))


def test_figures() -> None:
    """All that is promised is there, finite, within its bounds; without classes or held-outs nothing is made up."""
    found = Health(tiny(), pictures(), DEVICE)(trainer_of(tiny(), pictures()))
    assert all(map(math.isfinite, found.values()))
    shares = {name for name in found if "accuracy" in name or "label" in name or "saturation" in name}
    assert len(shares) == 8 and all(0 <= found[name] <= 1 for name in shares)
    assert found["health/passes"] == 24 / 100
    assert not any("held_out" in name for name in found)
    assert not any("label" in name for name in Health(tiny(0), pictures(), DEVICE)(trainer_of(tiny(0), pictures())))


READINGS = ("item", "tolist", "__float__", "__bool__", "__int__", "cpu", "numpy")


def test_a_row_waits_once_and_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first row, the device is asked for one vector, and no image is read again."""
    config, source = tiny(), pictures()
    trainer, measure = trainer_of(config, source), Health(config, source, DEVICE)
    first, asked = measure(trainer), []
    for name in READINGS:
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *args, read=read: (asked.append(1), read(*args))[1])
    monkeypatch.setattr(ArrayDataset, "pixels", None)
    assert measure(trainer) == first
    assert len(asked) == 1


class Fixed(nn.Module):
    """A G that makes given images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.images[torch.arange(len(z), device=z.device) % len(self.images)]


def looked_at(images: Tensor) -> dict[str, float]:
    """The figures of samples that are given images, [B, 1, 12, 12] in [-1, 1]."""
    config, source = tiny(0), pictures()
    trainer = trainer_of(config, source, steps=1)
    trainer.micro_batch_size = 64
    trainer.ema.nets[0] = Fixed(images.to(DEVICE))
    return Health(config, source, DEVICE)(trainer)


def test_samples_that_are_training_images() -> None:
    """Copies of the training images are as diverse as they are, and at no distance from them."""
    found = looked_at(pictures().images.float() * 2 / 255 - 1)
    assert found["health/nearest_real"] < 1e-2  # a GPU sums otherwise
    assert found["health/diversity"] == pytest.approx(1, abs=0.05)


def test_samples_that_are_one_image() -> None:
    """A single image has no diversity; at the ends of tanh it is saturated."""
    found = looked_at(torch.ones(1, 1, 12, 12))
    assert found["health/diversity"] == 0 and found["health/saturation"] == 1
    assert found["health/nearest_real"] > 2


def test_data_that_is_one_image() -> None:
    """A data set of one image many times has no spread, and no figure that is no number."""
    source = ArrayDataset("alike", torch.full((20, 1, 12, 12), 7, dtype=torch.uint8))
    found = Health(tiny(0), source, DEVICE)(trainer_of(tiny(0), source))
    assert found["health/data_spread"] == 0 and all(map(math.isfinite, found.values()))


# In a run


TINY = ("--preset", "debug", "--width", "0.03125", "--grid-every", "10000", "--checkpoint-every", "10000")


def rows_of(run_dir: Path, *options: str) -> list[int]:
    """The places of the rows of health of a run with these options, in which whatever they took was no training."""
    assert train.main([*TINY, "--run-dir", str(run_dir), "--eval-every", "0", *options]) == 0
    rows = read_rows(run_dir / "performance.jsonl")
    found = [row["images_seen"] for row in rows if "health/diversity" in row]
    assert len([row for row in rows if row.get("speed/health_s", 0) > 0]) == len(found)
    assert "health/" not in (run_dir / "log.jsonl").read_text()
    return found


@pytest.mark.parametrize(("every", "places"), [("500", [512, 1000]), ("0", [])])
def test_rows_at_places_of_the_users(tmp_path: Path, keep_signal_handlers: None, every: str, places: list[int]) -> None:
    """Whatever they cost, at each multiple of `health_every`; none for 0."""
    assert rows_of(tmp_path / "run", "--images", "1032", "--health-every", every) == places


class Clock:
    """A clock that only steps and rows of health advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("row_s", [0.001, 1.0, 30.0])
def test_rows_cost_a_hundredth(
    tmp_path: Path, keep_signal_handlers: None, monkeypatch: pytest.MonkeyPatch, row_s: float
) -> None:
    """A row comes as soon as all before took less than a hundredth of the time, never sooner, at most one an interval.

    The first one comes at once.
    """
    clock, costs = Clock(), list[float]()
    for module in (hooks, asides):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(health, "EARLY_EVERY", 32)
    monkeypatch.setattr(health, "EARLY", 320)
    monkeypatch.setattr(health, "EVERY", 160)
    seen: list[tuple[int, float, float]] = []  # images, time of the session and what rows had taken

    def measure(self: Health, trainer: Trainer) -> dict[str, float]:
        seen.append((trainer.images_seen, clock.now - 100, sum(costs)))
        costs.append(row_s)
        clock.now += row_s
        return {"health/diversity": 1.0}

    step = hooks.Hooks.step

    def timed(self: hooks.Hooks, trainer: Trainer) -> None:
        clock.now += 20.0
        step(self, trainer)

    monkeypatch.setattr(Health, "__call__", measure)
    monkeypatch.setattr(hooks.Hooks, "step", timed)
    assert train.main([*TINY, "--images", "960", "--run-dir", str(tmp_path / "run"), "--eval-every", "0"]) == 0
    assert all(spent < now / 100 for _, now, spent in seen)
    every_place = [*range(32, 321, 32), 480, 640, 800, 960]
    wanted = {0.001: every_place, 1.0: [32, 160, 320, 480, 640, 800, 960], 30.0: [32]}
    assert [images for images, _, _ in seen] == wanted[row_s]
