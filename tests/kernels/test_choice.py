"""Without a GPU: the reference in silence, one clear line where a kernel is asked for, and inputs that can't be."""

import subprocess
import sys
import warnings

import pytest
import torch

from fastgan.errors import UserError
from fastgan.kernels import choice
from fastgan.kernels.bias_act import bias_act, bias_act_reference
from fastgan.kernels.diffaugment import Changes, diffaugment
from fastgan.kernels.resample import downsample2, upsample2
from fastgan.kernels.unpack import unpack

pytestmark = pytest.mark.skipif(choice.INTERPRETED, reason="TRITON_INTERPRET is set: kernels run on the CPU")
IMAGES = torch.zeros(2, 3, 4, 4)
CHANGES = Changes(*(torch.zeros(2) for _ in range(7)), torch.zeros(2, dtype=torch.bool))
OPS = {
    "bias_act": lambda way: bias_act(IMAGES, implementation=way),
    "downsample2": lambda way: downsample2(IMAGES, way),
    "upsample2": lambda way: upsample2(IMAGES, way),
    "unpack": lambda way: unpack(IMAGES.byte(), implementation=way),
    "diffaugment": lambda way: diffaugment(IMAGES, CHANGES, way),
}


@pytest.mark.parametrize("name", OPS)
def test_a_cpu_takes_the_reference_in_silence(name):
    """No word about what nobody expected; but asked for by name, the kernel is refused in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(OPS[name]("auto"), OPS[name]("reference"))
    with pytest.raises(ValueError, match=r"kernels need a GPU|isn't installed") as caught:
        OPS[name]("triton")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="implementation is 'cuda': choose from auto, reference, triton"):
        OPS[name]("cuda")


def test_without_triton():
    """Where Triton isn't installed everything can be imported, and the reference runs in silence."""
    code = """
import sys, warnings
sys.modules["triton"] = None
import torch
from fastgan.kernels import bias_act, choice, diffaugment, resample, unpack
warnings.simplefilter("error")
x = torch.ones(1, 1, 2, 2)
assert choice.triton is None and bias_act.bias_act(x).sum() == 4 and resample.downsample2(x).shape == (1, 1, 1, 1)
try:
    bias_act.bias_act(x, implementation="triton")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "the package triton isn't installed" in done.stdout


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bias_act(torch.zeros(2, 3, 4)), r"\[B, C, H, W\]"),
        (lambda: bias_act(IMAGES, torch.zeros(4)), "bias is of shape"),
        (lambda: bias_act(IMAGES, slope=-0.1), "slope is -0.1"),
        (lambda: bias_act(IMAGES, gain=0.0), "gain is 0.0"),
        (lambda: bias_act(IMAGES, clamp=0.0), "clamp is 0.0"),
        (lambda: downsample2(IMAGES[:, :, 1:]), "even"),
        (lambda: upsample2(IMAGES[0]), r"\[B, C, H, W\]"),
        (lambda: unpack(IMAGES), "uint8"),
        (lambda: unpack(IMAGES.byte(), torch.zeros(2)), "bool"),
        (lambda: diffaugment(IMAGES[:1], CHANGES), r"\[B\] each"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    """One line that names the argument and what would do."""
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_clamp_stops_the_gradient():
    """In the reference as well: 0 where the bound holds."""
    x = torch.tensor([[-9.0, -1.0, 1.0, 9.0]], requires_grad=True)
    bias_act_reference(x, clamp=1.5).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[0.0, 0.2, 1.0, 0.0]]))
