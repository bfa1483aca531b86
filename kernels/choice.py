"""Which implementation an op takes: the one asked for, or Triton's wherever it works."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fastgan.errors import UserError

if TYPE_CHECKING:
    triton: Any
    tl: Any
    constexpr = Any
else:
    try:
        import triton
        import triton.language as tl
        from triton.language import constexpr
    except ImportError:  # it isn't made for every platform
        triton = tl = constexpr = None

Implementation = Literal["auto", "reference", "triton"]
CHOICES = ("auto", "reference", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton looks when a kernel is defined, so it stays

_unavailable_reasons: dict[tuple[str, torch.dtype], str | None] = {}
_said: set[str] = set()


def jit(kernel: Callable[..., Any]) -> Any:
    """Return the function as a kernel that Triton compiles when it is launched; without Triton, as it was."""
    return kernel if triton is None else triton.jit(kernel)


def use_triton(implementation: Implementation, x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Return whether an op on `x` with a result of `dtype` (None: that of `x`) is to run its kernel.

    "auto" never raises: it takes the reference, and says so once where a GPU would have let one expect the kernel.
    Raises UserError for "triton" where no kernel can run, and for a word that is none of CHOICES.
    """
    if implementation not in CHOICES:
        raise UserError(f"implementation is {implementation!r}: choose from {', '.join(CHOICES)}")
    if implementation == "reference" or (implementation == "auto" and not (x.is_cuda or INTERPRETED)):
        return False
    fault = _unavailable_reason(str(x.device), x.dtype if dtype is None else dtype)
    if fault is not None and implementation == "triton":
        raise UserError(f"implementation is 'triton', but {fault}; 'auto' would take the reference")
    if fault is not None:
        _say(f"{fault}; the slower reference is taken")
    return fault is None


@torch.compiler.assume_constant_result
def _unavailable_reason(device: str, dtype: torch.dtype) -> str | None:
    """Why no kernel can run on such tensors, or None; found out once, by running one."""
    if (device, dtype) not in _unavailable_reasons:
        _unavailable_reasons[device, dtype] = _find_reason(device, dtype)
    return _unavailable_reasons[device, dtype]


def _find_reason(device: str, dtype: torch.dtype) -> str | None:
    if triton is None:
        return "the package triton isn't installed"
    if dtype not in DTYPES:
        return f"kernels take floating-point numbers, not {dtype}"
    if not device.startswith("cuda") and not INTERPRETED:
        return f"the tensors are on the device {device} and kernels need a GPU"
    try:
        with ThreadPoolExecutor(1) as outside:  # of torch.func's and torch.compile's modes, which are a thread's own
            outside.submit(_try_kernel, device, dtype).result()
    except Exception as error:  # a missing compiler or driver, an old GPU: each raises something else
        text = " ".join(str(error).split()) or type(error).__name__
        return f"Triton fails on {device} with {dtype}: {text[:200]}"
    return None


@torch.compiler.assume_constant_result
def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warnings.warn(f"fastgan.kernels: {text}", stacklevel=3)


@jit
def _double(source, result, SIZE: constexpr):  # type: ignore[no-untyped-def]
    places = tl.arange(0, SIZE)
    tl.store(result + places, tl.load(source + places).to(tl.float32) * 2)


def _try_kernel(device: str, dtype: torch.dtype) -> None:
    """Raises unless a kernel runs on the device and is right."""
    source = torch.ones(16, device=device, dtype=dtype)
    result = torch.empty_like(source)
    with torch.cuda.device_of(source):
        _double[(1,)](source, result, SIZE=16)
    if not bool((result == 2).all()):
        raise RuntimeError("a trial kernel gave wrong numbers")
