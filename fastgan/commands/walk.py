"""`fastgan walk RUN`: from seed to seed and back to the first, as a GIF or a video.

Between two latents the way goes along the sphere: a mean of two Gaussian latents is shorter than either (White 2016,
1609.04468, section 2.1), and G has seldom seen such.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image

from fastgan.config import MAX_SEED, Config
from fastgan.errors import UserError
from fastgan.evaluation.interpolation import Walk, pictures
from fastgan.evaluation.sampling import (
    MAX_TRUNCATION,
    CheckpointSelector,
    Truncated,
    open_run,
    parse_classes,
    parse_seeds,
    to_device,
    vectors_of,
)
from fastgan.utils.fields import require_positive
from fastgan.utils.memory import require_free
from fastgan.utils.pictures import enlarge, to_image
from fastgan.utils.pngs import write_gif

MAX_GIF_FPS = 50  # browsers slow frames down that are shorter than 20 ms
SIDE = 480  # small pictures are enlarged to about this many pixels
ENDINGS = (".gif", ".mp4")
MAX_NUMBER = 1_000_000  # of frames, rows or frames a second


@dataclass(frozen=True)
class WalkOptions:
    """Walk through a run's latents: from seed to seed and back to the first."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, an export, or its OWNER/NAME on the hub."""
    seeds: str = "0-7"
    """Which latents to pass, as numbers and ranges: 0-7 or 1,5,8-11."""
    frames: int = 30
    """Frames from one seed to the next."""
    grid: int = 4
    """So many rows and columns of walks at once, each through as many seeds further on; 1: one walk."""
    class_number: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class by number, or several (0-9), of a run with classes: the walks have them in turn, a single walk changes
    them from seed to seed. Without it, all classes."""
    vector: str | None = None
    """The vector of all walks, of a run with vectors: --vector=0.1,0.9. Without it, each has one of the run's data."""
    fps: int = 30
    """Frames a second."""
    truncation: float = 1.0
    """Scales the latents: below 1 images are better and more alike, above 1 worse and less so."""
    out: Path = Path("walk.gif")
    """The file, .gif or .mp4 (extra `video`)."""
    which: CheckpointSelector = field(default_factory=CheckpointSelector)

    def __post_init__(self) -> None:
        require_positive(self, "frames", "grid", "fps", at_most=MAX_NUMBER)
        require_positive(self, "truncation", at_most=MAX_TRUNCATION)
        if self.out.suffix.lower() not in ENDINGS:
            raise UserError(f"out is {self.out}: give a name that ends in {' or '.join(ENDINGS)}")
        if self.is_gif and self.fps > MAX_GIF_FPS:
            raise UserError(f"fps is {self.fps}: browsers show at most {MAX_GIF_FPS} of a GIF; give fewer, or an .mp4")

    @property
    def is_gif(self) -> bool:
        return self.out.suffix.lower() == ".gif"


def gif_durations_ms(count: int, fps: int) -> list[int]:
    """Return the times of `count` frames, in whole hundredths of a second as GIFs have them.

    Their sum is right, not each of them.
    """
    ends = [10 * round(100 * number / fps) for number in range(count + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def save_video(path: Path, images: Iterator[Image.Image], fps: int) -> None:
    """Save the frames as an H.264 video that browsers and phones play. Raises OSError."""
    import imageio_ffmpeg

    side = path.with_name(f".{path.stem}.partial{path.suffix}")
    writer = None
    for image in images:
        even = Image.new("RGB", (image.width + image.width % 2, image.height + image.height % 2))  # H.264 wants that
        even.paste(image.convert("RGB"))
        if writer is None:
            writer = imageio_ffmpeg.write_frames(
                str(side), even.size, fps=fps, codec="libx264", macro_block_size=2, ffmpeg_log_level="error"
            )
            writer.send(None)
        writer.send(even.tobytes())
    if writer is not None:
        writer.close()
        side.replace(path)


def walk_of(options: WalkOptions, config: Config, names: list[str]) -> Walk:
    """Return the walk that is asked for.

    Raises UserError for one that has nowhere to go, or for wrong seeds or classes.
    """
    seeds = parse_seeds(options.seeds)
    if len(seeds) < 2:
        raise UserError(f"seeds is {options.seeds!r}: a walk needs two at least, like 0-7")
    num_classes, count = config.networks.num_classes, options.grid**2
    if count * (max(seeds) - min(seeds) + 1) + max(seeds) > MAX_SEED:
        raise UserError(f"seeds is {options.seeds!r}: {count} walks need larger ones than there are")
    classes = list(range(num_classes))
    if options.class_number is not None:
        classes = parse_classes(options.class_number, config, names)
    vectors = vectors_of(config, options.vector, torch.arange(max(count, len(seeds))))
    return Walk(seeds, options.frames, classes, count, vectors)


def walk(options: WalkOptions) -> Path:
    """Write the walk to `out`. Raises UserError for a folder without a run or checkpoint, or a file that can't be."""
    if not options.is_gif:
        _require_video()
    folder, config, checkpoint, G = open_run(options.run, options.which)
    path, device = walk_of(options, config, folder.read_classes()), to_device()
    _require_room(options, path, config)
    made = pictures(path, Truncated(G, options.truncation).to(device), config.networks.z_dim, device)
    images = map(functools.partial(enlarge, side=SIDE), map(to_image, made))
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if options.is_gif:
            write_gif(options.out, images, gif_durations_ms(len(path), options.fps))
        else:
            save_video(options.out, images, options.fps)
    except OSError as error:
        raise UserError(f"cannot write {options.out} ({error.strerror or error}): give another --out") from None
    many = "" if path.count == 1 else f"{path.count} walks, "
    seen = checkpoint.state["images_seen"]
    print(f"{many}{len(path)} frames, {len(path) / options.fps:.1f} s after {seen:,} images seen: {options.out}")
    return options.out


def _require_room(options: WalkOptions, path: Walk, config: Config) -> None:
    """Raise UserError where a frame, the way between two seeds, or a GIF, which is written as a whole, is too much."""
    pixels = path.count * math.prod(config.data.image_size)
    frame = 6 * config.data.channels * pixels  # as numbers, bytes and a picture
    latents = 3 * 8 * path.count * options.frames * config.networks.z_dim
    gif = 3 * max(SIDE**2 // 4, pixels) * len(path) if options.is_gif else 0
    what = f"frames is {options.frames}, grid {options.grid}, of {len(path.seeds):,} seeds"
    require_free(frame + latents + gif, "cpu", what, "give smaller numbers" + (", or an .mp4" if gif else ""))


def _require_video() -> None:
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise UserError("an .mp4 needs imageio-ffmpeg: pip install 'fastgan[video]', or give --out walk.gif") from None
