"""What a training step computes and keeps, counted operation by operation on tensors without content.

The step's own modules run on torch's meta device, where a tensor has a shape and a type but no memory: any batch of
any network is counted in about a second.
"""

import functools
import weakref
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastgan import networks
from fastgan.config import Config
from fastgan.data.images import to_unit_range
from fastgan.training.objectives import DiscriminatorObjective, GeneratorObjective
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution, aten.convolution_backward)


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes at two moments of a phase, weights and gradients left out."""

    kept: int  # when the backward pass begins: what it needs of the forward pass
    peak: int  # at the fullest moment


@dataclass(frozen=True)
class Sizes:
    """Both players' parameters, layers that have some, and bytes of what isn't learned."""

    G: int
    D: int
    g_layers: int
    d_layers: int
    g_buffer_bytes: int
    d_buffer_bytes: int


@dataclass(frozen=True)
class StepCost:
    """One process's part of a step with `images` images; with lazy penalties the mean step, but the fullest memory."""

    images: int
    sizes: Sizes
    flops: dict[str, float]  # by arithmetic: bfloat16 or float16; tf32: float32 convolutions; float32: other products
    operations: float  # that are started one by one; views cost nothing
    bytes_accessed: float  # read and written by them
    d_phase: ActivationMemory
    g_phase: ActivationMemory
    g_passes: int  # through G and D, forward and backward
    d_passes: int

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    @property
    def fullest(self) -> ActivationMemory:
        """The phase that needs more."""
        return max(self.d_phase, self.g_phase, key=lambda held: held.peak)


class OpCounter(TorchDispatchMode):
    """Adds up every operation inside it, and the bytes of the tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.operations = self.moved_bytes = self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # of living storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not func.is_view:
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.operations += 1
            self.moved_bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *results))
        if func._overloadpacket in flop_registry:
            self.flops[_arithmetic(func._overloadpacket, results[0])] += _flops(func._overloadpacket, args, result)
        for tensor in results:
            self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def drop_gradient(self, parameter: Tensor) -> None:
        """Drop the parameter's gradient, complete now: gradients are counted apart."""
        assert parameter.grad is not None
        self._release(parameter.grad.untyped_storage()._cdata)
        parameter.grad = None


def _arithmetic(operation: Any, result: Tensor) -> str:
    if result.dtype in (torch.bfloat16, torch.float16):
        return str(result.dtype).removeprefix("torch.")
    return "tf32" if operation in CONVOLUTIONS else "float32"


def _flops(operation: Any, args: Any, result: Any) -> int:
    """Multiply-adds times two, by torch's formulas; of grouped convolutions' weight gradients by ours.

    torch's takes each output channel's weights to see all input channels, which is so many times too much as there
    are groups.
    """
    formula = flop_registry[operation]
    if operation is not aten.convolution_backward:
        return int(formula(*args, out_val=result))
    groups, (to_input, to_weight, _) = args[9], args[10]
    inputs = formula(*args[:10], [to_input, False, False], out_val=result)
    weights = formula(*args[:10], [False, to_weight, False], out_val=result)
    return int(inputs + weights // groups)


@functools.lru_cache(maxsize=256)
def count(config: Config, images: int) -> StepCost:
    """Return the work of one process's `images` images. Raises UserError for networks that can't be built."""
    networks.sizes(config)  # raises
    every = config.objective.penalty_every
    work = _count(config, images, penalized=config.objective.penalty != "none")
    if every == 1 or config.objective.penalty == "none":
        return work
    plain = _count(config, images, penalized=False)

    def mean(penalized: float, without: float) -> float:
        return (penalized + (every - 1) * without) / every

    return replace(
        work,
        flops={kind: mean(flops, plain.flops.get(kind, 0)) for kind, flops in work.flops.items()},
        operations=mean(work.operations, plain.operations),
        bytes_accessed=mean(work.bytes_accessed, plain.bytes_accessed),
    )


@dataclass(frozen=True)
class _Step:
    """A step's players and data, all without content."""

    config: Config
    G: nn.Module
    D: nn.Module
    pixels: Tensor
    labels: Tensor | None
    index: Tensor

    def fakes(self) -> Tensor:
        z = rng.normal(rng.keys(0, RngStream.LATENTS_D, self.index), self.config.networks.z_dim)
        images: Tensor = self.G(z, self.labels)
        return images


def _build(config: Config, images: int) -> _Step:
    (height, width), channels = config.data.image_size, config.data.channels
    # A spectral norm looks at its weights when it is made, which have no content here: its products aren't counted.
    plain = replace(config, networks=replace(config.networks, spectral_norm=False))
    G, D = networks.build(plain, "meta")
    pixels = torch.zeros(images, channels, height, width, dtype=torch.uint8).to(memory_format=torch.channels_last)
    index = torch.arange(images)
    return _Step(plain, G.train(), D.train(), pixels, networks.example_labels(config.networks, index), index)


def _count(config: Config, images: int, penalized: bool) -> StepCost:
    with torch.device("meta"), OpCounter() as ledger:
        step = _build(config, images)
        for parameter in (*step.G.parameters(), *step.D.parameters()):
            parameter.register_post_accumulate_grad_hook(ledger.drop_gradient)
        reals = step.pixels.nbytes + (0 if step.labels is None else step.labels.nbytes)
        start = step.index.nbytes + reals * (1 if config.objective.reuse_reals else 2)
        ledger.flops.clear()
        ledger.operations = ledger.moved_bytes = 0
        ledger.live = ledger.peak = start
        calls = _Calls(step)
        d_phase, g_phase = _play(step, ledger, penalized)
    return StepCost(
        images,
        sizes_of(step.G, step.D),
        dict(ledger.flops),
        ledger.operations,
        ledger.moved_bytes,
        d_phase,
        g_phase,
        calls.passes[step.G],
        calls.passes[step.D] + calls.inner(config, penalized),
    )


class _Calls:
    """Counts each player's passes: forward, and where gradients are wanted backward as well."""

    def __init__(self, step: _Step) -> None:
        self.passes = Counter({step.G: 0, step.D: 0})
        for net in (step.G, step.D):
            net.register_forward_hook(self._note)

    def _note(self, net: nn.Module, args: Any, output: Tensor) -> None:
        self.passes[net] += 1 + torch.is_grad_enabled()

    @staticmethod
    def inner(config: Config, penalized: bool) -> int:
        """Return the backward passes inside the objective, for an exact penalty: of reals, mixes, or both sides."""
        objective = config.objective
        return int(penalized and objective.penalty_form == "exact" and objective.penalty != "none")


def _play(step: _Step, ledger: OpCounter, penalized: bool) -> tuple[ActivationMemory, ActivationMemory]:
    """Both phases of a round, as `Trainer.train_step` has them, without the optimizers; what each one held."""
    objective = step.config.objective
    augment_p = objective.augment_p if objective.augment_target is None else torch.zeros(())
    share = objective.reuse_fakes
    ledger.peak = ledger.live
    with torch.set_grad_enabled(share):
        fakes = step.fakes()
    reals = to_unit_range(step.pixels)
    d_objective = DiscriminatorObjective(step.D, step.config)
    gamma = 1.0 if penalized else 0.0
    loss, metrics = d_objective(reals, fakes.detach(), step.labels, step.index, gamma, augment_p)
    kept = ledger.live
    loss.backward()
    d_phase = ActivationMemory(kept, ledger.peak)
    del loss, metrics, reals
    ledger.peak = ledger.live
    if not share:
        fakes = step.fakes()
    loss, _ = GeneratorObjective(step.D, step.config)(
        to_unit_range(step.pixels), fakes, step.labels, step.index, augment_p
    )
    kept = ledger.live
    loss.backward()
    return d_phase, ActivationMemory(kept, ledger.peak)


def sizes_of(G: nn.Module, D: nn.Module) -> Sizes:
    """Count what both players hold."""

    def layers(net: nn.Module) -> int:
        return sum(any(True for _ in module.parameters(recurse=False)) for module in net.modules())

    def buffer_bytes(net: nn.Module) -> int:
        return sum(buffer.nbytes for buffer in net.buffers())

    G_size, D_size = networks.num_parameters(G), networks.num_parameters(D)
    return Sizes(G_size, D_size, layers(G), layers(D), buffer_bytes(G), buffer_bytes(D))
