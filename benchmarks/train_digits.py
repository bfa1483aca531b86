"""Makes digits.safetensors again: `python benchmarks/train_digits.py OUT`, about ten minutes on two cores.

AdamW with a one-cycle learning rate, twelve epochs of MNIST's 60,000 training images, each one turned, scaled,
sheared and shifted a little. Prints the accuracy on the 10,000 test images and the file's SHA-256, which belongs into
extractors.py. Another machine or torch may round otherwise and make a slightly different file.
"""

import sys
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.data import named
from fastgan.evaluation.digits import DigitsNet, accuracy
from fastgan.utils.files import write_atomically

EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 12, 128, 4e-3, 0.02


def deform(images: Tensor) -> Tensor:
    """Images [B, 1, 28, 28], each under a small random affine map of its own."""

    def spread(width: float) -> Tensor:
        return (torch.rand(len(images)) * 2 - 1) * width

    angle, scale, shear = spread(0.2), 1 + spread(0.12), spread(0.2)
    rows = (
        torch.stack([scale * angle.cos(), -angle.sin() + shear, spread(0.14)], 1),
        torch.stack([angle.sin(), scale * angle.cos(), spread(0.14)], 1),
    )
    places = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, places, align_corners=False)


def train() -> DigitsNet:
    """A trained network."""
    torch.manual_seed(0)
    train_set, test_set = named.load("mnist"), named.load("mnist", "test")
    assert train_set.labels is not None and test_set.labels is not None
    net = DigitsNet().to(memory_format=torch.channels_last)
    steps = len(train_set) // BATCH_SIZE
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * steps, pct_start=0.25)
    for epoch in range(EPOCHS):
        net.train()
        for items in torch.randperm(len(train_set))[: steps * BATCH_SIZE].split(BATCH_SIZE):
            loss = F.cross_entropy(net(deform(train_set.images[items].float()))[1], train_set.labels[items])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}/{EPOCHS}: test accuracy {accuracy(net, test_set.images, test_set.labels):.4f}",
            flush=True,
        )
    return net


def main() -> None:
    weights = {name: value.contiguous() for name, value in train().state_dict().items()}
    data = safetensors.torch.save(weights)
    write_atomically(Path(sys.argv[1]), data)
    print(f"{len(data):,} bytes, SHA-256 {sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
