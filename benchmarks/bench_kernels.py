"""Bytes/s of the ops in kernels/ against a plain copy, in turn: reference, reference compiled, and, on a GPU, Triton.

A row's passes build on one another, as in training: forward; forward and backward; these and the backward of the
backward, as exact R1 needs it. Bytes are what must be moved at least, each number of the op's inputs and results once;
an implementation that stores steps between moves more, and shows it by fewer bytes/s.
"""

import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import harness
import torch
from torch import Tensor

from fastgan.distributed.processes import tune_malloc
from fastgan.kernels import bias_act, diffaugment, resample, unpack
from fastgan.utils.arguments import parse

Function = Callable[..., Any]
PASSES = ("forward", "+ backward", "+ double backward")


@dataclass(frozen=True)
class Options:
    """Compare the implementations of the ops in kernels/."""

    ops: tuple[str, ...] = ("bias_act", "downsample2", "upsample2", "unpack", "diffaugment")
    """Which ones."""
    batch_size: int = 16
    """Pictures. On a GPU take many, so that its cache doesn't hold them: 512."""
    channels: int = 32
    """Channels of a picture; unpack and diffaugment take 3."""
    size: int = 64
    """Height and width; where an op halves or doubles them, those of the smaller picture."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    channels_last: bool = True
    """How pictures lie in memory."""
    compiled: bool = True
    """Measure the compiled reference as well; compiling takes most of the time on a CPU."""
    rounds: int = 5
    """How often; medians are shown."""
    save: bool = False
    """Write the table into results/."""


@dataclass(frozen=True)
class Case:
    """An op, its inputs, and how many bytes each pass adds at least."""

    op: Function
    reference: Function
    inputs: tuple[Tensor, ...]
    bytes: tuple[int, ...]


def case_for(name: str, options: Options, device: torch.device) -> Case:
    """The op of that name at the options' sizes."""
    dtype, size = getattr(torch, options.dtype), options.size
    layout = torch.channels_last if options.channels_last else torch.contiguous_format

    def pictures(channels: int, side: int) -> Tensor:
        shape = (options.batch_size, channels, side, side)
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)

    if name == "unpack":
        images = (pictures(3, size).float() * 64 + 128).clamp(0, 255).byte()
        settings = {"dtype": dtype, "channels_last": options.channels_last}
        op, reference = (partial(f, **settings) for f in (unpack.unpack, unpack.unpack_reference))
        return Case(op, reference, (images,), (images.numel() * (1 + dtype.itemsize),))
    if name == "diffaugment":
        numbers = torch.rand(8, options.batch_size, device=device)
        shifts = ((numbers[3:5] - 0.5) * (size / 4)).round()
        changes = diffaugment.Changes(*numbers[:3], *shifts, *numbers[5:7], numbers[7] < 0.5)
        x = pictures(3, size)
        op, reference = (
            partial(f, changes=changes) for f in (diffaugment.diffaugment, diffaugment.diffaugment_reference)
        )
        return Case(op, reference, (x,), (2 * x.nbytes,) * 3)
    if name == "bias_act":
        bias = torch.randn(options.channels, device=device)
        x = pictures(options.channels, size)
        return Case(
            bias_act.bias_act, bias_act.bias_act_reference, (x, bias), (2 * x.nbytes, 3 * x.nbytes, 3 * x.nbytes)
        )
    x = pictures(options.channels, 2 * size if name.startswith("down") else size)
    read, written = x.nbytes, (x.nbytes // 4 if name.startswith("down") else x.nbytes * 4)
    op = getattr(resample, name)
    reference = partial(op, implementation="reference")
    return Case(op, reference, (x,), (read + written,) * 3)


def passes(op: Function, inputs: tuple[Tensor, ...]) -> list[Callable[..., Any]]:
    """Functions of the inputs, a gradient of the result and changes of the inputs' gradients, one a pass."""

    def backward(g: Tensor, _changes: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        y, pull = torch.func.vjp(op, *inputs)
        return y, pull(g)

    def double(g: Tensor, changes: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        def gradients(g: Tensor) -> Any:
            y, pull = torch.func.vjp(op, *inputs)
            return pull(g), y

        first, pull, y = torch.func.vjp(gradients, g, has_aux=True)
        return y, first, pull(changes)

    def forward(_g: Tensor, _changes: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        return op(*inputs)

    return [forward, backward, double] if inputs[0].is_floating_point() else [forward]


COLUMNS = ("op", "passes", "implementation", "GB/s", "of a copy of the result")


def measure(name: str, options: Options, device: torch.device) -> list[tuple[str, ...]]:
    """The rows of one op, by COLUMNS."""
    case = case_for(name, options, device)
    ways = {"reference": case.reference}
    if device.type == "cuda":
        ways["Triton"] = partial(case.op, implementation="triton")
    with torch.no_grad():
        y = case.reference(*case.inputs)
    given = (torch.randn_like(y), tuple(torch.randn_like(x) for x in case.inputs if x.is_floating_point()))
    source, target = torch.randn_like(y), torch.empty_like(y)
    rows = []
    for number in range(len(case.bytes)):
        calls = {way: partial(passes(op, case.inputs)[number], *given, *case.inputs) for way, op in ways.items()}
        if options.compiled:
            torch._dynamo.reset()
            compiled = torch.compile(passes(case.reference, case.inputs)[number], fullgraph=True)
            calls["reference, compiled"] = partial(compiled, *given, *case.inputs)
        for call in calls.values():
            call(), call()
        rates = {"copy": partial(rate, partial(target.copy_, source), 2 * y.nbytes)}
        rates |= {way: partial(rate, call, sum(case.bytes[: number + 1])) for way, call in calls.items()}
        values = harness.in_turn(rates, options.rounds)
        copy = statistics.median(values.pop("copy"))
        rows += [
            (name, PASSES[number], way, harness.spread(found), f"{statistics.median(found) / copy:.2f}")
            for way, found in values.items()
        ]
    return rows


def rate(call: Callable[[], Any], num_bytes: int) -> float:
    """GB/s of a call, of as many as take some 20 ms."""
    count = max(1, int(0.02 / max(harness.seconds(call), 1e-6)))

    def calls() -> None:
        for _ in range(count):
            call()

    return num_bytes * count / harness.seconds(calls) / 1e9


def main(options: Options) -> None:
    tune_malloc()  # as training does
    warnings.filterwarnings("ignore", module="torch")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [row for name in options.ops for row in measure(name, options, device)]
    table = "\n".join([harness.head(*COLUMNS), *(harness.row(*cells) for cells in rows)])
    print(table)
    if options.save:
        layout = "channels last" if options.channels_last else "contiguous"
        sizes = f"{options.batch_size} pictures of {options.channels} channels, {options.size}x{options.size}"
        print(harness.save("kernels", f"Ops of kernels/: {sizes}, {options.dtype}, {layout}", table))


if __name__ == "__main__":
    main(parse(Options, sys.argv[1:], prog="bench_kernels.py"))
