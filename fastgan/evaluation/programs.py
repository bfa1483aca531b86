"""A generator as a program of torch.export or ONNX, which runs where fastgan isn't installed."""

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgan import networks
from fastgan.config import Config
from fastgan.data.images import to_bytes
from fastgan.errors import UserError

OPSETS = range(18, 24)  # torch writes the first and converts to the others
ABOUT = "fastgan.json"  # in a .pt2 file
ONNX_BYTES = 2**31  # a file holds less
Run = Callable[[Tensor, Tensor | None], Tensor]


class Images(nn.Module):
    """What an export computes: float32 images [B, C, H, W] in [-1, 1], or bytes [B, H, W, C]."""

    def __init__(self, G: nn.Module, as_bytes: bool) -> None:
        super().__init__()
        self.G, self.as_bytes = G, as_bytes

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        images: Tensor = self.G(z, label)
        return to_bytes(images).permute(0, 2, 3, 1) if self.as_bytes else images.clamp(-1, 1)


def module_of(config: Config, G: nn.Module, as_bytes: bool) -> Images:
    """Return what is to be exported: G with the same weights, all in float32, on the CPU, where ops are torch's own."""
    plain = replace(config.networks, precision="float32")
    net, _ = networks.build(replace(config, networks=plain))
    net.load_state_dict(G.state_dict())
    net = net.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)  # torch.export.save wants that
    return Images(net, as_bytes).eval()


def trace(module: Images, config: Config) -> torch.export.ExportedProgram:
    """Return the module as a program for any size of batch."""
    seeds = torch.arange(2)
    label = networks.example_labels(config.networks, seeds)
    inputs = (torch.zeros(2, config.networks.z_dim), *(() if label is None else (label,)))
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    for node in program.graph.nodes:
        assert "fastgan" not in str(node.target), f"{node.target} is an op of ours"
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_torch(path: Path, program: torch.export.ExportedProgram, about: dict[str, str]) -> None:
    """Write the program as a .pt2 file. Raises OSError."""
    file = io.BytesIO()  # torch's own writer says nothing of a full disk
    torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})
    path.write_bytes(file.getvalue())


def open_torch(path: Path) -> Run:
    """Return what the file computes. It must be our own: torch.export.load may read pickles."""
    module = torch.export.load(path).module()
    return lambda z, label: module(z) if label is None else module(z, label)


def require_onnx() -> None:
    """Raise UserError where a package is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"ONNX needs {package}: pip install 'fastgan[onnx]'")


def write_onnx(
    path: Path, program: torch.export.ExportedProgram, about: dict[str, str], label: str, opset: int
) -> None:
    """Write the program as an .onnx file of inputs z and, where it has a second one, `label`. Raises OSError."""
    if sum(value.nbytes for value in program.state_dict.values()) >= ONNX_BYTES:
        raise UserError("G has 2 GiB or more, which no .onnx file holds: give --to torch")
    names = ["z", label][: len(program.graph_signature.user_inputs)]
    made = torch.onnx.export(
        program,
        input_names=names,
        output_names=["images"],
        dynamic_shapes=({0: "batch"}, *({} for _ in names[1:])),  # its name, once, which all take
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    if made.model.opset_imports[""] != opset:
        raise UserError(f"opset is {opset}: this G can't be converted to it; give {OPSETS[0]}")
    for node in made.model.graph:
        node.metadata_props.clear()  # paths of this machine
    made.model.metadata_props.update(about)
    made.save(path)


def open_onnx(path: Path) -> Run:
    """Return what the file computes by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(z: Tensor, label: Tensor | None) -> Tensor:
        given = [z] if label is None else [z, label]
        inputs = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, inputs)[0])

    return run
