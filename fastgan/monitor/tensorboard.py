"""What a run shows: scalars and pictures to TensorBoard and other trackers, JSON lines, PNG and GIF files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fastgan.config import Config, flat
from fastgan.data.images import to_bytes
from fastgan.monitor import chart_groups, trackers
from fastgan.runs.rows import append_row, cut_rows
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.pngs import grid, save_png


class RunLogger:
    """The board of a run that stands at `images_seen`: rows after that, left by a killed process, are gone.

    What training computes and what depends on its speed are two files: the first is the same on every run, bit for bit.
    """

    def __init__(self, folder: RunFolder, config: Config, images_seen: int, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        for path in (folder.log, folder.performance, folder.metrics, folder.evaluation):
            cut_rows(path, images_seen)
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=images_seen + 1 if images_seen else 0)
        if images_seen == 0:
            self._writer.add_text("config", f"```\n{config.to_json()}\n```", 0)
            self._writer.add_custom_scalars(chart_groups.custom_scalars(config))
            self._add_hparams(config)
        names = dict.fromkeys(config.run.tracker)
        self._trackers = [trackers.Tracker(name, folder, config, say) for name in names]

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
        """Write losses, logits, metrics: a row in log.jsonl, points in TensorBoard."""
        self._row(self.folder.log, images_seen, values)

    def log_performance(self, images_seen: int, values: dict[str, float]) -> None:
        """Write speed, memory, health: a row in performance.jsonl, points in TensorBoard."""
        self._row(self.folder.performance, images_seen, values)

    def _row(self, path: Path, images_seen: int, values: dict[str, float]) -> None:
        append_row(path, {"images_seen": images_seen} | values)
        for name, value in values.items():
            self._writer.add_scalar(name, value, images_seen)
        self._writer.flush()
        for tracker in self._trackers:
            tracker.log(images_seen, values)

    def grid(self, images_seen: int, images: Tensor) -> Path:
        """Return the images [N, C, H, W] in [-1, 1] as a square grid: a PNG in grids/, a picture in TensorBoard."""
        pixels = grid(to_bytes(images))
        path = self.folder.grids / f"{images_seen:012d}.png"
        self._picture(images_seen, "samples", path, pixels)
        return path

    def picture(self, images_seen: int, name: str, pixels: np.ndarray) -> None:
        """Write the picture [H, W, C] as NAME.png into the run folder, over an earlier one, and into TensorBoard."""
        self._picture(images_seen, name, self.folder.path / f"{name}.png", pixels)

    def _picture(self, images_seen: int, name: str, path: Path, pixels: np.ndarray) -> None:
        """TensorBoard gets the file's own bytes: to compress an image takes longer than to make it."""
        save_png(path, pixels)
        png, (height, width, channels) = path.read_bytes(), pixels.shape
        shown = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png)
        self._add(Summary(value=[Summary.Value(tag=name, image=shown)]), images_seen)
        self._writer.flush()
        for tracker in self._trackers:
            tracker.picture(images_seen, name, png)

    def histograms(self, images_seen: int, nets: dict[str, nn.Module]) -> None:
        """Write a histogram of each parameter that this process holds; under zero3 it holds few of D's."""
        for side, net in nets.items():
            for name, value in net.named_parameters():
                if value.numel() and bool(value.isfinite().all()):
                    self._writer.add_histogram(f"{side}/{name}", value.detach().float().cpu(), images_seen)
        self._writer.flush()

    def close(self, in_haste: bool = False) -> None:
        """Close TensorBoard's files, then wait a little for the trackers."""
        self._writer.close()
        trackers.close(self._trackers, in_haste)
