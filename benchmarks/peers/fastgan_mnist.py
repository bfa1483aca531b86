"""fastgan's own training step of the preset `mnist28`, as a peer.

    python fastgan_mnist.py IMAGES.npy --threads 2 [--twice]

IMAGES.npy holds the training images, uint8 [N, 28, 28]. Then it serves, see serve.py.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from serve import Arrays, serve
from weights import load_into

import fastgan
from fastgan import networks, presets
from fastgan.data.images import ArrayDataset
from fastgan.data.loaders import build_loader
from fastgan.distributed.processes import tune_malloc
from fastgan.training.trainer import Trainer


class FastganPeer:
    """The preset's trainer; with `twice`, G makes fakes of its own for each phase."""

    def __init__(self, images: np.ndarray, twice: bool) -> None:
        config = presets.mnist28()
        config = replace(
            config,
            data=replace(config.data, keep_partial_batch=False),  # as the others: every step has a whole batch
            objective=replace(config.objective, reuse_fakes=not twice),
        )
        source = ArrayDataset("digits", torch.from_numpy(images)[:, None], None)
        device = torch.device("cpu")
        self.trainer = Trainer(config, networks.build(config, device), build_loader(config, source, device))

    def step(self) -> None:
        self.trainer.train_step(self.trainer.loader.batch(self.trainer.images_seen))

    def load(self, weights: Arrays) -> None:
        load_into({"G": self.trainer.G.net, "D": self.trainer.D.net}, weights)

    @torch.no_grad()
    def images(self, z: np.ndarray, training: bool) -> np.ndarray:
        G = self.trainer.G.net
        images: np.ndarray = G.train(training)(torch.from_numpy(z))[:, 0].numpy()
        G.train()
        return images

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.trainer.D.net(torch.from_numpy(images)[:, None]).numpy()  # no keys, so no dropout
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--twice", action="store_true", help="G generates twice a round")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tune_malloc()  # as training does
    peer = FastganPeer(np.load(options.images, allow_pickle=False), options.twice)
    serve(peer, f"fastgan {fastgan.__version__}, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
