"""The recipes of R3GAN's paper, as a dry run shows them, and what contradicts a recipe."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import DEVICE

from fastgan import networks, presets
from fastgan.commands import train
from fastgan.config import flat
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader
from fastgan.training import schedules
from fastgan.training.augment import KINDS
from fastgan.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("keep_signal_handlers", "here")


def dry_run(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, str]:
    """What stands after each name below the settings."""
    assert train.main([*args, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.split("\n}\n")[1].strip().split("\n")
    return dict(line.split(": ", maxsplit=1) for line in lines)


class Row(NamedTuple):
    """A row of the paper's tables (arXiv 2501.05441), written by hand."""

    images: int
    batch: int
    gamma: str
    lr: str
    half_life: str
    p: str | None
    burn_in: str
    millions: tuple[float, float]  # of parameters, G and D


ROWS = {
    "stacked-mnist": Row(10_000_000, 512, "1 -> 0.1", "0.0002", "500,000", None, "2,000,000", (20.7, 20.7)),
    "cifar10": Row(
        250_000_000, 512, "0.05 -> 0.005", "0.0002 -> 5e-05", "5,000,000", "0.55", "20,000,000", (20.8, 21.3)
    ),
    "ffhq64": Row(100_000_000, 256, "2 -> 0.2", "0.0002 -> 5e-05", "500,000", "0.3", "20,000,000", (22.4, 22.4)),
    "ffhq256": Row(200_000_000, 256, "150 -> 15", "0.0002 -> 5e-05", "500,000", "0.3", "20,000,000", (23.1, 23.0)),
    "imagenet32": Row(
        1_000_000_000, 4096, "0.5 -> 0.05", "0.0002 -> 5e-05", "50,000,000", "0.5", "200,000,000", (82.9, 86.6)
    ),
    "imagenet64": Row(
        1_000_000_000, 4096, "1 -> 0.1", "0.0002 -> 5e-05", "50,000,000", "0.4", "200,000,000", (103.6, 107.2)
    ),
}
PAPER = {  # image side, mirrored, classes, stages in bfloat16 of how many
    "stacked-mnist": (32, False, 0, 3, 4),
    "cifar10": (32, True, 10, 3, 4),
    "ffhq64": (64, True, 0, 4, 5),
    "ffhq256": (256, True, 0, 4, 7),
    "imagenet32": (32, True, 1000, 3, 4),
    "imagenet64": (64, True, 1000, 4, 5),
}


@pytest.mark.parametrize("name", ROWS)
def test_dry_run_is_the_papers_table(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run without the data shows the paper's batch, duration, schedules and sizes, and makes nothing."""
    row, shown = ROWS[name], dry_run(capsys, "--preset", name)
    for side, wanted in zip("GD", row.millions, strict=True):
        found = int(shown[side].removesuffix(" parameters").replace(",", ""))
        assert abs(found / 1e6 - wanted) < 0.06
    assert shown["gamma of r1+r2"] == row.gamma
    assert shown["g_lr"] == shown["d_lr"] == row.lr
    assert shown["beta2"] == "0.9 -> 0.99"
    assert shown["ema_half_life"] == f"0 -> {row.half_life} images"
    assert shown.get("augment_p of r3gan") == (None if row.p is None else f"0 -> {row.p}")
    assert shown["burn_in"] == f"{row.burn_in} images"
    steps = -(-row.images // row.batch)
    assert shown["run"].startswith(f"batches of {row.batch:,}, ")
    assert f"{row.images:,} images, {steps:,} steps, into runs/{name}" in shown["run"]
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", PAPER)
def test_what_the_dry_run_does_not_show(name: str) -> None:
    """Size, mirror, classes, bfloat16 stages, beta1 and both phases' own latents, reals and changes are the paper's."""
    config = presets.get(name)
    side, mirror, num_classes, half, stages = PAPER[name]
    assert config.data.image_size == (side, side) and config.data.channels == 3 and config.data.mirror == mirror
    nets = config.networks
    assert (nets.network, nets.z_dim, nets.blocks, nets.expansion, nets.stem) == ("r3gan", 64, 2, 2, 1)
    assert nets.num_classes == num_classes and nets.precision == "bfloat16"
    assert (len(nets.stages) - nets.float32_stages, len(nets.stages)) == (half, stages)
    assert config.optimizer.betas[0] == 0 and config.optimizer.lr_decay == 0
    objective = config.objective
    assert (objective.loss, objective.penalty, objective.penalty_form) == ("relativistic", "r1+r2", "exact")
    assert objective.penalty_every == 1 and not objective.reuse_fakes and objective.augment in KINDS
    assert not objective.reuse_reals and not objective.augment_pairs
    assert not config.data.keep_partial_batch and not nets.spectral_norm


@pytest.mark.parametrize("name", ROWS)
def test_ema_ramp_never_binds(name: str) -> None:
    """At any moment the half-life is that of the cosine from 0, not a share of the images seen."""
    config, row = presets.get(name), ROWS[name]
    burn_in = int(row.burn_in.replace(",", ""))
    for images_seen in range(row.batch, 2 * burn_in, burn_in // 50):
        half_life = schedules.cosine(0, config.optimizer.ema_half_lives[0], images_seen, burn_in)
        beta = schedules.evaluate(config, images_seen, row.batch, 0).ema_betas[0]
        assert beta == pytest.approx(0.5 ** (row.batch / half_life), abs=1e-12)


def test_half_way(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that ends half-way through the burn-in is shown to end at the cosine's middle."""
    shown = dry_run(capsys, "--preset", "cifar10", "--images", "10_000_000")
    assert shown["gamma of r1+r2"] == "0.05 -> 0.0275"
    assert shown["g_lr"] == "0.0002 -> 0.000125" and shown["beta2"] == "0.9 -> 0.945"
    assert shown["ema_half_life"] == "0 -> 2,500,000 images" and shown["augment_p of r3gan"] == "0 -> 0.275"


def test_gamma_by_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no gamma is given, the number that the rule makes is shown, and the rule."""
    shown = dry_run(capsys, "--preset", "mnist28", "--penalty", "r1")
    assert shown["gamma of r1"] == "0.0006125, by the rule 0.0002 * pixels / batch size"  # 0.0002 * 784 / 256
    shown = dry_run(capsys, "--preset", "mnist28", "--penalty", "r1", "--penalty-every", "16", "--gamma", "2")
    assert shown["gamma of r1"] == "2, every 16 steps 16 times that"
    shown = dry_run(capsys, "--preset", "mnist28", "--penalty", "wgan-gp", "--loss", "wasserstein")
    assert shown["gamma of wgan-gp"] == "10, its own"
    assert not any("gamma" in name for name in dry_run(capsys, "--preset", "mnist28"))


def test_augmentation_that_adapts(capsys: pytest.CaptureFixture[str]) -> None:
    """An augmentation that adapts itself has no end to show."""
    shown = dry_run(capsys, "--preset", "mnist28", "--augment", "ada-upright", "--augment-target", "0.6")
    assert shown["augment_p of ada-upright"] == "0, then as augment_target makes it"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faces128", *(name for name in ROWS if name != "stacked-mnist")])
def test_data_that_is_not_here_yet(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dry run says what to give to --data; with it, it counts the epochs; training without it is refused."""
    shown = dry_run(capsys, "--preset", name)
    wanted = f"no data set {presets.get(name).data.data!r}: give --data a folder of images"
    assert shown["data"].startswith(f"not here yet: {wanted}")
    assert train.main(["--preset", name, "--run-dir", "run"]) == 2
    assert capsys.readouterr().err.startswith(f"fastgan: error: {wanted}")
    assert train.main(["--preset", name, "--data", "photos", "--dry-run"]) == 2
    assert "no data set 'photos'" in capsys.readouterr().err
    (here / "photos").mkdir()
    for number in range(3):
        (here / "photos" / f"{number}.png").write_bytes(b"a picture")
    shown = dry_run(capsys, "--preset", name, "--data", "photos", "--images", "6000")
    assert shown["data"] == "3 images an epoch" and "2000 epochs, 6,000 images" in shown["run"]


def test_unknown_length(capsys: pytest.CaptureFixture[str]) -> None:
    """Epochs of a data set that isn't here have no number of images, and schedules no end."""
    shown = dry_run(capsys, "--preset", "faces128")
    assert shown["run"] == "batches of 32, 10 epochs, into runs/faces128"
    assert shown["g_lr"] == "0.0005" and "beta2" not in shown  # RMSprop has none


REFUSED = {
    "lazy": (["--preset", "cifar10", "--penalty-every", "2"], "penalty_every is 2", "relativistic loss unstable"),
    "r1": (["--preset", "cifar10", "--penalty", "r1"], "penalty is 'r1'", "diverges with r1 alone"),
    "differences": (
        ["--preset", "stacked-mnist", "--penalty-form", "finite-difference"],
        "penalty_form is 'finite-difference'",
        "too coarse for differences",
    ),
    "idle reals": (["--preset", "mnist28", "--no-reuse-reals"], "reuse_reals is False", "G sees no reals"),
    "shared fakes": (["--preset", "cifar10", "--reuse-fakes"], "reuse_reals is False", "--no-reuse-fakes"),
    "batch norm": (["--preset", "faces128", "--penalty", "r1"], "penalty is 'r1'", "D of dcgan128 has BatchNorm"),
    "another network": (
        ["--preset", "ffhq256", "--network", "dcgan128"],
        "penalty is 'r1+r2'",
        "D of dcgan128 has BatchNorm",
    ),
    "no augmentation": (["--preset", "cifar10", "--augment", "none"], "augment_p is 0.55", "no augmentation is chosen"),
    "another size": (["--preset", "cifar10", "--image-size", "64", "64"], "stages is (768, 768, 768, 768)", "need 5"),
    "bfloat16": (["--preset", "mnist28", "--precision", "bfloat16"], "precision is 'bfloat16'", "float32 only"),
    "classes": (["--preset", "mnist28", "--num-classes", "10"], "num_classes is 10", "dcgan28 knows no classes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_a_recipe(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused on the command line in one line with the field, its value and the reason; nothing is made."""
    args, start, reason = REFUSED[name]
    assert train.main([*args, "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith(f"fastgan: error: {start}: ") and reason in shown.err
    assert list(here.iterdir()) == []


def small(name: str) -> Trainer:
    """The preset's recipe at its size and with its stages, but narrow, on a few images."""
    config = presets.get(name)
    nets = config.networks
    nets = replace(nets, stages=tuple(8 for _ in nets.stages), group_width=4, num_classes=min(nets.num_classes, 2))
    config = replace(config, networks=nets, data=replace(config.data, batch_size=2))
    height, width = config.data.image_size
    pixels = torch.randint(0, 256, (6, 3, height, width), generator=torch.Generator().manual_seed(0))
    images = ArrayDataset("noise", pixels.to(torch.uint8), torch.arange(6) % 2)
    return Trainer(config, networks.build(config, DEVICE), build_loader(config, images, DEVICE))


@pytest.mark.parametrize("name", ROWS)
def test_recipes_train(name: str) -> None:
    """Two steps of each recipe, narrow, end with finite losses, and move G."""
    trainer = small(name)
    before = trainer.G.net.picture.detach().clone()
    for _ in range(2):
        terms = trainer.train_step(trainer.loader.batch(trainer.images_seen))
        assert all(bool(term.isfinite()) for term in terms.values())
    assert not torch.equal(trainer.G.net.picture, before)


def test_shared_values_are_equal() -> None:
    """The two sizes of a data set differ in no more than size, stages, gamma, p and how often things are shown."""
    different = {
        "preset", "data", "image_size", "stages", "float32_stages", "gamma", "gamma_end", "augment_p", "images",
        "grid_side",
    }  # fmt: skip
    for one, other in (("ffhq64", "ffhq256"), ("imagenet32", "imagenet64")):
        a, b = flat(presets.get(one)), flat(presets.get(other))
        assert {field for field in a if a[field] != b[field]} <= different


def test_fewshot(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe for few images: R3GAN's losses at 64x64 in small, mirrored, augmentation adapts to 0.6."""
    shown, config = dry_run(capsys, "--preset", "fewshot"), presets.get("fewshot")
    assert shown["augment_p of ada"] == "0, then as augment_target makes it" and config.objective.augment_target == 0.6
    assert shown["gamma of r1+r2"] == "2" and shown["g_lr"] == shown["d_lr"] == "0.0002 -> 5e-05"
    assert config.objective.loss == "relativistic" and config.data.image_size == (64, 64) and config.data.mirror
    sizes, large = (networks.sizes(presets.get(name)) for name in ("fewshot", "ffhq64"))
    assert all(15 < big / small < 25 for small, big in zip(sizes, large, strict=True))
