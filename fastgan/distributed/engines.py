"""The engine that trains one network: alone, or with the gradients of all processes averaged by DDP."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Engine:
    """A network, the module through which it is trained, and its optimizer: in one process, or in several by DDP."""

    def __init__(self, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.net, self.module, self.optimizer = net, module, optimizer
        self.scaler: torch.amp.GradScaler | None = None

    def enable_loss_scaling(self) -> None:
        """From now on gradients are those of a scaled loss, which float16 holds; the scale follows their size."""
        self.scaler = torch.amp.GradScaler(next(self.net.parameters()).device.type)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss in the scale in which `step` expects its gradients."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def accumulate(self, sync: bool) -> AbstractContextManager[None]:
        """In it, a forward and backward pass adds to the gradients; after the step's last one they are shared."""
        if sync or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        alone: AbstractContextManager[None] = self.module.no_sync()
        return alone

    def backward(self, loss: Tensor) -> None:
        """The loss's gradients are added to those of the weights."""
        loss.backward()

    def zero_grad(self) -> None:
        """What backward passes since the last step left behind is gone."""
        self.optimizer.zero_grad()

    def make_capturable(self, wanted: bool) -> None:
        """Let the optimizer take its settings, and count its steps, on the parameters' device."""
        for group in self.optimizer.param_groups:
            group["capturable"] = wanted
        for parameter, state in self.optimizer.state.items():
            state["step"] = state["step"].to(parameter.device if self._counts_on_device() else "cpu")

    def _counts_on_device(self) -> bool:
        return any(bool(group.get("fused") or group["capturable"]) for group in self.optimizer.param_groups)

    def step(self, lr: float | Tensor, beta2: float | Tensor) -> Tensor:
        """The weights have moved along the gradients, which are gone; returns their norm before that.

        Where losses are scaled and the scale was too large, they haven't, and the norm is 0.
        """
        self._set(lr, beta2)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            norm = norm.nan_to_num(0.0, 0.0, 0.0)
        self.optimizer.zero_grad()
        return norm

    def _set(self, lr: float | Tensor, beta2: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr.float() if isinstance(lr, Tensor) else lr  # torch's kernels read float32
            if "betas" in group:
                group["betas"] = (group["betas"][0], beta2)

    def gathered_params(self) -> AbstractContextManager[None]:
        """In it, the network's weights are whole on every process; all processes must enter."""
        return contextlib.nullcontext()

    def frozen(self) -> AbstractContextManager[None]:
        """Let others compute through the network, whole as in `whole`, without gradients of its weights."""
        return self.gathered_params()

    def state_dict(self) -> dict[str, Tensor]:
        """The network's whole state, parameters and buffers by name; all processes must ask."""
        return dict(self.net.state_dict())

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's whole state, by `parameter's number/name`; all processes must ask."""
        found = self.optimizer.state_dict()["state"]
        return {f"{number}/{name}": value for number, values in found.items() for name, value in values.items()}

    def load_state_dict(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        """The network and its optimizer are as they were when these were taken, by any engine on any processes."""
        self.net.load_state_dict(weights)
        parameters = list(self.net.parameters())
        for key, value in optimizer_state.items():
            number, name = key.split("/")
            parameter = parameters[int(number)]
            # Each value lies as the optimizer would have made it: a fused one walks parameter and value in step.
            if value.shape == parameter.shape:
                own = torch.empty_like(parameter)
            else:
                own = torch.empty_like(value, device=parameter.device if self._counts_on_device() else "cpu")
            self.optimizer.state[parameter][name] = own.copy_(value)


def fix_ddp_bucket_order(shared: nn.Module, module: nn.Module) -> None:
    """DDP has arranged the module's gradients for its exchanges, in an order that only the module decides.

    It does so once, in the order of a process's first backward pass, and in this order three or more processes add them
    up: arranged by whichever step a run goes on with, a resumed run would differ in its last bits. One bucket for all
    gradients doesn't help: within it they would be rearranged in the same way after the first pass. DDP leaves them
    where they are under `find_unused_parameters` alone, for which each step would search the graph.
    """
    module.forward = lambda: sum(parameter.sum() for parameter in module.parameters())
    shared().backward()
    del module.forward
