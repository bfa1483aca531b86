"""R3GAN's own names of its networks' tensors, as its snapshots have them, and what they are called here.

The networks are the same (see `r3gan`): only names, the order of D's stages and two shapes differ.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.networks.r3gan import CLASS_DIM

LAYERS = {"1": "expand", "2": "grouped", "3": "project"}  # of a block
FIXED = {  # and of the whole network
    "G": {
        "MainLayers.0.Layers.0.Basis": "picture",
        "MainLayers.0.Layers.0.LinearLayer.weight": "factors.weight",
        "AggregationLayer.Layer.weight": "output.weight",
        "EmbeddingLayer.weight": "classes.weight",
    },
    "D": {"ExtractionLayer.Layer.weight": "input.weight", "EmbeddingLayer.weight": "classes.weight"},
}


def renamed(tensors: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """Return the tensors of R3GAN's G or D (`side`), or of an optimizer's state by parameter, under our names.

    Raises UserError for a tensor that the networks don't have.
    """
    theirs = {name.removeprefix("Model."): value for name, value in tensors.items()}
    stages = {int(found[1]) for name in theirs if (found := re.match(r"MainLayers\.(\d+)\.", name))}
    ours = {}
    for name, value in theirs.items():
        if name.endswith("Resampler.Kernel"):  # always [1, 3, 3, 1]
            continue
        new = FIXED[side].get(name) or _name_in_stage(name, side, max(stages, default=0))
        if new is None:
            raise UserError(f"its {side} has the tensor {name}, which R3GAN's networks don't have")
        # The picture is [C, h, w], or [C, 1, h, w], the weight of a depthwise convolution.
        is_picture = new == "picture" and value.dim() > 2
        ours[new] = value.reshape(1, len(value), *value.shape[-2:]) if is_picture else value
    return ours


def _name_in_stage(name: str, side: str, last: int) -> str | None:
    """Return our name of a tensor in one of R3GAN's stages, of which `last` is the number of the last."""
    found = re.fullmatch(r"MainLayers\.(\d+)\.Layers\.(\d+)\.(.+)", name)
    if found is None:
        return None
    stage, layer, rest = int(found[1]), int(found[2]), found[3]
    if side == "D":
        if stage == last and rest in ("Basis.weight", "LinearLayer.weight"):
            return "picture" if rest == "Basis.weight" else "features.weight"
        stage = last - stage  # ours count from the lowest resolution
    else:
        layer -= 1  # the first one leads to the stage
    if rest == "LinearLayer.Layer.weight":
        return f"trunk.stage{stage}_match.weight"
    if weight := re.fullmatch(r"LinearLayer([123])\.Layer\.weight", rest):
        return f"trunk.stage{stage}_block{layer}.{LAYERS[weight[1]]}.weight"
    if bias := re.fullmatch(r"NonLinearity([12])\.Bias", rest):
        return f"trunk.stage{stage}_block{layer}.{LAYERS[bias[1]]}.bias"
    return None


def config_of(G: dict[str, Tensor], base: Config) -> Config:
    """Return `base` with the networks and the image size that G's tensors, under our names, are of.

    Raises UserError where they are of no G of R3GAN's.
    """
    try:
        widths: dict[int, int] = {}
        blocks: dict[int, int] = {}
        for name, value in G.items():
            if found := re.fullmatch(r"trunk\.stage(\d+)_block(\d+)\.project\.weight", name):
                widths[int(found[1])] = len(value)
                blocks[int(found[1])] = max(blocks.get(int(found[1]), 0), int(found[2]) + 1)
        first, num_stages = G["trunk.stage0_block0.grouped.weight"], len(widths)
        classes = G.get("classes.weight")
        networks = replace(
            base.networks,
            network="r3gan",
            z_dim=G["factors.weight"].shape[1] - (0 if classes is None else CLASS_DIM),
            width=1.0,
            stages=tuple(widths[stage] for stage in range(num_stages)),
            blocks=_only(blocks.values()),
            group_width=first.shape[1],
            expansion=len(first) // widths[0],
            num_classes=0 if classes is None else classes.shape[1],
            stem=1,
        )
        height, width = (side << (num_stages - 1) for side in G["picture"].shape[2:])
        data = replace(base.data, image_size=(height, width), channels=len(G["output.weight"]))
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"its tensors are no G of R3GAN's ({type(error).__name__}: {error})") from None
    return replace(base, networks=networks, data=data)


def _only(counts: Iterable[int]) -> int:
    (count,) = set(counts)
    return count
