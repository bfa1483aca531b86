"""A run's power-function averages on disk: snapshots while it trains, and averages of any length from them after.

    averages/000060000-0.050.safetensors   the average of sigma_rel 0.05 at 60,000 images: float32, whole or not there
    averages/length-0.080.safetensors      made of all those, at the newest; with --at: length-0.080-000060000

float32, where EDM2 stores float16: on 20 snapshots of a small run float16's rounding moved weights by 2e-4 of their
size, fifteen times what the fit itself did, and lengths far from those stored magnify it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastgan.config import MAX_EMA_STD, MIN_EMA_STD
from fastgan.errors import UserError
from fastgan.runs.async_writer import AsyncWriter, Files
from fastgan.runs.ema_profiles import fit
from fastgan.utils.files import write_atomically

LARGE_ERROR = 0.05


class Stored(NamedTuple):
    """A snapshot of one average."""

    images_seen: int
    std: float
    path: Path


class Reconstruction(NamedTuple):
    """An average of a length that may never have been tracked."""

    path: Path
    length: float
    images_seen: int
    num_snapshots: int  # how many it could be made of
    error: float  # of its profile: see ema_profiles.Fit


class EmaSnapshots:
    """The averages in `folder` of a run that tracks those of `stds`."""

    def __init__(self, folder: Path, stds: Sequence[float]) -> None:
        self.folder, self.stds = folder, stds

    def save(self, nets: Sequence[nn.Module], images_seen: int, writer: AsyncWriter | None = None) -> None:
        """Write one snapshot an average, or hand it to `writer`; the same bytes whenever training comes here.

        Raises OSError, or as the writer does.
        """
        parameters = {name for net in nets for name, _ in net.named_parameters()}

        def write(files: Files) -> None:
            for name, group in files.items():
                tensors = {key: value.cpu().contiguous() for key, value in group.items()}
                buffers = sorted(set(tensors) - parameters)
                data = safetensors.torch.save(tensors, metadata={"buffers": json.dumps(buffers)})
                write_atomically(self.folder / f"{images_seen:09d}-{name}.safetensors", data)

        files = {_text(std): dict(net.state_dict()) for net, std in zip(nets, self.stds, strict=True)}
        if writer is None:
            write(files)
        else:
            writer.save("average", files, write)

    def stored(self) -> list[Stored]:
        """Return the snapshots, oldest first."""
        return sorted(
            Stored(int(path.name.split("-")[0]), std, path)
            for std in self.stds
            for path in self.folder.glob(f"[0-9]*-{_text(std)}.safetensors")
        )

    def remove_partial(self) -> None:
        """Remove what a killed process left half-written."""
        for side in self.folder.glob(".*"):
            side.unlink(missing_ok=True)

    def reconstruct(self, length: float, at: int | None = None, say: Callable[[str], None] = print) -> Reconstruction:
        """Write the average of `length` (sigma_rel) as it was at `at` images (None: at the newest snapshot).

        Weights are combined in float64; buffers, BatchNorm's statistics, are those of the snapshot at `at`. A file that
        was made before of the same snapshots stays. A large error is reported. Raises UserError.
        """
        stored = self._up_to(length, at)
        images_seen = stored[-1].images_seen
        coefficients, error = fit([(one.images_seen, one.std) for one in stored], images_seen, length)
        name = f"length-{_text(length)}" + ("" if at is None else f"-{at:09d}")
        made = Reconstruction(self.folder / f"{name}.safetensors", length, images_seen, len(stored), error)
        about = {"length": length, "at": images_seen, "error": error, "snapshots": [one.path.name for one in stored]}
        metadata = {"average": json.dumps(about)}
        if not (made.path.exists() and _metadata(made.path) == metadata):
            tensors = _combine([(one.path, c) for one, c in zip(stored, coefficients.tolist(), strict=True)])
            try:
                write_atomically(made.path, safetensors.torch.save(tensors, metadata=metadata))
            except OSError as problem:
                raise UserError(f"cannot write {made.path} ({problem.strerror}): free some space") from None
        if error > LARGE_ERROR:
            say(
                f"warning: length {length:g} at {images_seen:,} images is off by {error:.1%}: more snapshots "
                "(--ema-snapshot-every), or an average nearer to that length (--ema-stds), would make it truer"
            )
        return made

    def _up_to(self, length: float, at: int | None) -> list[Stored]:
        """The snapshots from which `length` at `at` can be made, one of them at `at`. Raises UserError."""
        if not MIN_EMA_STD <= length <= MAX_EMA_STD:
            raise UserError(f"length is {length!r}: give a number from {MIN_EMA_STD} to {MAX_EMA_STD}")
        stored = self.stored()
        if not stored and self.stds:
            raise UserError(f"{self.folder} has no snapshots yet: let the run train on")
        if not stored:
            raise UserError(
                f"{self.folder.parent} kept no power-function averages: train a run with --ema-stds 0.05 0.10"
            )
        moments = sorted({one.images_seen for one in stored})
        if at is not None and at not in moments:
            near = sorted(sorted(moments, key=lambda moment: abs(moment - at))[:2])
            raise UserError(f"at is {at}: there is no snapshot; the nearest are at {' and '.join(map(str, near))}")
        return [one for one in stored if at is None or one.images_seen <= at]


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a snapshot or a reconstruction, on the CPU. Raises UserError where it is damaged."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}): put it back from a copy, or name another") from None


def _combine(parts: list[tuple[Path, float]]) -> dict[str, Tensor]:
    """The sum of the files' weights, each times its number; buffers are those of the last file."""
    last = parts[-1][0]
    total = read(last)
    buffers = json.loads((_metadata(last) or {}).get("buffers", "[]"))
    sums = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in total.items() if name not in buffers}
    for path, coefficient in parts:
        tensors = read(path) if coefficient else {}
        for name in sums if tensors else ():
            sums[name].add_(tensors[name], alpha=coefficient)
    return total | {name: value.to(total[name].dtype) for name, value in sums.items()}


def _metadata(path: Path) -> dict[str, str] | None:
    """What the file says of itself; None where it is damaged."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, str] | None = file.metadata()
            return metadata
    except (OSError, safetensors.SafetensorError):
        return None


def _text(std: float) -> str:
    """At least three digits, and so many more that no two numbers share a name."""
    text = f"{std:.3f}"
    return text if float(text) == std else repr(std)
