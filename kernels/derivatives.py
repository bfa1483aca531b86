"""How an op gets derivatives of every order that torch.func.grad and torch.compile know as well.

`torch.library.register_autograd` would be the usual way. Of torch 2.14.1's ways this is the only one that passed all
trials: eagerly, under `torch.func.grad` inside an outer backward (exact R1), and the same compiled as one graph.

- register_autograd: `torch.func.grad` refuses it ("must override the setup_context staticmethod").
- A torch.autograd.Function registered for the dispatch key Autograd: the outer gradients are silently None.
- A plain torch.autograd.Function: right eagerly; compiled, Dynamo silently leaves out the gradients that flow through
  the inner backward.
- The same behind `allow_in_graph`: right. Dynamo doesn't look into it, and AOTAutograd traces its derivatives for what
  they are, down to ops registered by torch.library, which stay in the graph.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import custom_op

Context = Any  # torch's FunctionCtx, whose attributes are whatever an op keeps


def launched(name: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register `launch` with torch.library as the op `name`, for torch.compile and for modes that watch ops.

    Where neither is there the op is called without torch's dispatcher, whose way through Python takes the host several
    times as long as the launch.
    """
    op = custom_op(name, launch, mutates_args=())
    op.register_fake(fake)

    def call(*inputs: Any) -> Any:
        plain = type(inputs[0]) in (Tensor, nn.Parameter) and torch._C._len_torch_dispatch_stack() == 0
        return launch(*inputs) if plain else op(*inputs)

    return call


def differentiable(
    name: str,
    op: Callable[..., Any],
    keep: Callable[[Context, Sequence[Any], Any], None],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., Any]:
    """Call `op` with positional arguments, and with a derivative; `name` is what autograd's graph calls it.

    `keep(ctx, inputs, output)` saves what `backward(ctx, *gradients of outputs)` needs to give one gradient, or None,
    for each input. `backward` must be made of differentiable ops.
    """
    methods: dict[str, Callable[..., Any]] = {"forward": op, "setup_context": keep, "backward": backward}
    function = type(name, (torch.autograd.Function,), {key: staticmethod(value) for key, value in methods.items()})

    def call(*inputs: Any) -> Any:
        return function.apply(*inputs)  # type: ignore[attr-defined]

    return torch.compiler.allow_in_graph(call)


def differentiable_activation(
    name: str, forward: Callable[..., Any], jvp: Callable[..., Any], vjp: Callable[..., Any]
) -> Callable[..., Any]:
    """Return `forward(x, bias, *settings) -> y` with derivatives of every order, y being all that they depend on.

    `jvp(change of x, change of bias or None, y, *settings)` is the change of y; `vjp(gradient of y, y, with_bias,
    *settings)` the gradients of x and, with_bias, of bias, else nothing, in what the kernel computes in. Both are
    linear and each is the other's derivative; y decides about signs only, so it gets no gradient.
    """

    def keep_forward(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
        ctx.bias_dtype, ctx.settings = _dtype(inputs[1]), inputs[2:]
        ctx.save_for_backward(output)

    def backward_forward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        with_bias = ctx.needs_input_grad[1]
        of_x, of_bias = through_vjp(grad, *ctx.saved_tensors, with_bias, *ctx.settings)
        return of_x, of_bias.to(ctx.bias_dtype) if with_bias else None, *[None] * len(ctx.settings)

    def keep_jvp(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
        ctx.bias_dtype, ctx.settings = _dtype(inputs[1]), inputs[3:]
        ctx.save_for_backward(inputs[2])

    def backward_jvp(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *backward_forward(ctx, grad), None

    def keep_vjp(ctx: Context, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
        ctx.with_bias, ctx.settings = inputs[2], inputs[3:]
        ctx.save_for_backward(inputs[1])

    def backward_vjp(ctx: Context, of_x: Tensor, of_bias: Tensor) -> tuple[Tensor | None, ...]:
        change = through_jvp(of_x, of_bias if ctx.with_bias else None, *ctx.saved_tensors, *ctx.settings)
        return change, None, None, *[None] * len(ctx.settings)

    through_jvp = differentiable(f"{name}Jvp", jvp, keep_jvp, backward_jvp)
    through_vjp = differentiable(f"{name}Vjp", vjp, keep_vjp, backward_vjp)
    return differentiable(name, forward, keep_forward, backward_forward)


def _dtype(bias: Tensor | None) -> torch.dtype | None:
    return None if bias is None else bias.dtype
