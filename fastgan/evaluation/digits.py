"""The `digits` extractor's network: a small classifier of MNIST-like images, shipped with its weights."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

NUM_FEATURES = 96


class DigitsNet(nn.Module):
    """Five 3x3 convolutions, mean over positions, ten logits: 0.18 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (1, 32, 48, 64, 96, NUM_FEATURES), (1, 2, 1, 2, 1)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
                )
                for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            )
        )
        self.classifier = nn.Linear(NUM_FEATURES, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, 96] (0 or more) and class logits [B, 10] of gray images [B, 1, 28, 28] in [0, 255]."""
        features = self.blocks(images.float() / 255).mean(dim=(2, 3))
        return features, self.classifier(features)


def for_inference(net: DigitsNet) -> DigitsNet:
    """Return the same network, but for rounding, with about a quarter less time on CPUs; it can't be trained any more.

    Normalization is part of the convolutions' weights, and channels are last in memory.
    """
    net.eval()
    for block in net.blocks:
        assert isinstance(block, nn.Sequential)
        convolution, norm, _ = block
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        block[0], block[1], block[2] = fuse_conv_bn_eval(convolution, norm), nn.Identity(), nn.ReLU(inplace=True)
    return net.to(memory_format=torch.channels_last)


def accuracy(net: DigitsNet, images: Tensor, labels: Tensor, batch_size: int = 1000) -> float:
    """Return the share of uint8 images [N, 1, 28, 28] whose largest logit is their label's."""
    net.eval()
    with torch.inference_mode():
        hits = [
            (net(batch)[1].argmax(1) == right).sum()
            for batch, right in zip(images.split(batch_size), labels.split(batch_size), strict=True)
        ]
    return float(torch.stack(hits).sum()) / len(images)
