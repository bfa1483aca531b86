"""Activations that are computed again in the backward pass instead of kept (Chen 2016, arXiv 1604.06174).

torch's own checkpointing keeps everything once a gradient is itself differentiated, as R1 and R2 do. Here a layer's
backward pass is a function of its own, which keeps its inputs alone and is computed again for the second derivative.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Run = Callable[[Tensor, Sequence[Tensor]], Tensor]  # a layer as a function of its input and its weights


class _Output(torch.autograd.Function):
    """A layer's output, of whose making nothing is kept but input and weights."""

    @staticmethod
    def forward(run: Run, x: Tensor, *weights: Tensor) -> Tensor:
        return run(x, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.run = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        found = iter(_Gradients.apply(ctx.run, wanted, grad_output, *ctx.saved_tensors))
        return None, *(next(found) if want else None for want in wanted)


class _Gradients(torch.autograd.Function):
    """The gradients of a layer in those of its input and weights that are `wanted`; differentiable once."""

    @staticmethod
    def forward(run: Run, wanted: tuple[bool, ...], grad_output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return _gradients(run, wanted, grad_output, [value.detach() for value in inputs], create_graph=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run, ctx.wanted = inputs[:2]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        slope, *inputs = (value.detach().requires_grad_() for value in ctx.saved_tensors)
        with torch.enable_grad():
            first = _gradients(ctx.run, ctx.wanted, slope, inputs, create_graph=True)
        wanted = ctx.needs_input_grad[2:]
        targets = [value for value, want in zip((slope, *inputs), wanted, strict=True) if want]
        found = iter(torch.autograd.grad(first, targets, slopes, allow_unused=True))
        return None, None, *(next(found) if want else None for want in wanted)


def _gradients(
    run: Run, wanted: Sequence[bool], grad_output: Tensor, inputs: Sequence[Tensor], create_graph: bool
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        if not create_graph:
            inputs = [value.requires_grad_(want) for value, want in zip(inputs, wanted, strict=True)]
        output = run(inputs[0], inputs[1:])
        targets = [value for value, want in zip(inputs, wanted, strict=True) if want]
        return torch.autograd.grad(output, targets, grad_output, create_graph=create_graph)


class Checkpointed(nn.Module):
    """A layer of one input that may be told to keep that alone: its `recompute`; compiled code keeps what it likes.

    What it computes is in `compute`, a function of its input and parameters.
    """

    recompute = False

    def compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the same values and gradients, first and second, in either way."""
        if not self.recompute or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.compute(x)
        names, weights = zip(*self.named_parameters(), strict=True)

        def run(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
            self.recompute = False
            try:
                output: Tensor = functional_call(self, dict(zip(names, weights, strict=True)), (x,))
            finally:
                self.recompute = True
            return output

        output: Tensor = _Output.apply(run, x, *weights)
        return output


def checkpoint_activations(net: nn.Module) -> int:
    """Return the net's layers that can keep their inputs alone from now on; returns how many there are."""
    layers = [layer for layer in net.modules() if isinstance(layer, Checkpointed)]
    for layer in layers:
        layer.recompute = True
    return len(layers)
