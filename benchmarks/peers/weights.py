"""The weights of fastgan's `dcgan28` as the peers name them and lay them out, so that all compute the same function.

Keras pads convolutions of stride 2 at the right and bottom, fastgan at the left and top: with its weights mirrored in
both axes Keras computes the mirror image (see fastgan/networks/dcgan.py). Dense units are in channels-last order here
and in Keras; the usual PyTorch program has channels first. A transposed convolution of stride 1 is a convolution with
its kernel mirrored.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def own(G: Weights, D: Weights) -> Weights:
    """By fastgan's own names."""
    return {f"G/{name}": value for name, value in G.items()} | {f"D/{name}": value for name, value in D.items()}


def keras(G: Weights, D: Weights) -> Weights:
    """By layer and weight, mirrored in both axes."""

    def mirrored(units: Tensor) -> Tensor:  # [7 * 7 * C, ...]
        return units.unflatten(0, (7, 7, -1)).flip(0, 1).flatten(0, 2)

    found = {
        "G/dense/kernel": mirrored(G["dense.weight"]).T,
        "G/conv7/kernel": G["conv7.weight"].permute(2, 3, 0, 1),  # mirrored twice
        "D/dense/kernel": mirrored(D["dense.weight"].T),
        "D/dense/bias": D["dense.bias"],
    }
    for side, net, names in (("G", G, ("up14", "up28")), ("D", D, ("down14", "down7"))):
        for name in names:
            found[f"{side}/{name}/kernel"] = net[f"{name}.weight"].flip(2, 3).permute(2, 3, 1, 0)
    for name in ("down14", "down7"):
        found[f"D/{name}/bias"] = D[f"{name}.bias"]
    for here, there in NORM.items():
        found[f"G/norm_dense/{there}"] = mirrored(G[f"norm_dense.{here}"])
        for name in ("norm7", "norm14"):
            found[f"G/{name}/{there}"] = G[f"{name}.{here}"]
    return found


def torch_usual(G: Weights, D: Weights) -> Weights:
    """By the numbers of Sequential's layers, channels first."""

    def channels_first(units: Tensor) -> Tensor:  # [7 * 7 * C, ...]
        return units.unflatten(0, (49, -1)).transpose(0, 1).flatten(0, 1)

    found = {
        "G/0.weight": channels_first(G["dense.weight"]),
        "G/4.weight": G["conv7.weight"].flip(2, 3).transpose(0, 1),
        "G/7.weight": G["up14.weight"],
        "G/10.weight": G["up28.weight"],
        "D/7.weight": channels_first(D["dense.weight"].T).T,
        "D/7.bias": D["dense.bias"],
    }
    for here, there in (("down14", 0), ("down7", 3)):
        found |= {f"D/{there}.{kind}": D[f"{here}.{kind}"] for kind in ("weight", "bias")}
    for kind in (*NORM, "num_batches_tracked"):
        value = G[f"norm_dense.{kind}"]
        found[f"G/1.{kind}"] = channels_first(value) if value.dim() else value
        found |= {f"G/{there}.{kind}": G[f"{here}.{kind}"] for here, there in (("norm7", 5), ("norm14", 8))}
    return found


def load_into(nets: Mapping[str, nn.Module], arrays: Mapping[str, np.ndarray]) -> None:
    """The networks, by side, have the weights that stand there as `side/name`."""
    for side, net in nets.items():
        start = f"{side}/"
        mine = {name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)}
        net.load_state_dict({name: torch.from_numpy(value) for name, value in mine.items()})


def unsettled(net: Weights) -> Weights:
    """Like a net's weights, but no bias, scale or statistic is at its start, where mistaken ones wouldn't show."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5 if value.dim() == 1 else value
        for name, value in net.items()
    }


def arrays(weights: Weights) -> dict[str, np.ndarray]:
    """As numpy has them, each in one piece."""
    return {name: np.ascontiguousarray(value.detach().numpy()) for name, value in weights.items()}
