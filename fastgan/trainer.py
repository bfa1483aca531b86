"""The training of two players: the step, its two phases, the loop around them."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import counter, schedules
from fastgan.augment import adapt
from fastgan.config import Config
from fastgan.counter import Stream
from fastgan.data.batch import Batch, Loader
from fastgan.data.order import num_steps
from fastgan.ema import Ema
from fastgan.errors import Diverged, Stopped
from fastgan.meter import Meter
from fastgan.networks.layers import follow_singular_values, sum_over_processes
from fastgan.objectives import DiscriminatorObjective, GeneratorObjective, Terms
from fastgan.schedules import Knobs


class Player:
    """A network, the module through which it is trained (what the engine wraps), and its optimizer."""

    def __init__(self, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.net, self.module, self.optimizer = net, module, optimizer

    def descend(self, loss: Tensor, lr: float, beta2: float) -> Tensor:
        """The weights move one step down the loss; returns the gradient's norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if "betas" in group:
                group["betas"] = (group["betas"][0], beta2)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        self.optimizer.step()
        return norm


@dataclass(frozen=True)
class Event:
    """Something that happens whenever the images seen pass a multiple of `every`."""

    every: int
    action: Callable[["Trainer"], None]

    def is_due(self, before: int, after: int) -> bool:
        return before // self.every < after // self.every


class Trainer:
    """Two players, G's average, and how far they have come. `wrap` is what the engine does to a module."""

    def __init__(
        self,
        config: Config,
        nets: tuple[nn.Module, nn.Module],
        loader: Loader,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        num_processes: int = 1,
    ) -> None:
        self.config, self.loader, self.num_processes = config, loader, num_processes
        G, D = (net.train() for net in nets)
        self.G = Player(G, wrap(G), _optimizer(G, config))
        self.D = Player(D, wrap(DiscriminatorObjective(D, config)), _optimizer(D, config))
        self.g_objective = GeneratorObjective(D, config)
        self.ema = Ema(G, max(1, len(config.optimizer.ema_half_lives)))
        self.power = Ema(G, len(config.optimizer.ema_stds))
        self.meter = Meter()
        self.images_seen = 0
        self.warm = False  # whether all first weights of G are another run's: then its averages needn't forget them
        self.augment_p: Tensor | None = None  # where it adapts itself
        if config.objective.augment_target is not None:
            self.augment_p = torch.tensor(config.objective.augment_p, device=next(G.parameters()).device)
        self.input_wait_s = 0.0  # since the start of the process: time in which the step had no batch

    @property
    def total_images(self) -> int:
        """Where training ends."""
        return self.config.total_images(self.loader.num_images)

    @property
    def epoch(self) -> int:
        """The number, from 1, of the epoch that the last step belonged to."""
        return max(0, self.images_seen - 1) // self.loader.num_images + 1

    def steps_to(self, images_seen: int) -> int:
        """The steps from the start of training to where so many images have been seen."""
        data = self.config.data
        return num_steps(images_seen, self.loader.num_images, data.batch_size, data.keep_partial_batch)

    def train_step(self, batch: Batch) -> Terms:
        """Play one round: D moves, G answers, the averages of G follow."""
        step = self.steps_to(self.images_seen)
        knobs = schedules.at(self.config, self.images_seen, batch.global_size, step, self.warm)
        if self.config.objective.share_fakes:
            fakes = self.fakes(self.G.module, batch, Stream.LATENTS_D)
            terms = self.discriminator_phase(batch, fakes, knobs) | self.generator_phase(batch, fakes, knobs)
        else:
            with torch.no_grad():
                fakes = self.fakes(self.G.net, batch, Stream.LATENTS_D)
            terms = self.discriminator_phase(batch, fakes, knobs)
            terms |= self.generator_phase(batch, self.fakes(self.G.module, batch, Stream.LATENTS_G), knobs)
        self.images_seen += batch.global_size
        self.ema.update(self.G.net, knobs.ema_betas)
        self.power.update(self.G.net, knobs.power_betas)
        return terms

    def fakes(self, G: nn.Module, batch: Batch, stream: Stream) -> Tensor:
        """As many images as the batch has, of latents that its image numbers decide."""
        z = counter.normal(counter.keys(self.config.seed, stream, batch.index), self.config.networks.z_dim)
        images: Tensor = G(z, batch.labels)
        return images

    def discriminator_phase(self, batch: Batch, fakes: Tensor, knobs: Knobs) -> Terms:
        """D has moved one step; G is as it was."""
        loss, terms = self.D.module(
            batch.reals, fakes.detach(), batch.labels, batch.index, knobs.gamma, self._strength(knobs)
        )
        share = self._share(batch)
        terms = _scaled(terms, share) | {"grad_norm/D": self.D.descend(loss * share, knobs.d_lr, knobs.beta2)}
        follow_singular_values(self.D.net)
        if self.augment_p is not None:
            r = sum_over_processes(terms["augment/r"]) / self.num_processes
            terms["augment/p"] = self.augment_p
            self.augment_p = adapt(self.augment_p, r, batch.global_size, self.config.objective.augment_target or 0.0)
        return terms

    def generator_phase(self, batch: Batch, fakes: Tensor, knobs: Knobs) -> Terms:
        """G has moved one step; D is as it was."""
        loss, terms = self.g_objective(batch.reals, fakes, batch.labels, batch.index, self._strength(knobs))
        share = self._share(batch)
        return _scaled(terms, share) | {"grad_norm/G": self.G.descend(loss * share, knobs.g_lr, knobs.beta2)}

    def _strength(self, knobs: Knobs) -> Tensor | float:
        """The probability of each operation of the augmentation."""
        return knobs.augment_p if self.augment_p is None else self.augment_p

    def _share(self, batch: Batch) -> float:
        """Makes a mean over processes the mean over images, also where their parts of the batch differ in size."""
        return len(batch.pixels) * self.num_processes / batch.global_size

    def run(self, events: Iterable[Event] = (), should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train to the end; after each step the events that are due happen, in their order.

        Raises Stopped after a step at whose end `should_stop` holds.
        """
        events = tuple(events)
        while (before := self.images_seen) < self.total_images:
            began = time.monotonic()
            batch = self.loader.batch(before)
            self.input_wait_s += time.monotonic() - began
            self.meter.add(self.train_step(batch), before)
            for event in events:
                if event.is_due(before, self.images_seen):
                    event.action(self)
            if should_stop() and self.images_seen < self.total_images:
                raise Stopped(f"stopped on request at {self.images_seen:,} images")

    def check_finite(self) -> None:
        """Raises Diverged where a loss since the last check, or a weight now, isn't a finite number."""
        place = self.meter.first_nonfinite()
        if place is None and not all(
            bool(p.isfinite().all()) for net in self._nets().values() for p in net.parameters()
        ):
            place = self.images_seen
        if place is not None:
            step = self.steps_to(place) + 1
            raise Diverged(
                f"the losses are no longer finite numbers since step {step} ({place:,} images): try a smaller --g-lr "
                "and --d-lr, or another --seed; checkpoints, if any, were written before and are good"
            )

    def _nets(self) -> dict[str, nn.Module]:
        averages = {f"G_ema{number or ''}": net for number, net in enumerate(self.ema.nets)}
        averages |= {f"G_power{number}": net for number, net in enumerate(self.power.nets)}
        return {"G": self.G.net, "D": self.D.net} | averages

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """All that training goes on from: tensors by file and name, and what JSON holds.

        There is no random state: every random number is a function of the seed and of the images seen.
        """
        tensors = {name: dict(net.state_dict()) for name, net in self._nets().items()}
        tensors["optimizers"] = {
            f"{side}/{number}/{name}": value
            for side, player in (("G", self.G), ("D", self.D))
            for number, values in player.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        if self.augment_p is not None:
            tensors["augment"] = {"p": self.augment_p}
        return tensors, {"images_seen": self.images_seen, "warm": self.warm, "meter": self.meter.state()}

    def load_state(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """The trainer stands where `state` was taken, bit for bit."""
        for name, net in self._nets().items():
            net.load_state_dict(tensors[name])
        for side, player in (("G", self.G), ("D", self.D)):
            _load_optimizer(player.optimizer, side, tensors["optimizers"])
        if self.augment_p is not None:
            self.augment_p = self.augment_p.copy_(tensors["augment"]["p"])
        self.images_seen, self.warm = state["images_seen"], state.get("warm", False)
        self.meter.load_state(state["meter"])


def _scaled(terms: Terms, factor: float) -> Terms:
    return {name: term * factor for name, term in terms.items()}


def _optimizer(net: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer that the config names; its learning rate comes with each step."""
    optimizer, parameters = config.optimizer, net.parameters()
    if optimizer.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=0.0, alpha=optimizer.rho, eps=optimizer.eps)
    return torch.optim.Adam(parameters, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)


def _load_optimizer(optimizer: torch.optim.Optimizer, side: str, tensors: dict[str, Tensor]) -> None:
    """Each value lies as the optimizer would have made it: a fused one walks parameter and value in step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        owner, number, key = name.split("/")
        if owner != side:
            continue
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            place = torch.empty_like(parameter)
        else:  # a fused optimizer has its step count on the device, too
            place = torch.empty_like(value, device=parameter.device if optimizer.defaults.get("fused") else "cpu")
        optimizer.state[parameter][key] = place.copy_(value)
