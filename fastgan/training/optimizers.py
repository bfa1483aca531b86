"""Adam whose settings may be tensors on the device, so that a recorded step follows their schedules."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastgan.config import Config


class ScheduledAdam(torch.optim.Adam):
    """torch's Adam, which also takes a second beta that is a tensor [] on the parameters' device.

    torch's fused kernel takes the betas from the host. Where one lies on the device the same formula (Kingma & Ba 2014,
    arXiv 1412.6980, algorithm 1) is computed by some ten passes over all parameters at once.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the parameters along their gradients."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            if not isinstance(beta2, Tensor):
                return super().step(closure)
            columns: list[list[Tensor]] = [[] for _ in range(6)]
            self._init_group(group, *columns)  # torch's: makes the states where there are none yet
            parameters, gradients, means, squares, _, steps = columns
            dtype = parameters[0].dtype
            torch._foreach_add_(steps, 1)
            count = steps[0].double()  # all parameters have had as many steps
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            fresh = torch._foreach_mul(gradients, gradients)
            torch._foreach_mul_(fresh, (1 - beta2).to(dtype))
            torch._foreach_mul_(squares, beta2.to(dtype))
            torch._foreach_add_(squares, fresh)
            sizes = torch._foreach_sqrt(squares)
            torch._foreach_mul_(sizes, (1 - beta2.double() ** count).rsqrt().to(dtype))
            torch._foreach_add_(sizes, group["eps"])
            moves = torch._foreach_div(means, sizes)
            torch._foreach_mul_(moves, (group["lr"] / (1 - beta1**count)).to(dtype))
            torch._foreach_sub_(parameters, moves)
        return None


def make_optimizer(net: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Make the optimizer that the config names; its learning rate comes with each step."""
    optimizer, parameters = config.optimizer, net.parameters()
    if optimizer.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=0.0, alpha=optimizer.rho, eps=optimizer.eps)
    return ScheduledAdam(parameters, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)
