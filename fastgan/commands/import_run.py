"""`fastgan import FILE RUN`: weights from elsewhere as a run that samples, evaluates, resumes, and serves --transfer.

FILE is a snapshot of R3GAN's program (network-snapshot-*.pkl), of which nothing is executed, or the state dict of a G,
by R3GAN's own names or ours, in a .safetensors or .pt file; or the address of such a file.
"""

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastgan import networks, presets
from fastgan.config import Config
from fastgan.errors import EXIT_DONE, UserError, first_line
from fastgan.networks.published import config_of, renamed
from fastgan.presets import as_flags, parse_config
from fastgan.runs.checkpoint import Checkpoints
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.pickles import Inert, UnsafePickle, read_pickle

STATES = ("step", "exp_avg", "exp_avg_sq")  # of Adam, for each parameter


USAGE = """\
usage: fastgan import FILE RUN [--sha256 HASH] [options of fastgan train]

  FILE    a .pkl snapshot of R3GAN's program, or a .safetensors or .pt file of a G's weights; or the https:// address of
          one, with its --sha256
  RUN     the folder of the run that is made

The run has the recipe of R3GAN's whose networks the weights are of; options of `fastgan train` change it: --data SRC,
--batch-size 64, or --preset NAME for weights of other networks."""


@dataclass
class Weights:
    """What a file holds: tensors under our names, by network, Adam's state by our names, and what it says of itself."""

    nets: dict[str, dict[str, Tensor]]  # G, D, G_ema, or some of them
    adam: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict)  # by network, key and parameter
    images_seen: int = 0
    precisions: tuple[str, ...] = ()  # of G's stages, from the lowest resolution up
    mirror: bool | None = None


def import_run(file: str, run: Path, flags: Sequence[str] = (), sha256: str | None = None) -> Config:
    """Make a run of the weights in `file`, its recipe changed by flags of `fastgan train`; return its settings.

    Raises UserError for a file that holds something else, or a folder that isn't empty.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} is there already: name a new folder for the run")
    with tempfile.TemporaryDirectory() as work:
        path = _fetch(file, sha256, Path(work))
        try:
            found = _read(path)
            config = _config(found, [*flags, "--run-dir", str(run)])
            tensors = _checkpoint(found, config)
        except UserError as error:
            raise UserError(f"cannot import {file}: {error}") from None
    folder = RunFolder(run)
    folder.open(config)
    state = {"images_seen": found.images_seen, "warm": not found.images_seen, "loss_scales": {}}
    Checkpoints(folder.checkpoints).save(tensors, state | {"meter": {"sums": [], "times": [], "count": 0}})
    folder.close()
    size = "x".join(map(str, config.data.image_size))
    classes = f", {config.networks.num_classes} classes" if config.networks.num_classes else ""
    print(f"{run}: {config.networks.network} of {size} images{classes}, {found.images_seen:,} images seen")
    if "D" not in found.nets:
        print("it has no D: the run samples and serves --transfer; trained on, D starts from scratch")
    print(f"train on: fastgan train {shlex.join(as_flags(config))}")
    return config


def main(args: Sequence[str]) -> int:
    """Import as the command line says; return the exit code."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(EXIT_DONE)
    if len(args) < 2 or args[0].startswith("-") or args[1].startswith("-"):
        raise UserError("fastgan import needs a file of weights and a folder for the run: fastgan import FILE RUN")
    file, run, *flags = args
    sha256 = None
    if "--sha256" in flags[:-1]:
        place = flags.index("--sha256")
        sha256 = flags[place + 1]
        del flags[place : place + 2]
    import_run(file, Path(run), flags, sha256)
    return EXIT_DONE


def _fetch(file: str, sha256: str | None, folder: Path) -> Path:
    """Return the file, downloaded into `folder` where it is an address."""
    if "://" not in file:
        path = Path(file)
        if not path.is_file():
            raise UserError(f"file is {file!r}: there is no such file")
        return path
    if not file.startswith("https://") or not sha256:
        raise UserError(f"file is {file!r}: give an address that begins with https://, and its --sha256")
    path = folder / f"download{Path(file).suffix}"
    try:
        torch.hub.download_url_to_file(file, str(path), hash_prefix=sha256.lower())
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot get {file}: {error}") from None
    return path


def _read(path: Path) -> Weights:
    """Return what the file holds. Raises UserError where that is something else."""
    try:
        if path.suffix == ".safetensors":
            return _of_state_dict(safetensors.torch.load_file(path))
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip:  # as torch.save writes
            return _of_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return _of_snapshot(read_pickle(path))
    except UnsafePickle as reason:
        raise UserError(f"{reason}; nothing of it was executed") from None
    except UserError:
        raise
    except Exception as error:  # of a file that anybody may have written
        raise UserError(f"it is damaged ({type(error).__name__}: {first_line(error)})") from None


def _of_state_dict(content: Any) -> Weights:
    """Return the weights of a file that holds G's alone, by R3GAN's own names or ours."""
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError("it holds no state dict: give one of names and tensors")
    is_ours = not any("MainLayers." in name for name in content)
    return Weights({"G_ema": content if is_ours else renamed(content, "G")})


def _of_snapshot(content: Any) -> Weights:
    """Return the weights of a snapshot of R3GAN's program, or of one network alone."""
    content = {"G_ema": content} if isinstance(content, Inert) else content
    sides = {"G": "G", "G_ema": "G", "D": "D"}
    modules = {name: content[name] for name in sides if isinstance(content, dict) and name in content}
    if "G" not in modules and "G_ema" not in modules:
        raise UserError("it holds no network named G or G_ema")
    theirs = {name: _parameters(module) for name, module in modules.items()}
    weights = Weights({name: renamed(theirs[name], sides[name]) for name in theirs})
    weights.precisions = tuple(str(kind) for kind in _stage_types(modules.get("G_ema") or modules["G"]))
    images_seen, settings = content.get("cur_nimg", 0), content.get("training_set_kwargs")
    if not isinstance(images_seen, int) or images_seen < 0:
        raise UserError(f"its cur_nimg is {images_seen!r}, which is no number of images")
    weights.images_seen = images_seen
    weights.mirror = bool(settings["xflip"]) if isinstance(settings, dict) and "xflip" in settings else None
    for side in ("G", "D"):
        if side in theirs and f"{side}_opt_state" in content:
            weights.adam[side] = _adam(content[f"{side}_opt_state"], list(theirs[side]), side)
    return weights


def _parameters(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, in the order of torch's `named_parameters`."""
    state = _state_of(module)
    found = {
        prefix + name: value
        for kind in ("_parameters", "_buffers")
        for name, value in state.get(kind, {}).items()
        if isinstance(value, Tensor)
    }
    for name, child in state.get("_modules", {}).items():
        if child is not None:
            found |= _parameters(child, f"{prefix}{name}.")
    return found


def _state_of(module: Any) -> dict[str, Any]:
    if not isinstance(module, Inert) or not isinstance(module.state, dict):
        raise UserError("a network in it is no module of torch's")
    return module.state


def _stage_types(G: Any) -> list[Any]:
    """Return what G's stages compute in, as its file names it; none where it doesn't."""
    try:
        stages = _state_of(_state_of(G)["_modules"]["Model"])["_modules"]["MainLayers"]
        return [_state_of(stage)["DataType"] for stage in _state_of(stages)["_modules"].values()]
    except KeyError:
        return []


def _adam(state: Any, names: list[str], side: str) -> dict[str, dict[str, Tensor]]:
    """Return Adam's state by key and by our names of the parameters, which it numbers."""
    try:
        numbered = state["state"]
        names = [name for name in names if not name.endswith("Resampler.Kernel")]  # a buffer
        by_key = {key: {names[number]: values[key] for number, values in numbered.items()} for key in STATES}
        if not all(isinstance(value, Tensor) for values in by_key.values() for value in values.values()):
            raise TypeError("a value is no tensor")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{side}_opt_state is no state of Adam ({type(error).__name__}: {error})") from None
    return {key: renamed(values, side) for key, values in by_key.items()}


def _config(found: Weights, flags: Sequence[str]) -> Config:
    """Return the settings of the run: the recipe with these networks, what the file says, and then the flags."""
    G = found.nets.get("G_ema") or found.nets["G"]
    if "trunk.stage0_block0.project.weight" not in G:
        if not any(flag.split("=")[0] == "--preset" for flag in flags):
            raise UserError("its tensors are no G of R3GAN's: give the --preset whose networks they are of")
        return parse_config(flags, "fastgan import")
    config = _like(config_of(G, presets.get("cifar10")))
    if reduced := [name.removeprefix("torch.") for name in found.precisions]:
        precision: Any = reduced[-1]
        computing = replace(config.networks, precision=precision, float32_stages=reduced.index(precision))
        config = replace(config, networks=computing)
    if found.mirror is not None:
        config = replace(config, data=replace(config.data, mirror=found.mirror))
    return parse_config([*as_flags(config), *flags], "fastgan import")


def _like(config: Config) -> Config:
    """Return the recipe of R3GAN's whose images and networks these are; else one with a gamma by the rule of thumb."""
    for name in ("ffhq64", "ffhq256", "cifar10", "imagenet32", "imagenet64", "stacked-mnist"):
        other = presets.get(name)
        kept = replace(
            other.networks, precision=config.networks.precision, float32_stages=config.networks.float32_stages
        )
        if config.data.image_size == other.data.image_size and config.networks == kept:
            return other
    objective = replace(config.objective, gamma=None, gamma_end=None)
    return replace(config, objective=objective)


def _checkpoint(found: Weights, config: Config) -> dict[str, dict[str, Tensor]]:
    """Return what a checkpoint holds. Raises UserError where a tensor is missing, or of another shape."""
    nets = dict(zip("GD", networks.build(config), strict=True))
    weights = {
        "G": found.nets.get("G") or found.nets["G_ema"],
        "G_ema": found.nets.get("G_ema") or found.nets["G"],
        "D": found.nets.get("D") or dict(nets["D"].state_dict()),
    }
    for name, tensors in weights.items():
        try:
            nets[name[0]].load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"its {name} isn't the network's: {str(error).splitlines()[1].strip()}") from None
    optimizers = {}
    for side, states in found.adam.items():
        numbers = {name: number for number, (name, _) in enumerate(nets[side].named_parameters())}
        for key, values in states.items():
            for name, value in values.items():
                optimizers[f"{side}/{numbers[name]}/{key}"] = value.contiguous()
    averages = dict.fromkeys(config.optimizer.ema_names, weights["G_ema"])
    return weights | averages | {"optimizers": optimizers}
