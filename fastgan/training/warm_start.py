"""`--transfer RUN`: a run whose networks start from another run's weights, wherever names and shapes agree.

Only a run's first session looks at RUN. It writes a checkpoint before its first step, from which all later ones go on,
also where RUN has trained on or is gone. Optimizers and the adaptive augmentation start anew.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.runs.checkpoint import Checkpoints, Snapshot
from fastgan.runs.run_folder import RunFolder
from fastgan.training.trainer import Trainer
from fastgan.utils.files import write_atomically

NUM_NAMED = 3  # of the tensors that start anew, on the console; all are in the run folder


@dataclass(frozen=True)
class Agreement:
    """Which tensors of a network are another's of the same name and shape, and why the others aren't."""

    taken: list[str]
    anew: dict[str, str]
    share: float  # of the network's parameters that are taken over

    def __str__(self) -> str:
        percent = 100 * self.share if self.share in (0, 1) else min(99.9, max(0.1, 100 * self.share))
        return f"{len(self.taken)} of {len(self.taken) + len(self.anew)} tensors ({percent:.3g}% of the parameters)"


@dataclass(frozen=True)
class Transfer:
    """What a run takes over from another one's checkpoint."""

    run: Path
    images_seen: int  # of that checkpoint
    G: Agreement
    D: Agreement

    def __str__(self) -> str:
        """The summary, on one line."""
        anew = [f"{side}.{name} ({why})" for side in "GD" for name, why in getattr(self, side).anew.items()]
        more = f" and {len(anew) - NUM_NAMED} more" if len(anew) > NUM_NAMED else ""
        named = f"; anew: {', '.join(anew[:NUM_NAMED])}{more}" if anew else ""
        return f"transfer from {self.run} at {self.images_seen:,} images: G {self.G}, D {self.D}{named}"

    def save(self, path: Path) -> None:
        """The file lists every tensor. Raises OSError."""
        content = asdict(self) | {"run": str(self.run)}
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def open_start(config: Config) -> Snapshot | None:
    """The newest whole checkpoint of the run that the config starts from; None where it starts from none.

    Raises UserError where there is no run, no checkpoint, or a run of another family of networks.
    """
    if config.transfer is None:
        return None
    folder = RunFolder(config.transfer)
    if not folder.config.exists():
        raise UserError(f"transfer is {str(folder.path)!r}: there is no run; name the folder of one, or leave it out")
    theirs, ours = folder.read_config().networks.network, config.networks.network
    if theirs != ours:
        raise UserError(
            f"transfer is {str(folder.path)!r}: its network is {theirs}, not {ours}: no weights agree; "
            f"name another run, or give --network {theirs}"
        )
    snapshot = Checkpoints(folder.checkpoints).latest()
    if snapshot is None:
        raise UserError(f"transfer is {str(folder.path)!r}: it has no checkpoint yet; let it train on")
    return snapshot


def compare(config: Config, nets: tuple[nn.Module, nn.Module], start: Snapshot) -> Transfer:
    """What G and D would take over. Raises UserError where nothing agrees."""
    assert config.transfer is not None
    G, D = (_agreement(net, start.tensors[side]) for side, net in zip("GD", nets, strict=True))
    if not G.taken and not D.taken:
        raise UserError(
            f"transfer is {str(config.transfer)!r}: no tensor of G and D has the same name and shape there; "
            "give that run's --stages and --width, or leave it out"
        )
    return Transfer(config.transfer, start.state["images_seen"], G, D)


@torch.no_grad()
def take_over(trainer: Trainer, start: Snapshot, transfer: Transfer) -> None:
    """G and D have the other run's weights where they agree, the averages those of its first one."""
    for player, side, taken in ((trainer.G, "G", transfer.G.taken), (trainer.D, "D", transfer.D.taken)):
        player.load(player.weights() | {name: start.tensors[side][name] for name in taken}, {})
    for average in (*trainer.ema.nets, *trainer.power.nets):
        _copy(average, start.tensors["G_ema"], transfer.G.taken)
    trainer.warm = not transfer.G.anew


def _agreement(net: nn.Module, theirs: dict[str, Tensor]) -> Agreement:
    taken, anew = [], {}
    for name, value in net.state_dict().items():
        if name not in theirs:
            anew[name] = "not there"
        elif theirs[name].shape != value.shape:
            anew[name] = _difference(value, theirs[name])
        else:
            taken.append(name)
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    share = sum(sizes.get(name, 0) for name in taken) / max(1, sum(sizes.values()))
    return Agreement(taken, anew, share)


def _difference(ours: Tensor, theirs: Tensor) -> str:
    """Both shapes, as `3x64x1x1, not 1x64x1x1`."""
    mine, others = ("x".join(map(str, value.shape)) or "a number" for value in (ours, theirs))
    return f"{mine}, not {others}"


def _copy(net: nn.Module, theirs: dict[str, Tensor], names: list[str]) -> None:
    state = net.state_dict()
    for name in names:
        state[name].copy_(theirs[name])
