"""Compiled training: the same numbers as eager, in whole graphs that are compiled once."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE, refusal
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan import networks
from fastgan.data.batch import Batch
from fastgan.presets import parse_config
from fastgan.training import compiling
from fastgan.training.trainer import Trainer

CPU = torch.device("cpu")
STEPS = 10
R3GAN = "--precision float32 --blocks 1 --group-width 8 --burn-in 0 --batch-size"
TINY = {
    "mnist28": "--width 0.0625 --batch-size 8 --penalty r1+r2 --gamma 1",
    "faces128": "--width 0.0625 --batch-size 2",  # BatchNorm in D: no penalty
    "cifar10": f"{R3GAN} 4 --stages 8 8 8 8",
    "ffhq256": f"{R3GAN} 1 --stages 8 8 8 8 8 8 8",
    "imagenet32": f"{R3GAN} 4 --stages 8 8 8 8",
    "stacked-mnist": f"{R3GAN.replace('burn-in 0', 'burn-in 8')} 4 --stages 8 8 8 8",
}
INDUCTOR = ("mnist28", "faces128", "cifar10")  # through the real compiler; the others' graphs run uncompiled


class Drawn:
    """Batches of random images, a function of the place alone."""

    num_images = 10_000

    def __init__(self, options: str, device: torch.device = DEVICE) -> None:
        self.config, self.device = parse_config(shlex.split(options)), device

    def batch(self, images_seen: int) -> Batch:
        config, size = self.config, self.config.data.batch_size
        sample_ids = torch.arange(images_seen, images_seen + size, device=self.device)
        draws = torch.Generator().manual_seed(images_seen)
        shape = (1 if config.objective.reuse_reals else 2, size, config.data.channels, *config.data.image_size)
        pixels = torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8).to(self.device)
        labels = sample_ids % config.networks.num_classes if config.networks.num_classes else None
        parts = [part.contiguous(memory_format=torch.channels_last) for part in pixels]
        of_d, *of_g = [Batch(part, labels, sample_ids, size) for part in parts]
        return replace(of_d, of_g=of_g[0]) if of_g else of_d


def make(preset: str, device: torch.device = DEVICE) -> Trainer:
    loader = Drawn(f"--preset {preset} {TINY[preset]}", device)
    return Trainer(loader.config, networks.build(loader.config, device), loader)


def step(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.train_step(trainer.loader.batch(trainer.images_seen))


@pytest.fixture
def double() -> Iterator[None]:
    """float64, in which the two differ by rounding too small to be blown up by training; a compiler with no memory."""
    torch.set_default_dtype(torch.float64)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.set_default_dtype(torch.float32)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("preset", TINY)
def test_compiled_training_is_eager_training(double, monkeypatch, preset):
    """After ten steps all weights agree to 1e-5, without a graph break, and no graph is made after the first two steps,
    in the second of which a burn-in's augmentation sets in.
    """
    eager, compiled = make(preset), make(preset)
    if preset not in INDUCTOR:
        for module in (compiled.G.net, compiled.d_objective, compiled.g_objective):
            module.compile(fullgraph=True, backend="aot_eager")
    else:
        compiled.compile()
    graphs = []
    for _ in range(STEPS):
        wanted, found = step(eager), step(compiled)
        graphs.append(counters["stats"]["unique_graphs"])
        assert wanted.keys() == found.keys()
    assert graphs[0] >= 3  # something was compiled
    assert graphs[1] == graphs[-1] and not counters["graph_break"]
    for net, other in ((eager.G.net, compiled.G.net), (eager.D.net, compiled.D.net), (eager.ema.net, compiled.ema.net)):
        for (name, value), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
            assert (value - theirs).norm() <= 1e-5 * value.norm(), name


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers and sizes that are read from tensors."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if any(name in op.name() for name in self.NAMES):
            self.found.append(op.name())
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", TINY)
def test_step_reads_nothing_back(preset):
    """Between two rows of the board no step asks a tensor for its value, so a GPU never waits for the host."""
    trainer = make(preset)
    batches = [trainer.loader.batch(n * trainer.config.data.batch_size) for n in range(3)]
    with Waits() as waits:
        for number, batch in enumerate(batches):
            trainer.meter.add(trainer.train_step(batch), number)
    assert not waits.found
    with Waits() as waits:
        float(trainer.meter.nonfinite_at)
    assert waits.found  # a value that is read is seen


def processes(kind: str = "cpu", engine: str = "ddp", count: int = 1) -> SimpleNamespace:
    said: list[str] = []
    device = torch.device(kind)
    return SimpleNamespace(
        device=device,
        engine_name=engine,
        world_size=count,
        print=said.append,
        said=said,
    )


def test_auto_leaves_a_cpu_alone(double):
    """On a CPU nothing is compiled unless it is asked for."""
    trainer = make("mnist28", CPU)
    compiling.settle(trainer, processes())
    step(trainer)
    assert counters["stats"]["unique_graphs"] == 0


class Timed:
    """A trainer whose steps take a known time in each way, by a clock that only they advance."""

    device, images_seen, total_images = CPU, 0, 0
    config = SimpleNamespace(objective=SimpleNamespace(penalty_every=2))

    def __init__(self, total_images: int, **seconds: float) -> None:
        self.total_images, self.seconds, self.clock = total_images, seconds, 0.0
        self.compiled = self.recorded = False
        self.said: list[str] = []
        self.runner = self.play

    def compile(self, wanted: bool) -> None:
        self.compiled, self.runner = wanted, self.play

    def use_graphs(self, wanted: bool) -> None:
        self.recorded, self.runner = wanted, self.play

    def play(self, batch, hparams) -> dict:
        self.images_seen += batch.global_size
        self.clock += self.seconds["_".join(["compiled"] * self.compiled + ["recorded"] * self.recorded) or "eager"]
        return {}

    def ended(self, monkeypatch) -> tuple[bool, bool]:
        """How steps are computed after fifty trials of all ways."""
        monkeypatch.setattr(compiling.time, "monotonic", lambda: self.clock)
        ways = [compiling.StepMode(compiled, recorded) for compiled in (False, True) for recorded in (False, True)]
        compiling.StepModeTrials(self, ways, self.said.append)
        for _ in range(100):
            self.runner(SimpleNamespace(global_size=10), None)
        assert self.runner == self.play  # the trials are over
        return self.compiled, self.recorded


def test_the_fastest_way_is_taken(monkeypatch):
    """Each way is timed, and what was said of it is its speed; the fastest stays."""
    run = Timed(10**9, eager=0.2, recorded=0.1, compiled=0.15, compiled_recorded=0.05)
    assert run.ended(monkeypatch) == (True, True)
    assert "steps: eager: 50 images/s" in run.said and "steps: recorded: 100 images/s" in run.said
    assert Timed(10**9, eager=0.2, recorded=0.1, compiled=0.15, compiled_recorded=0.3).ended(monkeypatch) == (
        False,
        True,
    )
    assert Timed(10**9, eager=0.01, recorded=0.1, compiled=0.2, compiled_recorded=0.3).ended(monkeypatch) == (
        False,
        False,
    )


def test_a_short_run_is_not_compiled(monkeypatch):
    """Where little is left to train at the best speed so far, nothing is compiled; recording takes no time."""
    run = Timed(50_000, eager=0.2, recorded=0.1, compiled=0.01, compiled_recorded=0.01)
    assert run.ended(monkeypatch) == (False, True)
    assert not [line for line in run.said if "compiled" in line]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU refuses nothing")
def test_auto_goes_on_where_nothing_can_be_recorded():
    """Where the device refuses both, a trial ends with eager steps, and no step is lost or done twice."""
    right, found = make("mnist28", CPU), make("mnist28", CPU)
    here = processes("cuda")  # as the config would have it, though the tensors lie on the CPU
    compiling.settle(found, here, here.print)
    for _ in range(30):
        step(right), step(found)
    assert found.runner == found.play
    assert any("training isn't compiled" in line for line in here.said)
    for value, theirs in zip(right.G.net.parameters(), found.G.net.parameters(), strict=True):
        assert torch.equal(value, theirs)


def test_compiling_that_cannot_be_is_refused(monkeypatch):
    """Where it is asked for and a compiler is missing or the engine is zero3, one line says so; `auto` goes on."""
    options = f"--preset mnist28 {TINY['mnist28']} --compile"
    trainer = Trainer(
        Drawn(f"{options} on").config, networks.build(Drawn(f"{options} on").config), Drawn(options + " on")
    )
    assert "zero3" in refusal(lambda: compiling.settle(trainer, processes(engine="zero3", count=2)))

    def broken(function):
        raise RuntimeError("no g++\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    assert "compile is on: torch.compile fails here (no g++)" in refusal(lambda: compiling.settle(trainer, processes()))
