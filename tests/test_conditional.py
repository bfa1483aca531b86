"""Classes from the data set to the samples: training, grids, evaluation, `fastgan sample --class`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, _signal_handlers_kept, refusal
from PIL import Image
from torch import Tensor, nn

from fastgan import cli, presets
from fastgan.commands import train
from fastgan.config import Config
from fastgan.data import named
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import check
from fastgan.data.sampler import Sampler
from fastgan.evaluation import extractors, fidelity
from fastgan.evaluation.evaluator import Evaluator
from fastgan.evaluation.fidelity import labels_for, latents
from fastgan.evaluation.sampling import images_of, open_run

FLAGS = [
    *("--preset", "cifar10", "--precision", "float32", "--no-mirror", "--augment", "none", "--augment-p", "0"),
    *("--data", "toy", "--image-size", "28", "28", "--channels", "1", "--batch-size", "8", "--images", "24"),
    *("--num-classes", "2", "--stages", "8", "8", "8", "--group-width", "4", "--z-dim", "8", "--burn-in", "0"),
    *("--ema-half-lives", "4", "--g-lr", "0.01", "--g-lr-end", "0.01", "--grid-side", "4", "--eval-images", "40"),
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of three steps on the two classes of `toy`, discs and bars."""
    folder = tmp_path_factory.mktemp("conditional") / "run"
    with _signal_handlers_kept():
        assert train.main([*FLAGS, "--run-dir", str(folder)]) == 0
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def samples(run: Path, out: Path, *flags: str) -> dict[str, bytes]:
    assert cli.main(["sample", str(run), "--out", str(out), *flags]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def complaint(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *args: str) -> str:
    assert main(list(args)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastgan: error: ")
    return line.removeprefix("fastgan: error: ")


# The rule


def test_labels_take_turns() -> None:
    """Without a data set seed s has class s % classes, alone or among others; without classes there are none."""
    seeds = torch.tensor([0, 5, 12, 3, 2**62])
    assert labels_for(seeds, 5).tolist() == [0, 0, 2, 3, 2**62 % 5]
    assert labels_for(seeds, 0) is None and labels_for(seeds, 0, torch.arange(3)) is None


def test_labels_follow_the_data() -> None:
    """As many seeds as images have each class as often as there; more go round again; a seed's class is its own."""
    data = torch.tensor([3] * 30 + [0] * 5 + [1] * 12)
    labels = labels_for(torch.arange(3 * len(data)), 4, data)
    for part in labels.split(len(data)):
        assert torch.equal(part.bincount(minlength=4), data.bincount(minlength=4))
    assert not torch.equal(labels[: len(data)], data)
    assert labels_for(torch.tensor([7, 60, 7]), 4, data).tolist() == labels[[7, 60, 7]].tolist()
    assert torch.equal(labels[:10], data[Sampler(len(data), seed=0).dataset_indices(range(10))])


# The run


def test_run_has_everything(run: Path) -> None:
    """Three steps with two classes leave losses, grids before and after, a checkpoint, and figures of an evaluation."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["images_seen"] == 24
    assert any("metrics/fd_digits" in row for row in rows) and any("loss/G" in row for row in rows)
    assert len(list((run / "grids").iterdir())) == 2
    assert (run / "checkpoints" / "000000000024").is_dir()


class Recorder(nn.Module):
    """A generator of gray images that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor | None] = []

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        self.told.append(labels)
        return z.mean(1).tanh()[:, None, None, None].expand(-1, 1, 28, 28)


def test_training_tells_both_players_the_reals_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each phase fakes are made of the classes of its own reals, and judged as of them."""
    from fastgan import networks
    from fastgan.data.loaders import build_loader
    from fastgan.training.trainer import Trainer

    config = presets.parse_config(FLAGS)
    trainer = Trainer(config, networks.build(config, DEVICE), build_loader(config, named.load("toy"), DEVICE))
    told: list[Tensor] = []
    for net in (trainer.G.net, trainer.D.net):
        net.register_forward_pre_hook(lambda _, args: told.append(args[1]))
    for _ in range(2):
        told.clear()
        batch = trainer.loader.batch(trainer.images_seen)
        assert batch.labels is not None and len(batch.labels.unique()) == 2
        trainer.train_step(batch)
        own = batch.for_g.labels
        assert own is not None and not torch.equal(own, batch.labels)
        # In D's phase G, then D of reals and fakes at once; in G's phase G, then D of each.
        both = torch.cat([batch.labels, batch.labels])
        wanted = [batch.labels, both, own, own, own]
        assert [labels.tolist() for labels in told] == [labels.tolist() for labels in wanted]


def test_grid_shows_classes_in_turn(run: Path) -> None:
    """The last grid's image of seed s is G_ema's, of class s % classes."""
    _, config, _, G = open_run(run)
    seeds = torch.arange(16)
    wanted = fidelity.to_bytes(G(latents(seeds, config.networks.z_dim), seeds % 2))
    shown = pixels(sorted((run / "grids").iterdir())[-1])
    for seed in (0, 1, 6):
        row, column = divmod(seed, 4)
        cell = shown[30 * row + 1 : 30 * row + 29, 30 * column + 1 : 30 * column + 29]
        assert np.abs(cell - wanted[seed, 0].numpy()).max() <= 1


def test_evaluation_is_of_the_datas_classes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated images have the data set's classes, each as often as there, and the figures are the same each time."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    toy = named.load("toy")
    labels = torch.tensor([0] * 30 + [1] * 10)
    data = ArrayDataset("uneven", toy.images[:40], labels)
    _, config, _, G = open_run(run)
    evaluator = Evaluator(config, data, extractors.load("digits", DEVICE), DEVICE)
    recorder = Recorder()
    evaluator(recorder, 80)
    told = torch.cat([given for given in recorder.told if given is not None])
    assert told.bincount().tolist() == [60, 20]
    G = G.to(DEVICE)
    assert evaluator(G, 80) == pytest.approx(evaluator(G, 80), rel=1e-9)
    again = Recorder()
    evaluator(again, 80)
    assert torch.equal(told, torch.cat([given for given in again.told if given is not None]))


def test_evaluate_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fastgan evaluate` of a run with classes ends with figures, the same twice, in one row."""
    rows = []
    for _ in range(2):
        assert cli.main(["evaluate", str(run), "--images", "40"]) == 0
        rows.append(json.loads((run / "evaluation.jsonl").read_text().splitlines()[-1]))
    assert len((run / "evaluation.jsonl").read_text().splitlines()) == 1
    assert rows[1]["metrics"] == pytest.approx(rows[0]["metrics"], rel=1e-9)


# Samples


def test_sample_of_a_class(run: Path, tmp_path: Path) -> None:
    """`--class N` gives all images that class; without it seed s has s % classes; the class shows in the image."""
    turns, zeros, ones = (
        samples(run, tmp_path / str(number), "--seeds", "0-5", *flags)
        for number, flags in enumerate(([], ["--class", "0"], ["--class", "1"]))
    )
    for seed in range(6):
        name = f"seed-{seed:06d}.png"
        assert turns[name] == (zeros, ones)[seed % 2][name]
        assert zeros[name] != ones[name]


def test_wrong_class(run: Path, debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class that the run doesn't have is refused with those it has, any class by a run without; nothing is made."""
    out = tmp_path / "out"
    for number in ("2", "-1"):
        text = complaint(capsys, cli.main, "sample", str(run), "--class", number, "--out", str(out))
        assert text == f"class is {number}: the run has 2 classes, give a number from 0 to 1"
    text = complaint(capsys, cli.main, "sample", str(debug_run), "--class", "0", "--out", str(out))
    assert text == "class is 0: the run has no classes, leave it out"
    assert not out.exists()


def test_without_classes_nothing_is_told(debug_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G of a run without classes is told none, whatever labels its data has, in samples, grids and evaluations."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    _, config, _, G = open_run(debug_run)
    recorder = Recorder()
    Evaluator(config, named.load("toy"), extractors.load("digits", DEVICE), DEVICE)(recorder, 20)
    images_of(recorder, [1, 2], 100, DEVICE)
    assert recorder.told == [None] * len(recorder.told) != []
    wanted = fidelity.to_bytes(G.to(DEVICE)(latents(torch.tensor([1, 2], device=DEVICE), 100)))
    assert torch.equal(images_of(G, [1, 2], 100, DEVICE), wanted.cpu())


# Data


def config_with(num_classes: int) -> Config:
    return presets.parse_config([*FLAGS, "--num-classes", str(num_classes)])


def test_data_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images without labels are refused by a recipe with classes, in one line, and are taken by one without."""
    toy = named.load("toy")
    text = refusal(lambda: check(config_with(2), ArrayDataset("plain", toy.images)))
    assert text.startswith("num_classes is 2: the images of plain have no labels; give 0, or ")
    check(config_with(0), ArrayDataset("plain", toy.images))
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, image in enumerate(toy.images[:10, 0].numpy()):
        Image.fromarray(image).save(folder / f"{number}.png")
    with _signal_handlers_kept():
        text = complaint(
            capsys, train.main, *FLAGS, "--data", str(folder), "--run-dir", str(tmp_path / "run"), "--loader", "torch"
        )
    assert text.startswith("num_classes is 2: the images of plain have no labels")


@pytest.mark.parametrize("num_classes", [1, 3, 1000])
def test_data_with_other_classes(num_classes: int) -> None:
    """A number of classes that isn't the data set's is refused with that of the data set; the right one is taken."""
    toy = named.load("toy")
    text = refusal(lambda: check(config_with(num_classes), toy))
    assert text == f"num_classes is {num_classes}: the data set toy has 2; give that number, or 0"
    check(config_with(2), toy)


@pytest.mark.slow
def test_folders_are_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on a folder with a folder a class learns those classes."""
    for label, name in enumerate(("discs", "bars", "more")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, image in enumerate(named.load("toy").images[label:12:2, 0].numpy()):
            Image.fromarray(image).save(tmp_path / "data" / name / f"{number}.png")
    flags = [*FLAGS, "--data", str(tmp_path / "data"), "--num-classes", "3", "--eval-every", "0", "--images", "8"]
    with _signal_handlers_kept():
        assert train.main([*flags, "--run-dir", str(tmp_path / "run")]) == 0
    made = samples(tmp_path / "run", tmp_path / "out", "--seeds", "0,0,0", "--class", "2", "--grid")
    assert list(made) == ["grid.png"]
