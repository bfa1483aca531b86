"""The processes of a run: which one this is, where it computes, and the engine through which they train one network.

The only place that knows of engines. A trainer reads the same with each: a `Player` trains its network, whether alone,
with the gradients of all processes averaged (DDP, through Accelerate), or with states, gradients and weights divided
among them as well (DeepSpeed's ZeRO 1, 2 and 3: Rajbhandari 2020, arXiv 1910.02054).
"""

import contextlib
import ctypes
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastgan.agreement import Agreement
from fastgan.errors import UserError
from fastgan.schedules import Value
from fastgan.watchdog import LIMIT_S, collective_timeout

BUCKET = 50_000_000  # numbers that ZeRO exchanges at once


class Player:
    """A network, the module through which it is trained, and its optimizer: in one process, or in several by DDP."""

    def __init__(self, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.net, self.module, self.optimizer = net, module, optimizer
        self.scaler: torch.amp.GradScaler | None = None

    def scale_losses(self) -> None:
        """From now on gradients are those of a scaled loss, which float16 holds; the scale follows their size."""
        self.scaler = torch.amp.GradScaler(next(self.net.parameters()).device.type)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss in the scale in which `step` expects its gradients."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        """In it, a forward and backward pass adds to the gradients; after the step's last one they are shared."""
        if is_last or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        alone: AbstractContextManager[None] = self.module.no_sync()
        return alone

    def backward(self, loss: Tensor) -> None:
        """The loss's gradients are added to those of the weights."""
        loss.backward()

    def forget_gradients(self) -> None:
        """What backward passes since the last step left behind is gone."""
        self.optimizer.zero_grad()

    def settings_on_device(self, wanted: bool) -> None:
        """Let the optimizer take its settings, and count its steps, on the parameters' device."""
        for group in self.optimizer.param_groups:
            group["capturable"] = wanted
        for parameter, state in self.optimizer.state.items():
            state["step"] = state["step"].to(parameter.device if self._counts_on_device() else "cpu")

    def _counts_on_device(self) -> bool:
        return any(bool(group.get("fused") or group["capturable"]) for group in self.optimizer.param_groups)

    def step(self, lr: Value, beta2: Value) -> Tensor:
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

    def _set(self, lr: Value, beta2: Value) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr.float() if isinstance(lr, Tensor) else lr  # torch's kernels read float32
            if "betas" in group:
                group["betas"] = (group["betas"][0], beta2)

    def whole(self) -> AbstractContextManager[None]:
        """In it, the network's weights are whole on every process; all processes must enter."""
        return contextlib.nullcontext()

    def frozen(self) -> AbstractContextManager[None]:
        """Let others compute through the network, whole as in `whole`, without gradients of its weights."""
        return self.whole()

    def weights(self) -> dict[str, Tensor]:
        """The network's whole state, parameters and buffers by name; all processes must ask."""
        return dict(self.net.state_dict())

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's whole state, by `parameter's number/name`; all processes must ask."""
        found = self.optimizer.state_dict()["state"]
        return {f"{number}/{name}": value for number, values in found.items() for name, value in values.items()}

    def load(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        """The network and its optimizer are as they were when these were taken, by any engine on any processes."""
        self.net.load_state_dict(weights)
        parameters = list(self.net.parameters())
        for key, value in optimizer_state.items():
            number, name = key.split("/")
            parameter = parameters[int(number)]
            # Each value lies as the optimizer would have made it: a fused one walks parameter and value in step.
            if value.shape == parameter.shape:
                place = torch.empty_like(parameter)
            else:
                place = torch.empty_like(value, device=parameter.device if self._counts_on_device() else "cpu")
            self.optimizer.state[parameter][name] = place.copy_(value)


class ZeroPlayer(Player):
    """A player whose states (`stage` 1), gradients (2) and weights (3) are divided among all processes."""

    def __init__(
        self, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer, stage: int, offload: bool
    ) -> None:
        self.stage = stage
        self._parameters = list(net.parameters())
        self._shapes = [parameter.shape for parameter in self._parameters]
        net.to(memory_format=torch.contiguous_format)  # DeepSpeed sends weights as plain bytes
        self._is_whole = False
        self._engine = _zero_engine(_Shell(module), optimizer, stage, offload)
        super().__init__(net, self._engine, optimizer)

    @contextlib.contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        with self.whole():
            yield

    def scale_losses(self) -> None:
        """Raises UserError."""
        raise UserError(
            f"precision is 'float16': engine zero{self.stage} doesn't scale each player's loss; give --precision "
            "bfloat16, or --engine ddp"
        )

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def forget_gradients(self) -> None:
        self._engine.zero_grad()
        self._engine.optimizer.zero_grad()

    def step(self, lr: Value, beta2: Value) -> Tensor:
        self._set(lr, beta2)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()  # on the host where states are, a number where gradients overflowed
        device = self._parameters[0].device
        norm = norm if isinstance(norm, Tensor) else torch.full((), norm or 0.0, device=device)
        return norm.to(device, non_blocking=True)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
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
            with self.whole():
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

    def weights(self) -> dict[str, Tensor]:
        with self.whole():
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

    def load(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        with self._gathered(from_rank=0):
            self.net.load_state_dict(weights)
        self._engine.optimizer.refresh_fp32_params()
        names = {key.split("/")[1]: value for key, value in optimizer_state.items()}
        zero = self._engine.optimizer
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


def _arrange_gradients(shared: nn.Module, module: nn.Module) -> None:
    """DDP has arranged the module's gradients for its exchanges, in an order that only the module decides.

    It does so once, in the order of a process's first backward pass, and in this order three or more processes add them
    up: arranged by whichever step a run goes on with, a resumed run would differ in its last bits.
    """
    module.forward = lambda: sum(parameter.sum() for parameter in module.parameters())
    shared().backward()
    del module.forward


class Processes:
    """One process of a run of `count`, number `rank`, computing on `device`."""

    def __init__(
        self,
        threads: int | None = None,
        engine: str = "auto",
        offload: bool = False,
        together: Agreement | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        asked, asked_offload = _asked_by_launcher()
        self.engine = asked if engine == "auto" else engine
        self.offload = offload or (engine == "auto" and asked_offload)
        _set_threads(threads)
        keep_freed_memory()
        if together is not None and together.store is not None:
            _open_group(together, limit_s)
        patience = InitProcessGroupKwargs(timeout=collective_timeout(limit_s))
        in_place = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # exchanged where they lie
        # What these two say, of layouts and of DeepSpeed's own calls, no user can mend.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        warnings.filterwarnings("ignore", "`torch.distributed..* is deprecated", FutureWarning)
        # Its own precision and compiling would change what several processes learn, but not what one does.
        off = {"mixed_precision": "no", "dynamo_backend": "no"}
        cpu = not torch.cuda.is_available()
        self._accelerator = Accelerator(cpu=cpu, kwargs_handlers=[patience, in_place], **off)
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.is_main: bool = self._accelerator.is_main_process
        for name, option in zip(off, ("--precision", "--compile"), strict=True):
            if (asked := os.environ.get(f"ACCELERATE_{name.upper()}", "no").lower()) != "no":
                self.say(f"Accelerate's {name} is {asked}: it isn't used, fastgan's own {option} decides")
        self._vote: tuple[dist.Work, Tensor] | None = None
        self._voters: dist.ProcessGroup | None = None
        if self.count > 1:
            group = dist.new_group(backend="gloo", timeout=collective_timeout(limit_s))
            assert isinstance(group, dist.ProcessGroup)
            self._voters = group

    def player(self, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer) -> Player:
        """The network's player, by the run's engine; one process needs none."""
        if self.count == 1:
            return Player(net, module, optimizer)
        if self.engine.startswith("zero"):
            return ZeroPlayer(net, module, optimizer, int(self.engine.removeprefix("zero")), self.offload)
        # Dynamo would cut a compiled module's graph where DDP's buckets end, and fails at a penalty's torch.func.grad.
        # Uncut, the backward pass is one node of autograd: DDP exchanges all gradients after it, and nothing beside it.
        # Where nothing is compiled, each bucket is exchanged while the backward pass goes on.
        torch._dynamo.config.optimize_ddp = False
        shared = self._accelerator.prepare_model(module)
        shared.broadcast_buffers = False  # they are functions of what all processes have: the same on all
        _arrange_gradients(shared, module)
        optimizer.zero_grad()
        return Player(net, shared, optimizer)

    def vote(self, number: int) -> int:
        """The largest number of all processes when they last asked, 0 the first time: all must ask, after each step.

        It is the same on all, and nobody waits: this time's numbers are gathered while the next step runs.
        """
        if self._voters is None:
            return number
        last, votes = self._vote, torch.tensor(number)
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._voters, async_op=True)
        assert work is not None
        self._vote = work, votes
        if last is None:
            return 0
        last[0].wait()
        return int(last[1])

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over all processes, who must all ask, with the same names."""
        if self.count == 1 or not values:
            return values
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, self._accelerator.reduce(mine, reduction="mean").tolist(), strict=True))

    def smallest(self, number: int) -> int:
        """The smallest of all processes' numbers; all must ask."""
        if self.count == 1:
            return number
        mine = torch.tensor(number)
        dist.all_reduce(mine, dist.ReduceOp.MIN, group=self._voters)
        return int(mine)

    def gather(self, mine: Tensor) -> Tensor:
        """All processes' tensors [N, ...], on the CPU, in a row by rank, the same on all; N may differ."""
        if self.count == 1:
            return mine
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(mine)]), group=self._voters)
        most = int(torch.cat(sizes).max())
        padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded, group=self._voters)
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])

    def total(self, mine: Tensor) -> Tensor:
        """The sum of all processes' tensors, on the CPU and of one shape, the same on all; all must ask."""
        if self.count == 1:
            return mine
        summed = mine.clone()
        dist.all_reduce(summed, group=self._voters)
        return summed

    def say(self, text: str) -> None:
        """The main process prints the line."""
        if self.is_main:
            print(text, flush=True)

    def wait(self) -> None:
        """All processes have come here."""
        self._accelerator.wait_for_everyone()

    def end(self) -> None:
        """The process group is closed; nothing may be sent after."""
        if self._vote is not None:
            self._vote[0].wait()
        self._accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _open_group(together: Agreement, limit_s: float) -> None:
    """The process group that Accelerate will find: in a part of the store where no earlier attempt left addresses.

    A restart by torchrun finds those otherwise, and gloo then calls on processes that are gone.
    """
    assert together.store is not None
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore("group", together.store.clone()),
        rank=together.rank,
        world_size=together.count,
        timeout=collective_timeout(limit_s),
    )


def _asked_by_launcher() -> tuple[str, bool]:
    """The engine that Accelerate's configuration names, and whether it keeps states on the host.

    Accelerate itself isn't to start it, as it knows one network only: it finds no such wish from now on.
    """
    if os.environ.pop("ACCELERATE_USE_DEEPSPEED", "false") != "true":
        return "ddp", False
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    offload = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") == "cpu"
    return ("ddp" if stage == "0" else f"zero{stage}"), offload


def _set_threads(threads: int | None) -> None:
    """This process computes with so many CPU threads; with None, with its share of the machine's cores.

    Accelerate's and torch's launchers set OMP_NUM_THREADS to 1 where the user set nothing, which would leave all cores
    but one idle; where no launcher is, or the variable is above 1, it stands.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    if threads is None and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        usable = (
            len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
        )
        cores = min(usable, psutil.cpu_count(logical=False) or usable)
        threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if threads is not None:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Large blocks that are freed stay with this process and are used again, where its C library is glibc.

    Otherwise each large tensor is fresh memory from the kernel, which fills it with zeros page by page.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None), -1, -3
        libc.mallopt(m_mmap_threshold, 32 * 2**20)  # the largest value there is
        libc.mallopt(m_trim_threshold, 2**30)
