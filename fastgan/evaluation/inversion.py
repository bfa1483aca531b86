"""From an image back to G: the latent and the class whose image is nearest to it.

Adam goes down the distance from several latents at once, those of the random seeds that are nearest, with a ramped
learning rate as StyleGAN2's projection has it (Karras 2020, 1912.04958, appendix D). R3GAN has no W to search in, so it
is z itself that is searched, near the length that latents have: what is unlike G's training images isn't reached.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from fastgan.config import Config
from fastgan.data.folder import FolderDataset
from fastgan.data.images import to_bytes, to_unit_range
from fastgan.data.loaders import open_dataset
from fastgan.data.named import NAMES
from fastgan.data.pixels import BadImage, RawImage, Transform, read
from fastgan.data.prepared import PreparedDataset
from fastgan.data.tones import BLACK, Tones
from fastgan.errors import UserError
from fastgan.evaluation import extractors
from fastgan.evaluation.extractors import Extractor
from fastgan.evaluation.fidelity import latents
from fastgan.evaluation.sampling import BATCH_SIZE
from fastgan.utils.fields import require, require_positive
from fastgan.utils.tone_options import parse_background, parse_range

Photo = str | Path | np.ndarray | Image.Image

SCALES = (1, 2, 4)  # pixels are compared as they are, and as means of so many a side
FRAMES = 40  # of a search, more of them at its beginning
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps
LEARNING_RATE = 0.1  # of Adam at its highest, for latents with a standard deviation of 1
PRIOR = 1e-3  # of (|z| - sqrt(z_dim))², which is -log p(|z|) for normal z but for a constant
MAX_NUMBER = 1_000_000


@dataclass(frozen=True)
class Search:
    """How long and how widely to search."""

    steps: int = 300
    """Steps of Adam for each image."""
    starts: int = 16
    """Latents from which the search starts: of the random seeds the nearest ones, of each class if possible; the best
    quarter of them goes on."""
    candidates: int = 1024
    """Random seeds, 0 and up, that are compared with each image first."""

    def __post_init__(self) -> None:
        require_positive(self, "steps", "starts", "candidates", at_most=MAX_NUMBER)
        require(self, "candidates", self.candidates > 1, "two random images say what a distance is, give more")
        if self.starts > self.candidates:
            raise UserError(f"starts is {self.starts}: they are some of {self.candidates} random seeds, give fewer")


class Inversion(NamedTuple):
    """What G makes that is nearest to each of N images.

    A distance of 0: the same image; 1: as different as two random images of G are on average.
    """

    z: Tensor  # [N, z_dim]
    labels: Tensor | None  # [N] or [N, K]: what G is told, where it is told any
    images: np.ndarray  # uint8 [N, H, W, C]
    distances: Tensor  # [N]
    seed_distances: Tensor  # [N, candidates]: of the images of random seeds
    photos: np.ndarray  # uint8 [N, H, W, C]: what was searched for, at G's size
    frames: list[list[tuple[int, np.ndarray]]]  # of each search: steps, and the nearest image [H, W, C] there
    compared: str  # pixels, and the extractor with the hash of its weights

    @property
    def psnr(self) -> list[float]:
        """The peak signal-to-noise ratios in dB; of equal images that of an error of a thousandth of a level."""
        errors = np.square(self.images.astype(float) - self.photos).mean(axis=(1, 2, 3))
        return [10 * math.log10(255**2 / max(error, 1e-6)) for error in errors.tolist()]


class Distance:
    """Squared differences of pixels, at several scales, and of an extractor's features, in equal shares.

    Each is in units of its mean over two random images of G, which `_compare_seeds` finds.
    """

    def __init__(self, extractor: Extractor | None) -> None:
        self.net = None if extractor is None else extractor.net
        shares = [1 / len(SCALES)] * len(SCALES)
        self.shares = shares if self.net is None else [*(share / 2 for share in shares), 0.5]
        self.units = [1.0] * len(self.shares)

    def parts(self, images: Tensor) -> list[Tensor]:
        """Return what is compared of images [B, C, H, W] in [-1, 1]: [B, F] of each kind."""
        found = [F.avg_pool2d(images, min(scale, *images.shape[2:])).flatten(1) for scale in SCALES]
        return found if self.net is None else [*found, self.net((images + 1) * (255 / 2))[0].float()]

    def of_parts(self, squares: Sequence[Tensor]) -> Tensor:
        """Return the distances of which the squared differences of each kind are given."""
        weighted = [share * part / unit for share, part, unit in zip(self.shares, squares, self.units, strict=True)]
        return torch.stack(weighted).sum(0)

    def __call__(self, images: Tensor, target: list[Tensor]) -> Tensor:
        """Return the distances [B] of images in [-1, 1] to an image's parts, with a gradient."""
        return self.of_parts(
            [(part - wanted).square().sum(1) for part, wanted in zip(self.parts(images), target, strict=True)]
        )


def read_photos(photos: Sequence[Photo] | np.ndarray, transform: Transform) -> Tensor:
    """Return uint8 images [N, C, H, W], made of files or pixels [H, W, C] or [H, W] as images of the data set are.

    Raises UserError that names what is no image.
    """
    found = []
    for number, photo in enumerate(photos):
        if isinstance(photo, np.ndarray | Image.Image):
            array = np.asarray(photo.convert("RGBA") if isinstance(photo, Image.Image) else photo)
            array = array[:, :, None] if array.ndim == 2 else array
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4):
                raise UserError(f"image {number} is {array.dtype} {[*array.shape]}: give uint8 [H, W, C]")
            raw: RawImage = array
            name = f"image {number}"
        else:
            raw, name = Path(photo), str(photo)
        try:
            found.append(torch.from_numpy(read(transform, raw)[0].copy()).permute(2, 0, 1))
        except BadImage as bad:
            raise UserError(f"{name}: {bad}; leave it out, or give another image") from None
    if not found:
        raise UserError("no image to invert: give one at least")
    return torch.stack(found)


def transform_of(config: Config) -> Transform:
    """Return what the run's data set makes of an image; where it has moved, what the settings say."""
    data = config.data
    tones, fit = Tones(parse_background(data.background) or BLACK, parse_range(data.range)), "crop"
    if data.data not in NAMES:
        with contextlib.suppress(UserError):
            dataset = open_dataset(config)
            if isinstance(dataset, FolderDataset | PreparedDataset):
                tones = dataset.tones
            if isinstance(dataset, PreparedDataset):
                fit = dataset.fit
    return Transform(data.image_size, fit, data.channels, tones=tones)


def load_extractor(
    asked: str, config: Config, transform: Transform, device: torch.device, inception_weights: Path | None = None
) -> Extractor | None:
    """Return the extractor to compare with; None, pixels alone, of `none`, or, with a line, where `auto` finds none.

    Raises UserError where the one that is asked for can't be had.
    """
    if asked == "none":
        return None
    try:
        name = extractors.choose(asked, config, inception_weights)
        found = extractors.load(name, device, inception_weights)
        return extractors.with_alpha(found, config.data.channels, transform.tones.background, device)
    except UserError as error:
        if asked != "auto":
            raise
        print(f"only pixels are compared: {error}")
        return None


def invert(
    G: nn.Module, z_dim: int, photos: Tensor, labels: Tensor | None, extractor: Extractor | None, search: Search
) -> Inversion:
    """Return the latents of which G makes what is nearest to the photos, uint8 [N, C, H, W].

    `labels` are what G is told of the seeds 0 to `search.candidates` - 1; a photo's is that of the seed where its
    search began.
    """
    device = next(G.parameters()).device
    labels = None if labels is None else labels.to(device)
    distance, targets = Distance(extractor), to_unit_range(photos.to(device))
    near = _compare_seeds(G, z_dim, distance, targets, labels, search.candidates)
    found = []
    for number, (target, distances) in enumerate(zip(targets, near, strict=True), 1):
        chosen = starts(distances, labels, search.starts)
        z = latents(chosen, z_dim)
        name = f"image {number} of {len(targets)}"
        found.append(_descend(G, distance, target, z, None if labels is None else labels[chosen], search, name))
    latent, told, image, nearest, frames = zip(*found, strict=True)
    return Inversion(
        torch.stack(latent).cpu(),
        None if labels is None else torch.stack(told).cpu(),
        np.stack(image),
        torch.stack(nearest).cpu(),
        near.cpu(),
        photos.permute(0, 2, 3, 1).numpy(),
        [*frames],
        "pixels" if extractor is None else f"pixels, {extractor.name} {extractor.version}",
    )


@torch.no_grad()
def _compare_seeds(
    G: nn.Module, z_dim: int, distance: Distance, targets: Tensor, labels: Tensor | None, count: int
) -> Tensor:
    """Find the distance's units by the images of `count` seeds; return their distances [N, count] to the targets."""
    wanted = [torch.cat(part) for part in zip(*map(distance.parts, targets.split(BATCH_SIZE)), strict=True)]
    squares: list[list[Tensor]] = [[] for _ in wanted]
    sums, square_sums = [torch.zeros(())] * len(wanted), [torch.zeros(())] * len(wanted)
    for seeds in torch.arange(count, device=targets.device).split(BATCH_SIZE):
        images = G(latents(seeds, z_dim), None if labels is None else labels[seeds])
        for kind, part in enumerate(distance.parts(images)):
            squares[kind].append(torch.cdist(wanted[kind], part, compute_mode="donot_use_mm_for_euclid_dist").square())
            sums[kind] = sums[kind] + part.double().sum(0)
            square_sums[kind] = square_sums[kind] + part.double().square().sum()
    for kind, (total, square) in enumerate(zip(sums, square_sums, strict=True)):
        variance = float(square / count - (total / count).square().sum())
        distance.units[kind] = max(2 * variance, 1e-12)  # the mean squared difference of two
    return distance.of_parts([torch.cat(parts, dim=1) for parts in squares])


def starts(distances: Tensor, labels: Tensor | None, count: int) -> Tensor:
    """Return `count` of the seeds with these distances [S]: the nearest of each class first, then the others."""
    order = distances.argsort(stable=True).tolist()
    if labels is not None and labels.ndim == 1:
        nearest = {*dict(zip(labels[order[::-1]].tolist(), order[::-1], strict=True)).values()}
        order.sort(key=lambda seed: seed not in nearest)
    return torch.tensor(order[:count], device=distances.device)


def learning_rate(step: int, steps: int) -> float:
    """Return Adam's learning rate at a step: up in a line, and down by a cosine in the end."""
    up, down = (step + 1) / (RAMP_UP * steps), (steps - step) / (RAMP_DOWN * steps)
    return LEARNING_RATE * min(1, up) * (1 - math.cos(math.pi * min(1, down))) / 2


def _descend(
    G: nn.Module, distance: Distance, target: Tensor, z: Tensor, labels: Tensor | None, search: Search, name: str
) -> tuple[Tensor, Tensor | None, np.ndarray, Tensor, list[tuple[int, np.ndarray]]]:
    """Search for the target [C, H, W] from latents [S, z_dim]; return the nearest's latent, label, image and distance,
    and pictures of the way.
    """
    with torch.no_grad():
        wanted = distance.parts(target[None])
    z, length = z.clone().requires_grad_(), math.sqrt(z.shape[1])
    optimizer = torch.optim.Adam([z])
    best, least = z.detach().clone(), torch.full([len(z)], math.inf, device=z.device)
    shown = {round(search.steps * (number / (FRAMES - 1)) ** 2) for number in range(FRAMES)}
    frames = []
    for step in tqdm(range(search.steps + 1), desc=name, unit=" steps", leave=False, disable=None):
        if step == max(1, search.steps // 5):  # the others won't catch up
            kept = least.topk(-(-len(z) // 4), largest=False).indices
            z, best, least = z.detach()[kept].requires_grad_(), best[kept], least[kept]
            labels = None if labels is None else labels[kept]
            optimizer = torch.optim.Adam([z])
        images = G(z, labels)
        distances = distance(images, wanted)
        is_nearer = distances.detach() < least
        best = torch.where(is_nearer[:, None], z.detach(), best)
        least = torch.where(is_nearer, distances.detach(), least)
        if step in shown:
            frames.append((step, _pixels(images[distances.argmin()])))
        if step == search.steps:
            break
        optimizer.param_groups[0]["lr"] = learning_rate(step, search.steps)
        loss = (distances + PRIOR * (z.norm(dim=1) - length).square()).sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        optimizer.step()
    with torch.no_grad():
        nearest = least.argmin()
        label = None if labels is None else labels[nearest]
        image = to_bytes(G(best[nearest][None], None if label is None else label[None]))
        return best[nearest], label, _pixels(image[0]), distance(to_unit_range(image), wanted)[0], frames


def _pixels(image: Tensor) -> np.ndarray:
    """An image [C, H, W], of bytes or in [-1, 1], as uint8 [H, W, C]."""
    as_bytes = image if image.dtype == torch.uint8 else to_bytes(image.detach())
    return as_bytes.cpu().permute(1, 2, 0).numpy()
