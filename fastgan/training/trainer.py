"""The training step, its two phases, and the loop around them."""

import functools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.data.batch import Batch, Loader
from fastgan.data.sampler import largest_local_batch, num_steps
from fastgan.distributed.collectives import all_gather, all_reduce_sum
from fastgan.distributed.engines import Engine
from fastgan.distributed.heartbeat import EVENT_S
from fastgan.errors import Diverged, Stopped, UserError
from fastgan.networks.layers import has_batch_norm, power_iteration
from fastgan.training import schedules
from fastgan.training.augment import adapt
from fastgan.training.cuda_graphs import CudaGraphSteps
from fastgan.training.ema import Ema
from fastgan.training.meter import NEVER, Meter
from fastgan.training.objectives import DiscriminatorObjective, GeneratorObjective, Metrics
from fastgan.training.optimizers import make_optimizer
from fastgan.training.schedules import StepHyperparameters, Value
from fastgan.utils import rng
from fastgan.utils.memory import in_smaller_parts
from fastgan.utils.rng import RngStream

MIN_SCALE = 2.0**-24  # of a loss: the smallest number of float16; scales begin at 2^16
T = TypeVar("T")
# Takes a network, the module through which it is trained, and its optimizer.
EngineFactory = Callable[[nn.Module, nn.Module, torch.optim.Optimizer], Engine]


@dataclass(frozen=True)
class Hook:
    """An action for whenever the images seen pass a multiple of `every`."""

    every: int
    action: Callable[["Trainer"], None]

    def is_due(self, before: int, after: int) -> bool:
        return before // self.every < after // self.every


class Trainer:
    """Train G and D, keep averages of G, and count the images seen.

    `engine` wraps each network with its optimizer. A process's part of a batch goes through the networks `micro_batch`
    images at a time, or as a whole where that is None; what is learned is the same.
    `at` hears of each phase that begins, `on_out_of_memory` of each smaller micro-batch.
    """

    def __init__(
        self,
        config: Config,
        nets: tuple[nn.Module, nn.Module],
        loader: Loader,
        engine: EngineFactory = Engine,
        num_processes: int = 1,
        micro_batch: int | None = None,
        at: Callable[[str, int, float | None], None] = lambda phase, images_seen, limit_s: None,
        on_out_of_memory: Callable[[int], None] = lambda micro_batch: None,
    ) -> None:
        self.config, self.loader, self.num_processes, self.micro_batch_size = config, loader, num_processes, micro_batch
        self._set_phase, self.on_out_of_memory = at, on_out_of_memory
        G, D = (net.train() for net in nets)
        self.device = next(G.parameters()).device
        self.ema = Ema(G, len(config.optimizer.ema_names))
        self.power = Ema(G, len(config.optimizer.power_names))
        # BatchNorm wants the whole batch at once; one pass of G that serves both phases is a whole one, too.
        self.splits_g = not config.objective.reuse_fakes and not has_batch_norm(G)
        self.G = engine(G, G, make_optimizer(G, config))
        self.d_objective, self.g_objective = DiscriminatorObjective(D, config), GeneratorObjective(D, config)
        self.D = engine(D, self.d_objective, make_optimizer(D, config))
        if config.networks.precision == "float16":
            self.G.enable_loss_scaling()
            self.D.enable_loss_scaling()
        self.meter = Meter(self.device)
        self.images_seen = 0
        self.warm_started = False  # whether G began as another run's, which its averages then needn't forget
        self.augment_p: Tensor | None = None  # where it adapts itself
        if config.objective.augment_target is not None:
            self.augment_p = torch.tensor(config.objective.augment_p, device=self.device)
        self.runner: Callable[[Batch, StepHyperparameters], Metrics] = self.play  # or what does the same in another way
        self.input_wait_s = 0.0  # since the start of the process: time in which the step had no batch

    def compile(self, wanted: bool = True) -> None:
        """Run G and both objectives compiled, each as one graph, from now on, or as they are where that isn't wanted.

        Those whose processes exchange BatchNorm's statistics in the middle are never compiled.
        """
        for module in (self.G.net, self.d_objective, self.g_objective):
            if not wanted:
                module._compiled_call_impl = None
            elif self.num_processes == 1 or not has_batch_norm(module):
                module.compile(fullgraph=True)
        self.runner = self.play  # what was recorded ran otherwise

    def use_graphs(self, wanted: bool = True) -> None:
        """Record each kind of step from now on as one CUDA graph and replay it, or stop doing so.

        For one process on a GPU, and losses that aren't scaled. Nothing changes but for rounding.
        """
        self.runner = CudaGraphSteps(self.play, self.device, self._zero_grad) if wanted else self.play
        for _, engine in self._engines():
            engine.make_capturable(wanted)

    def _zero_grad(self) -> None:
        for _, engine in self._engines():
            engine.zero_grad()

    @property
    def total_images(self) -> int:
        """Return the images after which training ends."""
        return self.config.total_images(self.loader.num_images)

    @property
    def epoch(self) -> int:
        """Return the number, from 1, of the epoch of the last step."""
        return max(0, self.images_seen - 1) // self.loader.num_images + 1

    @property
    def max_local_batch_size(self) -> int:
        """Return the most images of a batch that one process has."""
        return largest_local_batch(self.config.data.batch_size, self.num_processes)

    def steps_to(self, images_seen: int) -> int:
        """Return the steps from the start of training until so many images have been seen."""
        data = self.config.data
        return num_steps(images_seen, self.loader.num_images, data.batch_size, data.keep_partial_batch)

    def train_step(self, batch: Batch) -> Metrics:
        """Take one step of D, then of G, and update the averages of G.

        The metrics are on the device, and stand there until the next step: a recorded one writes over them.
        """
        step = self.steps_to(self.images_seen)
        hparams = schedules.evaluate(self.config, self.images_seen, batch.global_size, step, self.warm_started)
        metrics = self.runner(batch, hparams)
        self.images_seen += batch.global_size
        return metrics

    def play(self, batch: Batch, hparams: StepHyperparameters) -> Metrics:
        """Do the step's work on the device, which depends on the batch, the hparams and this trainer's tensors only."""
        fakes = self.generate(self.G.module, batch, RngStream.LATENTS_D) if self.config.objective.reuse_fakes else None
        metrics = self.discriminator_phase(batch, fakes, hparams)
        metrics |= self.generator_phase(batch.for_g, fakes, hparams)
        with self.G.gathered_params():
            self.ema.update(self.G.net, hparams.ema_betas)
            self.power.update(self.G.net, hparams.power_betas)
        return metrics

    def generate(self, G: nn.Module, batch: Batch, stream: RngStream) -> Tensor:
        """Generate as many images as the batch has, from latents that its sample ids decide."""
        z = rng.normal(rng.keys(self.config.seed, stream, batch.sample_ids), self.config.networks.z_dim)  # [B, Z]
        with self.G.gathered_params():
            images: Tensor = G(z, batch.labels)  # [B, C, H, W]
        return images

    def discriminator_phase(self, batch: Batch, fakes: Tensor | None, hparams: StepHyperparameters) -> Metrics:
        """Take D's step, on the fakes or, where they are None, on ones generated here. G stays as it is."""
        self.set_phase("D's phase")
        if fakes is None and not self.splits_g:
            with torch.no_grad():
                fakes = self.generate(self.G.net, batch, RngStream.LATENTS_D)
        metrics = self._within_memory(self.D, functools.partial(self._d_gradients, batch, fakes, hparams))
        metrics |= self._step("D", self.D, hparams.d_lr, hparams)
        with self.D.gathered_params():
            power_iteration(self.D.net)
        if self.augment_p is not None:
            r = all_reduce_sum(metrics["augment/r"]) / self.num_processes
            metrics["augment/p"] = self.augment_p.clone()
            target = self.config.objective.augment_target or 0.0
            self.augment_p.copy_(adapt(self.augment_p, r, batch.global_size, target))
        return metrics

    def _d_gradients(self, batch: Batch, fakes: Tensor | None, hparams: StepHyperparameters) -> Metrics:
        """Add up the gradients of D's objective over the batch's micro-batches, whose fakes are made here if None."""
        micro_batches, metrics = batch.split(self.micro_batch_size, self.num_processes), Metrics()
        gamma, augment_p = self._on_device(hparams.gamma), self._augment_probability(hparams)
        for number, (indices, part) in enumerate(micro_batches, start=1):
            if fakes is None:
                with torch.no_grad():
                    part_fakes = self.generate(self.G.net, part, RngStream.LATENTS_D)
            else:
                part_fakes = fakes[indices].detach()
            weight = self._loss_weight(part)
            with self.D.accumulate(sync=number == len(micro_batches)):
                loss, found = self.D.module(part.reals, part_fakes, part.labels, part.sample_ids, gamma, augment_p)
                self.D.backward(self.D.scale(loss * weight))
            _add(metrics, found, weight)
        return metrics

    def generator_phase(self, batch: Batch, fakes: Tensor | None, hparams: StepHyperparameters) -> Metrics:
        """Take G's step, on the fakes or, where they are None, on ones generated here. D stays as it is."""
        self.set_phase("G's phase")
        if fakes is None and self.splits_g:
            metrics = self._within_memory(self.G, functools.partial(self._g_gradients, batch, hparams))
        else:
            with self.G.accumulate(sync=True):
                if fakes is None:
                    fakes = self.generate(self.G.module, batch, RngStream.LATENTS_G)
                answer = functools.partial(self.gradient_wrt_fakes, batch, fakes, hparams)
                grad_fakes, metrics = self._within_memory(self.G, answer)
                self.G.backward((fakes * grad_fakes).sum())
        return metrics | self._step("G", self.G, hparams.g_lr, hparams)

    def _step(self, side: str, engine: Engine, lr: Value, hparams: StepHyperparameters) -> Metrics:
        """Let the engine's optimizer move its weights; return the norm of their gradients, and the loss's scale."""
        norm = engine.step(lr, hparams.beta2)
        scale = {} if engine.scaler is None else {f"loss_scale/{side}": engine.scale(torch.ones_like(norm))}
        return {f"grad_norm/{side}": norm} | scale

    def _g_gradients(self, batch: Batch, hparams: StepHyperparameters) -> Metrics:
        """Add up the gradients of G's objective over micro-batches that each go through G by themselves."""
        micro_batches, metrics = batch.split(self.micro_batch_size, self.num_processes), Metrics()
        for number, (_, part) in enumerate(micro_batches, start=1):
            weight = self._loss_weight(part)
            with self.G.accumulate(sync=number == len(micro_batches)):
                fakes = self.generate(self.G.module, part, RngStream.LATENTS_G)
                with self.D.frozen():
                    loss, found = self._g_loss(part, fakes, hparams)
                    self.G.backward(self.G.scale(loss * weight))
            _add(metrics, found, weight)
        return metrics

    def gradient_wrt_fakes(self, batch: Batch, fakes: Tensor, hparams: StepHyperparameters) -> tuple[Tensor, Metrics]:
        """Return the scaled gradient of G's objective in fakes [B, C, H, W] that are made already, and its metrics.

        So G's pass may be one of the whole batch while D takes a micro-batch at a time.
        """
        gradients: list[Tensor] = []
        metrics = Metrics()
        for indices, part in batch.split(self.micro_batch_size, self.num_processes):
            part_fakes = fakes[indices].detach().requires_grad_()
            weight = self._loss_weight(part)
            with self.D.frozen():
                loss, found = self._g_loss(part, part_fakes, hparams)
                gradients += torch.autograd.grad(self.G.scale(loss * weight), part_fakes)
            _add(metrics, found, weight)
        return torch.cat(gradients), metrics

    def _g_loss(self, batch: Batch, fakes: Tensor, hparams: StepHyperparameters) -> tuple[Tensor, Metrics]:
        p = self._augment_probability(hparams)
        found: tuple[Tensor, Metrics] = self.g_objective(batch.reals, fakes, batch.labels, batch.sample_ids, p)
        return found

    def _within_memory(self, engine: Engine, work: Callable[[], T]) -> T:
        """Return what the work returns; where memory runs out halve the micro-batches and do it again.

        Raises UserError where there is no smaller one, or other processes wait in the middle of this step.
        """

        def halve(size: int) -> None:
            before, self.micro_batch_size = self.micro_batch_size or self.max_local_batch_size, size
            self.on_out_of_memory(size)
            if self.num_processes > 1:
                raise UserError(
                    f"memory runs out with micro_batch {before}: the run has noted {size}; give the same command "
                    "again, it resumes from the last checkpoint"
                )
            engine.zero_grad()

        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return work()  # what can't be recorded for want of memory runs as it is
        now = min(self.max_local_batch_size, self.micro_batch_size or self.max_local_batch_size)
        try:
            return in_smaller_parts(1 if has_batch_norm(self.D.net) else now, lambda _: work(), halve)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"memory runs out with batch_size {self.config.data.batch_size} and micro_batch "
                f"{self.micro_batch_size or self.max_local_batch_size}, and there is no smaller one ({error}): "
                "use smaller networks, images or batches, or more GPUs"
            ) from None

    def _augment_probability(self, hparams: StepHyperparameters) -> Tensor | float:
        """Return the probability of each operation of the augmentation."""
        return self._on_device(hparams.augment_p) if self.augment_p is None else self.augment_p

    def _on_device(self, value: Tensor | float) -> Tensor | float:
        """Put a number that changes into a form that compiled networks don't take for a constant; 0 is one."""
        if isinstance(value, Tensor) or not value:
            return value
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def _loss_weight(self, batch: Batch) -> float:
        """Return what makes a sum over micro-batches and mean over processes the mean over images."""
        return len(batch.pixels) * self.num_processes / batch.global_size

    def run(self, hooks: Iterable[Hook] = (), should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train to the end; after each step call the hooks that are due, in their order.

        Raises Stopped after a step at whose end `should_stop` holds, and UserError where memory runs out.
        """
        hooks = tuple(hooks)
        while (before := self.images_seen) < self.total_images:
            began = time.monotonic()
            self.set_phase("reading a batch")
            batch = self.loader.batch(before)
            self.input_wait_s += time.monotonic() - began
            try:
                metrics = self.train_step(batch)
            except torch.OutOfMemoryError as error:  # an optimizer that has moved some weights can't do so again
                raise UserError(
                    f"memory runs out with batch_size {self.config.data.batch_size} where no micro_batch helps, in G's "
                    f"pass over a whole batch or an optimizer's states ({error}): use smaller networks, images or "
                    "batches, or more GPUs; training resumes from the last checkpoint"
                ) from None
            self.meter.add(metrics, before)
            for hook in hooks:
                if hook.is_due(before, self.images_seen):
                    self.set_phase(hook.action.__name__, EVENT_S)
                    hook.action(self)
            self.set_phase("the end of the step")
            if should_stop() and self.images_seen < self.total_images:
                raise Stopped(f"stopped on request at {self.images_seen:,} images")

    def set_phase(self, phase: str, limit_s: float | None = None) -> None:
        """Note that this process begins `phase`, which may take `limit_s`; None: as long as any."""
        self._set_phase(phase, self.images_seen, limit_s)

    def check_finite(self) -> None:
        """Raise Diverged where a loss since the last check, or a weight now, isn't a finite number.

        All processes must ask, and all end alike. It waits for the device once. Where losses are scaled, steps that
        overflow are left out, which is no fault until the scale has fallen so far that float16 holds no gradient.
        """
        nets = (self.G.net, self.D.net, *self._averages().values())
        # The largest absolute value: unlike a sum of squares, it can't itself overflow.
        largest = nn.utils.get_total_norm([p for net in nets for p in net.parameters() if p.numel()], math.inf)
        good = [largest < math.inf]
        scalers = [engine for _, engine in self._engines() if engine.scaler is not None]
        good += [engine.scale(torch.ones_like(largest)) >= MIN_SCALE for engine in scalers]
        nonfinite_at = [] if scalers else [self.meter.nonfinite_at]
        found = torch.stack([*nonfinite_at, torch.where(torch.stack(good).all(), NEVER, self.images_seen)])
        if (seen := min(all_gather(found).flatten().tolist())) != NEVER:
            step = self.steps_to(seen) + 1
            raise Diverged(
                f"the losses are no longer finite numbers since step {step} ({seen:,} images): try a smaller --g-lr "
                "and --d-lr, or another --seed; checkpoints, if any, were written before and are good"
            )

    def _engines(self) -> tuple[tuple[str, Engine], ...]:
        return ("G", self.G), ("D", self.D)

    def _averages(self) -> dict[str, nn.Module]:
        names = [*self.config.optimizer.ema_names, *self.config.optimizer.power_names]
        return dict(zip(names, [*self.ema.nets, *self.power.nets], strict=True))

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return what training resumes from: tensors by file and name, and what JSON holds; all processes must ask.

        It is the same for every engine and number of processes.
        There is no random state: every random number is a function of the seed and of the images seen.
        """
        tensors = {"G": self.G.state_dict(), "D": self.D.state_dict()}
        tensors |= {name: dict(net.state_dict()) for name, net in self._averages().items()}
        tensors["optimizers"] = {
            f"{side}/{key}": value
            for side, engine in self._engines()
            for key, value in engine.optimizer_state().items()
        }
        if self.augment_p is not None:
            tensors["augment"] = {"p": self.augment_p}
        scalers = {side: engine.scaler.state_dict() for side, engine in self._engines() if engine.scaler is not None}
        return tensors, {
            "images_seen": self.images_seen,
            "warm": self.warm_started,
            "meter": self.meter.state(),
            "loss_scales": scalers,
        }

    def load_state(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Put the trainer where `state` was taken, bit for bit."""
        for name, net in self._averages().items():
            net.load_state_dict(tensors[name])
        for side, engine in self._engines():
            start = f"{side}/"
            mine = {k.removeprefix(start): v for k, v in tensors["optimizers"].items() if k.startswith(start)}
            engine.load_state_dict(tensors[side], mine)
            if engine.scaler is not None and side in state.get("loss_scales", {}):
                engine.scaler.load_state_dict(state["loss_scales"][side])
        if self.augment_p is not None:
            self.augment_p = self.augment_p.copy_(tensors["augment"]["p"])
        self.images_seen, self.warm_started = state["images_seen"], state.get("warm", False)
        self.meter.load_state(state["meter"])


def _add(metrics: Metrics, more: Metrics, factor: float) -> None:
    """Add `factor` times the other metrics."""
    for name, value in more.items():
        weighted = value if factor == 1 else value * factor
        metrics[name] = weighted if name not in metrics else metrics[name] + weighted
