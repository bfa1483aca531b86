"""Recorded steps: the numbers of steps that run one by one, from what lies in fixed places alone."""

import shlex
from dataclasses import replace

import pytest
import torch
from conftest import DEVICE
from test_compiling import TINY
from torch import Tensor

from fastgan import networks
from fastgan.config import Config
from fastgan.data.batch import Batch
from fastgan.presets import parse_config
from fastgan.training.cuda_graphs import CudaGraphSteps
from fastgan.training.optimizers import ScheduledAdam
from fastgan.training.trainer import Trainer

R3GAN = "--precision float32 --blocks 1 --group-width 8 --batch-size 4 --image-size 16 16 --stages 8 8 8"
RUNS = {
    "lazy penalties": "--preset mnist28-fast --stages 16 8 --batch-size 8",
    "moving schedules": f"--preset fewshot {R3GAN} --burn-in 40 --augment-p 0.2",
    "reals of G's own": f"--preset ffhq64 {R3GAN} --burn-in 0",
}
ON_GPUS = RUNS | {"legacy decay": "--preset faces128 --width 0.0625 --batch-size 2 --lr-decay 0.01"}  # torch's RMSprop


class Drawn:
    """Batches of random images, a function of the place alone."""

    num_images = 10_000

    def __init__(self, config: Config) -> None:
        self.config = config

    def batch(self, images_seen: int) -> Batch:
        size = self.config.data.batch_size
        of_g = None if self.config.objective.reuse_reals else self._phase(images_seen + 10_000, images_seen)
        return replace(self._phase(images_seen, images_seen), of_g=of_g) if size else None

    def _phase(self, seed: int, images_seen: int) -> Batch:
        config, size = self.config, self.config.data.batch_size
        shape = (size, *config.data.image_size, config.data.channels)
        draws = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8).to(DEVICE).permute(0, 3, 1, 2)
        index = torch.arange(images_seen, images_seen + size, device=DEVICE)
        labels = (index + seed) % config.networks.num_classes if config.networks.num_classes else None
        return Batch(pixels, labels, index, size, index % 2 == 0 if config.data.mirror else None)


class Repeated(CudaGraphSteps):
    """Recorded as by a CUDA graph, on any device: done again from the same tensors, results in the same places."""

    recorded = 0

    def _capture(self, work):
        Repeated.recorded += 1
        places: dict[str, Tensor] = {}

        def replay() -> None:
            for name, term in work().items():
                places.setdefault(name, torch.empty_like(term)).copy_(term)

        return replay, places


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(options: str) -> Trainer:
    config = parse_config(shlex.split(options))
    return Trainer(config, networks.build(config, DEVICE), Drawn(config))


def losses(trainer: Trainer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        terms = trainer.train_step(trainer.loader.batch(trainer.images_seen))
        found += [float(terms[name]) for name in sorted(terms)]
    return found


@pytest.mark.parametrize("run", RUNS)
def test_repeated_steps_are_eager_steps(double, monkeypatch, run):
    """Twelve steps give the same terms, weights and averages where each but the first of its kind is repeated from
    fixed places; schedules that move, and stop to move, are followed.
    """
    eager, recorded = make(RUNS[run]), make(RUNS[run])
    recorded.use_graphs()
    monkeypatch.setattr(Repeated, "recorded", 0)
    recorded.runner = Repeated(recorded.play, DEVICE, recorded._zero_grad)
    assert losses(recorded, 12) == pytest.approx(losses(eager, 12), rel=1e-6)
    assert 0 < Repeated.recorded <= 4
    assert recorded.images_seen == eager.images_seen
    for net, other in ((eager.G.net, recorded.G.net), (eager.D.net, recorded.D.net), (eager.ema.net, recorded.ema.net)):
        for (name, value), theirs in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
            assert (value - theirs).double().norm() <= 1e-6 * value.double().norm(), name


def test_a_step_that_cannot_be_recorded_runs_as_it_is(double, monkeypatch):
    """Where recording fails half-way, what it left behind is cleared, and training goes on eagerly."""
    eager, recorded = make(RUNS["lazy penalties"]), make(RUNS["lazy penalties"])
    recorded.runner = steps = CudaGraphSteps(recorded.play, DEVICE, recorded._zero_grad)

    def fail(work):
        for parameter in recorded.D.net.parameters():
            parameter.grad = torch.ones_like(parameter)  # as a recording leaves behind what was never computed
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(steps, "_capture", fail)
    assert losses(recorded, 8) == pytest.approx(losses(eager, 8), rel=1e-9)
    assert steps.failure == "operation not permitted when stream is capturing"


@pytest.mark.gpu
@pytest.mark.parametrize("run", ON_GPUS)
def test_cuda_graphs_are_eager_steps(double, run):
    """The same of real graphs, and stopping to record changes nothing."""
    eager, recorded = make(ON_GPUS[run]), make(ON_GPUS[run])
    recorded.use_graphs()
    found = losses(recorded, 10)
    recorded.use_graphs(False)
    assert found + losses(recorded, 2) == pytest.approx(losses(eager, 12), rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("preset", TINY)
def test_no_step_waits_for_the_device(preset, recorded):
    """Nothing in a step, of any preset, eager or recorded, makes the host wait for the GPU."""
    trainer = make(f"--preset {preset} {TINY[preset]}")
    trainer.use_graphs(recorded)
    for _ in range(4):
        trainer.train_step(trainer.loader.batch(trainer.images_seen))
    batches = [trainer.loader.batch(trainer.images_seen + n * trainer.config.data.batch_size) for n in range(2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            trainer.meter.add(trainer.train_step(batch), trainer.images_seen)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_beta_on_the_device_is_one_on_the_host():
    """Adam's steps are the same whether its second beta and learning rate are tensors or numbers."""
    weights, settings = torch.randn(3, 5, dtype=torch.float64), {"lr": 0.1, "betas": (0.3, 0.9), "eps": 1e-6}
    mine, theirs = (torch.nn.Parameter(weights.clone()) for _ in range(2))
    ours, torchs = ScheduledAdam([mine], fused=True, **settings), torch.optim.Adam([theirs], fused=True, **settings)
    for number in range(5):
        beta2, lr = 0.9 + 0.01 * number, 0.1 / (1 + number)
        mine.grad = theirs.grad = torch.randn(
            3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(number)
        )
        ours.param_groups[0].update(lr=torch.tensor(lr, dtype=torch.float64), betas=(0.3, torch.tensor(beta2)))
        torchs.param_groups[0].update(lr=lr, betas=(0.3, beta2))
        ours.step()
        torchs.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    assert float(ours.state[mine]["step"]) == 5
