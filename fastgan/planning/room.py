"""Whether this machine has the memory that a run needs at least, told before any of it is taken."""

import torch

from fastgan import networks
from fastgan.config import Config
from fastgan.data.sampler import largest_local_batch
from fastgan.planning.forecast import FLOAT, lasting_bytes
from fastgan.planning.op_counter import sizes_of
from fastgan.utils.memory import require_free


def require_room(
    config: Config, device: torch.device, world_size: int = 1, zero_stage: int = 0, local_processes: int = 1
) -> None:
    """Raise UserError where what the run certainly takes of the device's memory is more than is free.

    On a CPU all `local_processes`, those of this machine, take it of the same memory.

    Activations aren't counted: they depend on the micro-batch, which becomes smaller where memory runs out.
    """
    needed = _needed(config, device, world_size, zero_stage)
    most = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in sorted(needed.items(), key=lambda p: -p[1])[:3])
    what = f"{networks.in_words(config)}, batch_size {config.data.batch_size}, grid_side {config.run.grid_side}"
    require_free(sum(needed.values()), device, what, f"give smaller numbers ({most})", local_processes)


def _needed(config: Config, device: torch.device, world_size: int, zero_stage: int) -> dict[str, float]:
    """Bytes by what they are for."""
    lasting = lasting_bytes(config, sizes_of(*networks.outline(config)), world_size, zero_stage)
    (height, width), run = config.data.image_size, config.run
    at_a_time = largest_local_batch(config.data.batch_size, world_size)
    if device.type == "cuda":  # there it is halved where memory runs out
        at_a_time = 1
    elif isinstance(run.micro_batch, int):
        at_a_time = min(at_a_time, run.micro_batch)
    image = height * width * config.data.channels
    latent = FLOAT * config.networks.z_dim
    return lasting | {
        "reals and fakes of a step": at_a_time * (2 * FLOAT * image + latent),
        "images of a grid": run.grid_side**2 * (FLOAT * image + 2 * image + latent),  # as numbers, bytes and a picture
    }
