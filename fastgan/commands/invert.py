"""`fastgan invert RUN PHOTO ...`: what G can make that is nearest to a photo, and the latent of it."""

import itertools
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastgan.errors import UserError
from fastgan.evaluation.generator import Generator
from fastgan.evaluation.inversion import Inversion, Search
from fastgan.evaluation.sampling import CheckpointSelector, parse_classes, parse_vector
from fastgan.runs.run_folder import session
from fastgan.utils.files import write_atomically
from fastgan.utils.pictures import side_by_side, to_image
from fastgan.utils.pngs import save_png, write_gif

FRAME_MS, LAST_MS = 100, 2000
FAR, FAR_OF_OWN = 0.1, 5  # a distance, and how many times that of an image of its own, which a short search leaves


@dataclass(frozen=True)
class InvertOptions:
    """Find the latents whose images are nearest to photos, and the class or vector."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files of any size: they are cropped and resized as the run's own."""
    out: Path = Path("inverted")
    """Folder for the results: of each photo a PNG (the photo and the nearest image), a GIF (the search), a JSON (z)."""
    class_number: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class by number or name, or several (0-9), of a run with classes. Without it, any of them is found."""
    vector: str | None = None
    """The vector, of a run with vectors: --vector=0.1,0.9. Without it, one of the run's data is found."""
    extractor: Literal["auto", "none", "inception", "inception_clean", "efficientnet", "dinov2", "digits"] = "auto"
    """Features to compare beside pixels, as in `evaluate`; none: pixels alone."""
    inception_weights: Path | None = None
    """The Inception weights' file; without it, torch-fidelity's cache or its download."""
    search: Search = field(default_factory=Search)
    which: CheckpointSelector = field(default_factory=CheckpointSelector)

    def __post_init__(self) -> None:
        if not self.photos:
            raise UserError("photos is empty: give one image file at least")


def invert(options: InvertOptions) -> None:
    """Write PNG, GIF and JSON of each photo into `out`, and print a line of each. Raises UserError."""
    G = Generator.open(options.run, options.which)
    classes = parse_classes(options.class_number, G.config, G.classes) if options.class_number is not None else None
    vector = parse_vector(options.vector, G.config) if options.vector is not None else None
    names = _names(options)
    _require_writable(options.out)
    # An image that G did make, of none of the seeds that are tried, says what a found one's distance is.
    own = G.sample([options.search.candidates], None if classes is None else classes[0], vector)
    photos = [*options.photos, *own]
    search = asdict(options.search)
    found = G.invert(photos, classes, vector, options.extractor, options.inception_weights, **search)
    told = {"run": str(options.run), "images_seen": G.images_seen, "which": asdict(options.which)}
    told |= {"compared": found.compared, "search": search, "session": session()}
    try:
        for number, name in enumerate(names):
            rows = _facts(found, number, G) | told | {"photo": str(options.photos[number])}
            _write(options.out, name, found, number, rows)
            print(_line(options.photos[number].name, rows, options.out / f"{name}.png"))
    except OSError as error:
        raise UserError(f"cannot write into {options.out} ({error.strerror or error}): give another --out") from None


def _require_writable(out: Path) -> None:
    """Raise UserError where the folder can't be made or written into: before the search, not after it."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"cannot write into {out}: give another --out")


def _names(options: InvertOptions) -> list[str]:
    """The photos' names without endings, told apart by numbers. Raises UserError where one would be overwritten."""
    names: list[str] = []
    for photo in options.photos:
        others = (f"{photo.stem}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([photo.stem], others) if name not in names))
    written = {(options.out / f"{name}{end}").resolve() for name in names for end in (".png", ".gif", ".json")}
    for photo in options.photos:
        if photo.resolve() in written:
            raise UserError(f"out is {options.out}: {photo} would be overwritten, give another folder")
    return names


def _facts(found: Inversion, number: int, G: Generator) -> dict[str, Any]:
    """What is known of a photo."""
    seeds = found.seed_distances[number]
    facts: dict[str, Any] = {"z": found.z[number].tolist()}
    if found.labels is not None and G.num_classes:
        label = int(found.labels[number])
        facts |= {"class": label, "class_name": G.class_names[label]}
    elif found.labels is not None:
        facts["vector"] = found.labels[number].tolist()
    return facts | {
        "psnr_db": round(found.psnr[number], 2),
        "distance": float(found.distances[number]),
        "distance_of_own_image": float(found.distances[-1]),
        "distance_of_nearest_seed": float(seeds.min()),
        "nearest_seed": int(seeds.argmin()),
        "mean_distance_of_seeds": float(seeds.mean()),
    }


def _line(name: str, facts: dict[str, Any], path: Path) -> str:
    own, mean, distance = (facts[key] for key in ("distance_of_own_image", "mean_distance_of_seeds", "distance"))
    line = f"{name}: distance {distance:.3f} (an image of G's own {own:.3f}, random seeds {mean:.3f})"
    line += f", PSNR {facts['psnr_db']:.1f} dB"
    line += f", class {facts['class_name']}" if "class" in facts else ""
    line += "; far: G makes nothing near it" if distance > max(FAR, FAR_OF_OWN * own) else ""
    return f"{line}: {path}"


def _write(out: Path, name: str, found: Inversion, number: int, facts: dict[str, Any]) -> None:
    photo = found.photos[number]
    beside = [("photo", photo), (f"nearest: {facts['distance']:.3f}", found.images[number])]
    save_png(out / f"{name}.png", side_by_side(beside))
    frames = [side_by_side([("photo", photo), (f"step {step}", image)]) for step, image in found.frames[number]]
    write_gif(out / f"{name}.gif", map(to_image, frames), [FRAME_MS] * (len(frames) - 1) + [LAST_MS])
    write_atomically(out / f"{name}.json", json.dumps(facts, indent=1).encode())
