"""The public API: what docs/api.md shows runs, and is what the commands do."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image

import fastgan
from fastgan import networks
from fastgan.commands.sample import SampleOptions, sample
from fastgan.evaluation.generator import Generator
from fastgan.runs.checkpoint import Checkpoints
from fastgan.runs.run_folder import RunFolder

API = Path(__file__).parents[1] / "docs" / "api.md"


def make_run(path: Path, **settings: object) -> fastgan.Config:
    """A run that wasn't trained, with the settings; G's first weights, so large that images differ well, stand for its
    average."""
    config = fastgan.configure("debug", run_dir=path, **settings)
    folder = RunFolder(path)
    folder.open(config, b'{"classes": ["cat", "dog", "owl"]}' if config.networks.num_classes else None)
    G, _ = networks.build(config)
    weights = {name: value * 50 if value.ndim > 1 else value for name, value in G.state_dict().items()}
    Checkpoints(folder.checkpoints).save({config.optimizer.ema_names[0]: weights}, {"images_seen": 7})
    folder.close()
    return config


@pytest.fixture
def with_classes(tmp_path: Path) -> Generator:
    """A generator of three classes."""
    make_run(tmp_path / "run", network="dcgan", stages=(8, 8), num_classes=3)
    return fastgan.load(tmp_path / "run")


@pytest.mark.usefixtures("keep_signal_handlers", "here")
def test_docs_run() -> None:
    """The examples of docs/api.md, one after the other, do what their assertions say; signals are given back."""
    before = signal.getsignal(signal.SIGTERM)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", API.read_text(), re.DOTALL):
        exec(compile(block, str(API), "exec"), names)
    assert signal.getsignal(signal.SIGTERM) is before


def test_images_are_those_of_sample(debug_run: Path, tmp_path: Path) -> None:
    """Images of seeds are, byte for byte, the files of `fastgan sample`."""
    sample(SampleOptions(debug_run, seeds="3-72", out=tmp_path))
    made = fastgan.load(debug_run).sample(range(3, 73))
    for seed, pixels in zip(range(3, 73), made, strict=True):
        with Image.open(tmp_path / f"seed-{seed:06d}.png") as image:
            assert np.array_equal(np.asarray(image), pixels[:, :, 0])


def test_called_and_truncated(debug_run: Path) -> None:
    """G(z) of a seed's latents is its image before rounding, with a gradient; truncation scales the latents."""
    G = fastgan.load(debug_run)
    z = G.latents([4, 9]).requires_grad_()
    images = G(z)
    images.sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    as_bytes = ((images.detach().cpu() + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(as_bytes - G.sample([4, 9])).max() <= 1
    half = G(0.5 * z.detach())
    assert np.abs(((half.cpu() + 1) * 127.5).permute(0, 2, 3, 1).numpy() - G.sample([4, 9], truncation=0.5)).max() <= 1


def test_classes(with_classes: Generator) -> None:
    """Classes go by number or name, one for all or one a seed; without them they take turns."""
    G = with_classes
    assert G.classes == ["cat", "dog", "owl"]
    assert np.array_equal(G.sample([5, 6], classes="dog"), G.sample([5, 6], classes=[1, 1]))
    assert np.array_equal(G.sample([5, 6], classes=["owl", 0]), G.sample([5, 6]))
    assert not np.array_equal(G.sample([5], classes=0), G.sample([5], classes=1))
    assert np.array_equal(G.sample(np.int64(5), classes=np.int64(1)), G.sample(torch.tensor([5]), classes=["dog"]))
    assert len(list(G.walk([0, 1], frames=2, classes="cat"))) == 4


def test_vectors(tmp_path: Path) -> None:
    """Vectors are one for all, or one a seed, of a walk too."""
    make_run(tmp_path, network="dcgan", stages=(8, 8), condition="vector", vector_dim=2, data="nowhere")
    G = fastgan.load(tmp_path)
    same = G.sample([1, 2], vectors=[0.5, 1])
    assert np.array_equal(same, G.sample([1, 2], vectors=np.array([[0.5, 1], [0.5, 1]])))
    assert not np.array_equal(same, G.sample([1, 2], vectors=[0.5, -1]))
    assert "give --vector" in refusal(lambda: G.sample([1]))
    for vectors in ([0.5, 1], [[0.5, 1], [0, 1]]):
        at_seeds = list(G.walk([1, 2], 2, vectors=vectors, truncation=0.7))[::2]
        wanted = G.sample([1, 2], vectors=np.zeros((2, 2)) + vectors, truncation=0.7).astype(int)
        assert np.abs([image[1:-1, 1:-1] for image in at_seeds] - wanted).max() <= 1
    assert "this G is told vectors: give [1, 2]" in refusal(lambda: G.walk([1, 2], vectors=[1, 2, 3]))


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda G: G(torch.zeros(2, 3)), "z has the shape [2, 3]: give [B, 100]"),
        (lambda G: G(torch.zeros(1, 100)), "labels is None: this G is told 3 classes: give [1] of their numbers"),
        (lambda G: G(torch.zeros(1, 100), [3]), "labels has 3 to 3: this G is told 3 classes"),
        (lambda G: G(torch.zeros(1, 100), [0, 1]), "labels has the shape [2]"),
        (lambda G: G.sample(1.5), "seeds is 1.5"),
        (lambda G: G.sample(range(70), classes=[0, 1]), "labels has the shape [2]"),
        (lambda G: G.sample(classes="cow"), "classes has 'cow': choose from cat, dog, owl"),
        (lambda G: G.sample([-1]), "seeds is [-1]"),
        (lambda G: G.sample([]), "seeds is []"),
        (lambda G: G.walk([1]), "a walk of 1 seeds"),
        (lambda G: G.walk([1, 2], classes=[0, 3]), "labels has 0 to 3: this G is told 3 classes"),
    ],
)
def test_mistakes(with_classes: Generator, action: Callable[[Generator], object], words: str) -> None:
    """A wrong argument is one line that names it and what to give."""
    assert words in refusal(lambda: action(with_classes))


def test_other_mistakes(debug_run: Path, tmp_path: Path) -> None:
    """What a G isn't told, a folder that is no run, and a checkpoint that is none, are refused."""
    G = fastgan.load(debug_run)
    assert "knows no classes" in refusal(lambda: G.sample(classes=1))
    assert "this G is told nothing" in refusal(lambda: G(G.latents(1), [1]))
    assert "is no run folder" in refusal(lambda: fastgan.load(tmp_path))
    assert "choose from 'newest' and 'best'" in refusal(lambda: fastgan.load(debug_run, which="last"))
    assert "unknown preset" in refusal(lambda: fastgan.train("mnist29"))


def test_another_average(tmp_path: Path) -> None:
    """A selector chooses another average of the same checkpoint."""
    config = make_run(tmp_path, ema_half_lives=(500, 1000))
    G, _ = networks.build(config)
    first, second = config.optimizer.ema_names
    black = {name: torch.zeros_like(value) for name, value in G.state_dict().items()}
    Checkpoints(tmp_path / "checkpoints").save({first: G.state_dict(), second: black}, {"images_seen": 8})
    assert fastgan.load(tmp_path).sample([0]).std() > 0
    assert fastgan.load(tmp_path, which=fastgan.CheckpointSelector(average=1)).sample([0]).std() == 0


def test_configure() -> None:
    """Settings by the options' names change a preset, or another config; wrong values are refused."""
    config = fastgan.configure("debug", image_size=(64, 64), mirror=True, epochs=3)
    assert (config.data.image_size, config.data.mirror, config.run.epochs) == ((64, 64), True, 3)
    assert fastgan.configure(config, epochs=4).data.mirror
    assert "batch_size" in refusal(lambda: fastgan.configure("debug", batch_size=0))


@pytest.mark.usefixtures("keep_signal_handlers", "here")
def test_train_on_a_folder() -> None:
    """Without a preset the images decide; the same call goes on with the run."""
    Path("digits").mkdir()
    for number in range(8):
        Image.fromarray(np.full((28, 28), 30 * number, np.uint8)).save(f"digits/{number}.png")
    settings = {"data": "digits", "health_every": 0, "eval_every": 0, "width": 0.1}
    for images in (8, 16):
        run = fastgan.train(**settings, images=images)
        assert (run, fastgan.load(run).images_seen) == (Path("runs/digits"), images)
    assert fastgan.load(run).config.preset == "mnist28-fast"


@pytest.mark.usefixtures("here")
def test_train_in_a_thread() -> None:
    """Training works outside the main thread, where no signal can be handled."""
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(fastgan.train("debug", run_dir="x", images=32)))
    thread.start()
    thread.join()
    assert fastgan.load(found[0]).images_seen == 32


def test_import_is_fast() -> None:
    """`import fastgan` imports none of its libraries; every public name is there."""
    program = "import sys, fastgan; assert not {'torch', 'numpy', 'tyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert all(getattr(fastgan, name) is not None for name in fastgan.__all__)
    with pytest.raises(AttributeError):
        fastgan.no_such_name  # noqa: B018
