"""Parts that several architectures share."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from fastgan.distributed.collectives import all_gather, is_distributed
from fastgan.errors import UserError
from fastgan.utils import rng


class Dropout(nn.Module):
    """Sets activations to zero with probability `p` and scales the others by 1 / (1 - p) (Srivastava et al. 2014).

    Which ones is a function of each image's key and of `layer`, a number of its own for each dropout of a network.
    Without keys, or in evaluation mode, the input passes unchanged.
    """

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p, self.layer = p, layer

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:  # [B, C, H, W], [B]
        if keys is None or not self.training:
            return x
        batch, channels, height, width = x.shape
        keep = rng.dropout_mask(rng.splitmix64(keys + self.layer), channels * height * width, self.p)
        keep = keep.view(batch, height, width, channels).permute(0, 3, 1, 2)  # channels last, as the activations lie
        return x * (keep * (1 / (1 - self.p)))


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization (Ioffe & Szegedy 2015) over the global batch: its statistics are those of all processes.

    Takes [B, C] or [B, C, H, W]; n processes compute what one computes. Where a channel has a single value, as in a
    last batch of one image after a dense layer, that value is its own mean: the output is the bias, as in Keras.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps, momentum)

    def _check_input_dim(self, x: Tensor) -> None:
        assert x.dim() in (2, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or (not is_distributed() and x.numel() > x.shape[1]):
            return super().forward(x)
        mean, var, count = _global_moments(x.detach())
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        if not is_distributed():  # the value is 0 from its mean: as scale * x + shift a rounding would be left
            x, mean = x - x.detach(), torch.zeros_like(mean)
        normalized: Tensor = _NormalizeByBatch.apply(x, self.weight, self.bias, mean, var, count, self.eps)
        return normalized


def has_batch_norm(net: nn.Module) -> bool:
    """Return whether an image's output depends on the others of its batch."""
    return any(isinstance(layer, BatchNorm) for layer in net.modules())


@torch.no_grad()
def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and number of values a channel, of all processes, who must all ask."""
    x = x if x.dtype == torch.float64 else x.float()
    mine = torch.zeros(3, x.shape[1], dtype=x.dtype, device=x.device)
    mine[2] = values = x.numel() // x.shape[1]
    if values > 1:
        mine[0], mine[1] = torch.batch_norm_update_stats(x, None, None, 0.0)
    else:
        mine[0] = x.flatten()
    means, variances, counts = all_gather(mine).unbind(1)  # [processes, C] each
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    return mean, ((variances + (means - mean).square()) * counts).sum(0) / count, count


class _NormalizeByBatch(torch.autograd.Function):
    """Normalization of x by the moments of all processes' x, of which they are functions: its derivative knows that.

    Each direction is one exchange between processes: here that of the gradient's two sums.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        slope, level = all_gather(torch.stack([grad_weight, grad_bias])).sum(0) / count
        scale = weight * torch.rsqrt(var + ctx.eps)
        # scale * (grad - level - slope * normalized x)
        grad_x = F.batch_norm(x, mean, var, -scale * slope, -scale * level, eps=ctx.eps)
        grad_x.addcmul_(grad, scale.view(-1, *[1] * (x.dim() - 2)))
        return grad_x, grad_weight, grad_bias, None, None, None, None


class SpectralNorm(nn.Module):
    """A layer's weight divided by its largest singular value (Miyato et al. 2018, arXiv 1802.05957).

    torch's own moves its estimate on inside each forward pass, which `torch.func.grad`, and so exact penalties, refuse.
    Here `follow` does, once a step of D, after the weights have moved; the forward pass changes nothing.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:  # [out, ...]
        super().__init__()
        rows = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn(rows.shape[0], device=rows.device), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(rows.shape[1], device=rows.device), dim=0))
        for _ in range(15):
            self.power_iteration(weight)

    @torch.no_grad()
    def power_iteration(self, weight: Tensor) -> None:
        """Do one power iteration, which brings u and v nearer to the singular vectors of the largest singular value."""
        rows = weight.flatten(1)
        self.v.copy_(F.normalize(rows.T @ self.u, dim=0))
        self.u.copy_(F.normalize(rows @ self.v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        return weight / (self.u @ weight.flatten(1) @ self.v)


def add_spectral_norm(net: nn.Module) -> None:
    """Divide every linear layer and convolution of the net by its largest singular value from now on.

    A weight that starts at 0, as a residual block's last, has none: it starts normal instead.
    """
    for layer in list(net.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if not layer.weight.any():
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))


def power_iteration(net: nn.Module) -> None:
    """Let the net's spectral norms follow its weights' last step; without any, nothing happens."""
    for layer in net.modules():
        if isinstance(layer, parametrize.ParametrizationList) and isinstance(layer[0], SpectralNorm):
            layer[0].power_iteration(layer.original)


def encode_condition(labels: Tensor | None, width: int, dtype: torch.dtype) -> Tensor:
    """Return [B, width] of classes [B], one-hot, or of vectors [B, width - 1], before a 1.

    The 1 is for what is said of all images alike. Raises UserError where a conditional network gets no labels, or
    vectors of another length.
    """
    if labels is None:
        raise UserError(f"labels is None: the network has {width} classes, give every image a number")
    if labels.ndim == 2:
        if labels.shape[1] != width - 1:
            raise UserError(f"labels are vectors of {labels.shape[1]} numbers: the network takes {width - 1}")
        return torch.cat([labels.to(dtype), labels.new_ones(labels.shape[0], 1, dtype=dtype)], dim=1)
    # F.one_hot looks at the labels' values, for which the host would wait; who reads labels checks them.
    return (labels[:, None] == torch.arange(width, device=labels.device)).to(dtype)


def init_keras(module: nn.Module) -> None:
    """Start linear and convolution layers as in Keras: Glorot uniform weights (Glorot & Bengio 2010), biases 0."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
