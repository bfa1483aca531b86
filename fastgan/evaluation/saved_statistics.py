"""Statistics of a set in an .npz file: mu and sigma, as pytorch-fid, clean-fid, EDM and StudioGAN have them.

Ours hold besides, as the text `protocol`, JSON that says what they are statistics of.
"""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastgan.data.npz import array_names, read_array
from fastgan.errors import UserError
from fastgan.evaluation.features import Gaussian, gaussian_with
from fastgan.utils.files import write_atomically

ARRAYS = {"mu", "sigma"}
PROTOCOL = dict.fromkeys(("extractor", "extractor_weights", "transform", "data"), str) | {
    "num_images": int,
    "channels": int,
    "image_size": list,
}
TOLERANCE = 1e-3  # of the variance: float32's sums over many images stray less


class SavedStatistics(NamedTuple):
    """What a file says of a set."""

    name: str
    gaussian: Gaussian
    protocol: dict[str, Any]  # empty where another program wrote the file

    @property
    def num_features(self) -> int:
        return len(self.gaussian.mean)


def read_statistics(path: Path) -> SavedStatistics:
    """Return the statistics in the file. Raises UserError where they aren't a mean and a covariance."""
    mean, covariance = (np.asarray(read_array(path, name)) for name in ("mu", "sigma"))
    shapes = f"mu is {mean.dtype} {[*mean.shape]} and sigma {covariance.dtype} {[*covariance.shape]}"
    again = "compute the statistics again"
    are_floats = mean.dtype.kind == covariance.dtype.kind == "f"
    if not are_floats or mean.ndim != 1 or not len(mean) or covariance.shape != mean.shape * 2:
        raise UserError(f"{path}: {shapes}: a mean is float [F], a covariance float [F, F]; {again}")
    for name, values in (("mu", mean), ("sigma", covariance)):
        if not (is_finite := np.isfinite(values)).all():
            raise UserError(f"{path}: {(~is_finite).sum():,} numbers of {name} aren't finite; {again}")
    if abs(covariance - covariance.T).max() > TOLERANCE * abs(covariance).max():
        raise UserError(f"{path}: sigma isn't symmetric, so it is no covariance; {again}")
    gaussian = gaussian_with(*(torch.from_numpy(values.astype(np.float64)) for values in (mean, covariance)))
    variance = float(covariance.trace(dtype=np.float64))
    if float(gaussian.root.square().sum()) - variance > TOLERANCE * abs(variance):
        raise UserError(f"{path}: sigma has negative eigenvalues, so it is no covariance; {again}")
    return SavedStatistics(str(path), gaussian, _read_protocol(path))


def _read_protocol(path: Path) -> dict[str, Any]:
    if "protocol" not in array_names(path):
        return {}
    try:
        found = json.loads(str(read_array(path, "protocol")))
        if all(isinstance(found[name], kind) for name, kind in PROTOCOL.items()):
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: its protocol isn't one that fastgan writes: compute the statistics again")


def write_statistics(path: Path, gaussian: Gaussian, protocol: dict[str, Any]) -> None:
    """Write what `read_statistics` reads, and the programs that it is named after. Raises OSError."""
    sigma = gaussian.root @ gaussian.root.T
    file = io.BytesIO()
    np.savez(file, mu=gaussian.mean.numpy(), sigma=sigma.numpy(), protocol=np.array(json.dumps(protocol)))
    write_atomically(path, file.getvalue())
