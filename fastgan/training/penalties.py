"""Gradient penalties of D, from the squared norm of its gradient in each image, differentiable in D's weights.

Images are [B, C, H, W] as they come from the data or from G. `discriminate` is D and what stands before it, the
augmentation: the gradient is taken through both. It must treat each image by itself, so D has no BatchNorm.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ImagesToLogits = Callable[[Tensor], Tensor]  # images [B, C, H, W] -> logits [B]
LogitsAndSqNorms = tuple[Tensor, Tensor]  # logits [B], squared norms of their gradients [B]


def gradient_sq_norm(discriminate: ImagesToLogits, images: Tensor) -> LogitsAndSqNorms:
    """Return the logits, and the squared L2 norm of each one's gradient in its image.

    Mescheder 2018, 1801.04406, equation 9. Compiled, `torch.func.grad` keeps the objective one graph, which
    torch.compile takes whole. Eagerly autograd itself is asked, as torch.func wraps every tensor, which takes the host
    twice as long.
    """
    if torch.compiler.is_compiling():

        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            logits = discriminate(x)
            return logits.sum(), logits

        gradients, logits = torch.func.grad(total, has_aux=True)(images.detach())
    else:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            logits = discriminate(images)
            (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return logits, gradients.square().sum([1, 2, 3])


def finite_difference_sq_norm(
    discriminate: ImagesToLogits, images: Tensor, directions: Tensor, step: float
) -> LogitsAndSqNorms:
    """Return the logits, and estimates of the squared norms: means over u of ((D(x + s u) - D(x - s u)) / 2 s)^2.

    `directions` [K, B, C, H, W] have independent entries of mean 0 and variance 1, so that E (u . v)^2 = |v|^2. After
    the approximate R1 of Lin 2025 (APT, 2501.08316, eq. 5), central instead of one-sided: its bias is O(step^2)
    where D is smooth. Where it bends between the two ends, as with leaky ReLUs, the values are still near, but their
    gradients in D's weights are noisy, the more so the smaller the step and the fewer the directions.
    """
    images = images.detach()
    moved = step * directions
    logits, *ends = discriminate(torch.cat([images, *(images + moved), *(images - moved)])).chunk(
        1 + 2 * len(directions)
    )
    above, below = torch.stack(ends).chunk(2)
    return logits, ((above - below) / (2 * step)).square().mean(0)


def zero_centered_penalty(squared_norms: Tensor, gamma: Tensor | float) -> Tensor:
    """Return gamma / 2 |grad D|^2: R1 on reals, R2 on fakes (Mescheder 2018, eq. 9 and 10; Roth 2017, 1705.09367)."""
    return squared_norms * (gamma / 2)


def wgan_gp_penalty(squared_norms: Tensor, weight: Tensor | float) -> Tensor:
    """Return weight (|grad D| - 1)^2, on mixes of reals and fakes (WGAN-GP: Gulrajani 2017, 1704.00028, eq. 3)."""
    return weight * ((squared_norms + 1e-12).sqrt() - 1).square()
