"""Convolution whose derivatives of every order are three convolutions of the whole batch and all groups at once.

torch's second derivative of a grouped convolution goes through the groups one by one, which exact R1 and R2 pay for in
every layer: thousands of small operations a step. Here y = conv(x, w) has the derivatives

    in x   dgrad(g, w), the transposed convolution          in w   wgrad(x, g), which correlates image and gradient

and these are bilinear as well: each derivative of each of the three is one of the three.

On a GPU groups are narrower than what its matrix units take, and some of cuDNN's ways go through them one by one.
Neighbouring groups can be computed as one whose weight has blocks of zeros beside its diagonal: more arithmetic, and up
to 25 times as fast. How many go together is measured once for each shape, dtype and device (`merge_of`).
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.kernels.derivatives import Context, differentiable
from fastgan.kernels.tiles import channels_are_last

aten = torch.ops.aten
Gradients = tuple[Tensor | None, ...]
MERGES = (1, 2, 4, 8)  # numbers of neighbouring groups that are tried as one


class Form(NamedTuple):
    """A convolution's constants, and the height and width of its input."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    size: tuple[int, int]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    return _conv_by(x, weight, bias, form, merge_of("conv", x, weight, form))


def _conv_by(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, merge: int) -> Tensor:
    groups, weight = form.groups // merge, merged(weight, form.groups, merge)
    y: Tensor = aten.convolution(x, weight, bias, form.stride, form.padding, [1, 1], False, [0, 0], groups)
    return y


def _dgrad(grad: Tensor, weight: Tensor, form: Form) -> Tensor:
    """The gradient of conv in x."""
    return _dgrad_by(grad, weight, form, merge_of("dgrad", grad, weight, form))


def _dgrad_by(grad: Tensor, weight: Tensor, form: Form, merge: int) -> Tensor:
    more = [
        size + 2 * padding - kernel - (places - 1) * stride
        for size, padding, kernel, places, stride in zip(
            form.size, form.padding, weight.shape[2:], grad.shape[2:], form.stride, strict=True
        )
    ]
    groups, weight = form.groups // merge, merged(weight, form.groups, merge)
    x: Tensor = aten.convolution(grad, weight, None, form.stride, form.padding, [1, 1], True, more, groups)
    return x


def _wgrad(x: Tensor, grad: Tensor, weight: Tensor, form: Form) -> Tensor:
    """The gradient of conv in w, of which only the shape is asked."""
    return _wgrad_by(x, grad, weight, form, merge_of("wgrad", x, weight, form))


def _wgrad_by(x: Tensor, grad: Tensor, weight: Tensor, form: Form, merge: int) -> Tensor:
    like = weight if merge == 1 else weight.new_empty(len(weight), weight.shape[1] * merge, *weight.shape[2:])
    groups = form.groups // merge
    found = aten.convolution_backward(
        grad, x, like, None, form.stride, form.padding, [1, 1], False, [0, 0], groups, [False, True, False]
    )
    return parted(found[1], form.groups, merge)


def merged(weight: Tensor, groups: int, merge: int) -> Tensor:
    """Return the weight [O, I, h, w] of `groups` groups as that of 1 / `merge` as many.

    [O, merge I, h, w], channels last.
    """
    if merge == 1:
        return weight
    height, width = weight.shape[2:]
    blocks = weight.permute(0, 2, 3, 1).reshape(groups // merge, merge, -1, height, width, 1, weight.shape[1])
    diagonal = torch.eye(merge, dtype=weight.dtype, device=weight.device).view(1, merge, 1, 1, 1, merge, 1)
    return (blocks * diagonal).reshape(len(weight), height, width, -1).permute(0, 3, 1, 2)


def parted(weight: Tensor, groups: int, merge: int) -> Tensor:
    """Return the blocks on the diagonal of such a weight: [O, I, h, w]."""
    if merge == 1:
        return weight
    height, width = weight.shape[2:]
    blocks = weight.permute(0, 2, 3, 1).reshape(
        groups // merge, merge, -1, height, width, merge, weight.shape[1] // merge
    )
    kept = blocks.diagonal(0, 1, 5).permute(0, 5, 1, 2, 3, 4)  # the diagonal comes last
    return kept.reshape(len(weight), height, width, -1).permute(0, 3, 1, 2)


def merge_of(kind: str, x: Tensor, weight: Tensor, form: Form) -> int:
    """Return how many groups are best computed as one: 1 on a CPU, else what a trial says, made once.

    `x` is the convolution's input or, for "dgrad", its output's gradient.
    """
    if not x.is_cuda or form.groups == 1:
        return 1
    sizes = tuple(tuple(map(int, value.shape)) for value in (x, weight))
    exact = x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32
    return _fastest_merge(kind, str(x.device), x.dtype, exact, channels_are_last(x), sizes, form)


@functools.cache
def _fastest_merge(
    kind: str, device: str, dtype: torch.dtype, exact: bool, last: bool, sizes: tuple[tuple[int, ...], ...], form: Form
) -> int:
    if torch.cuda.is_current_stream_capturing():
        raise AssertionError("a step is recorded that hasn't run before")
    with ThreadPoolExecutor(1) as outside:  # of torch.func's and torch.compile's modes, which are a thread's own
        return outside.submit(_try_merges, kind, device, dtype, last, sizes, form).result()


def _try_merges(
    kind: str, device: str, dtype: torch.dtype, last: bool, sizes: tuple[tuple[int, ...], ...], form: Form
) -> int:
    memory_format = torch.channels_last if last else torch.contiguous_format
    x, weight = (
        torch.randn(size, device=device, dtype=dtype).contiguous(memory_format=memory_format) for size in sizes
    )
    y = _conv_by(x, weight, None, form, 1) if kind == "wgrad" else x
    works: dict[str, Callable[[int], Tensor]] = {
        "conv": lambda merge: _conv_by(x, weight, None, form, merge),
        "dgrad": lambda merge: _dgrad_by(x, weight, form, merge),
        "wgrad": lambda merge: _wgrad_by(x, y, weight, form, merge),
    }
    found = {
        merge: _milliseconds(functools.partial(works[kind], merge)) for merge in MERGES if form.groups % merge == 0
    }
    return min(found, key=lambda merge: found[merge])


def _milliseconds(work: Callable[[], object], rounds: int = 5) -> float:
    """The median time of a call on the current GPU."""
    spent = []
    for _ in range(rounds + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        spent.append(start.elapsed_time(end))
    return statistics.median(spent[1:])


def _keep(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
    """The two factors and the form."""
    ctx.save_for_backward(*inputs[:2])
    ctx.form = inputs[-1]


def _of_conv(ctx: Context, grad: Tensor) -> Gradients:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias, _ = ctx.needs_input_grad
    return (
        through_dgrad(grad, weight, ctx.form) if of_x else None,
        through_wgrad(x, grad, weight, ctx.form) if of_weight else None,
        grad.sum((0, 2, 3)) if of_bias else None,
        None,
    )


def _of_dgrad(ctx: Context, grad: Tensor) -> Gradients:
    output_grad, weight = ctx.saved_tensors
    of_output_grad, of_weight, _ = ctx.needs_input_grad
    return (
        through_conv(grad, weight, None, ctx.form) if of_output_grad else None,
        through_wgrad(grad, output_grad, weight, ctx.form) if of_weight else None,
        None,
    )


def _of_wgrad(ctx: Context, grad: Tensor) -> Gradients:
    x, matched = ctx.saved_tensors
    of_x, of_matched, _, _ = ctx.needs_input_grad
    return (
        through_dgrad(matched, grad, ctx.form) if of_x else None,
        through_conv(x, grad, None, ctx.form) if of_matched else None,
        None,
        None,
    )


through_conv = differentiable("Conv2d", _conv, _keep, _of_conv)
through_dgrad = differentiable("Conv2dSpread", _dgrad, _keep, _of_dgrad)
through_wgrad = differentiable("Conv2dMatch", _wgrad, _keep, _of_wgrad)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """Convolve as `torch.nn.functional.conv2d`, x [B, C, H, W] with zeros around, and with quick second derivatives."""
    y: Tensor = through_conv(x, weight, bias, Form(stride, padding, groups, (x.shape[2], x.shape[3])))
    return y
