"""The processes of a run: which one this is, where it computes, how they meet and end; see also collectives.py.

A trainer reads the same with each engine that `make_engine` gives it: `Engine`, alone or with DDP through Accelerate,
or `ZeroEngine`, DeepSpeed's ZeRO.
"""

import ctypes
import os
import platform
import warnings

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from fastgan.distributed import launcher
from fastgan.distributed.consistency import ConsistencyCheck
from fastgan.distributed.engines import Engine, ddp_engine
from fastgan.distributed.heartbeat import LIMIT_S, collective_timeout
from fastgan.distributed.zero import ZeroEngine
from fastgan.errors import UserError
from fastgan.utils.cores import num_cores, require_startable


class Processes:
    """Process `rank` of a run of `world_size`, computing on `device`."""

    def __init__(
        self,
        threads: int | None = None,
        engine: str = "auto",
        offload: bool = False,
        agreement: ConsistencyCheck | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        _require_gpus()
        wishes = launcher.read_wishes()
        self.engine_name = wishes.engine if engine == "auto" else engine
        self.offload = offload or (engine == "auto" and wishes.offload)
        _set_threads(threads)
        tune_malloc()
        if agreement is not None and agreement.store is not None:
            _open_group(agreement, limit_s)
        _silence_libraries()
        self._accelerator = _accelerator(limit_s)
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.is_main: bool = self._accelerator.is_main_process
        self._cpu_group = _cpu_group(limit_s) if self.world_size > 1 else None
        self._pending_max: tuple[dist.Work, Tensor] | None = None
        for line in wishes.unused:
            self.print(line)

    @property
    def zero_stage(self) -> int:
        """Return which of ZeRO's stages divides what among the processes, 0 for none."""
        return int(self.engine_name.removeprefix("zero")) if self.engine_name.startswith("zero") else 0

    def make_engine(self, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer) -> Engine:
        """Wrap the network for the run's engine: one process trains alone."""
        if self.world_size == 1:
            return Engine(net, module, optimizer)
        if self.zero_stage:
            return ZeroEngine(net, module, optimizer, self.zero_stage, self.offload)
        return ddp_engine(self._accelerator.prepare_model(module), net, module, optimizer)

    def delayed_max(self, number: int) -> int:
        """Return the largest of all processes' last numbers, 0 the first time; all must ask after each step.

        It is the same on all, and nobody waits: this time's numbers are gathered while the next step runs.
        """
        if self._cpu_group is None:
            return number
        last, votes = self._pending_max, torch.tensor(number)
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._cpu_group, async_op=True)
        assert work is not None
        self._pending_max = work, votes
        if last is None:
            return 0
        last[0].wait()
        return int(last[1])

    def print(self, text: str) -> None:
        """Print the line, on the main process."""
        if self.is_main:
            print(text, flush=True)

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Close the process group; nothing may be sent after."""
        if self._pending_max is not None:
            self._pending_max[0].wait()
        self._accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _require_gpus() -> None:
    """Raise UserError where processes of this host would share a GPU, which NCCL refuses."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and processes > (gpus := torch.cuda.device_count()):
        raise UserError(
            f"num_processes is {processes} on this host, which has {gpus} GPU{'s' * (gpus > 1)}: give accelerate "
            f"launch --num_processes {gpus}, or CUDA_VISIBLE_DEVICES= in front of it to compute on the CPU"
        )


def _silence_libraries() -> None:
    """Ignore warnings of layouts and of DeepSpeed's own calls, which no user can do anything about."""
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    warnings.filterwarnings("ignore", "`torch.distributed..* is deprecated", FutureWarning)


def _backend() -> str:
    """Name what carries messages: of tensors on the host gloo, of those on a GPU NCCL."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _accelerator(limit_s: float) -> Accelerator:
    """Make Accelerate's part: without its own precision and compiling, which would change what several learn."""
    several = {"backend": _backend()} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
    group = InitProcessGroupKwargs(timeout=collective_timeout(limit_s), **several)
    in_place = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # exchanged where they lie
    off = dict.fromkeys(("mixed_precision", "dynamo_backend"), "no")
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[group, in_place], **off)


def _cpu_group(limit_s: float) -> dist.ProcessGroup:
    """Make a second group, over gloo, for what goes on beside the step."""
    group = dist.new_group(backend="gloo", timeout=collective_timeout(limit_s))
    assert isinstance(group, dist.ProcessGroup)
    return group


def _open_group(agreement: ConsistencyCheck, limit_s: float) -> None:
    """Open the process group that Accelerate will find, in a part of the store where no earlier attempt left addresses.

    A restart by torchrun finds those otherwise, and gloo then calls on processes that are gone.
    """
    assert agreement.store is not None
    dist.init_process_group(
        _backend(),
        store=dist.PrefixStore("group", agreement.store.clone()),
        rank=agreement.rank,
        world_size=agreement.world_size,
        timeout=collective_timeout(limit_s),
    )


def _set_threads(threads: int | None) -> None:
    """Let this process compute with so many CPU threads; with None, with its part of the machine's cores.

    Accelerate's and torch's launchers set OMP_NUM_THREADS to 1 where the user set nothing, which would leave all cores
    but one idle; where no launcher is, or the variable is above 1, it stands.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    if threads is None and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        usable = num_cores()
        cores = min(usable, psutil.cpu_count(logical=False) or usable)
        threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if threads is not None:
        require_startable("threads", threads)
        torch.set_num_threads(threads)


def tune_malloc() -> None:
    """Keep large blocks that are freed with this process, to be used again, where its C library is glibc.

    Otherwise each large tensor is fresh memory from the kernel, which fills it with zeros page by page.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None), -1, -3
        libc.mallopt(m_mmap_threshold, 32 * 2**20)  # the largest value there is
        libc.mallopt(m_trim_threshold, 2**30)
