"""How a kernel is held against its reference: values, gradients, and the gradients of gradients."""

from functools import partial

import torch

# What rounding may change, relative to the largest number of a result. Both compute in float32 at least, but the
# references of the short dtypes round after each step.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
LAYOUTS = ("contiguous", "channels last", "strided")


def cases(shapes):
    """Dtypes, layouts and shapes: float64 with all of them, the others with each layout once."""
    all_of_them = [(torch.float64, layout, shape) for shape in shapes for layout in LAYOUTS]
    others = [dtype for dtype in TOLERANCE if dtype != torch.float64]
    return all_of_them + [(dtype, layout, shapes[k % 2]) for dtype in others for k, layout in enumerate(LAYOUTS)]


def drawn(shape, dtype, layout="contiguous", seed=0):
    """A leaf of the shape. In short dtypes halves from -1 to 1, so that no sum of a few is near 0 but not 0."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn([2 * side for side in shape], dtype=torch.float64, generator=generator)
    if dtype in (torch.bfloat16, torch.float16):
        whole = (2 * whole).round().clamp(-2, 2) / 2
    part = whole.to(dtype)[tuple(slice(None, None, 2) for _ in shape)]
    if layout != "strided":
        last = layout == "channels last" and len(shape) == 4
        part = part.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return part.requires_grad_()


def outcomes(op, inputs, implementation):
    """Values, gradients of the inputs in a drawn direction, and what these depend on: gradients of the direction."""
    y = op(*inputs, implementation=implementation)
    direction = torch.empty_like(y).copy_(drawn(y.shape, y.dtype, seed=1)).detach().requires_grad_()
    first = torch.autograd.grad(y, inputs, direction, create_graph=True)
    change = [drawn(g.shape, g.dtype, seed=2 + k) for k, g in enumerate(first)]
    return [y, *first, *torch.autograd.grad(first, direction, change)]


def assert_equal(found, wanted, dtype):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if wanted.numel():
        largest = wanted.detach().abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE[dtype] * max(largest, 1.0))


def assert_same(op, inputs, dtype):
    """The kernel's values, gradients and second gradients are the reference's; the result is laid out as the input."""
    found, wanted = (outcomes(op, inputs, implementation) for implementation in ("triton", "reference"))
    for ours, theirs in zip(found, wanted, strict=True):
        assert_equal(ours, theirs, dtype)
    x = inputs[0]
    if x.dim() == 4 and x.numel() and x.is_contiguous(memory_format=torch.channels_last):
        assert found[0].is_contiguous(memory_format=torch.channels_last)
        assert found[1].is_contiguous(memory_format=torch.channels_last)


def assert_derivatives(op, inputs):
    """First and second derivatives are those of the values, by differences in float64."""
    op = partial(op, implementation="triton")
    assert torch.autograd.gradcheck(op, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, inputs, fast_mode=True)


def assert_same_by_functions(op, inputs):
    """torch.func.grad inside an outer backward, as R1 needs it, gives what the reference gives, in every input."""

    def penalty(implementation):
        def total(x):
            y = op(x, *inputs[1:], implementation=implementation)
            return (y.sin()).sum(), y

        gradient, y = torch.func.grad(total, has_aux=True)(inputs[0])
        return torch.autograd.grad(gradient.square().sum() + y.square().sum(), inputs)

    for ours, theirs in zip(penalty("triton"), penalty("reference"), strict=True):
        assert_equal(ours, theirs, torch.float64)
