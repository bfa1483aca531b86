"""What a run shows: scalars and pictures to TensorBoard, JSON lines, PNG and GIF files."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fastgan import layout
from fastgan.config import Config, flat
from fastgan.data.images import to_bytes
from fastgan.files import write_atomically
from fastgan.pictures import enlarge, to_image
from fastgan.run_folder import RunFolder

GIF_FRAME_MS, GIF_LAST_MS = 200, 2000


class Board:
    """The board of a run that stands at `images_seen`: rows after that, left by a killed process, are gone.

    What training computes and what depends on its speed are two files: the first is the same on every run, bit for bit.
    """

    def __init__(self, folder: RunFolder, config: Config, images_seen: int) -> None:
        self.folder = folder
        for path in (folder.log, folder.performance):
            _cut(path, images_seen)
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=images_seen + 1 if images_seen else 0)
        if images_seen == 0:
            self._writer.add_text("config", f"```\n{config.to_json()}\n```", 0)
            self._writer.add_custom_scalars(layout.custom_scalars(config))
            self._add_hparams(config)

    def _add_hparams(self, config: Config) -> None:
        """TensorBoard compares runs by what decides what is learned.

        Without torch's `experiment`, which fixes the columns by the first run, and in the run's own folder: TensorBoard
        then takes the settings and figures of all runs, those settings first that differ.
        """
        learned = {name: value for name, value in flat(config).items() if name not in flat(config.run)}
        settings = {name: v if isinstance(v, int | float | bool) else str(v) for name, v in learned.items()}
        _, start, end = hparams(settings, {})
        self._add(start, 0)
        self._add(end, 0)

    def _add(self, summary: Any, images_seen: int) -> None:
        writer = self._writer.file_writer
        assert writer is not None
        writer.add_summary(summary, images_seen)

    def log(self, images_seen: int, values: dict[str, float]) -> None:
        """Losses, logits, metrics: a row in log.jsonl, points in TensorBoard."""
        self._row(self.folder.log, images_seen, values)

    def performance(self, images_seen: int, values: dict[str, float]) -> None:
        """Speed, memory, health: a row in performance.jsonl, points in TensorBoard."""
        self._row(self.folder.performance, images_seen, values)

    def _row(self, path: Path, images_seen: int, values: dict[str, float]) -> None:
        append_row(path, {"images_seen": images_seen} | values)
        for name, value in values.items():
            self._writer.add_scalar(name, value, images_seen)
        self._writer.flush()

    def grid(self, images_seen: int, images: Tensor) -> Path:
        """The images [N, C, H, W] in [-1, 1] as a square grid: a PNG in grids/, a picture in TensorBoard."""
        pixels = grid(to_bytes(images))
        path = self.folder.grids / f"{images_seen:012d}.png"
        self._picture(images_seen, "samples", path, pixels)
        return path

    def picture(self, images_seen: int, name: str, pixels: np.ndarray) -> None:
        """The picture [H, W, C] is NAME.png in the run folder, in the place of an earlier one, and in TensorBoard."""
        self._picture(images_seen, name, self.folder.path / f"{name}.png", pixels)

    def _picture(self, images_seen: int, name: str, path: Path, pixels: np.ndarray) -> None:
        """TensorBoard gets the file's own bytes: to compress an image takes longer than to make it."""
        save_png(path, pixels)
        height, width, channels = pixels.shape
        shown = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
        self._add(Summary(value=[Summary.Value(tag=name, image=shown)]), images_seen)
        self._writer.flush()

    def histograms(self, images_seen: int, nets: dict[str, nn.Module]) -> None:
        """TensorBoard has a histogram of each parameter that this process holds; under zero3 it holds few of D's."""
        for side, net in nets.items():
            for name, value in net.named_parameters():
                if value.numel() and bool(value.isfinite().all()):
                    self._writer.add_histogram(f"{side}/{name}", value.detach().float().cpu(), images_seen)
        self._writer.flush()

    def gif(self, images_seen: int) -> None:
        """training.gif shows every grid up to `images_seen`, in order, the last one longest."""
        paths = [path for path in sorted(self.folder.grids.glob("[0-9]*.png")) if int(path.stem) <= images_seen]
        if paths:
            save_gif(self.folder.gif, paths)

    def close(self) -> None:
        self._writer.close()


def append_row(path: Path, row: dict[str, Any]) -> None:
    """The file ends with the row, as a line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without a last one that was cut off; none where there is no file."""
    rows = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def _cut(path: Path, images_seen: int) -> None:
    """The file's rows end at `images_seen`."""
    if path.exists():
        rows = [row for row in read_rows(path) if row["images_seen"] <= images_seen]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """uint8 images [N, C, H, W] as one picture [H', W', C], black lines between.

    Without `columns` it is square or a row short of it.
    """
    side = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / side)
    images = F.pad(images, (1, 1, 1, 1, 0, 0, 0, rows * side - len(images))).cpu()
    _, channels, height, width = images.shape
    tiled = images.view(rows, side, channels, height, width).permute(0, 3, 1, 4, 2)
    return tiled.reshape(rows * height, side * width, channels).numpy()


def save_png(path: Path, pixels: np.ndarray) -> None:
    """The file holds uint8 pixels [H, W, C] of 1, 3 or 4 channels, or what it held before. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}.partial")
    to_image(pixels).save(side, format="PNG")
    side.replace(path)


def save_gif(path: Path, frames: list[Path]) -> None:
    """The file shows the PNGs in order, small ones enlarged without blur."""
    images = []
    for frame in frames:
        with Image.open(frame) as image:
            images.append(enlarge(image))
    write_gif(path, images, [GIF_FRAME_MS] * (len(images) - 1) + [GIF_LAST_MS])


def write_gif(path: Path, images: Iterable[Image.Image], durations_ms: list[int]) -> None:
    """The file shows the images for ever, each so long, or holds what it held before. Raises OSError."""
    side = path.with_name(f".{path.name}.partial")
    first, *others = images
    first.save(side, format="GIF", save_all=True, append_images=others, duration=durations_ms, loop=0)
    side.replace(path)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory this process has held: on the GPU where it computes there, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
