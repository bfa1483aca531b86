"""Whether training runs compiled: torch.compile takes G and both players' objectives, penalties included, as a graph
each. But for rounding nothing changes except the speed.
"""

import torch

from fastgan.config import Config
from fastgan.distributed import Processes
from fastgan.errors import UserError
from fastgan.forecast import forecast
from fastgan.hardware import GPUS, Cluster
from fastgan.trainer import Trainer

COMPILE_S = 180.0  # until all graphs are compiled: 40 to 190 s were seen on two CPU cores
GAIN = 0.2  # of a GPU's eager step: assumed, not measured
UNKNOWN_GPU = "a100-40"  # what a GPU is taken for that isn't listed


def settle(trainer: Trainer, processes: Processes) -> None:
    """The trainer runs compiled where the config says so, with `auto` where that is expected to pay; on all alike.

    Raises UserError where it is asked for and can't be.
    """
    wish, config = trainer.config.run.compile, trainer.config
    if wish == "off":
        return
    reason = None if wish == "on" else no_gain(config, trainer.steps_to(trainer.total_images), processes)
    reason = reason or obstacle(config, processes)
    if wish == "on" and reason is not None:
        raise UserError(f"compile is on: {reason}; give --compile off")
    if processes.smallest(reason is None):
        processes.say("training runs compiled: the first steps take a minute or more")
        trainer.compile(config.run.cuda_graphs and processes.device.type == "cuda")
    elif processes.device.type == "cuda":
        processes.say(f"training isn't compiled: {reason or 'another process cannot'}")


def no_gain(config: Config, steps: int, processes: Processes) -> str | None:
    """Why so many steps of the whole run would not be done sooner; None where they would."""
    if processes.device.type != "cuda":
        return "convolutions take nearly all of a CPU's time, and stay what they are"
    kind = torch.cuda.get_device_name(processes.device).lower().replace(" ", "")
    gpu = next((name for name in GPUS if name.split("-")[0] in kind), UNKNOWN_GPU)
    saved = GAIN * steps * forecast(config, Cluster(processes.count, gpu), None).time.total
    return None if saved > COMPILE_S else f"it takes {COMPILE_S:.0f} s and would save about {saved:.0f} s of this run"


def obstacle(config: Config, processes: Processes) -> str | None:
    """Why nothing can be compiled here; None where a small function was. Takes some seconds."""
    if processes.engine == "zero3" and processes.count > 1:
        return "the engine zero3 moves weights while the networks run"
    if config.run.activation_checkpointing:
        return "compiled code decides by itself what it keeps, and activation_checkpointing is True"
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=processes.device))
    except Exception as error:  # whatever the compiler, its compiler or its driver raise
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return f"torch.compile fails here ({text}), a C++ compiler may be missing"
    return None
