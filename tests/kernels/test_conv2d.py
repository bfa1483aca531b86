"""The convolution with quick second derivatives is torch's own in values and in gradients of every order."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.kernels import conv2d as module
from fastgan.kernels.conv2d import conv2d

# (kernel, stride, padding, groups, bias) on pictures of 7x6, where a stride of 2 leaves a rest
FORMS = [(3, 1, 1, 4, True), (1, 1, 0, 1, False), (4, 2, 1, 1, True), (5, 2, 2, 2, False), (3, 2, 0, 1, True)]

TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-2}  # of the norm


def draw(form: tuple[int, int, int, int, bool], batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Leaves: images, weight and, if there is one, bias."""
    kernel, _, _, groups, with_bias = form
    draws = torch.Generator().manual_seed(0)
    shapes = [(batch, 8, 7, 6), (4, 8 // groups, kernel, kernel), *[(4,)] * with_bias]
    return [torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def as_function(form: tuple[int, int, int, int, bool], op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    _, stride, padding, groups, _ = form
    return lambda x, weight, bias=None: op(x, weight, bias, (stride, stride), (padding, padding), groups=groups)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("batch", [2, 0])
def test_values_and_gradients_are_torchs(form, dtype, tolerance, batch):
    """Of images, weight and bias, for an empty batch, too."""
    results = []
    for op in (conv2d, F.conv2d):
        given = draw(form, batch, dtype)
        y = as_function(form, op)(*given)
        results.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for found, wanted in zip(*results, strict=True):
        assert found.dtype == dtype
        assert float((found - wanted).detach().norm()) <= tolerance * float(wanted.detach().norm())


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_gradients(form):
    """Both orders agree with finite differences, and so does the third."""
    given = draw(form)
    op = as_function(form, conv2d)
    assert torch.autograd.gradcheck(op, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, given, fast_mode=True)

    def slope(*given: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(op(*given).sin().sum(), given[:2], create_graph=True)
        return torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), given[:2], create_graph=True)

    assert torch.autograd.gradcheck(slope, given, fast_mode=True)


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that are computed, and notes their numbers of groups."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        self.groups: set[int] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if "convolution" in op.name():
            self.count += 1
            self.groups.add(args[-2] if "backward" in op.name() else args[-1])
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("merge", [2, 4])
def test_merged_groups_change_nothing(monkeypatch, merge):
    """Where neighbouring groups are computed as one, values and gradients of both orders stay what they are."""
    form = FORMS[0]
    given, op = draw(form), as_function(form, conv2d)

    def outcomes() -> list[Tensor]:
        y = op(*given)
        first = torch.autograd.grad(y.sin().sum(), given[:2], create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(value.square().sum() for value in first), given)]

    wanted = outcomes()
    monkeypatch.setattr(module, "merge_of", lambda *_: merge)
    with Convolutions() as counted:
        found = outcomes()
    assert counted.groups == {form[3] // merge}
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(op, given, fast_mode=True)


@pytest.mark.gpu
def test_the_fastest_merge_is_as_exact():
    """What a trial chooses on this GPU, in each dtype, gives torch's numbers."""
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 2e-2)):  # TF32's rounding, if it is on
        x, weight = torch.randn(8, 128, 8, 8, device="cuda"), torch.randn(128, 16, 3, 3, device="cuda")
        given = [value.to(dtype).requires_grad_() for value in (x, weight)]
        results = []
        for values in (given, [value.detach().double().requires_grad_() for value in given]):
            op = conv2d if values is given else F.conv2d
            y = op(*values, None, (1, 1), (1, 1), groups=8)
            results.append([y, *torch.autograd.grad(y.square().sum(), values)])
        for found, wanted in zip(*results, strict=True):
            assert float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def test_channels_last_stays():
    """The layout of the images is that of the result and of their gradient."""
    x, weight, bias = draw(FORMS[0])
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = as_function(FORMS[0], conv2d)(x, weight.contiguous(memory_format=torch.channels_last), bias)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    for tensor in (y, grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def penalty(op: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R1 of a layer, by torch.func.grad inside, as D's objective has it."""
    slopes = torch.func.grad(lambda x: op(x, weight, bias).sin().sum())(x)
    return slopes.square().sum()


@pytest.mark.parametrize("compiled", [False, True])
def test_penalty_eager_and_compiled(compiled):
    """torch.func.grad inside, a backward pass outside, and both in one graph: the gradients are torch's."""
    torch._dynamo.reset()
    results = []
    for op in (conv2d, F.conv2d):
        given = draw(FORMS[0])
        function = as_function(FORMS[0], op)

        def value(x: Tensor, weight: Tensor, bias: Tensor, function: Callable[..., Tensor] = function) -> Tensor:
            return penalty(function, x, weight, bias)

        if compiled:
            value = torch.compile(value, fullgraph=True, backend="aot_eager")
        results.append(torch.autograd.grad(value(*given), given))
    for found, wanted in zip(*results, strict=True):
        assert bool(wanted.any())
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_groups_go_together():
    """A penalty's backward pass takes as many convolutions with 4 groups as with 1; torch's own takes more."""
    counts = {}
    for groups in (1, 4):
        form = (3, 1, 1, groups, True)
        for op in (conv2d, F.conv2d):
            given = draw(form)
            value = penalty(as_function(form, op), *given)
            with Convolutions() as counted:
                torch.autograd.grad(value, given)
            counts[op, groups] = counted.count
    assert counts[conv2d, 1] == counts[conv2d, 4] < counts[F.conv2d, 4]
