"""What all benchmarks share: rounds taken in turn, medians with their spread, and the words beside every figure."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from fastgan.config import Config
from fastgan.data.batch import Batch
from fastgan.runs.run_folder import session

RESULTS = Path(__file__).parent / "results"


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes, the device's part of it included."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each measure's value in each round; within a round they follow one another."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return values


def spread(values: list[float], digits: int = 1) -> str:
    """`median (lowest - highest)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def row(*cells: str) -> str:
    """A table's row."""
    return f"| {' | '.join(cells)} |"


def head(*columns: str) -> str:
    """A table's first two lines."""
    return f"{row(*columns)}\n|{' --- |' * len(columns)}"


def processor() -> str:
    """The processor's or GPU's name and how many threads or which memory it computes with."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return f"{', '.join(sorted(names)) or platform.processor()}, {torch.get_num_threads()} threads"


def matmul_peak(arithmetic: str = "float32", tries: int = 8) -> float:
    """FLOP/s of the fastest of a few large square matrix products, in float32, tf32 or bfloat16."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
    try:
        return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(tries))
    finally:
        torch.set_float32_matmul_precision(before)


class DrawnLoader:
    """Batches of random images of a config's kind, which are on the device already."""

    num_images = 10**9

    def __init__(self, config: Config, device: torch.device) -> None:
        size, channels, classes = config.data.batch_size, config.data.channels, config.networks.num_classes
        draws = torch.Generator().manual_seed(0)
        shape = (1 if config.objective.reuse_reals else 2, size, channels, *config.data.image_size)
        pixels = torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8)
        self._pixels = [part.to(device).contiguous(memory_format=torch.channels_last) for part in pixels]
        self._index = torch.arange(size, device=device)
        self._labels = self._index % classes if classes else None

    def batch(self, images_seen: int) -> Batch:
        index = self._index + images_seen
        of_d, *of_g = [Batch(pixels, self._labels, index, len(index)) for pixels in self._pixels]
        return replace(of_d, of_g=of_g[0]) if of_g else of_d


def save(theme: str, title: str, table: str) -> Path:
    """The result stands in results/, with everything needed to make it again."""
    path = result_path(theme)
    path.parent.mkdir(exist_ok=True)
    path.write_text(document(title, table))
    return path


def result_path(theme: str) -> Path:
    """Return the file in results/ of a theme, this machine and this month."""
    name = f"{theme}-{processor().split(',')[0]}-{datetime.now(UTC):%Y-%m}".lower().replace(" ", "-")
    return RESULTS / f"{''.join(c for c in name if c.isalnum() or c in '-.')}.md"


def document(title: str, table: str, commit: str | None = None) -> str:
    """Return a results file's text; `commit` is the tree's where git can't say it."""
    made = session()
    versions = ", ".join(f"{package} {version}" for package, version in made["packages"].items())
    return (
        f"# {title}\n\n{table}\n\n- machine: {processor()}, {made['machine']}\n"
        f"- versions: Python {made['python']}, {versions}\n"
        f"- commit: {made['commit'] or commit}\n- command: `{made['command']}`\n- made: {made['started']}\n"
    )
