"""The digit GAN as PyTorch's usual DCGAN loop has it: eager, channels first, one batch of fakes a round.

    python torch_mnist.py IMAGES.npy --threads 2 [--twice]

IMAGES.npy holds the training images, uint8 [N, 28, 28]. Then it serves, see serve.py.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from serve import Arrays, serve
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from weights import load_into

BATCH_SIZE, Z_DIM = 256, 100
NORM = {"eps": 1e-3, "momentum": 0.01}


def make_generator() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(Z_DIM, 256 * 7 * 7, bias=False),
        nn.BatchNorm1d(256 * 7 * 7, **NORM),
        nn.LeakyReLU(0.3),
        nn.Unflatten(1, (256, 7, 7)),
        nn.ConvTranspose2d(256, 128, 5, stride=1, padding=2, bias=False),
        nn.BatchNorm2d(128, **NORM),
        nn.LeakyReLU(0.3),
        nn.ConvTranspose2d(128, 64, 5, stride=2, padding=2, output_padding=1, bias=False),
        nn.BatchNorm2d(64, **NORM),
        nn.LeakyReLU(0.3),
        nn.ConvTranspose2d(64, 1, 5, stride=2, padding=2, output_padding=1, bias=False),
        nn.Tanh(),
    )


def make_discriminator() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, stride=2, padding=2),
        nn.LeakyReLU(0.3),
        nn.Dropout(0.3),
        nn.Conv2d(64, 128, 5, stride=2, padding=2),
        nn.LeakyReLU(0.3),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(128 * 7 * 7, 1),
    )


class TorchPeer:
    """Both networks, their optimizers and the images; with `twice`, G answers D with a second batch of fakes."""

    def __init__(self, images: np.ndarray, twice: bool) -> None:
        self.G, self.D, self._twice = make_generator(), make_discriminator(), twice
        self._criterion = nn.BCEWithLogitsLoss()
        self._g_optimizer = torch.optim.Adam(self.G.parameters(), lr=1e-4, eps=1e-7)
        self._d_optimizer = torch.optim.Adam(self.D.parameters(), lr=1e-4, eps=1e-7)
        reals = (torch.from_numpy(images)[:, None].float() - 127.5) / 127.5
        self._loader = DataLoader(TensorDataset(reals), BATCH_SIZE, shuffle=True, drop_last=True)
        self._batches = self._endless()

    def _endless(self) -> Iterator[Tensor]:
        while True:
            for (reals,) in self._loader:
                yield reals

    def step(self) -> None:
        reals = next(self._batches)
        ones, zeros = torch.ones(len(reals), 1), torch.zeros(len(reals), 1)
        self._d_optimizer.zero_grad()
        self._criterion(self.D(reals), ones).backward()
        fakes = self.G(torch.randn(len(reals), Z_DIM))
        self._criterion(self.D(fakes.detach()), zeros).backward()
        self._d_optimizer.step()
        self._g_optimizer.zero_grad()
        if self._twice:
            fakes = self.G(torch.randn(len(reals), Z_DIM))
        self._criterion(self.D(fakes), ones).backward()
        self._g_optimizer.step()

    def load(self, weights: Arrays) -> None:
        load_into({"G": self.G, "D": self.D}, weights)

    @torch.no_grad()
    def images(self, z: np.ndarray, training: bool) -> np.ndarray:
        images = self.G.train(training)(torch.from_numpy(z))[:, 0].numpy()
        self.G.train()
        return images

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        logits = self.D.eval()(torch.from_numpy(images)[:, None])[:, 0].numpy()
        self.D.train()
        return logits


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--twice", action="store_true", help="G generates twice a round")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    serve(TorchPeer(np.load(options.images, allow_pickle=False), options.twice), f"PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
