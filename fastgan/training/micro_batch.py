"""How many images a process takes through the networks at a time: as asked, as memory allows, as the run remembers.

micro_batch.json   in the run folder: the largest that fitted there, for that batch, on so many of those devices
"""

import json
from collections.abc import Callable

import torch

from fastgan.config import Config
from fastgan.distributed.collectives import all_reduce_min
from fastgan.distributed.processes import Processes
from fastgan.errors import UserError
from fastgan.networks import example_labels
from fastgan.runs.run_folder import RunFolder
from fastgan.training import schedules
from fastgan.training.objectives import DiscriminatorObjective
from fastgan.training.trainer import Trainer
from fastgan.utils import rng
from fastgan.utils.files import write_atomically
from fastgan.utils.memory import in_smaller_parts
from fastgan.utils.rng import RngStream


def settle(trainer: Trainer, folder: RunFolder, processes: Processes) -> None:
    """Give the trainer its micro-batch, the same on all processes; the folder remembers it, now and when it changes.

    Raises UserError where not even one image fits.
    """
    config, key = trainer.config, _key(trainer.config, processes)
    asked, known = config.run.micro_batch, _read(folder, key)
    if asked == "auto" and known is None and processes.device.type == "cuda":
        with trainer.G.gathered_params(), trainer.D.gathered_params():
            known = find(trainer.max_local_batch_size, lambda size: try_out(trainer, size))
        processes.print(f"micro_batch: {known} of {trainer.max_local_batch_size} images fit at a time")
    sizes = [size for size in (asked, known) if isinstance(size, int)]
    trainer.micro_batch_size = all_reduce_min(min(sizes, default=trainer.max_local_batch_size))
    if asked == "auto":
        _write(folder, key, trainer.micro_batch_size)


def note_shortage(config: Config, folder: RunFolder, processes: Processes, size: int) -> None:
    """Note that memory ran out: the folder remembers the smaller micro-batch, and the user is told."""
    print(f"memory ran out: micro_batch is {size} from now on; what is learned stays the same", flush=True)
    _write(folder, _key(config, processes), size)


def find(share: int, attempt: Callable[[int], None]) -> int:
    """Return the largest of size, size / 2, size / 4 … whose attempt doesn't run out of memory. Raises UserError."""

    def fitting(size: int) -> int:
        attempt(size)
        return size

    try:
        return in_smaller_parts(share, fitting)
    except torch.OutOfMemoryError as error:
        raise UserError(f"not even one image fits into memory ({error}): use smaller networks or images") from None


def try_out(trainer: Trainer, size: int) -> None:
    """Compute and drop both players' gradients of `size` images, beside optimizers' states as large as ever.

    Nothing is learned and no process waits for another. Raises torch.OutOfMemoryError.
    """
    config, G, D = trainer.config, trainer.G.net, trainer.D.net
    index = torch.arange(size, device=next(D.parameters()).device)
    labels = example_labels(config.networks, index)
    z = rng.normal(rng.keys(config.seed, RngStream.LATENTS_D, index), config.networks.z_dim)
    hparams = schedules.evaluate(config, 0, config.data.batch_size, 0)
    weights = [*G.parameters(), *D.parameters()]
    lasting = [torch.empty_like(weight) for weight in weights for _ in range(3)]  # Adam's states, the gradients' sums
    G.eval()  # BatchNorm's statistics stay as they are
    try:
        with torch.no_grad():
            reals = torch.zeros_like(G(z, labels))
        loss, _ = DiscriminatorObjective(D, config)(reals, reals, labels, index, hparams.gamma, hparams.augment_p)
        torch.autograd.grad(loss, list(D.parameters()), allow_unused=True)
        del loss
        loss, _ = trainer.g_objective(reals, G(z, labels), labels, index, hparams.augment_p)
        torch.autograd.grad(loss, list(G.parameters()), allow_unused=True)
    finally:
        G.train()
        del lasting


def _key(config: Config, processes: Processes) -> dict[str, object]:
    """What a size that fitted is good for."""
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "CPU"
    return {"batch_size": config.data.batch_size, "processes": processes.world_size, "device": device}


def _read(folder: RunFolder, key: dict[str, object]) -> int | None:
    """Return what the folder remembers of this machine."""
    try:
        kept = json.loads(folder.micro_batch.read_text())
        size = int(kept.pop("micro_batch"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return size if kept == key else None


def _write(folder: RunFolder, key: dict[str, object], size: int) -> None:
    write_atomically(folder.micro_batch, json.dumps({**key, "micro_batch": size}).encode())
