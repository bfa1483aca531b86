"""StackedMNIST: three digits an image, a thousand modes, for counting those that a generator has lost."""

from functools import cached_property
from hashlib import sha256

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.data.images import ArrayDataset
from fastgan.utils import rng
from fastgan.utils.rng import RngStream

NAME = "stacked-mnist"
NUM_MODES = 1000
NUM_IMAGES = 1_000_000  # a thousand of each mode; as many as the dataset_tool of Karras 2018, 1710.10196, makes
NUM_TEST_IMAGES = 100_000
PADDING, DIGIT_SIZE, SIZE = 2, 28, 32
DEFINITION = "v1: mode = item % 1000, digits drawn uniformly in their class, padded 2"


class StackedDataset:
    """Images of three digits, one each in R, G and B, padded to 32x32, drawn when they are asked for.

    Image i has mode i % 1000 = 100 a + 10 b + c, its label, so that all modes are equally frequent in every epoch,
    whatever the digits' own frequencies. Which a, which b and which c is a function of i. Unrolled GAN, 1611.02163.
    """

    name = NAME
    channels = 3
    image_size = (SIZE, SIZE)
    classes = None

    def __init__(self, digits: ArrayDataset, num_images: int = NUM_IMAGES) -> None:
        """Of labelled gray 28x28 digits, at least one of each class."""
        assert digits.labels is not None and digits.images.shape[1:] == (1, DIGIT_SIZE, DIGIT_SIZE)
        self._sizes = digits.labels.bincount(minlength=10)  # [10]
        assert len(self._sizes) == 10 and self._sizes.min() > 0
        self._starts = self._sizes.cumsum(0) - self._sizes
        by_class = digits.images[digits.labels.argsort(stable=True), 0]
        self._digits = F.pad(by_class, (PADDING,) * 4).flatten(1)  # [N, 32 * 32]
        self._num_images = num_images
        self.labels = torch.arange(num_images) % NUM_MODES

    def __len__(self) -> int:
        return self._num_images

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images of the given numbers, uint8 [B, 3, 32, 32], channels last in memory."""
        classes = self.labels[indices, None] // torch.tensor([100, 10, 1]) % 10  # [B, 3]
        draws = rng.uniform(rng.keys(0, RngStream.STACKED, indices), 3)
        chosen = self._starts[classes] + (draws * self._sizes[classes]).long()
        layers = [self._digits.index_select(0, digit) for digit in chosen.T]  # whole rows: twice as fast as indexing
        return torch.stack(layers, dim=2).view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2)

    def content_hash(self) -> str:
        """Return a hash of the definition and of the digits."""
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        digest = sha256(f"{DEFINITION}, {self._num_images} images, classes {self._sizes.tolist()}".encode())
        digest.update(self._digits.numpy().tobytes())
        return digest.hexdigest()[:16]
