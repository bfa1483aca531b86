"""An exported generator: a plain folder, here or on the Hugging Face hub. No file in it is a pickle.

config.json     the run's settings, without paths     model.safetensors   the weights of one average of G
data.json       its set: hash, classes                metrics.json        what was measured of these weights
samples.png     a grid of the first seeds             README.md           the model card
"""

import re
from dataclasses import replace
from pathlib import Path

import safetensors

import fastgan
from fastgan.config import Config
from fastgan.errors import Stopped, UserError, first_line
from fastgan.run_config import RunConfig
from fastgan.runs.checkpoint import Checkpoint

WEIGHTS, METRICS, SAMPLES, CARD = "model.safetensors", "metrics.json", "samples.png", "README.md"
FILES = ("config.json", "data.json", WEIGHTS, METRICS, SAMPLES, CARD)
VERSION_KEY = "fastgan_version"  # in what every export says of itself, by which ours are known
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(\S+))?", re.ASCII)


def is_export(folder: Path) -> bool:
    """Return whether the folder holds an export rather than a run."""
    return (folder / WEIGHTS).is_file()


def locate(run: Path) -> Path:
    """Return the folder of a run or an export: `run` itself, or what was downloaded from the hub.

    OWNER/NAME, or OWNER/NAME@REVISION, is of the hub where there is no folder OWNER here. Raises UserError where it
    can't be got, or is no export.
    """
    match = HUB_NAME.fullmatch(str(run))
    if match is None or run.exists() or run.parent.exists():
        return run
    try:
        from huggingface_hub import snapshot_download

        about = {"library_name": "fastgan", "library_version": fastgan.__version__}
        folder = Path(snapshot_download(match[1], revision=match[2], allow_patterns=list(FILES), **about))
    except Stopped:
        raise
    except Exception as error:  # each of the hub's libraries raises its own
        raise UserError(f"{run} is no folder here, and the hub doesn't give it ({hub_reason(error)})") from None
    if not is_export(folder):
        raise UserError(f"{run} on the hub is no export of fastgan's: it has no {WEIGHTS}")
    return folder


def hub_reason(error: Exception) -> str:
    """Return what the hub's libraries say of a failure, which goes over several lines, in one."""
    return " ".join(str(error).split())[:300]


def read_weights(folder: Path) -> Checkpoint:
    """Return the weights of the export, under their average's name. Raises UserError for a damaged or foreign file."""
    path = folder / WEIGHTS
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if VERSION_KEY not in about:
                raise UserError(f"{path} is no export of fastgan's: it doesn't say {VERSION_KEY}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(folder, {about["average"]: tensors}, {"images_seen": int(about["images_seen"])})
    except UserError:
        raise
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): export it, or get it, again") from None


def portable(config: Config) -> Config:
    """Return the settings with the names alone of files and folders, which are elsewhere on other machines.

    Trackers aren't named at all.
    """
    data, run = config.data, config.run
    run = replace(run, tracker=(), tracker_project=RunConfig.tracker_project)
    return replace(
        config,
        transfer=_name(config.transfer),
        data=replace(data, data=Path(data.data).name or "data", labels=Path(data.labels).name),
        run=replace(run, run_dir=_name(run.run_dir), inception_weights=_name(run.inception_weights)),
    )


def _name(path: Path | None) -> Path | None:
    return None if path is None else Path(path.name)
