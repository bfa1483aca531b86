"""Where Triton fails "auto" goes on with the reference and says so once; "triton" raises one line."""

import warnings

import pytest
import torch

from fastgan.errors import UserError
from fastgan.kernels import choice
from fastgan.kernels.bias_act import bias_act, bias_act_reference


@pytest.fixture(params=["broken", "absent"])
def without_triton(request, monkeypatch):
    """Triton is broken or not installed, and nothing was said so far."""

    def fail(device, dtype):
        raise OSError("no compiler\nanywhere")

    if request.param == "broken":
        monkeypatch.setattr(choice, "_try_kernel", fail)
    else:
        monkeypatch.setattr(choice, "triton", None)
    monkeypatch.setattr(choice, "_unavailable_reasons", {})
    monkeypatch.setattr(choice, "_said", set())
    return request.param


@pytest.mark.parametrize("compiled", [False, True])
def test_auto_falls_back_and_says_so_once(without_triton, compiled):
    """Twice the reference, one warning; the same inside a compiled function."""
    x = torch.randn(2, 3)
    torch._dynamo.reset()
    op = torch.compile(bias_act, fullgraph=True, backend="eager") if compiled else bias_act
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [op(x), op(x), bias_act(x)]
    said = [str(warning.message) for warning in caught if "fastgan" in str(warning.message)]
    assert all(torch.equal(result, bias_act_reference(x)) for result in results)
    assert len(said) == 1 and "reference" in said[0] and "\n" not in said[0]
    assert ("no compiler anywhere" if without_triton == "broken" else "isn't installed") in said[0]


def test_triton_raises_one_line(without_triton):
    """Asked for by name, it is not replaced in silence."""
    with pytest.raises(UserError, match="implementation is 'triton', but") as caught:
        bias_act(torch.zeros(2, 3), implementation="triton")
    assert "\n" not in str(caught.value)


def test_integers_have_no_kernel():
    """A dtype that kernels don't take is refused by name."""
    with pytest.raises(UserError, match="int64"):
        bias_act(torch.zeros(2, 3, dtype=torch.int64), implementation="triton")
