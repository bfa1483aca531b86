"""What `accelerate launch` and its files ask for: the engine, which is taken over, and what fastgan's options decide.

A launch file is often another program's. What it asks for and doesn't get is named, a line each.
"""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgan.errors import UserError

CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
NOTHING = ("", "no", "none", "auto", "default", "false", "0", "0.0")
# Accelerate's variable, without ACCELERATE_: what it is called, and what decides instead.
VARIABLES = {
    "MIXED_PRECISION": ("mixed_precision", "fastgan's own --precision decides"),
    "DYNAMO_BACKEND": ("dynamo_backend", "fastgan's own --compile decides"),
    "DYNAMO_MODE": ("dynamo_mode", "fastgan's own --compile decides"),
    "DYNAMO_USE_FULLGRAPH": ("dynamo_use_fullgraph", "fastgan's own --compile decides"),
    "DYNAMO_USE_DYNAMIC": ("dynamo_use_dynamic", "fastgan's own --compile decides"),
    "DYNAMO_USE_REGIONAL_COMPILATION": ("dynamo_use_regional_compilation", "fastgan's own --compile decides"),
}
# How one process trains: Accelerate's own engines, which know one network only.
PLUGINS = {
    "USE_FSDP": ("FSDP", "give --engine zero3, which divides weights, gradients and states, too"),
    "USE_MEGATRON_LM": ("Megatron-LM", "give --engine zero3; fastgan's networks have no parts to divide"),
    "USE_PARALLELISM_CONFIG": ("parallelism_config", "give --engine ddp or zero1 to zero3"),
}
# What a DeepSpeed configuration may ask for, by its name there, and what decides instead.
DEEPSPEED = {
    "gradient_clipping": "fastgan clips no gradients; take it out",
    "gradient_accumulation_steps": "--batch-size counts all images of a step, --micro-batch those at a time",
    "optimizer": "--optimizer, --g-lr, --d-lr, --betas and --eps decide",
    "scheduler": "--g-lr-end, --d-lr-end and --burn-in decide",
    "train_batch_size": "--batch-size decides",
    "train_micro_batch_size_per_gpu": "--micro-batch decides",
    "fp16": "--precision decides",
    "bf16": "--precision decides",
    "activation_checkpointing": "--activation-checkpointing decides",
    "zero_optimization.offload_param": "--offload is of optimizers' states only",
}
# Of those, what may be said in variables, too.
DEEPSPEED_VARIABLES = {
    "GRADIENT_CLIPPING": "gradient_clipping",
    "GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "DEEPSPEED_OFFLOAD_PARAM_DEVICE": "zero_optimization.offload_param",
}
SILENT = ("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")


@dataclass(frozen=True)
class Wishes:
    """What the launcher asks for."""

    engine: str
    offload: bool  # optimizers' states on the host
    unused: list[str]  # a line for each wish that is not fulfilled


def read_wishes() -> Wishes:
    """Read the launcher's wishes once; Accelerate itself, which would start other engines, finds none from now on.

    Raises UserError where DeepSpeed's configuration can't be read.
    """
    unused = [
        _line(f"Accelerate's {name}", value, remedy)
        for variable, (name, remedy) in VARIABLES.items()
        if not _is_nothing(value := _variable(variable))
    ]
    for variable, (name, remedy) in PLUGINS.items():
        if os.environ.pop(f"ACCELERATE_{variable}", "false").lower() == "true":
            unused.append(_line(f"Accelerate's {name}", "on", remedy))
    if os.environ.pop("ACCELERATE_USE_DEEPSPEED", "false") != "true":
        return Wishes("ddp", False, unused)
    config = _deepspeed_config(os.environ.pop(CONFIG_FILE, "none"))
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", _variable("DEEPSPEED_ZERO_STAGE") or 2)
    device = _part(zero, "offload_optimizer").get("device") or _variable("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE")
    if str(stage) not in ("0", "1", "2", "3"):
        raise UserError(f"DeepSpeed's zero_optimization has stage {stage!r}: give 0, 1, 2 or 3")
    unused += _unused_of_deepspeed(config)
    return Wishes("ddp" if str(stage) == "0" else f"zero{stage}", device == "cpu", unused)


def _unused_of_deepspeed(config: dict[str, Any]) -> Iterator[str]:
    said = {name: _variable(variable) for variable, name in DEEPSPEED_VARIABLES.items()}
    zero = config.get("zero_optimization", {})
    said |= {name: value for name, value in config.items() if name not in ("zero_optimization", *SILENT)}
    if (params := _part(zero, "offload_param")).get("device"):
        said["zero_optimization.offload_param"] = params["device"]
    for name, value in said.items():
        one_step = name == "gradient_accumulation_steps" and str(value) == "1"
        if not one_step and not _is_nothing(value):
            remedy = DEEPSPEED.get(name, "fastgan sets up DeepSpeed itself")
            yield _line(f"DeepSpeed's {name}", _in_short(value), remedy)


def _deepspeed_config(text: str) -> dict[str, Any]:
    """The configuration that Accelerate's variable holds: a file's name, or its contents as JSON or in base64."""
    if text == "none":
        return {}
    try:
        if os.path.exists(text):  # noqa: PTH110  # unlike Path's, for names of any length
            text = Path(text).read_text()
        elif not text.lstrip().startswith("{"):
            text = base64.urlsafe_b64decode(text).decode()
        config = json.loads(text)
        _part(config, "zero_optimization")
    except (OSError, ValueError) as error:
        raise UserError(f"DeepSpeed's configuration {text[:80]!r} can't be read ({error}): give a JSON file") from None
    return dict(config)


def _part(config: Any, name: str) -> dict[str, Any]:
    """The section of that name, empty where there is none. Raises UserError where it is no section."""
    part = config.get(name) or {} if isinstance(config, dict) else None
    if not isinstance(part, dict):
        raise UserError(f"DeepSpeed's {name} is {part!r}: give a section of settings")
    return part


def _variable(name: str) -> str:
    return os.environ.get(f"ACCELERATE_{name}", "")


def _is_nothing(value: Any) -> bool:
    """Whether the setting asks for nothing."""
    if isinstance(value, dict):
        return not value.get("enabled", bool(value))
    return value is None or str(value).lower() in NOTHING


def _in_short(value: Any) -> str:
    return str(value.get("type", "on")) if isinstance(value, dict) else str(value)


def _line(name: str, value: str, remedy: str) -> str:
    return f"{name} is {value.lower()}: it isn't used, {remedy}"
