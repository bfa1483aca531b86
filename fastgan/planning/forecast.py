"""The memory, messages and time of a run on GPUs that aren't here, from a count of its work and their data sheets."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from fastgan.config import BATCH_NORM_IN_D, Config
from fastgan.planning.hardware import Cluster, Gpu, StepTime, all_reduce_bytes, gpu_named, num_messages

if TYPE_CHECKING:  # torch is imported when work is counted, not for a mistake on the command line
    from fastgan.planning.op_counter import Sizes, StepCost

FLOAT = 4  # bytes: weights, gradients and optimizers' states are float32
ROOM = 0.9  # of a GPU's memory; the rest is for what isn't counted
DRAWN = "stacked-mnist"  # is drawn batch by batch, never kept


@dataclass(frozen=True)
class Forecast:
    """What one GPU of the cluster does and holds in a step. `work` is that of `work.images` of its share at a time."""

    config: Config
    cluster: Cluster
    share: int  # images of the busiest GPU
    work: "StepCost"
    data_bytes: int | None  # of the data set in memory; None: it isn't here, so nobody knows

    @property
    def gpu(self) -> Gpu:
        return gpu_named(self.cluster.gpu)

    @property
    def parts(self) -> int:
        """How often a step goes through the networks with a part of the share."""
        return -(-self.share // self.work.images)

    @property
    def operations(self) -> float:
        return self.parts * self.work.operations

    @property
    def bytes_accessed(self) -> float:
        """Read and written in a step."""
        return self.parts * self.work.bytes_accessed

    @property
    def data_is_unknown(self) -> bool:
        return self.data_bytes is None

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes a GPU by part, when a step is at its fullest."""
        return lasting_bytes(self.config, self.work.sizes, self.cluster.gpus, self.cluster.zero_stage) | {
            "data set": self.data_bytes or 0,
            "activations kept for the backward pass": self.work.fullest.kept,
            "temporaries of the backward pass": self.work.fullest.peak - self.work.fullest.kept,
        }

    @property
    def needed(self) -> float:
        """Bytes a GPU, all parts together."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.needed <= ROOM * 1e9 * self.gpu.memory

    @property
    def communication_bytes(self) -> float:
        """What each GPU sends in a step: gradients, and with zero3 weights, for every pass through a network."""
        sizes, gpus = self.work.sizes, self.cluster.gpus
        learned = FLOAT * (sizes.G + sizes.D)
        if self.cluster.zero_stage < 3:
            return all_reduce_bytes(gpus, learned)
        g_passes, d_passes = self._gathers()
        gathered = FLOAT * (g_passes * sizes.G + d_passes * sizes.D)
        return (gpus - 1) / gpus * (learned + gathered)

    def _gathers(self) -> tuple[int, int]:
        """How often zero3 collects the weights of G and D: for each pass, and once after the step."""
        return self.parts * self.work.g_passes + 1, self.parts * self.work.d_passes + 1

    @property
    def messages(self) -> int:
        """One after the other: buckets of gradients, and with zero3 layers' weights."""
        if self.cluster.gpus == 1:
            return 0
        sizes = self.work.sizes
        buckets = num_messages(FLOAT * sizes.G) + num_messages(FLOAT * sizes.D)
        if self.cluster.zero_stage < 3:
            return buckets
        g_passes, d_passes = self._gathers()
        return buckets + g_passes * sizes.g_layers + d_passes * sizes.d_layers

    @property
    def time(self) -> StepTime:
        """Seconds of a step."""
        reached = self.cluster.reached(self.config.networks.network)
        flops = {kind: count * self.share / self.work.images for kind, count in self.work.flops.items()}
        sending = self.communication_bytes / (1e9 * self.cluster.link)
        return StepTime(
            arithmetic=sum(count / (reached * self.gpu.peak(kind)) for kind, count in flops.items()),
            memory=self.bytes_accessed / (1e9 * self.gpu.memory_bandwidth),
            launches=1e-6 * self.cluster.launch_us * self.operations,
            exchange=sending + 1e-6 * self.cluster.hop_us * self.cluster.hops * self.messages,
        )


def forecast(config: Config, cluster: Cluster, num_images: int | None, at_a_time: int | None = None) -> Forecast:
    """Return the run's forecast; `num_images` is the data set's, None where it isn't here.

    A GPU takes its share of the batch `at_a_time`, None: as a whole. Raises UserError for networks that can't be
    built, and where a GPU would have no image.
    """
    from fastgan.planning import op_counter

    share = cluster.local_batch_size(config.data.batch_size)
    work = op_counter.count(config, min(share, at_a_time or share))
    return Forecast(config, cluster, share, work, _resident_bytes(config, num_images))


def in_parts(found: Forecast) -> Forecast | None:
    """Return the same run with fewer images at a time, as many as fit: a power of two. None where no number would fit.

    A step's peak grows evenly with its images, so that of one and that of the share tell all others.
    """
    from fastgan.planning import op_counter

    if found.config.networks.network in BATCH_NORM_IN_D or found.work.images == 1:
        return None
    one, now = op_counter.count(found.config, 1), found.work
    an_image = (now.fullest.peak - one.fullest.peak) / (now.images - 1)
    spare = ROOM * 1e9 * found.gpu.memory - (found.needed - now.fullest.peak) - one.fullest.peak
    most = min(now.images - 1, 1 + spare // an_image)
    if most < 1:
        return None
    return replace(found, work=op_counter.count(found.config, 2 ** (int(most).bit_length() - 1)))


def _resident_bytes(config: Config, num_images: int | None) -> int | None:
    """Bytes of the pixels that are kept on the device, 0 where none are; None where that can't be known yet."""
    if config.data.data == DRAWN or config.run.loader not in ("auto", "in_memory"):
        return 0
    if num_images is None:
        return None
    (height, width), word = config.data.image_size, 8
    size = num_images * -(-height * width * config.data.channels // word) * word
    return size if config.run.loader == "in_memory" or size <= config.run.in_memory_gib * 2**30 else 0


def lasting_bytes(config: Config, sizes: "Sizes", gpus: int = 1, zero_stage: int = 0) -> dict[str, float]:
    """Return what stays from step to step. ZeRO divides it as its paper says (Rajbhandari 2019, arXiv 1910.02054)."""
    optimizer, learned = config.optimizer, FLOAT * (sizes.G + sizes.D)
    states = {"adam": 2, "rmsprop": 1}[optimizer.optimizer]
    averages = len(optimizer.ema_names) + len(optimizer.power_names)

    def divided(size: float, from_stage: int) -> float:
        return size / gpus if zero_stage >= from_stage else size

    gradients = {"gradients of one player": divided(FLOAT * max(sizes.G, sizes.D), 2)}  # they go with its step
    if gpus > 1 and not zero_stage:
        gradients = {"gradients, in DDP's buckets": learned}  # which stay, and of which gradients are views
    return {
        "weights": divided(learned, 3) + sizes.g_buffer_bytes + sizes.d_buffer_bytes,
        **gradients,
        f"{optimizer.optimizer}'s states": divided(states * learned, 1),
        "ZeRO's own copy of the weights": learned / gpus if zero_stage else 0,
        f"averages of G ({averages})": averages * (FLOAT * sizes.G + sizes.g_buffer_bytes),
    }
