"""The training of two players: the step, its two phases, the loop around them."""

import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.data.batch import Batch, Loader
from fastgan.data.sampler import largest_share, num_steps
from fastgan.distributed.collectives import all_values, sum_over_processes
from fastgan.distributed.engines import Player
from fastgan.distributed.heartbeat import EVENT_S
from fastgan.errors import Diverged, Stopped, UserError
from fastgan.networks.layers import BatchNorm, follow_singular_values
from fastgan.training import schedules
from fastgan.training.augment import adapt
from fastgan.training.cuda_graphs import RecordedSteps
from fastgan.training.ema import Ema
from fastgan.training.meter import NEVER, Meter
from fastgan.training.objectives import DiscriminatorObjective, GeneratorObjective, Terms
from fastgan.training.optimizers import ScheduledAdam
from fastgan.training.schedules import Knobs, Value
from fastgan.utils import rng
from fastgan.utils.memory import in_smaller_parts
from fastgan.utils.rng import Stream

MIN_SCALE = 2.0**-24  # of a loss: the smallest number of float16; scales begin at 2^16
T = TypeVar("T")
Engine = Callable[[nn.Module, nn.Module, torch.optim.Optimizer], Player]  # of a network, its module and its optimizer


@dataclass(frozen=True)
class Event:
    """Something that happens whenever the images seen pass a multiple of `every`."""

    every: int
    action: Callable[["Trainer"], None]

    def is_due(self, before: int, after: int) -> bool:
        return before // self.every < after // self.every


class Trainer:
    """Two players, G's average, and how far they have come.

    `engine` makes the players. A process's share of a batch goes through the networks `micro_batch` images at a time,
    or as a whole where that is None; what is learned is the same.
    """

    def __init__(
        self,
        config: Config,
        nets: tuple[nn.Module, nn.Module],
        loader: Loader,
        engine: Engine = Player,
        num_processes: int = 1,
        micro_batch: int | None = None,
        at: Callable[[str, int, float | None], None] = lambda phase, images_seen, limit_s: None,
    ) -> None:
        self.config, self.loader, self.num_processes, self.micro_batch = config, loader, num_processes, micro_batch
        self._at = at
        G, D = (net.train() for net in nets)
        self.device = next(G.parameters()).device
        self.ema = Ema(G, max(1, len(config.optimizer.ema_half_lives)))
        self.power = Ema(G, len(config.optimizer.ema_stds))
        # BatchNorm wants the whole batch at once; one pass of G that serves both phases is a whole one, too.
        self.splits_g = not config.objective.share_fakes and not has_batch_norm(G)
        self.G = engine(G, G, _optimizer(G, config))
        self.d_objective, self.g_objective = DiscriminatorObjective(D, config), GeneratorObjective(D, config)
        self.D = engine(D, self.d_objective, _optimizer(D, config))
        if config.networks.precision == "float16":
            self.G.scale_losses()
            self.D.scale_losses()
        self.meter = Meter(self.device)
        self.images_seen = 0
        self.warm = False  # whether all first weights of G are another run's: then its averages needn't forget them
        self.augment_p: Tensor | None = None  # where it adapts itself
        if config.objective.augment_target is not None:
            self.augment_p = torch.tensor(config.objective.augment_p, device=self.device)
        self.runner: Callable[[Batch, Knobs], Terms] = self.play  # or what does the same in another way
        self.input_wait_s = 0.0  # since the start of the process: time in which the step had no batch
        self.on_short_memory: Callable[[int], None] = lambda micro_batch: None

    def compile(self, wanted: bool = True) -> None:
        """From now on G and both objectives run compiled, each as one graph, but for those whose processes exchange
        BatchNorm's statistics in the middle; or, where that isn't wanted, as they are.
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
        self.runner = RecordedSteps(self.play, self.device, self._forget_gradients) if wanted else self.play
        for _, player in self._players():
            player.settings_on_device(wanted)

    def _forget_gradients(self) -> None:
        for _, player in self._players():
            player.forget_gradients()

    @property
    def total_images(self) -> int:
        """Where training ends."""
        return self.config.total_images(self.loader.num_images)

    @property
    def epoch(self) -> int:
        """The number, from 1, of the epoch that the last step belonged to."""
        return max(0, self.images_seen - 1) // self.loader.num_images + 1

    @property
    def max_share(self) -> int:
        """The most images of a batch that one process has."""
        return largest_share(self.config.data.batch_size, self.num_processes)

    def steps_to(self, images_seen: int) -> int:
        """The steps from the start of training to where so many images have been seen."""
        data = self.config.data
        return num_steps(images_seen, self.loader.num_images, data.batch_size, data.keep_partial_batch)

    def train_step(self, batch: Batch) -> Terms:
        """Take one step of D, then of G, and update the averages of G.

        The terms are on the device, and stand there until the next step: a recorded one writes over them.
        """
        step = self.steps_to(self.images_seen)
        terms = self.runner(batch, schedules.at(self.config, self.images_seen, batch.global_size, step, self.warm))
        self.images_seen += batch.global_size
        return terms

    def play(self, batch: Batch, knobs: Knobs) -> Terms:
        """Do the step's work on the device, which depends on the batch, the knobs and this trainer's tensors only."""
        fakes = self.fakes(self.G.module, batch, Stream.LATENTS_D) if self.config.objective.share_fakes else None
        terms = self.discriminator_phase(batch, fakes, knobs)
        terms |= self.generator_phase(batch.for_g, fakes, knobs)
        with self.G.whole():
            self.ema.update(self.G.net, knobs.ema_betas)
            self.power.update(self.G.net, knobs.power_betas)
        return terms

    def fakes(self, G: nn.Module, batch: Batch, stream: Stream) -> Tensor:
        """As many images as the batch has, of latents that its image numbers decide."""
        z = rng.normal(rng.keys(self.config.seed, stream, batch.index), self.config.networks.z_dim)
        with self.G.whole():
            images: Tensor = G(z, batch.labels)
        return images

    def discriminator_phase(self, batch: Batch, fakes: Tensor | None, knobs: Knobs) -> Terms:
        """D has moved one step; G is as it was. Where `fakes` is None the phase makes its own."""
        self.at("D's phase")
        if fakes is None and not self.splits_g:
            with torch.no_grad():
                fakes = self.fakes(self.G.net, batch, Stream.LATENTS_D)
        made = fakes
        terms = self._within_memory(self.D, lambda: self._d_gradients(batch, made, knobs))
        terms |= self._step("D", self.D, knobs.d_lr, knobs)
        with self.D.whole():
            follow_singular_values(self.D.net)
        if self.augment_p is not None:
            r = sum_over_processes(terms["augment/r"]) / self.num_processes
            terms["augment/p"] = self.augment_p.clone()
            target = self.config.objective.augment_target or 0.0
            self.augment_p.copy_(adapt(self.augment_p, r, batch.global_size, target))
        return terms

    def _d_gradients(self, batch: Batch, fakes: Tensor | None, knobs: Knobs) -> Terms:
        """The gradients of D's objective are there, of the whole batch, with fakes made here if none are given."""
        parts, terms = self._parts(batch), Terms()
        for number, (place, part) in enumerate(parts, start=1):
            if fakes is None:
                with torch.no_grad():
                    mine = self.fakes(self.G.net, part, Stream.LATENTS_D)
            else:
                mine = fakes[place].detach()
            with self.D.accumulating(is_last=number == len(parts)):
                gamma, strength = self._on_device(knobs.gamma), self._strength(knobs)
                loss, found = self.D.module(part.reals, mine, part.labels, part.index, gamma, strength)
                self.D.backward(self.D.scaled(loss * self._share(part)))
            _add(terms, found, self._share(part))
        return terms

    def generator_phase(self, batch: Batch, fakes: Tensor | None, knobs: Knobs) -> Terms:
        """G has moved one step; D is as it was. Where `fakes` is None the phase makes its own."""
        self.at("G's phase")
        if fakes is None and self.splits_g:
            terms = self._within_memory(self.G, lambda: self._g_gradients(self._parts(batch), knobs))
        else:
            with self.G.accumulating(is_last=True):
                if fakes is None:
                    fakes = self.fakes(self.G.module, batch, Stream.LATENTS_G)
                made = fakes
                slopes, terms = self._within_memory(self.G, lambda: self._answer(batch, made, knobs))
                self.G.backward((made * slopes).sum())
        return terms | self._step("G", self.G, knobs.g_lr, knobs)

    def _step(self, side: str, player: Player, lr: Value, knobs: Knobs) -> Terms:
        """The player's weights have moved; what there is to know of it."""
        norm = player.step(lr, knobs.beta2)
        scale = {} if player.scaler is None else {f"loss_scale/{side}": player.scaled(torch.ones_like(norm))}
        return {f"grad_norm/{side}": norm} | scale

    def _g_gradients(self, parts: list[tuple[slice, Batch]], knobs: Knobs) -> Terms:
        """The gradients of G's objective are there, where each part's fakes are made by themselves."""
        terms = Terms()
        for number, (_, part) in enumerate(parts, start=1):
            with self.G.accumulating(is_last=number == len(parts)):
                fakes = self.fakes(self.G.module, part, Stream.LATENTS_G)
                with self.D.frozen():
                    loss, found = self.g_objective(part.reals, fakes, part.labels, part.index, self._strength(knobs))
                    self.G.backward(self.G.scaled(loss * self._share(part)))
            _add(terms, found, self._share(part))
        return terms

    def _answer(self, batch: Batch, fakes: Tensor, knobs: Knobs) -> tuple[Tensor, Terms]:
        """The gradient of G's objective, scaled, in fakes that are made already, [B, C, H, W], and its terms."""
        slopes: list[Tensor] = []
        terms = Terms()
        for place, part in self._parts(batch):
            mine = fakes[place].detach().requires_grad_()
            with self.D.frozen():
                loss, found = self.g_objective(part.reals, mine, part.labels, part.index, self._strength(knobs))
                slopes += torch.autograd.grad(self.G.scaled(loss * self._share(part)), mine)
            _add(terms, found, self._share(part))
        return torch.cat(slopes), terms

    def _parts(self, batch: Batch) -> list[tuple[slice, Batch]]:
        """The parts that go through the networks at a time: as many in all processes, in each of about equal size."""
        if self.micro_batch is None:
            return [(slice(None), batch)]
        largest = largest_share(batch.global_size, self.num_processes)
        count = min(-(-largest // self.micro_batch), max(1, batch.global_size // self.num_processes))
        ends = [len(batch.pixels) * number // count for number in range(count + 1)]
        places = [slice(start, end) for start, end in itertools.pairwise(ends)]
        return [(place, batch.part(place)) for place in places]

    def _within_memory(self, player: Player, work: Callable[[], T]) -> T:
        """Return what the work returns; do it again in smaller parts where memory runs out. Raises UserError."""

        def halve(size: int) -> None:
            before, self.micro_batch = self.micro_batch or self.max_share, size
            self.on_short_memory(size)
            if self.num_processes > 1:  # the others wait in the middle of this step
                raise UserError(
                    f"memory runs out with micro_batch {before}: the run has noted {size}; give the same command "
                    "again, it goes on from the last checkpoint"
                )
            player.forget_gradients()

        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return work()  # what can't be recorded for want of memory runs as it is
        largest = 1 if has_batch_norm(self.D.net) else min(self.max_share, self.micro_batch or self.max_share)
        try:
            return in_smaller_parts(largest, lambda _: work(), halve)
        except torch.OutOfMemoryError as error:
            now = self.micro_batch or self.max_share
            raise UserError(
                f"memory runs out with batch_size {self.config.data.batch_size} and micro_batch {now}, and there is "
                f"no smaller one ({error}): use smaller networks, images or batches, or more GPUs"
            ) from None

    def _strength(self, knobs: Knobs) -> Tensor | float:
        """The probability of each operation of the augmentation."""
        return self._on_device(knobs.augment_p) if self.augment_p is None else self.augment_p

    def _on_device(self, value: Tensor | float) -> Tensor | float:
        """A number that changes, in the form that compiled networks don't take for a constant; 0 is one."""
        if isinstance(value, Tensor) or not value:
            return value
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def _share(self, batch: Batch) -> float:
        """Makes a sum over parts and mean over processes the mean over images, whatever the parts' sizes."""
        return len(batch.pixels) * self.num_processes / batch.global_size

    def run(self, events: Iterable[Event] = (), should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train to the end; after each step the events that are due happen, in their order.

        Raises Stopped after a step at whose end `should_stop` holds, and UserError where memory runs out.
        """
        events = tuple(events)
        while (before := self.images_seen) < self.total_images:
            began = time.monotonic()
            self.at("reading a batch")
            batch = self.loader.batch(before)
            self.input_wait_s += time.monotonic() - began
            try:
                terms = self.train_step(batch)
            except torch.OutOfMemoryError as error:  # an optimizer that has moved some weights can't do so again
                raise UserError(
                    f"memory runs out with batch_size {self.config.data.batch_size} where no micro_batch helps, in G's "
                    f"pass over a whole batch or an optimizer's states ({error}): use smaller networks, images or "
                    "batches, or more GPUs; training goes on from the last checkpoint"
                ) from None
            self.meter.add(terms, before)
            for event in events:
                if event.is_due(before, self.images_seen):
                    self.at(event.action.__name__, EVENT_S)
                    event.action(self)
            self.at("the end of the step")
            if should_stop() and self.images_seen < self.total_images:
                raise Stopped(f"stopped on request at {self.images_seen:,} images")

    def at(self, phase: str, limit_s: float | None = None) -> None:
        """This process begins `phase`, in which it may be for `limit_s`; None: as long as in any."""
        self._at(phase, self.images_seen, limit_s)

    def check_finite(self) -> None:
        """Raise Diverged where a loss since the last check, or a weight now, isn't a finite number.

        All processes must ask, and all end alike. It waits for the device once. Where losses are scaled, steps that
        overflow are left out, which is no fault until the scale has fallen so far that float16 holds no gradient.
        """
        nets = (self.G.net, self.D.net, *self._averages().values())
        # The largest absolute value: unlike a sum of squares, it can't itself overflow.
        largest = nn.utils.get_total_norm([p for net in nets for p in net.parameters() if p.numel()], math.inf)
        good = [largest < math.inf]
        scalers = [player for _, player in self._players() if player.scaler is not None]
        good += [player.scaled(torch.ones_like(largest)) >= MIN_SCALE for player in scalers]
        nonfinite_at = [] if scalers else [self.meter.nonfinite_at]
        found = torch.stack([*nonfinite_at, torch.where(torch.stack(good).all(), NEVER, self.images_seen)])
        if (place := min(all_values(found).flatten().tolist())) != NEVER:
            step = self.steps_to(place) + 1
            raise Diverged(
                f"the losses are no longer finite numbers since step {step} ({place:,} images): try a smaller --g-lr "
                "and --d-lr, or another --seed; checkpoints, if any, were written before and are good"
            )

    def _players(self) -> tuple[tuple[str, Player], ...]:
        return ("G", self.G), ("D", self.D)

    def _averages(self) -> dict[str, nn.Module]:
        averages = {f"G_ema{number or ''}": net for number, net in enumerate(self.ema.nets)}
        return averages | {f"G_power{number}": net for number, net in enumerate(self.power.nets)}

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """All that training goes on from: tensors by file and name, and what JSON holds; all processes must ask.

        It is the same for every engine and number of processes.
        There is no random state: every random number is a function of the seed and of the images seen.
        """
        tensors = {"G": self.G.weights(), "D": self.D.weights()}
        tensors |= {name: dict(net.state_dict()) for name, net in self._averages().items()}
        tensors["optimizers"] = {
            f"{side}/{key}": value
            for side, player in self._players()
            for key, value in player.optimizer_state().items()
        }
        if self.augment_p is not None:
            tensors["augment"] = {"p": self.augment_p}
        scalers = {side: player.scaler.state_dict() for side, player in self._players() if player.scaler is not None}
        return tensors, {
            "images_seen": self.images_seen,
            "warm": self.warm,
            "meter": self.meter.state(),
            "loss_scales": scalers,
        }

    def load_state(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """The trainer stands where `state` was taken, bit for bit."""
        for name, net in self._averages().items():
            net.load_state_dict(tensors[name])
        for side, player in self._players():
            start = f"{side}/"
            mine = {k.removeprefix(start): v for k, v in tensors["optimizers"].items() if k.startswith(start)}
            player.load(tensors[side], mine)
            if player.scaler is not None and side in state.get("loss_scales", {}):
                player.scaler.load_state_dict(state["loss_scales"][side])
        if self.augment_p is not None:
            self.augment_p = self.augment_p.copy_(tensors["augment"]["p"])
        self.images_seen, self.warm = state["images_seen"], state.get("warm", False)
        self.meter.load_state(state["meter"])


def has_batch_norm(net: nn.Module) -> bool:
    """Whether an image's output depends on the others of its batch."""
    return any(isinstance(layer, BatchNorm) for layer in net.modules())


def _add(terms: Terms, more: Terms, factor: float) -> None:
    """The terms have grown by `factor` times the others."""
    for name, term in more.items():
        part = term if factor == 1 else term * factor
        terms[name] = part if name not in terms else terms[name] + part


def _optimizer(net: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer that the config names; its learning rate comes with each step."""
    optimizer, parameters = config.optimizer, net.parameters()
    if optimizer.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=0.0, alpha=optimizer.rho, eps=optimizer.eps)
    return ScheduledAdam(parameters, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)
