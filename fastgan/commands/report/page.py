"""`fastgan report RUN [RUN …]`: one HTML page of a run, or of several side by side, with everything in it.

The page needs no network and no other file. Without its script it still shows all but the values under the pointer and
the slider; printed, it shows key frames in their place.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jinja2
import tyro

from fastgan import __version__
from fastgan.commands.report import embed
from fastgan.commands.report.charts import Line, Plot, thinned
from fastgan.commands.report.record import Measurement, Record, best_known, differences, explained, headline, shown
from fastgan.config import flat
from fastgan.errors import UserError
from fastgan.monitor import chart_groups
from fastgan.utils.files import write_atomically

if TYPE_CHECKING:
    from fastgan.commands.doctor import Diagnosis

TEMPLATE = Path(__file__).with_name("report.html")
BUDGET = 7_500_000  # bytes of pictures in a page, of all runs together
KEY_FRAMES = 6  # shown where nothing moves
COLORS = 8
PICTURES = (  # file in the run folder, heading, what it shows
    ("real_and_fake.png", "Real and generated", "real images on the left, generated ones on the right"),
    ("classes.png", "By class", "a row a class, a column a seed"),
    ("walk.png", "Between seeds", "each row goes from one seed to another"),
)


@dataclass(frozen=True)
class ReportOptions:
    """Write one self-contained HTML page of a run, or of several side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The run folders."""
    out: Path | None = None
    """The file; without it report.html in the run folder, or here where there are several."""
    metric: str | None = None
    """The metric that heads the page; without it, a distance to the real images."""


def records_of(paths: Sequence[Path]) -> list[Record]:
    """Return the runs, with names that tell them apart. Raises UserError for a folder without a run that has begun."""
    if not paths:
        raise UserError("fastgan report needs a run folder")
    records = [Record(path) for path in dict.fromkeys(paths)]
    names = [record.name for record in records]
    for record in records:
        if names.count(record.name) > 1:
            record.name = str(record.path)
    return records


def plots_of(records: Sequence[Record]) -> list[tuple[str, list[Plot]]]:
    """Return the charts by group.

    Of one run figures that belong together share a chart; of several, each figure has its own.
    """
    series = [_curves(record) for record in records]
    names = list(dict.fromkeys(name for found in series for name in found))
    x_end = max(record.images_seen for record in records)
    groups = []
    for group, charts in chart_groups.groups_of(names).items():
        plots: list[Plot] = []
        for chart, on_it in charts:
            if len(records) == 1:
                lines = [Line(name, thinned(series[0][name]), k % COLORS) for k, name in enumerate(on_it)]
                plots.append(Plot(chart.title, lines, x_end))
            else:
                plots += [_overlaid(name, records, series, x_end) for name in on_it]
        groups.append((group, plots))
    return groups


def _curves(record: Record) -> dict[str, list[tuple[float, float]]]:
    """Every figure's curve; a full measure that was taken once is in the table of metrics, and no curve."""
    return {name: found for name, found in record.series().items() if len(found) > 1 or not name.startswith("full/")}


def _overlaid(name: str, records: Sequence[Record], series: Sequence[dict[str, Any]], x_end: float) -> Plot:
    lines = [
        Line(record.name, thinned(found[name]), number % COLORS)
        for number, (record, found) in enumerate(zip(records, series, strict=True))
        if name in found
    ]
    return Plot(name, lines, x_end)


def metric_table(columns: Sequence[tuple[str, Measurement]]) -> dict[str, Any]:
    """Return metrics and protocol as rows, a column a measurement."""
    metrics = list(dict.fromkeys(name for _, found in columns for name in found.metrics))
    protocol = list(dict.fromkeys(name for _, found in columns for name in found.protocol))
    return {
        "heads": [(name, f"{found.images_seen:,} images seen") for name, found in columns],
        "metrics": [
            (name, *explained(name), [four(found.metrics.get(name)) for _, found in columns]) for name in metrics
        ],
        "protocol": [(name, [found.protocol.get(name, "-") for _, found in columns]) for name in protocol],
    }


def four(value: float | None) -> str:
    """Return a figure to four digits."""
    return "-" if value is None else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds >= 60 else f"{seconds:.0f} s"


def facts(record: Record, metric: str | None) -> list[tuple[str, str]]:
    """Return the run in a few words and figures."""
    config = record.config
    height, width = config.data.image_size
    kind = {1: "gray", 3: "RGB"}.get(config.data.channels, f"{config.data.channels} channels")
    told = f", {config.networks.num_classes} classes" * (config.networks.num_classes > 0)
    if config.networks.condition == "vector":
        told = f", vectors of {config.networks.vector_dim} numbers"
    found = [
        ("data", f"{Path(config.data.data).name}, {width}x{height} {kind}"),
        ("networks", f"{config.networks.network}{told}"),
        ("images seen", f"{record.images_seen:,}"),
    ]
    if seconds := record.seconds:
        found.append(("training time", duration(seconds)))
        found.append(("images a second", four(record.images_seen / seconds)))
    if (best := best_known(record, metric)) is not None and metric is not None:
        found.append((metric, four(best.metrics[metric])))
    return found


def settings(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return all settings by section."""
    config = record.config
    own = {"preset": config.preset, "seed": config.seed, "transfer": config.transfer}
    sections = {"run": own} | {name: flat(getattr(config, name)) for name in ("data", "networks", "objective")}
    sections |= {"optimizer": flat(config.optimizer), "session": flat(config.run)}
    return [(name, [(key, shown(value)) for key, value in values.items()]) for name, values in sections.items()]


def pictures(record: Record, budget: int) -> dict[str, Any]:
    """Return the run's images as text, within `budget` bytes. Raises OSError where one can't be read."""

    def alt(path: Path) -> str:
        return f"samples after {int(path.stem):,} images seen"

    grids = record.grids
    others = [one for one in PICTURES if (record.path / one[0]).exists()]
    gif = embed.gif(record.folder.gif, grids, "all grids of the run in motion", budget * 3 // 10)
    ends = [grids[0], grids[-1]] if len(grids) > 1 else grids
    before_after = embed.fitting(ends, [alt(path) for path in ends], budget * 15 // 100)
    shown = embed.fitting([record.path / one[0] for one in others], [one[2] for one in others], budget * 15 // 100)
    frames = embed.frames(grids, alt, budget * 4 // 10) if len(grids) > 2 else []
    return {
        "ends": before_after,
        "gif": gif,
        "others": [(head, made) for (_, head, _), made in zip(others, shown, strict=False)],
        "frames": [
            (made, made.alt.removeprefix("samples after "), number in embed.spread(len(frames), KEY_FRAMES))
            for number, made in enumerate(frames)
        ],
    }


def diagnosis(record: Record) -> "Diagnosis":
    """Return what `fastgan doctor` says of the run."""
    from fastgan.commands.doctor import RunHistory, diagnose

    return diagnose(RunHistory(record.config, record.log, record.performance))


def page(records: list[Record], metric: str | None) -> str:
    """Return the page. Raises OSError where an image can't be read."""
    budget = BUDGET // len(records)
    groups = plots_of(records)
    several = len(records) > 1
    best = [(record, best_known(record, metric)) for record in records]
    runs: list[dict[str, Any]] = [
        {
            "name": record.name,
            "anchor": "run-" + re.sub(r"\W+", "-", f"{number}-{record.name}"),
            "color": (number - 1) % COLORS,
            "preset": record.config.preset,
            "facts": facts(record, metric),
            "table": metric_table([("", found) for found in record.measurements()]),
            "from_preset": record.from_preset,
            "settings": settings(record),
            "sessions": record.sessions,
            "commands": record.commands(),
            "pictures": pictures(record, budget),
            "has_grids": bool(record.grids),
            "diagnosis": diagnosis(record),
        }
        for number, record in enumerate(records, start=1)
    ]
    return (
        _environment()
        .get_template(TEMPLATE.name)
        .render(
            title=records[0].name if not several else f"{len(records)} runs",
            runs=runs,
            groups=groups,
            plots=[plot.to_json() for _, plots in groups for plot in plots],
            differences=differences([record.config for record in records]) if several else [],
            comparison=metric_table([(record.name, found) for record, found in best if found]) if several else None,
            fact_names=list(dict.fromkeys(name for run in runs for name, _ in run["facts"])),
            metric=metric,
            version=__version__,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _environment() -> jinja2.Environment:
    """Templates in which whatever a run says is escaped."""
    loader = jinja2.FileSystemLoader(TEMPLATE.parent)
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "four": four,
        "dict_of": dict,
        "moment": lambda text: text.replace("T", " ").replace("+00:00", " UTC"),
    }
    return made


def report(options: ReportOptions) -> Path:
    """Write the page; return its path. Raises UserError where there is no run, nothing in it, or no room for it."""
    records = records_of(options.runs)
    metric = headline(records, options.metric)
    out = options.out or (records[0].path / "report.html" if len(records) == 1 else Path("report.html"))
    try:
        text = page(records, metric).encode()
    except OSError as error:
        raise UserError(f"cannot read {error.filename or 'a picture of the run'} ({error.strerror or error})") from None
    try:
        write_atomically(out, text)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}): give another --out") from None
    print(f"{', '.join(record.name for record in records)}: {out} ({len(text) / 1e6:.1f} MB)")
    return out
