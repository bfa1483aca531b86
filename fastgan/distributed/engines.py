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
        """Scale losses from now on, so that float16 holds their gradients; the scale follows their size."""
        self.scaler = torch.amp.GradScaler(next(self.net.parameters()).device.type)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss in the scale in which `step` expects its gradients."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def accumulate(self, sync: bool) -> AbstractContextManager[None]:
        """Let a forward and backward pass within add to the gradients, and with `sync`, the step's last, share them."""
        if sync or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        alone: AbstractContextManager[None] = self.module.no_sync()
        return alone

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those of the weights."""
        loss.backward()

    def zero_grad(self) -> None:
        """Forget what backward passes since the last step left behind."""
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
        """Move the weights along the gradients and clear these; return their norm before that.

        Where losses are scaled and the scale was too large, nothing moves, and the norm is 0.
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
        """Hold the network's weights whole on every process within; all processes must enter."""
        return contextlib.nullcontext()

    def frozen(self) -> AbstractContextManager[None]:
        """Let others compute through the network, its weights whole, without gradients of them."""
        return self.gathered_params()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the network's whole state, parameters and buffers by name; all processes must ask."""
        return dict(self.net.state_dict())

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's whole state, by `parameter's number/name`; all processes must ask."""
        found = self.optimizer.state_dict()["state"]
        return {f"{number}/{name}": value for number, values in found.items() for name, value in values.items()}

    def load_state_dict(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        """Put network and optimizer where these were taken, by any engine on any number of processes."""
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


def ddp_engine(shared: nn.Module, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer) -> Engine:
    """Make the engine of a module that DDP has wrapped as `shared`.

    Dynamo would cut a compiled module's graph where DDP's buckets end, and fails at a penalty's torch.func.grad. Uncut,
    the backward pass is one node of autograd: DDP exchanges all gradients after it, and nothing beside it. Where
    nothing is compiled, each bucket is exchanged while the backward pass goes on.
    """
    torch._dynamo.config.optimize_ddp = False
    assert isinstance(shared, DistributedDataParallel)
    shared.broadcast_buffers = False  # they are functions of what all processes have: the same on all
    fix_ddp_bucket_order(shared, module)
    optimizer.zero_grad()
    return Engine(net, shared, optimizer)


def fix_ddp_bucket_order(shared: nn.Module, module: nn.Module) -> None:
    """Let DDP arrange the module's gradients for its exchanges, in an order that only the module decides.

    It does so once, in the order of a process's first backward pass, and in this order three or more processes add them
    up: arranged by whichever step a run goes on with, a resumed run would differ in its last bits. One bucket for all
    gradients doesn't help: within it they would be rearranged in the same way after the first pass. DDP leaves them
    where they are under `find_unused_parameters` alone, for which each step would search the graph.
    """
    module.forward = lambda: sum(parameter.sum() for parameter in module.parameters())
    shared().backward()
    del module.forward
