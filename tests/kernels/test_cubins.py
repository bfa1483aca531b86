"""Every kernel, in every dtype and layout, is a program for each GPU that we mean, and keeps its numbers in registers.

No GPU is needed: the ops are called as they are in training, and instead of being launched each kernel is compiled, for
the very arguments it would be launched with, by Triton and the assembler that comes with it.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton isn't made for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from fastgan.kernels import bias_act, choice, diffaugment, random, resample, unpack  # noqa: E402, F401
from fastgan.kernels.choice import constexpr, jit, tl  # noqa: E402
from fastgan.kernels.tiles import layout  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(choice.INTERPRETED, reason="TRITON_INTERPRET is set: there is nothing to compile"),
]

ARCHITECTURES = (80, 90, 100)  # A100, H100, B200
CASES = ((torch.float32, False), (torch.float32, True), (torch.bfloat16, True), (torch.float16, True))
ops = torch.ops.fastgan
ACT = (0.2, 1.4, 256.0)


class Elsewhere:
    """What Triton asks its driver for, as a machine with such a GPU would answer."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return self.architecture  # Triton keeps what it compiled by device

    def get_current_stream(self, device):
        return 0


@contextmanager
def compiling_for(architecture, monkeypatch) -> Iterator[list]:
    """Launches only compile; what they made is in the list."""
    made = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        made.append(run(self, *arguments, grid=grid, warmup=True, **options))

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(driver, "_active", Elsewhere(architecture))
        yield made


def stack_bytes(cubin, folder):
    """The bytes of local memory that each function of the program takes for what found no register."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sizes = re.findall(r"REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    assert len(sizes) == 1, report
    return sum(map(int, sizes[0]))


def pictures(dtype, channels_last, shape=(2, 48, 16, 16)):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=memory_format)


def launch_bias_act(x):
    bias = torch.zeros(x.shape[1])
    ops.bias_act(x, bias, *ACT)
    ops.bias_act_jvp(x, bias, x, *ACT)
    ops.bias_act_vjp(x, x, True, *ACT)
    ops.bias_act_vjp(x, x, False, *ACT)


def launch_resample(x):
    for up in (False, True):
        ops.resample(x, up, 1.0)


def launch_diffaugment(x):
    x = x[:, :3].contiguous(memory_format=layout(x))
    color, place = torch.zeros(len(x), 3), torch.zeros(len(x), 6, dtype=torch.int32)
    ops.diffaugment(x, color, place, True)
    ops.diffaugment(x, color, place, False)
    ops.diffaugment_vjp(x, color, place)


def launch_unpack(x):
    images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    last = layout(x) is torch.channels_last
    ops.unpack(images, None, x.dtype, last)
    ops.unpack(images, torch.zeros(2, dtype=torch.bool), x.dtype, last)


def launch_random(x):
    keys = ops.random_keys(torch.arange(5), [1, -(2**62)])
    ops.random_numbers(keys, 7, False, torch.float64)
    ops.random_numbers(keys, 7, True, x.dtype)


LAUNCHES: dict[str, Callable] = {
    "bias_act": launch_bias_act,
    "resample": launch_resample,
    "diffaugment": launch_diffaugment,
    "unpack": launch_unpack,
    "random": launch_random,
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", LAUNCHES)
def test_kernels_compile_without_spilling(name, architecture, monkeypatch, tmp_path):
    """A cubin for each dtype, and both layouts, none of which keeps numbers in local memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    with compiling_for(architecture, monkeypatch) as made:
        for dtype, channels_last in CASES:
            LAUNCHES[name](pictures(dtype, channels_last))
    programs = {kernel.asm["cubin"]: kernel.metadata.name for kernel in made}
    assert len(programs) >= len(CASES)
    assert not [name for cubin, name in programs.items() if stack_bytes(cubin, tmp_path)]


@jit
def hoarder(x, out, SIZE: constexpr):
    """Keeps more numbers at a time than 32 registers a thread hold: each is read before the first is written."""
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    tl.store(out + at, values - tl.sum(values, 0))


def test_the_check_sees_spilling(monkeypatch, tmp_path):
    """A kernel that must spill is caught."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    x = torch.zeros(2048)
    for architecture in ARCHITECTURES:
        with compiling_for(architecture, monkeypatch) as made:
            hoarder[(1,)](x, x, SIZE=len(x), num_warps=1, maxnreg=32)
        (kernel,) = made
        assert stack_bytes(kernel.asm["cubin"], tmp_path) > 0
