"""Write a generator as an export's folder; `runs/exported.py` says what lies in it, and reads it."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

import fastgan
from fastgan.config import Config
from fastgan.data.record import DatasetRecord, read_record
from fastgan.errors import UserError, first_line
from fastgan.evaluation.fidelity import labels_for, latents
from fastgan.evaluation.model_card import card
from fastgan.evaluation.sampling import CheckpointSelector, average_name, images_of, open_run, vectors_of
from fastgan.runs.exported import CARD, METRICS, SAMPLES, VERSION_KEY, WEIGHTS, portable
from fastgan.runs.rows import read_rows
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.pngs import grid, save_png

SMALL = 64  # pixels: of images up to that side eight fit in a row


class Source(NamedTuple):
    """What is exported."""

    folder: RunFolder
    config: Config
    G: nn.Module
    images_seen: int
    average: str

    @property
    def about(self) -> dict[str, str]:
        """What every export says of itself."""
        config, classes = self.config, self.folder.read_classes()
        found = {
            VERSION_KEY: fastgan.__version__,
            "config_sha256": sha256(portable(config).to_json().encode()).hexdigest(),
            "preset": config.preset,
            "network": config.networks.network,
            "image_size": "x".join(map(str, (*config.data.image_size, config.data.channels))),
            "images_seen": str(self.images_seen),
            "average": self.average,
            "z": f"[batch, {config.networks.z_dim}] float32, independent normal numbers of mean 0 and variance 1",
        }
        return found | ({"classes": json.dumps(classes)} if classes and config.networks.num_classes else {})


def open_source(path: Path, which: CheckpointSelector) -> Source:
    """Return what is exported of the run or export. Raises UserError as `open_run` does."""
    folder, config, checkpoint, G = open_run(path, which)
    return Source(folder, config, G, checkpoint.state["images_seen"], average_name(checkpoint, config, which))


def any_labels(config: Config, seeds: Tensor) -> Tensor | None:
    """Return something to tell G of the seeds [B], without the data: classes in turn, or normal vectors."""
    if config.networks.condition == "vector":
        return latents(seeds + len(seeds), config.networks.vector_dim)
    return labels_for(seeds, config.networks.num_classes)


def _labels(config: Config, seeds: Tensor) -> Tensor | None:
    """The same, but vectors of the data where that is here."""
    try:
        found = vectors_of(config, None, seeds)
    except UserError:
        found = None
    return any_labels(config, seeds) if found is None else found


def write_folder(
    out: Path, source: Source, which: CheckpointSelector, license_name: str | None, name: str | None
) -> None:
    """Write the folder of the run's generator; `name` is what it has on the hub. Raises OSError, UserError."""
    folder, config = source.folder, source.config
    out.mkdir()
    (out / "config.json").write_text(portable(config).to_json())
    tensors = {key: value.contiguous() for key, value in source.G.state_dict().items()}
    (out / WEIGHTS).write_bytes(safetensors.torch.save(tensors, source.about))
    record = read_record(folder.data)
    if record is not None:
        record = DatasetRecord(**vars(record) | {"name": Path(record.name).name})
        (out / "data.json").write_bytes(record.to_json())
    try:
        rows = _measured(source, which)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{folder.evaluation} or {folder.metrics.name} is damaged ({reason}): mend it") from None
    (out / METRICS).write_text(json.dumps(rows, indent=1))
    seeds = list(range(64 if max(config.data.image_size) <= SMALL else 16))
    labels = _labels(config, torch.tensor(seeds))
    save_png(out / SAMPLES, grid(images_of(source.G, seeds, config.networks.z_dim, torch.device("cpu"), labels)))
    text = card(name, config, source.about, record, rows, len(seeds), license_name)
    (out / CARD).write_text(text, encoding="utf-8")


def _measured(source: Source, which: CheckpointSelector) -> list[dict[str, Any]]:
    """The last figures by each protocol of these very weights: in training, of the first average, and after."""
    rows, folder = [], source.folder
    average = (which.average or 0, which.length)
    if average == (0, None):
        rows = read_rows(folder.metrics)
    for row in read_rows(folder.evaluation):
        of = row.get("which", {})
        if (of.get("average") or 0, of.get("length")) == average:
            rows.append(row)
    found = {}
    for row in rows:
        if row["images_seen"] == source.images_seen:
            protocol = row["protocol"] | {"data": Path(row["protocol"].get("data", "")).name}
            kept = {"images_seen": row["images_seen"], "metrics": row["metrics"], "protocol": protocol}
            found[json.dumps(protocol, sort_keys=True)] = kept
    return list(found.values())
