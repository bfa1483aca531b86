"""The pictures of a whole run, made when a session ends: all grids as a GIF, and the losses."""

from fastgan.config import Config
from fastgan.monitor import loss_plot
from fastgan.runs.checkpoint import STATE, Checkpoints
from fastgan.runs.rows import read_figures
from fastgan.runs.run_folder import RunFolder
from fastgan.utils.pngs import save_gif


def save_pictures(folder: RunFolder, config: Config, images_seen: int, num_images: int) -> None:
    """Write training.gif of every grid up to `images_seen`, the last one longest, and losses.png of both losses.

    `num_images` are the data set's. Raises OSError.
    """
    paths = [path for path in sorted(folder.grids.glob("[0-9]*.png")) if int(path.stem) <= images_seen]
    if paths:
        save_gif(folder.gif, paths)
    loss_plot.save(
        folder.losses, read_figures(folder.log), num_images, f"{config.preset}: losses", config.objective.loss
    )


def are_pictures_missing(folder: RunFolder) -> bool:
    """Return whether a session was killed between its last checkpoint and its pictures."""
    saved = (Checkpoints(folder.checkpoints).paths()[-1] / STATE).stat().st_mtime_ns
    return any(not path.exists() or path.stat().st_mtime_ns < saved for path in (folder.gif, folder.losses))
