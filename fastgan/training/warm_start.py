"""`--transfer RUN`: a run whose networks start from another run's weights, wherever names and shapes agree.

Only a run's first session looks at RUN. It writes a checkpoint before its first step, from which all later ones go on,
also where RUN has trained on or is gone. Optimizers and the adaptive augmentation start from scratch.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgan.config import Config
from fastgan.errors import UserError
from fastgan.runs.checkpoint import Checkpoint, Checkpoints
from fastgan.runs.run_folder import RunFolder
from fastgan.training.trainer import Trainer
from fastgan.utils.files import write_atomically

NUM_NAMED = 3  # of the tensors that start from scratch, on the console; all are in the run folder


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a network are another's of the same name and shape, and why the others aren't."""

    loaded: list[str]
    from_scratch: dict[str, str]
    share: float  # of the network's parameters that are taken over

    def __str__(self) -> str:
        percent = 100 * self.share if self.share in (0, 1) else min(99.9, max(0.1, 100 * self.share))
        total = len(self.loaded) + len(self.from_scratch)
        return f"{len(self.loaded)} of {total} tensors ({percent:.3g}% of the parameters)"


@dataclass(frozen=True)
class Transfer:
    """What a run takes over from another one's checkpoint."""

    run: Path
    images_seen: int  # of that checkpoint
    G: LoadReport
    D: LoadReport

    def __str__(self) -> str:
        """The summary, on one line."""
        found = {"G": self.G, "D": self.D}
        fresh = [f"{side}.{name} ({why})" for side, net in found.items() for name, why in net.from_scratch.items()]
        more = f" and {len(fresh) - NUM_NAMED} more" if len(fresh) > NUM_NAMED else ""
        named = f"; from scratch: {', '.join(fresh[:NUM_NAMED])}{more}" if fresh else ""
        return f"transfer from {self.run} at {self.images_seen:,} images: G {self.G}, D {self.D}{named}"

    def save(self, path: Path) -> None:
        """List every tensor in the file. Raises OSError."""
        content = asdict(self) | {"run": str(self.run)}
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def open_start(config: Config) -> Checkpoint | None:
    """Return the newest whole checkpoint of the run that the config starts from; None where it starts from none.

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


def compare(config: Config, nets: tuple[nn.Module, nn.Module], start: Checkpoint) -> Transfer:
    """Return what G and D would take over. Raises UserError where nothing agrees."""
    assert config.transfer is not None
    G, D = (_report(net, start.tensors[side]) for side, net in zip("GD", nets, strict=True))
    if not G.loaded and not D.loaded:
        raise UserError(
            f"transfer is {str(config.transfer)!r}: no tensor of G and D has the same name and shape there; "
            "give that run's --stages and --width, or leave it out"
        )
    return Transfer(config.transfer, start.state["images_seen"], G, D)


@torch.no_grad()
def load_matching(trainer: Trainer, start: Checkpoint, transfer: Transfer) -> None:
    """Copy the other run's weights into G and D where they agree, those of its first average into the averages."""
    for player, side, taken in ((trainer.G, "G", transfer.G.loaded), (trainer.D, "D", transfer.D.loaded)):
        player.load_state_dict(player.state_dict() | {name: start.tensors[side][name] for name in taken}, {})
    for average in (*trainer.ema.nets, *trainer.power.nets):
        _copy(average, start.tensors["G_ema"], transfer.G.loaded)
    trainer.warm_started = not transfer.G.from_scratch


def _report(net: nn.Module, theirs: dict[str, Tensor]) -> LoadReport:
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
    return LoadReport(taken, anew, share)


def _difference(ours: Tensor, theirs: Tensor) -> str:
    """Both shapes, as `3x64x1x1, not 1x64x1x1`."""
    mine, others = ("x".join(map(str, value.shape)) or "a number" for value in (ours, theirs))
    return f"{mine}, not {others}"


def _copy(net: nn.Module, theirs: dict[str, Tensor], names: list[str]) -> None:
    state = net.state_dict()
    for name in names:
        state[name].copy_(theirs[name])
