"""Convolution whose derivatives of every order are three convolutions of the whole batch and all groups at once.

torch's second derivative of a grouped convolution goes through the groups one by one, which exact R1 and R2 pay for in
every layer: thousands of small operations a step. Here y = conv(x, w) has the derivatives

    in x   spread(g, w), the transposed convolution         in w   match(x, g), which correlates image and gradient

and these are bilinear as well: each derivative of each of the three is one of the three.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.kernels.derivatives import Context, differentiable

aten = torch.ops.aten
Gradients = tuple[Tensor | None, ...]


class Form(NamedTuple):
    """A convolution's constants, and the height and width of its input."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    size: tuple[int, int]


def conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> Tensor:
    """What `conv2d` is, by torch's own function."""
    return F.conv2d(x, weight, bias, stride, padding, 1, groups)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    y: Tensor = aten.convolution(x, weight, bias, form.stride, form.padding, [1, 1], False, [0, 0], form.groups)
    return y


def _spread(grad: Tensor, weight: Tensor, form: Form) -> Tensor:
    """The gradient of conv in x."""
    more = [
        size + 2 * padding - kernel - (places - 1) * stride
        for size, padding, kernel, places, stride in zip(
            form.size, form.padding, weight.shape[2:], grad.shape[2:], form.stride, strict=True
        )
    ]
    x: Tensor = aten.convolution(grad, weight, None, form.stride, form.padding, [1, 1], True, more, form.groups)
    return x


def _match(x: Tensor, grad: Tensor, weight: Tensor, form: Form) -> Tensor:
    """The gradient of conv in w, of which only the shape is asked."""
    found = aten.convolution_backward(
        grad, x, weight, None, form.stride, form.padding, [1, 1], False, [0, 0], form.groups, [False, True, False]
    )
    of_weight: Tensor = found[1]
    return of_weight


def _keep(ctx: Context, inputs: Sequence[Any], output: Tensor) -> None:
    """The two factors and the form."""
    ctx.save_for_backward(*inputs[:2])
    ctx.form = inputs[-1]


def _of_conv(ctx: Context, grad: Tensor) -> Gradients:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias, _ = ctx.needs_input_grad
    return (
        through_spread(grad, weight, ctx.form) if of_x else None,
        through_match(x, grad, weight, ctx.form) if of_weight else None,
        grad.sum((0, 2, 3)) if of_bias else None,
        None,
    )


def _of_spread(ctx: Context, grad: Tensor) -> Gradients:
    spread, weight = ctx.saved_tensors
    of_spread, of_weight, _ = ctx.needs_input_grad
    return (
        through_conv(grad, weight, None, ctx.form) if of_spread else None,
        through_match(grad, spread, weight, ctx.form) if of_weight else None,
        None,
    )


def _of_match(ctx: Context, grad: Tensor) -> Gradients:
    x, matched = ctx.saved_tensors
    of_x, of_matched, _, _ = ctx.needs_input_grad
    return (
        through_spread(matched, grad, ctx.form) if of_x else None,
        through_conv(x, grad, None, ctx.form) if of_matched else None,
        None,
        None,
    )


through_conv = differentiable("Conv2d", _conv, _keep, _of_conv)
through_spread = differentiable("Conv2dSpread", _spread, _keep, _of_spread)
through_match = differentiable("Conv2dMatch", _match, _keep, _of_match)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` of x [B, C, H, W] with zeros around, and with quick second derivatives."""
    y: Tensor = through_conv(x, weight, bias, Form(stride, padding, groups, (x.shape[2], x.shape[3])))
    return y
