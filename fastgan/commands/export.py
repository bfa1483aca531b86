"""`fastgan export RUN`: the generator as a plain folder, an ONNX file, or a program of torch.export."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.evaluation import model_folder, programs
from fastgan.evaluation.fidelity import latents
from fastgan.evaluation.model_card import check_license
from fastgan.evaluation.model_folder import Source, any_labels, open_source
from fastgan.evaluation.sampling import CheckpointSelector, open_run
from fastgan.runs.exported import FILES, VERSION_KEY, WEIGHTS, is_export
from fastgan.utils.pngs import PARTIAL

SUFFIXES = {"safetensors": "", "onnx": ".onnx", "torch": ".pt2"}
MOST_DIFFERENCE = 1e-3  # of numbers in [-1, 1]; of bytes, 1
NUM_SEEDS = 5  # that the check looks at, in a batch unlike the one that a program was traced with


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's generator for other programs and people."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder; for onnx and torch also an export, or its OWNER/NAME on the hub."""
    to: Literal["safetensors", "onnx", "torch"] = "safetensors"
    """safetensors: a folder that every command takes for a run, with a model card. onnx: a file for onnxruntime and
    others. torch: a .pt2 file, which torch.export.load reads without fastgan."""
    out: Path | None = None
    """Where to; without it export/model, .onnx or .pt2 in the run's folder."""
    output: Literal["float32", "uint8"] = "float32"
    """onnx, torch: float32 images [batch, channels, height, width] in [-1, 1], or bytes [batch, height, width,
    channels]."""
    opset: int | None = None
    """onnx: the version of its operators, 18 to 23; without it 18, which the most programs know."""
    license: str | None = None
    """safetensors: what the model card says, like apache-2.0 or cc-by-4.0; without it, unknown."""
    which: CheckpointSelector = field(default_factory=CheckpointSelector)

    def __post_init__(self) -> None:
        for name, value, kinds in (
            ("output", self.output == "uint8" or None, ("onnx", "torch")),
            ("opset", self.opset, ("onnx",)),
            ("license", self.license, ("safetensors",)),
        ):
            if value is not None and self.to not in kinds:
                raise UserError(f"{name} is {getattr(self, name)}: it is for --to {' or '.join(kinds)}, leave it out")
        if self.opset is not None and self.opset not in programs.OPSETS:
            raise UserError(f"opset is {self.opset}: give {programs.OPSETS[0]} to {programs.OPSETS[-1]}")
        check_license(self.license)


def export(options: ExportOptions) -> Path:
    """Write the export whole, after it was compared with G, and return where. Raises UserError."""
    if options.to == "onnx":
        programs.require_onnx()
    out = options.out or _beside(options)
    _refuse_others(out)
    source = open_source(options.run, options.which)
    if options.to == "safetensors" and is_export(source.folder.path):
        raise UserError(f"{options.run} is an export already: copy it, or give --to onnx or torch")
    with _whole(out) as path:
        if options.to == "safetensors":
            model_folder.write_folder(path, source, options.which, options.license, None)
            module: torch.nn.Module = programs.Images(source.G, as_bytes=False)
            run: programs.Run = programs.Images(open_run(path)[3], as_bytes=False)
        else:
            module, run = _write_program(path, source, options)
        difference = _difference(run, module, source.config)
        if not difference <= (1 if options.output == "uint8" else MOST_DIFFERENCE):  # NaN isn't
            raise UserError(f"nothing is exported: as {options.to} G's images differ by {difference:.2g}")
    print(f"{out}: {source.average} after {source.images_seen:,} images seen")
    for remark in _remarks(options, source.config):
        print(remark)
    print(f"largest difference from G's images, of {NUM_SEEDS + 1} seeds: {difference:.2g}")
    return out


def _remarks(options: ExportOptions, config: Config) -> list[str]:
    """What one must know to use it."""
    if options.to == "safetensors":
        return [] if options.license else ["the model card says that the license is unknown: --license NAME says which"]
    label = f", {_label(config)}" if config.networks.is_conditional else ""
    found = [f"z [batch, {config.networks.z_dim}]{label} -> {_images(options)}"]
    if options.to == "onnx":
        found[0] += f"; opset {options.opset or programs.OPSETS[0]}"
    if config.networks.precision != "float32":
        found.append(f"what computes in {config.networks.precision} here is exported in float32")
    return found


def _images(options: ExportOptions) -> str:
    """How images come."""
    if options.output == "uint8":
        return "images [batch, height, width, channels] uint8"
    return "images [batch, channels, height, width] float32 in [-1, 1]"


def _label(config: Config) -> str:
    """What ONNX calls the input that tells G of an image."""
    return "vector" if config.networks.condition == "vector" else "label"


def _beside(options: ExportOptions) -> Path:
    """Where an export goes by itself: into the run's folder; of an export, beside it; of one on the hub, here."""
    run, suffix = options.run, SUFFIXES[options.to]
    if not run.exists():
        return Path(run.name.split("@")[0] + suffix)
    if is_export(run):
        return run.resolve().with_name(run.resolve().name + suffix)
    return run / "export" / f"model{suffix}"


def _refuse_others(out: Path) -> None:
    """Raise UserError where something lies at `out` that isn't an export of ours."""
    file = out / WEIGHTS if out.is_dir() else out
    is_ours = file.is_file() and VERSION_KEY.encode() in file.read_bytes()
    if out.is_dir():
        is_ours &= {path.name for path in out.iterdir()} <= {*FILES}
    if out.exists() and not is_ours:
        raise UserError(f"{out} is there already, and not an export alone: give another --out")


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yield a path to write to; what is there at the end is at `out`. Raises UserError where that can't be written."""
    out = out.resolve()
    side = out.with_name(f".{out.name}{PARTIAL}")
    try:
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(parents=True)
        yield side / out.name
        if out.is_dir():
            out.rename(side / "before")
        (side / out.name).replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror or error}): give another --out") from None
    finally:
        shutil.rmtree(side, ignore_errors=True)


def _write_program(path: Path, source: Source, options: ExportOptions) -> tuple[torch.nn.Module, programs.Run]:
    """The program is at `path`; return what it is of, and what it computes."""
    config = source.config
    module = programs.module_of(config, source.G, options.output == "uint8")
    program = programs.trace(module, config)
    about = source.about | {"images": _images(options)}
    if options.to == "torch":
        programs.write_torch(path, program, about)
        return module, programs.open_torch(path)
    programs.write_onnx(path, program, about, _label(config), options.opset or programs.OPSETS[0])
    return module, programs.open_onnx(path)


@torch.inference_mode()
def _difference(run: programs.Run, module: Callable[..., torch.Tensor], config: Config) -> float:
    """The largest between their images of some seeds, in a batch and alone."""
    found = []
    for seeds in (torch.arange(NUM_SEEDS), torch.tensor([NUM_SEEDS])):
        z, label = latents(seeds, config.networks.z_dim), any_labels(config, seeds)
        found.append(float((run(z, label).double() - module(z, label).double()).abs().max()))
    return max(found)
