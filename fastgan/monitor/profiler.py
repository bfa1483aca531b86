"""A recording of some early steps: a trace that Perfetto or TensorBoard opens, and the largest costs in words.

profile/   in the run folder: HOST_PID.TIME.pt.trace.json.gz
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from fastgan.training.trainer import Hook, Trainer

SKIPPED, WARMED, RECORDED = 5, 1, 5  # steps: before all is warm, before the profiler itself is, in the trace
SHOWN = 10


class Profiler:
    """Within it, steps of this session are recorded as `events` come; then `say` gets the lines of the costs."""

    def __init__(self, folder: Path, device: torch.device, say: Callable[[str], None]) -> None:
        self._folder, self._say, self._on_gpu, self._done = folder, say, device.type == "cuda", False
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * self._on_gpu],
            schedule=schedule(skip_first=SKIPPED, wait=0, warmup=WARMED, active=RECORDED, repeat=1),
            on_trace_ready=self._finish,
            record_shapes=True,
            acc_events=True,
        )

    def schedule(self) -> list[Hook]:
        """Return what must happen after each step."""
        return [Hook(1, self.step)]

    def step(self, trainer: Trainer) -> None:
        if not self._done:
            self._profiler.step()

    def _finish(self, profiler: profile) -> None:
        tensorboard_trace_handler(str(self._folder), use_gzip=True)(profiler)
        self._done = True
        self._say(f"{self._folder} holds a trace of {RECORDED} steps: open it in ui.perfetto.dev or TensorBoard")
        for line in costs(profiler, self._on_gpu):
            self._say(line)

    def __enter__(self) -> "Profiler":
        self._profiler.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        done, self._done = self._done, True
        if not done:
            self._profiler.on_trace_ready = None
            self._say(f"nothing was recorded: it takes {SKIPPED + WARMED + RECORDED} steps in one session")
        self._profiler.stop()


def costs(profiler: profile, on_gpu: bool) -> list[str]:
    """Return share, milliseconds and calls a step of the operations in which most time was spent.

    What they call isn't counted with them.
    """
    found = profiler.key_averages()
    spent = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in found
        if not event.key.startswith("ProfilerStep")
    }
    total = sum(time for time, _ in spent.values()) or 1.0
    largest = sorted(spent.items(), key=lambda item: item[1][0], reverse=True)[:SHOWN]
    return [
        f"{time / total:6.1%}  {time / 1000 / RECORDED:9.3f} ms  {count / RECORDED:7.1f} calls a step  {name}"
        for name, (time, count) in largest
    ]
