"""Vectors of attributes from the data set to the samples: loaders, networks, training, evaluation, commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, _signal_handlers_kept, refusal
from PIL import Image
from safetensors.numpy import load as load_arrays
from test_distributed import launch
from test_folder import write_images
from test_loaders import LOADERS, batches
from torch import Tensor

from fastgan import cli, networks, presets
from fastgan.commands import train
from fastgan.config import NetworkConfig
from fastgan.data import loaders, named
from fastgan.data.folder import FolderDataset
from fastgan.data.images import ArrayDataset
from fastgan.data.labels import LabelOptions
from fastgan.data.loaders import build_loader, open_dataset
from fastgan.data.prepared import PreparedDataset
from fastgan.evaluation import extractors, fidelity
from fastgan.evaluation.evaluator import Evaluator
from fastgan.evaluation.sampling import images_of, open_run
from fastgan.monitor.health import label_use
from fastgan.runs.checkpoint import Checkpoints
from fastgan.training.trainer import Trainer

NUM = 24
VECTORS = torch.tensor([[n / NUM, (n % 5) / 4 - 0.5, float(n % 2)] for n in range(NUM)])
NETS = {
    "r3gan": ("--preset", "cifar10", "--precision", "float32", "--stages", "8", "8", "--group-width", "4"),
    "dcgan": ("--preset", "mnist28-fast", "--stages", "8"),
}
COMMON = (
    *("--no-mirror", "--num-classes", "0", "--condition", "vector", "--vector-dim", "3", "--z-dim", "8"),
    *("--image-size", "8", "8", "--channels", "3", "--batch-size", "8", "--grid-side", "3", "--threads", "1"),
    *("--eval-every", "0", "--compile", "off", "--images", "40"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with vectors in dataset.json, as StyleGAN's program keeps them."""
    path = tmp_path_factory.mktemp("vectors") / "set"
    write_images(path, NUM, size=(8, 8))
    labels = [[f"{number:03d}.png", vector.tolist()] for number, vector in enumerate(VECTORS)]
    (path / "dataset.json").write_text(json.dumps({"labels": labels}))
    return path


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Path:
    out = folder.parent / "prepared"
    options = ["--size", "8", "--workers", "1", "--condition", "vector"]
    assert cli.main(["data", "prepare", str(folder), str(out), *options]) == 0
    return out


def flags(network: str, data: Path) -> list[str]:
    return [*NETS[network], *COMMON, "--data", str(data)]


@pytest.fixture(scope="module", params=sorted(NETS))
def run(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of five steps."""
    path = tmp_path_factory.mktemp("run") / "run"
    with _signal_handlers_kept():
        assert train.main([*flags(request.param, folder), "--run-dir", str(path)]) == 0
    return path


def refused(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *args: str) -> str:
    capsys.readouterr()
    assert main(list(args)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# Data


def test_prepared_sets_keep_them(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """members.safetensors has them as float32, `data info` names them, and a set prepared of the set has them too."""
    members = load_arrays((prepared / "members.safetensors").read_bytes())
    assert members["vector"].dtype == np.float32 and "label" not in members
    assert np.array_equal(members["vector"], VECTORS.numpy())
    assert cli.main(["data", "info", str(prepared), "--workers", "1"]) == 0
    assert "labels: vectors of 3 numbers" in capsys.readouterr().out
    again = ["data", "prepare", str(prepared), str(tmp_path / "again"), "--size", "8", "--workers", "1"]
    assert cli.main([*again, "--condition", "vector"]) == 0
    labels = PreparedDataset(tmp_path / "again").labels
    assert labels is not None and torch.equal(labels, VECTORS)


def test_preparing_without_asking_says_how_to(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --condition vector all images are prepared without labels, and a line names the flag."""
    assert cli.main(["data", "prepare", str(folder), str(tmp_path / "out"), "--size", "8", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "vectors: 3 numbers an image: --condition vector" in said
    assert len(PreparedDataset(tmp_path / "out")) == NUM and PreparedDataset(tmp_path / "out").labels is None


def test_preparing_what_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--condition vector of images without labels is refused, and nothing is made."""
    write_images(tmp_path / "set", 2, size=(8, 8))
    options = ["--size", "8", "--workers", "1", "--condition", "vector"]
    line = refused(capsys, cli.main, "data", "prepare", str(tmp_path / "set"), str(tmp_path / "out"), *options)
    assert "condition is 'vector': folder has no labels: give --labels FILE" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("reuse_reals", [True, False])
def test_every_loader_brings_each_images_vector(prepared: Path, kind: str, reuse_reals: bool) -> None:
    """Over two epochs each image comes with its own vector, for G's phase too, on one process as on two."""
    reals = "--reuse-reals" if reuse_reals else "--no-reuse-reals"
    config = presets.parse_config([*flags("r3gan", prepared), "--loader", kind, "--workers", "0", reals])
    dataset = open_dataset(config)
    vector_of = {dataset.pixels(torch.tensor([n])).numpy().tobytes(): VECTORS[n] for n in range(NUM)}
    halves = [batches(config, dataset, 0, 6, rank, 2) for rank in range(2)]
    for number, batch in enumerate(batches(config, dataset, 0, 6)):
        for whole, parts in (
            (batch, [half[number] for half in halves]),
            (batch.for_g, [half[number].for_g for half in halves]),
        ):
            assert whole.labels is not None and whole.labels.dtype == torch.float32
            wanted = [vector_of[image.contiguous().numpy().tobytes()] for image in whole.pixels.cpu()]
            assert torch.equal(whole.labels.cpu(), torch.stack(wanted))
            assert torch.equal(torch.cat([part.labels for part in parts if part.labels is not None]), whole.labels)


@pytest.mark.parametrize("data", ["folder", "prepared"])
def test_wrong_lengths_are_refused(data: str, request: pytest.FixtureRequest) -> None:
    """Another length than the data's is refused with the data's; classes of vectors, and vectors of classes, too."""
    path = request.getfixturevalue(data)

    def said(*more: str) -> str:
        config = presets.parse_config([*flags("r3gan", path), *more])
        return refusal(lambda: loaders.check(config, open_dataset(config)))

    for length in ("0", "2", "4"):
        assert f"vector_dim is {length}: " in said("--vector-dim", length)
        assert "have 3 numbers" in said("--vector-dim", length)
    classes = ("--condition", "class", "--vector-dim", "0", "--num-classes", "3")
    assert "--condition vector --vector-dim 3 --num-classes 0" in said(*classes)
    toy = ("--data", "toy", "--channels", "1", "--image-size", "28", "28")
    assert "the images of toy have classes, no vectors" in said(*toy)


def test_unused_vectors_of_a_prepared_set_are_told(prepared: Path) -> None:
    """A run without conditions uses all images of a set with vectors, and one line says how to use them."""
    config = presets.parse_config([*flags("dcgan", prepared), "--condition", "class", "--vector-dim", "0"])
    lines: list[str] = []
    build_loader(config, open_dataset(config), DEVICE, say=lines.append)
    assert "vectors of 3 numbers found and not used: --condition vector --vector-dim 3" in lines


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (("--condition", "vector", "--num-classes", "3"), "num_classes is 3"),
        (("--condition", "class", "--vector-dim", "3"), "vector_dim is 3: it goes with --condition vector"),
        (("--vector-dim", "-1"), "vector_dim is -1"),
    ],
)
def test_settings_that_contradict_each_other(wrong: tuple[str, ...], word: str) -> None:
    """Classes and vectors at once, and a length without vectors, are refused by name."""
    assert word in refusal(lambda: presets.parse_config(["--preset", "faces128-fast", *wrong]))


# Networks


@pytest.mark.parametrize("network", sorted(NETS))
def test_gradients_reach_the_vector(folder: Path, network: str) -> None:
    """Each number of an image's vector moves G's image and D's logit of that image, and of no other."""
    config = presets.parse_config([*flags(network, folder), "--num-classes", "0"])
    G, D = networks.build(config)
    G.eval()
    for parameter in D.parameters():  # some start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    for parameter in G.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    told = VECTORS[:4].clone().requires_grad_()
    images = torch.randn(4, 3, 8, 8)
    for answer in (G(torch.randn(4, 8), told).square().sum((1, 2, 3)), D(images, told)):
        (slope,) = torch.autograd.grad(answer[1], told)
        assert (slope[1] != 0).all() and (slope[[0, 2, 3]] == 0).all()


@pytest.mark.parametrize("network", sorted(NETS))
def test_vectors_of_zeros_are_judged(folder: Path, network: str) -> None:
    """D's logit of an image that has none of the attributes still depends on the image."""
    _, D = networks.build(presets.parse_config(flags(network, folder)))
    for parameter in D.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    logits = D(torch.randn(4, 3, 8, 8), torch.zeros(4, 3))
    assert logits.unique().numel() == 4


@pytest.mark.parametrize("network", sorted(NETS))
def test_networks_refuse_other_vectors(folder: Path, network: str) -> None:
    """A network that is told no vector, or one of another length, says so."""
    G, D = networks.build(presets.parse_config(flags(network, folder)))
    for net, given in ((G, torch.randn(2, 8)), (D, torch.randn(2, 3, 8, 8))):
        assert "labels are vectors of 2 numbers: the network takes 3" in refusal(
            lambda net=net, given=given: net(given, torch.zeros(2, 2))
        )
        assert "labels is None" in refusal(lambda net=net, given=given: net(given))


@pytest.mark.parametrize("preset", ["mnist28", "faces128"])
def test_networks_without_conditions_refuse_vectors(preset: str) -> None:
    """The courses' networks refuse vectors in one line that names those that take them."""
    config = presets.parse_config(["--preset", preset, "--condition", "vector", "--vector-dim", "2"])
    text = refusal(lambda: networks.build(config))
    assert text.startswith("condition is 'vector': ") and "--network r3gan or dcgan" in text


@pytest.mark.parametrize("network", sorted(NETS))
def test_both_players_are_told_the_reals_vectors(folder: Path, network: str) -> None:
    """In each phase fakes are made of the vectors of its own reals, and judged as of them."""
    config = presets.parse_config(flags(network, folder))
    trainer = Trainer(config, networks.build(config, DEVICE), build_loader(config, open_dataset(config), DEVICE))
    told: list[torch.Tensor] = []
    for net in (trainer.G.net, trainer.D.net):
        net.register_forward_pre_hook(lambda _, args: told.append(args[1]))
    batch = trainer.loader.batch(0)
    assert batch.labels is not None and batch.for_g.labels is not None
    trainer.train_step(batch)
    rows = {tuple(row) for labels in (batch.labels, batch.for_g.labels) for row in labels.tolist()}
    assert told and all({tuple(row) for row in labels.tolist()} <= rows for labels in told)
    for labels in told:
        own = batch.labels if torch.equal(labels[:8], batch.labels) else batch.for_g.labels
        assert torch.equal(labels, torch.cat([own] * (len(labels) // 8)))


# Runs


def test_resumed_is_never_stopped(run: Path, folder: Path, tmp_path: Path) -> None:
    """A run in two sessions ends with the weights of one in one session, bit for bit."""
    network = open_run(run)[1].networks.network
    for images in ("16", "40"):
        with _signal_handlers_kept():
            assert train.main([*flags(network, folder), "--run-dir", str(tmp_path), "--images", images]) == 0
    one, two = (Checkpoints(path / "checkpoints").latest() for path in (run, tmp_path))
    assert one is not None and two is not None
    for net in ("G", "D", "G_ema"):
        for name, value in one.tensors[net].items():
            assert torch.equal(two.tensors[net][name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(NETS))
def test_two_processes_learn_what_one_learns(folder: Path, tmp_path: Path, network: str) -> None:
    """Two processes end with one's weights, but for rounding."""
    found = []
    for count in (1, 2):
        answer = launch(tmp_path / str(count), count, *flags(network, folder))
        assert answer.returncode == 0, answer.stderr
        found.append(Checkpoints(tmp_path / str(count) / "checkpoints").latest())
    one, two = found
    assert one is not None and two is not None
    for net in ("G", "D"):
        for name, value in one.tensors[net].items():
            if value.is_floating_point():
                torch.testing.assert_close(two.tensors[net][name], value, rtol=1e-3, atol=2e-4)


class Recorder(torch.nn.Module):
    """A generator that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[torch.Tensor] = []

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.told.append(labels)
        return z.mean(1).tanh()[:, None, None, None].expand(-1, 1, 28, 28)


def test_evaluation_is_of_the_datas_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated images have the data set's vectors, each as often as there."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    data = ArrayDataset("vectors", named.load("toy").images[:NUM], VECTORS)
    config = presets.parse_config(flags("dcgan", tmp_path))
    recorder = Recorder()
    Evaluator(config, data, extractors.load("digits", DEVICE), DEVICE)(recorder, 2 * NUM)
    told = torch.cat(recorder.told).cpu()
    rows, counts = told.unique(dim=0, return_counts=True)
    assert torch.equal(rows, VECTORS.unique(dim=0)) and counts.tolist() == [2] * NUM


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_samples_of_a_vector(run: Path, tmp_path: Path) -> None:
    """`--vector` tells all images that vector; without it each seed has one of the data's, as grids and walks do."""
    G = open_run(run)[3].to(DEVICE)
    assert cli.main(["sample", str(run), "--seeds", "0-3", "--vector=-0.5,0.25,1", "--out", str(tmp_path / "a")]) == 0
    asked = images_of(G, [*range(4)], 8, DEVICE, torch.tensor([[-0.5, 0.25, 1.0]]).expand(4, 3))
    assert cli.main(["sample", str(run), "--seeds", "0-3", "--out", str(tmp_path / "b")]) == 0
    drawn = images_of(G, [*range(4)], 8, DEVICE, fidelity.labels_of_data(torch.arange(4), VECTORS))
    for place, wanted in (("a", asked), ("b", drawn)):
        for seed in range(4):
            found = pixels(tmp_path / place / f"seed-{seed:06d}.png")
            assert np.abs(found - wanted[seed].permute(1, 2, 0).numpy()).max() <= 1
    assert (
        cli.main(["walk", str(run), "--seeds", "0-1", "--frames", "2", "--grid", "2", "--out", str(tmp_path / "w.gif")])
        == 0
    )
    assert len(list((run / "grids").iterdir())) >= 2


def test_wrong_vectors_at_sampling(
    run: Path, debug_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A vector of another length, or no numbers, or for a run without, or a class for a run with, is one line."""
    out = ["--out", str(tmp_path / "out")]
    for text in ("1,2", "1,2,x", "1,2,nan", ""):
        line = refused(capsys, cli.main, "sample", str(run), f"--vector={text}", *out)
        assert f"vector is {text!r}: give 3 numbers" in line
    assert "has no vectors" in refused(capsys, cli.main, "sample", str(debug_run), "--vector", "1,2", *out)
    assert "class is 0: the run has no classes" in refused(capsys, cli.main, "sample", str(run), "--class", "0", *out)
    assert not (tmp_path / "out").exists()


def test_samples_without_the_data(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the data has gone, vectors must be given, and a line says so."""
    folder.rename(folder.with_name("elsewhere"))
    try:
        line = refused(capsys, cli.main, "sample", str(run), "--out", str(tmp_path / "out"))
        assert "give --vector" in line
        assert cli.main(["sample", str(run), "--vector", "0,0,1", "--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    finally:
        folder.with_name("elsewhere").rename(folder)


def test_label_use_of_vectors() -> None:
    """The share of pairs of unlike images that fit their own vectors better is 1 of a D that knows them, 0 of one
    that has them the wrong way round."""
    told = VECTORS[:20, :2]
    images = told[:, :, None, None].expand(-1, -1, 2, 2)
    for sign, wanted in ((1, 1), (-1, 0)):

        def judge(x: torch.Tensor, labels: torch.Tensor, sign: int = sign) -> torch.Tensor:
            return -sign * (x.mean((2, 3)) - labels).square().sum(1)

        assert label_use(judge, images, told, judge(images, told)) == wanted


def test_plans_count_vectors(folder: Path) -> None:
    """A plan and the numbers of parameters take vectors into account."""
    few, many = (presets.parse_config([*flags("r3gan", folder), "--vector-dim", length]) for length in ("3", "30"))
    assert networks.sizes(many)[0] - networks.sizes(few)[0] == 27 * 64
    assert NetworkConfig(condition="vector", vector_dim=3).condition_width == 4


def test_a_broken_files_stand_in_has_the_nearest_vector(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on with the picture whose vector is nearest to the broken one's, and one line says so."""
    source = Path(shutil.copytree(folder, tmp_path / "set"))
    (source / "000.png").write_bytes(b"no image")
    dataset = FolderDataset(source, (8, 8), 3, LabelOptions(condition="vector", num_classes=0))
    nearest = 1 + int((VECTORS[1:] - VECTORS[0]).norm(dim=1).argmin())
    assert torch.equal(dataset.pixels(torch.tensor([0])), dataset.pixels(torch.tensor([nearest])))
    assert "another image of a near vector stands in for it" in capsys.readouterr().out


# Learning

SMALL = 4  # pixels a side


def bar(vector: Tensor) -> np.ndarray:
    """An upright bar of two numbers from -1 to 1: how bright it is, and how far to the right."""
    columns = np.arange(SMALL) - (SMALL - 1) * (0.5 + 0.35 * float(vector[1]))
    return np.tile(np.rint(np.exp(-2 * columns**2) * (150 + 90 * float(vector[0]))), (SMALL, 1)).astype(np.uint8)


def brightness_and_place(images: Tensor) -> Tensor:
    """The two numbers [N, 2] as images [N, 1, H, W] show them, in levels and pixels."""
    pixels = images[:, 0].float()
    places = (pixels.sum(1) * torch.arange(SMALL)).sum(1) / pixels.sum((1, 2)).clamp_min(1)
    return torch.stack([pixels.amax(2).mean(1), places], dim=1)


@pytest.mark.slow
@pytest.mark.usefixtures("keep_signal_handlers", "no_gpu")
def test_r3gan_follows_its_vectors(tmp_path: Path) -> None:
    """After 375 steps of a tiny R3GAN each number moves what it stands for in the samples, and not the other."""
    vectors = torch.rand(512, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = {f"{number:03d}.png": vector for number, vector in enumerate(vectors)}
    (tmp_path / "set").mkdir()
    for name, vector in images.items():
        Image.fromarray(bar(vector)).save(tmp_path / "set" / name)
    labels = [[name, vector.tolist()] for name, vector in images.items()]
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"labels": labels}))
    args = ["--preset", "cifar10", "--precision", "float32", "--stages", "32", "--group-width", "4", "--blocks", "1"]
    args += [*COMMON, "--vector-dim", "2", "--image-size", str(SMALL), str(SMALL), "--channels", "1", "--gamma", "0.05"]
    args += ["--augment", "none", "--augment-p", "0", "--reuse-reals", "--batch-size", "32", "--images", "12000"]
    args += ["--g-lr", "2e-3", "--d-lr", "2e-3", "--g-lr-end", "2e-4", "--d-lr-end", "2e-4", "--burn-in", "6000"]
    args += ["--ema-half-lives", "500", "--health-every", "0", "--data", str(tmp_path / "set")]
    assert train.main([*args, "--run-dir", str(tmp_path / "run")]) == 0
    _, config, _, G = open_run(tmp_path / "run")
    asked = torch.rand(256, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    made = brightness_and_place(images_of(G, range(256), config.networks.z_dim, torch.device("cpu"), asked))
    wanted = brightness_and_place(torch.from_numpy(np.stack([bar(vector) for vector in asked]))[:, None])
    found = torch.corrcoef(torch.cat([made, wanted], dim=1).T)[:2, 2:]
    assert found.diagonal().min() > 0.75 and (found - found.diagonal().diag()).abs().max() < 0.3, found
