"""DeepSpeed's ZeRO 1, 2 and 3 (Rajbhandari 2020, arXiv 1910.02054); the only file that names DeepSpeed."""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgan.distributed.engines import Engine
from fastgan.errors import UserError

BUCKET = 50_000_000  # numbers that ZeRO exchanges at once


class ZeroEngine(Engine):
    """A player whose states (`stage` 1), gradients (2) and weights (3) are divided among all processes."""

    def __init__(
        self, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer, stage: int, offload: bool
    ) -> None:
        self.stage = stage
        self._parameters = list(net.parameters())
        self._shapes = [parameter.shape for parameter in self._parameters]
        net.to(memory_format=torch.contiguous_format)  # DeepSpeed sends weights as plain bytes
        self._is_whole = False
        self._deepspeed = _zero_engine(_Shell(module), optimizer, stage, offload)
        super().__init__(net, self._deepspeed, optimizer)

    @contextlib.contextmanager
    def accumulate(self, sync: bool) -> Iterator[None]:
        self._deepspeed.set_gradient_accumulation_boundary(sync)
        with self.gathered_params():
            yield

    def enable_loss_scaling(self) -> None:
        """Refuse: DeepSpeed scales by itself. Raises UserError."""
        raise UserError(
            f"precision is 'float16': engine zero{self.stage} doesn't scale each player's loss; give --precision "
            "bfloat16, or --engine ddp"
        )

    def backward(self, loss: Tensor) -> None:
        self._deepspeed.backward(loss)

    def zero_grad(self) -> None:
        self._deepspeed.zero_grad()
        self._deepspeed.optimizer.zero_grad()

    def step(self, lr: float | Tensor, beta2: float | Tensor) -> Tensor:
        self._set(lr, beta2)
        self._deepspeed.step()
        norm = (
            self._deepspeed.get_global_grad_norm()
        )  # on the host where states are, a number where gradients overflowed
        device = self._parameters[0].device
        norm = norm if isinstance(norm, Tensor) else torch.full((), norm or 0.0, device=device)
        return norm.to(device, non_blocking=True)

    @contextlib.contextmanager
    def gathered_params(self) -> Iterator[None]:
        outermost, self._is_whole = not self._is_whole, True
        try:
            with self._gathered() if outermost else contextlib.nullcontext():
                yield
        finally:
            self._is_whole = not outermost

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        # A compiled graph hands each weight it detaches a gradient of None, for which DeepSpeed's hooks aren't made.
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        try:
            with self.gathered_params():
                yield
        finally:
            for parameter in self._parameters:
                parameter.requires_grad_(True)

    def _gathered(self, from_rank: int | None = None) -> AbstractContextManager[None]:
        """Whole weights; on leaving, all processes have those of `from_rank`, or the ones before where it is None."""
        if self.stage < 3:
            return contextlib.nullcontext()
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        gathered: AbstractContextManager[None] = GatheredParameters(self._parameters, modifier_rank=from_rank)
        return gathered

    def state_dict(self) -> dict[str, Tensor]:
        with self.gathered_params():
            return {name: value.detach().clone() for name, value in self.net.state_dict().items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        of_a_part: dict[str, Tensor] = next((state for state in self.optimizer.state.values() if state), {})
        state: dict[str, Tensor] = {}
        for number, parameter in enumerate(self._parameters):
            for name, value in of_a_part.items():
                if value.dim() == 0:  # the count of steps, which all parameters share
                    state[f"{number}/{name}"] = value.clone()
                else:
                    whole = safe_get_full_optimizer_state(parameter, name)
                    state[f"{number}/{name}"] = whole.reshape(self._shapes[number]).clone()
        return state

    def load_state_dict(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        with self._gathered(from_rank=0):
            self.net.load_state_dict(weights)
        self._deepspeed.optimizer.refresh_fp32_params()
        names = {key.split("/")[1]: value for key, value in optimizer_state.items()}
        zero = self._deepspeed.optimizer
        flats = zero.single_partition_of_fp32_groups if self.stage < 3 else zero.fp32_partitioned_groups_flat
        for flat in flats:  # of this process's part; DeepSpeed makes its states in the first step
            for name, value in names.items():
                like = torch.zeros_like(flat, requires_grad=False)
                self.optimizer.state[flat][name] = like if value.dim() else value.clone()
        if names and self.stage < 3:
            zero._lazy_init_hp_params_optimizer_state()
        for key, value in optimizer_state.items():
            number, name = key.split("/")
            if value.dim():
                self._set_state(self._parameters[int(number)], name, value)

    def _set_state(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, name)
        else:
            size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
            mine = padded[dist.get_rank() * size :][:size]
            safe_set_local_optimizer_state(parameter, mine, name)


class _Shell(nn.Module):
    """Hold DeepSpeed's hooks, with their timers, outside of the module that may be compiled as one graph."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Any) -> Any:
        return self.module(*given)


def _zero_engine(module: nn.Module, optimizer: torch.optim.Optimizer, stage: int, offload: bool) -> Any:
    """DeepSpeed's engine of the module. Raises UserError where DeepSpeed isn't installed."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError:
        raise UserError(f"engine is zero{stage}: DeepSpeed isn't installed; pip install 'fastgan[deepspeed]'") from None
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled on the user's machine
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # for DeepSpeed's own records: the loss here is scaled by images
        "gradient_clipping": 0.0,  # without this it clips at 1
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 0,
            **({"offload_optimizer": {"device": "cpu"}} if offload else {}),
        },
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    if stage == 3:  # its hooks drop a layer's weights after each pass, in the midst of a double backward
        engine.optimizer.parameter_offload._remove_module_hooks()
    return engine
