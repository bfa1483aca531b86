"""What a checkpoint must hold for training to resume from it, whatever its hashes say."""

import math
from collections.abc import Mapping
from typing import Any

from fastgan.config import Config
from fastgan.runs.checkpoint import STATE, Checkpoint


def fault(found: Checkpoint, config: Config) -> str | None:
    """Say what of the checkpoint a trainer of the config can't resume from; None where it can."""
    state, optimizer = found.state, config.optimizer
    files = ["G", "D", "optimizers", *optimizer.power_names, *optimizer.ema_names]
    if config.objective.augment_target is not None:
        files.append("augment")
    if missing := [name for name in files if name not in found.tensors]:
        return f"{missing[0]}.safetensors is missing"
    if not isinstance(state.get("warm", False), bool):
        return f"{STATE} has warm {state['warm']!r}"
    scales = state.get("loss_scales", {})
    if not isinstance(scales, dict) or not all(_is_scale(scale) for scale in scales.values()):
        return f"{STATE} has loss_scales {scales!r}"
    meter = state.get("meter")
    return None if _is_meter(meter) else f"{STATE} has meter {meter!r}"


def _is_scale(scale: Any) -> bool:
    """Whether it is what a loss's scaler keeps: finite numbers, its scale above 0, or nothing where it is off."""
    return _has_numbers(scale) and (not scale or scale.get("scale", 0) > 0)


def _is_meter(meter: Any) -> bool:
    """Whether it has sums and numbers of values by name, of one process or a list of each one's, and a count."""
    if not isinstance(meter, dict) or not _is_count(meter.get("count")):
        return False
    sums, times = meter.get("sums"), meter.get("times")
    rows: list[Any] = sums if isinstance(sums, list) else [sums]
    counts: list[Any] = times if isinstance(times, list) else [times] * len(rows)
    if len(rows) != len(counts) or not all(map(_has_numbers, (*rows, *counts))):
        return False
    alike = all(row.keys() == rows[0].keys() <= count.keys() for row, count in zip(rows, counts, strict=True))
    return alike and all(value >= 0 for count in counts for value in count.values())


def _is_count(value: Any) -> bool:
    """Whether it is a whole number, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _has_numbers(values: Any) -> bool:
    """Whether it maps names to finite numbers."""
    return isinstance(values, Mapping) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values.values()
    )
