"""What the page shows, as functions of what stands on it: sessions have nothing in common but the generator."""

import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastgan.data.images import to_bytes
from fastgan.errors import UserError
from fastgan.evaluation.generator import Generator
from fastgan.evaluation.interpolation import slerp
from fastgan.evaluation.sampling import parse_seeds
from fastgan.utils.memory import require_free
from fastgan.utils.pictures import enlarge, enlargement, to_image
from fastgan.utils.pngs import grid, write_gif

MAX_IMAGES, MAX_COLUMNS, MAX_FRAMES = 64, 16, 256  # of one request: others wait for it
MAX_TRUNCATION = 1.5
FRAME_MS = 50
IN_TURN = -1  # instead of a class
# Small pictures are enlarged to about so many pixels here: gradio finds no clicks in one that the page stretches.
GRID_SIDE, IMAGE_SIDE = 1024, 512


def told(G: Generator, truncation: float, *condition: float) -> dict[str, Any]:
    """Return what `Generator.sample` and `walk` take besides seeds: of a class's number or IN_TURN, or of a vector."""
    if not 0 <= truncation <= MAX_TRUNCATION:
        raise UserError(f"truncation is {truncation}: give a number from 0 to {MAX_TRUNCATION}")
    if G.vector_dim:
        return {"truncation": truncation, "vectors": condition}
    chosen = int(condition[0]) if G.num_classes else IN_TURN
    return {"truncation": truncation, "classes": None if chosen == IN_TURN else chosen}


def draw_grid(G: Generator, seeds: str, columns: float, *condition: float) -> Image.Image:
    """Return the images of the seeds side by side. Raises UserError."""
    numbers = parse_seeds(seeds, at_most=MAX_IMAGES)
    if not 1 <= columns <= MAX_COLUMNS:
        raise UserError(f"columns is {columns}: give a number from 1 to {MAX_COLUMNS}")
    images = torch.from_numpy(G.sample(numbers, **told(G, *condition))).permute(0, 3, 1, 2)
    return enlarge(to_image(grid(images, min(int(columns), len(numbers)))), GRID_SIDE)


def draw_one(
    G: Generator, seeds: str, columns: float, place: tuple[int, int], *condition: float
) -> tuple[Image.Image, str]:
    """Return the image at the place (x, y) of the picture that `draw_grid` makes, and its name. Raises UserError."""
    numbers = parse_seeds(seeds, at_most=MAX_IMAGES)
    side = min(int(columns), len(numbers))
    width, height = (size + 2 for size in reversed(G.image_shape[1:]))  # with the lines
    scale = enlargement((side * width, math.ceil(len(numbers) / side) * height), GRID_SIDE)
    number = place[1] // (scale * height) * side + place[0] // (scale * width)
    seed = numbers[min(number, len(numbers) - 1)]
    options = told(G, *condition)
    name = f"seed {seed}"
    if G.num_classes:
        name += f", class {G.class_names[seed % G.num_classes if options['classes'] is None else options['classes']]}"
    return enlarge(to_image(G.sample([seed], **options)[0]), IMAGE_SIDE), name


def draw_between(G: Generator, first: str, last: str, share: float, *condition: float) -> Image.Image:
    """Return the image at that share of the arc from one seed's latent to another's. Raises UserError.

    Where classes take turns it is of the first seed's.
    """
    if not 0 <= share <= 1:
        raise UserError(f"the way from the first seed to the second is {share}: give a number from 0 to 1")
    start = parse_seeds(first, "first seed", "7", at_most=1)
    end = parse_seeds(last, "second seed", "7", at_most=1)
    options = told(G, *condition)
    labels = G.labels_of(torch.tensor(start), options.get("classes"), options.get("vectors"))
    with torch.inference_mode():
        z = slerp(G.latents(start), G.latents(end), torch.tensor([share], device=G.device))[0]
        image = to_bytes(G(options["truncation"] * z, labels))[0].permute(1, 2, 0).cpu().numpy()
    return enlarge(to_image(image), IMAGE_SIDE)


def make_gif(G: Generator, folder: Path, seeds: str, frames: float, *condition: float) -> str:
    """Write a walk through the seeds as a GIF; return its path. Raises UserError."""
    numbers = parse_seeds(seeds, at_most=MAX_IMAGES)
    count = len(numbers) * int(frames)
    if count > MAX_FRAMES:
        raise UserError(f"{len(numbers)} seeds with {frames} frames each are {count} frames: give at most {MAX_FRAMES}")
    needed = 6 * count * max(IMAGE_SIDE**2, math.prod(G.image_shape))
    require_free(needed, "cpu", f"a GIF of {count} frames", "give fewer seeds or frames")
    images = [enlarge(to_image(pixels), IMAGE_SIDE) for pixels in G.walk(numbers, int(frames), **told(G, *condition))]
    path = Path(tempfile.mkdtemp(dir=folder)) / "walk.gif"
    write_gif(path, images, [FRAME_MS] * count)
    return str(path)


def next_seeds(seeds: str) -> str:
    """Return as many seeds, after the last of these. Raises UserError."""
    numbers = parse_seeds(seeds, at_most=MAX_IMAGES)
    return _range(max(numbers) + 1, len(numbers))


def other_seeds(seeds: str) -> str:
    """Return as many seeds, from one by chance on. Raises UserError."""
    return _range(random.randrange(1_000_000), len(parse_seeds(seeds, at_most=MAX_IMAGES)))


def draw_moved(G: Generator, move: Callable[[str], str], seeds: str, *given: float) -> tuple[str, Image.Image]:
    """Return other seeds, and the images of those. Raises UserError."""
    moved = move(seeds)
    return moved, draw_grid(G, moved, *given)


def _range(start: int, count: int) -> str:
    return f"{start}-{start + count - 1}" if count > 1 else str(start)
