"""GPUs as their makers describe them, and how long work and messages take on them by stated assumptions.

Estimates for `fastgan plan`; nothing that trains imports this. Imports no torch. Peaks are the dense ones, without
structured sparsity. Nothing here was measured with fastgan.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from fastgan.errors import UserError

EngineName = Literal["ddp", "zero1", "zero2", "zero3"]
MIB = 2**20
BUCKET_BYTES, FIRST_BUCKET_BYTES = 25 * MIB, MIB  # DistributedDataParallel's messages
# Of the peaks, by family of networks. R3GAN's published hours imply 0.07 (stacked-mnist), 0.10 (ffhq256) and 0.13
# (cifar10) of the bfloat16 peaks of their L40 and A6000; for the others nothing is known.
UTILISATION = {"r3gan": 0.10}
UTILISATION_UNKNOWN = 0.10


@dataclass(frozen=True)
class Gpu:
    """Peaks in TFLOP/s (None: there is no such unit), memory in GB and GB/s, the link to others in GB/s each way."""

    float16: float  # tensor cores, float32 sums; bfloat16 as well
    bfloat16: float | None
    tf32: float | None
    float32: float
    memory: float
    memory_bandwidth: float
    link: float
    link_name: str

    def peak(self, arithmetic: str) -> float:
        """Return FLOP/s of 'float16', 'bfloat16', 'tf32' or 'float32'; without the unit the work is done in float32."""
        peaks = {"float16": self.float16, "bfloat16": self.bfloat16, "tf32": self.tf32}
        return 1e12 * (peaks.get(arithmetic) or self.float32)


# From NVIDIA's data sheets (H100, H200, A100, L40, L40S, RTX A6000, T4) and the white papers of GA102 (RTX 3090, RTX
# A6000) and AD102 (RTX 4090). Where a sheet gives figures with sparsity only, they are halved. SXM versions of H100,
# H200 and A100; a link's figure is half of the one given for both directions together.
GPUS = {
    "h100": Gpu(989.4, 989.4, 494.7, 66.9, 80, 3350, 450, "NVLink"),
    "h200": Gpu(989.4, 989.4, 494.7, 66.9, 141, 4800, 450, "NVLink"),
    "a100-80": Gpu(312, 312, 156, 19.5, 80, 2039, 300, "NVLink"),
    "a100-40": Gpu(312, 312, 156, 19.5, 40, 1555, 300, "NVLink"),
    "l40": Gpu(181.05, 181.05, 90.5, 90.5, 48, 864, 32, "PCIe 4"),
    "l40s": Gpu(362.05, 362.05, 183, 91.6, 48, 864, 32, "PCIe 4"),
    "a6000": Gpu(154.8, 154.8, 77.4, 38.7, 48, 768, 32, "PCIe 4"),
    "rtx4090": Gpu(165.2, 165.2, 82.6, 82.6, 24, 1008, 32, "PCIe 4"),
    "rtx3090": Gpu(71, 71, 35.6, 35.6, 24, 936, 32, "PCIe 4"),
    "t4": Gpu(65, None, None, 8.1, 16, 320, 16, "PCIe 3"),
}


def gpu_named(name: str) -> Gpu:
    """Return the GPU's figures. Raises UserError that lists all names."""
    if name not in GPUS:
        raise UserError(f"gpu is {name!r}: choose from {', '.join(GPUS)}")
    return GPUS[name]


@dataclass(frozen=True)
class Cluster:
    """The machines that a plan is for, and what it assumes of them."""

    gpus: int = 1
    """GPUs, one process each."""
    gpu: str = "h100"
    """Their kind: h100, h200, a100-80, a100-40, l40, l40s, a6000, rtx4090, rtx3090 or t4."""
    gpus_per_node: int = 8
    """GPUs of one machine, which its own links join."""
    engine: Annotated[EngineName, tyro.conf.Suppress] = "ddp"  # the config's
    utilisation: float | None = None
    """Share of the arithmetic peak that is reached; without it 0.1, which R3GAN's published hours imply."""
    link_gbps: float = 200.0
    """Network of a GPU to other machines, gigabits a second each way."""
    hop_us: float = 5.0
    """Microseconds from a GPU to the next one, before the first byte."""
    launch_us: float = 10.0
    """Microseconds to start one operation from Python."""

    def __post_init__(self) -> None:
        gpu_named(self.gpu)
        for name in ("gpus", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give a number of 1 or more")
        for name in ("link_gbps", "hop_us", "launch_us"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: give a number above 0")
        if self.utilisation is not None and not 0 < self.utilisation <= 1:
            raise UserError(f"utilisation is {self.utilisation}: give a share of the peak above 0, at most 1")

    @property
    def zero_stage(self) -> int:
        """ZeRO's; 0 where nothing is divided."""
        return int(self.engine.removeprefix("zero")) if self.engine.startswith("zero") else 0

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)

    def local_batch_size(self, batch_size: int) -> int:
        """Return the images of a batch that the busiest GPU has. Raises UserError where another has none."""
        if self.gpus > batch_size:
            raise UserError(
                f"gpus is {self.gpus}: a batch of {batch_size} leaves {self.gpus - batch_size} without an image; "
                f"give --gpus {batch_size} or fewer, or a larger --batch-size"
            )
        return -(-batch_size // self.gpus)

    def reached(self, network: str) -> float:
        """Return the utilisation given, else the one assumed for the family of networks."""
        return self.utilisation or UTILISATION.get(network, UTILISATION_UNKNOWN)

    @property
    def link(self) -> float:
        """GB/s each way of the slowest link between two of the GPUs."""
        own = gpu_named(self.gpu).link
        return own if self.nodes == 1 else min(own, self.link_gbps / 8)

    @property
    def hops(self) -> int:
        """From GPU to GPU, one after the other, in an all-reduce: a ring in each node, a tree between nodes."""
        ring = 2 * (min(self.gpus, self.gpus_per_node) - 1)
        return ring + 2 * math.ceil(math.log2(self.nodes))


def all_reduce_bytes(gpus: int, num_bytes: float) -> float:
    """Return what each of so many sends in a ring all-reduce.

    2 (n - 1) / n times the message (Patarasuk & Yuan 2009).
    """
    return 2 * (gpus - 1) / gpus * num_bytes


def num_messages(num_bytes: int) -> int:
    """Return how many buckets DistributedDataParallel makes of a network's gradients."""
    return 1 + -(-max(0, num_bytes - FIRST_BUCKET_BYTES) // BUCKET_BYTES)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. Arithmetic, memory and launches go on side by side, so the slowest of them counts."""

    arithmetic: float
    memory: float
    launches: float
    exchange: float

    @property
    def limit(self) -> str:
        """Which of the three is the slowest."""
        return max(("arithmetic", "memory", "launches"), key=lambda name: float(getattr(self, name)))

    @property
    def total(self) -> float:
        """With the exchange of gradients after, not beside, the work: the worst case."""
        return float(getattr(self, self.limit)) + self.exchange
