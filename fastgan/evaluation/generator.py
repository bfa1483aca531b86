"""A trained generator, to be used from Python."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastgan.config import MAX_SEED, Config
from fastgan.data.images import to_bytes
from fastgan.errors import UserError
from fastgan.evaluation import fidelity
from fastgan.evaluation.interpolation import Walk, pictures
from fastgan.evaluation.inversion import Inversion, Photo, Search, invert, load_extractor, read_photos, transform_of
from fastgan.evaluation.sampling import BATCH_SIZE, CheckpointSelector, Truncated, open_run, to_device, vectors_of
from fastgan.utils.pictures import to_image

Class = int | str
Vectors = Tensor | np.ndarray | Sequence[float]


class Generator:
    """G of a run or an export: `G(z, labels)` as it is, and images of seeds, as `fastgan sample` makes them.

    `module` is the network, `config` the run's settings, `classes` the names of its classes by number (none where it
    knows none), `images_seen` how far it was trained. It computes on a GPU where there is one, in float32.
    """

    def __init__(self, module: nn.Module, config: Config, classes: Sequence[str] = (), images_seen: int = 0) -> None:
        self.module, self.config, self.classes, self.images_seen = module, config, list(classes), images_seen
        self.device = next(module.parameters()).device

    @classmethod
    def open(cls, path: Path, which: CheckpointSelector | None = None) -> "Generator":
        """Return the generator of a run. Raises UserError where there is none."""
        folder, config, checkpoint, G = open_run(path, which)
        return cls(G, config, folder.read_classes(), checkpoint.state["images_seen"]).to(to_device())

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        kinds = f", {self.num_classes} classes" if self.num_classes else ""
        kinds += f", vectors of {self.vector_dim}" if self.vector_dim else ""
        return f"<Generator: {height}x{width}x{channels}{kinds}, {self.images_seen:,} images seen, on {self.device}>"

    @property
    def z_dim(self) -> int:
        """The numbers in a latent."""
        return self.config.networks.z_dim

    @property
    def num_classes(self) -> int:
        """The classes that G is told of; 0: none."""
        return self.config.networks.num_classes

    @property
    def class_names(self) -> list[str]:
        """The names of the classes by number: the numbers, where the run knows no others."""
        return self.classes if len(self.classes) == self.num_classes else [*map(str, range(self.num_classes))]

    @property
    def vector_dim(self) -> int:
        """The numbers in a vector that G is told; 0: none."""
        return self.config.networks.vector_dim if self.config.networks.condition == "vector" else 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (self.config.data.channels, *self.config.data.image_size)

    def to(self, device: torch.device | str) -> "Generator":
        """Move G to the device; return it."""
        self.module.to(device)
        self.device = next(self.module.parameters()).device
        return self

    def __call__(self, z: Tensor | np.ndarray, labels: Tensor | np.ndarray | Sequence[int] | None = None) -> Tensor:
        """Return images [B, C, H, W] in about [-1, 1], on G's device, of latents [B, z_dim].

        `labels` are class numbers [B], or vectors [B, vector_dim]; None for a G that is told nothing. A gradient goes
        through to `z`. Raises UserError for wrong shapes or numbers.
        """
        latents = torch.as_tensor(z, dtype=torch.float32, device=self.device)
        if latents.ndim != 2 or latents.shape[1] != self.z_dim:
            raise UserError(f"z has the shape {[*latents.shape]}: give [B, {self.z_dim}]")
        return self.module(latents, self._labels(labels, len(latents)))

    def latents(self, seeds: int | Iterable[int]) -> Tensor:
        """Return the latents [B, z_dim] of the seeds, which are normal. Raises UserError for a wrong seed."""
        return fidelity.latents(torch.tensor(_seeds(seeds), dtype=torch.int64), self.z_dim).to(self.device)

    @torch.inference_mode()
    def sample(
        self,
        seeds: int | Iterable[int] = range(64),
        classes: Class | Sequence[Class] | None = None,
        vectors: Vectors | None = None,
        truncation: float = 1.0,
    ) -> np.ndarray:
        """Return uint8 images [B, H, W, C] of the seeds: the same for the same seeds, as in `fastgan sample`.

        `classes` is one for all, or one a seed, by number or name; without it they take turns: seed % num_classes.
        `vectors` is one for all, or one a seed; without it they are of the run's data. `truncation` scales the
        latents: below 1 images are more alike. Raises UserError.
        """
        numbers = torch.tensor(_seeds(seeds), dtype=torch.int64)
        labels = self._labels(self.labels_of(numbers, classes, vectors), len(numbers))
        images = []
        for places in torch.arange(len(numbers)).split(BATCH_SIZE):
            given = None if labels is None else labels[places]
            images.append(to_bytes(self(truncation * self.latents(numbers[places].tolist()), given)).cpu())
        return torch.cat(images).permute(0, 2, 3, 1).numpy()

    def pil(
        self,
        seeds: int | Iterable[int] = range(64),
        classes: Class | Sequence[Class] | None = None,
        vectors: Vectors | None = None,
        truncation: float = 1.0,
    ) -> list[Image.Image]:
        """Return the images of `sample` as Pillow's."""
        return [to_image(pixels) for pixels in self.sample(seeds, classes, vectors, truncation)]

    def walk(
        self,
        seeds: Iterable[int] = range(8),
        frames: int = 30,
        classes: Class | Sequence[Class] | None = None,
        vectors: Vectors | None = None,
        truncation: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Yield uint8 frames [H, W, C] from seed to seed along arcs and back to the first, `frames` between two.

        `classes`, or `vectors`, is one for all, or several, which take turns at the seeds; `truncation` as in `sample`.
        Raises UserError.
        """
        passed = _seeds(seeds)
        if len(passed) < 2 or frames < 1:
            raise UserError(f"a walk of {len(passed)} seeds and {frames} frames: it needs two and one at least")
        numbers = [*range(self.num_classes)] if classes is None else self._class_numbers(classes)
        if vectors is None:
            told = vectors_of(self.config, None, torch.arange(len(passed)))
        else:
            told = torch.atleast_2d(torch.as_tensor(vectors, dtype=torch.float32))
        self._labels(numbers or None if told is None else told, len(numbers if told is None else told))
        walk = Walk(passed, frames, numbers, 1, told)
        return pictures(walk, Truncated(self.module, truncation), self.z_dim, self.device)

    def invert(
        self,
        images: Sequence[Photo] | np.ndarray,
        classes: Class | Sequence[Class] | None = None,
        vectors: Vectors | None = None,
        extractor: str = "auto",
        inception_weights: Path | None = None,
        *,
        steps: int = Search.steps,
        starts: int = Search.starts,
        candidates: int = Search.candidates,
    ) -> Inversion:
        """Find the latents whose images are nearest to `images`: files, Pillow's, or uint8 [N, H, W, C].

        They are cropped and resized as the run's own. The class is one of `classes`, without it any; `vectors` is one
        for all, without it one of the run's data. `extractor` is one of `fastgan evaluate`, or "none": pixels alone;
        `steps`, `starts` and `candidates` are as in `fastgan invert`. Raises UserError.
        """
        search, transform = Search(steps, starts, candidates), transform_of(self.config)
        photos = read_photos(images, transform)
        seeds = torch.arange(search.candidates)
        told = None
        if classes is not None:
            numbers = self._class_numbers(classes)
            told = [numbers[seed % len(numbers)] for seed in seeds.tolist()]
        labels = self._labels(self.labels_of(seeds, told, vectors), len(seeds))
        with_features = load_extractor(extractor, self.config, transform, self.device, inception_weights)
        return invert(self.module, self.z_dim, photos, labels, with_features, search)

    def labels_of(
        self, seeds: Tensor, classes: Class | Sequence[Class] | None = None, vectors: Vectors | None = None
    ) -> Tensor | None:
        """Return what G is told of the seeds [B], where `classes` or `vectors` are asked for as in `sample`."""
        if vectors is not None:
            given = torch.as_tensor(vectors, dtype=torch.float32)
            return given.expand(len(seeds), -1) if given.ndim == 1 else given
        if classes is not None:
            numbers = torch.tensor(self._class_numbers(classes))
            return numbers.expand(len(seeds)) if len(numbers) == 1 else numbers
        found = vectors_of(self.config, None, seeds)
        return fidelity.labels_for(seeds, self.num_classes) if found is None else found

    def _class_numbers(self, classes: Class | Sequence[Class]) -> list[int]:
        if not self.num_classes:
            raise UserError(f"classes is {classes!r}: this G knows no classes; leave it out")
        given = [classes] if isinstance(classes, int | np.integer | str) else list(classes)
        for name in given:
            if isinstance(name, str) and name not in self.classes:
                raise UserError(f"classes has {name!r}: choose from {', '.join(self.classes) or 'numbers'}")
        return [self.classes.index(name) if isinstance(name, str) else int(name) for name in given]

    def _labels(self, labels: Tensor | np.ndarray | Sequence[int] | None, count: int) -> Tensor | None:
        """The labels on G's device. Raises UserError where G is told others."""
        if not (self.num_classes or self.vector_dim):
            if labels is not None:
                raise UserError("labels: this G is told nothing; leave it out")
            return None
        wanted = f"{self.num_classes} classes: give [{count}] of their numbers"
        if self.vector_dim:
            wanted = f"vectors: give [{count}, {self.vector_dim}]"
        if labels is None:
            raise UserError(f"labels is None: this G is told {wanted}")
        given = torch.as_tensor(labels, dtype=torch.float32 if self.vector_dim else None, device=self.device)
        if [*given.shape] != ([count, self.vector_dim] if self.vector_dim else [count]):
            raise UserError(f"labels has the shape {[*given.shape]}: this G is told {wanted}")
        if self.num_classes and not 0 <= int(given.min()) <= int(given.max()) < self.num_classes:
            raise UserError(f"labels has {int(given.min())} to {int(given.max())}: this G is told {wanted}")
        return given


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    """The seeds as a list. Raises UserError where one is none."""
    try:
        given = [operator.index(seed) for seed in ([seeds] if isinstance(seeds, int | np.integer) else seeds)]
    except TypeError:
        given = []
    if not given or not 0 <= min(given) <= max(given) <= MAX_SEED:
        raise UserError(f"seeds is {seeds!r}: give numbers from 0 to {MAX_SEED}")
    return given
