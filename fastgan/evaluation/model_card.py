"""An export's README.md: a model card, as the Hugging Face hub shows it."""

import re
from collections.abc import Sequence
from typing import Any

import fastgan
from fastgan.config import Config
from fastgan.data.record import DatasetRecord
from fastgan.errors import UserError
from fastgan.runs.exported import METRICS, SAMPLES

MOST_CLASSES = 100  # that the card lists
PROTOCOL = ("num_fakes", "num_reals", "extractor", "extractor_weights", "split")

CARD = """\
---
{header}
---

# {title}

A GAN's generator of {size} images in one step, trained by fastgan with the preset {preset}.

![{count} images, of the seeds 0 to {last}]({samples})

## Use

With fastgan {version} or later:

```python
import fastgan
g = fastgan.load("{name}")
images = g.pil(range(16))  # Pillow's, of 16 seeds
```

`fastgan sample {name} --seeds 0-63` makes files. A seed's image is the same
wherever it is made, but for rounding.

## Facts

| | |
| --- | --- |
{facts}

## Metrics

{metrics}

## Limits

The images are like those of the data set, its gaps and biases included; other pictures the generator can't make. Seeds
don't say what an image will show. Nobody has looked for images that repeat one of the data set. The license of the
weights is what the header says; what the data's license asks for isn't known here.
"""


def card(
    name: str | None,
    config: Config,
    about: dict[str, str],
    record: DatasetRecord | None,
    rows: Sequence[dict[str, Any]],
    num_samples: int,
    license_name: str | None,
) -> str:
    """Return the card of what `name` loads from the hub; words of the run and its data are escaped."""
    from huggingface_hub import ModelCardData

    known = {"license": license_name} if license_name else {"license": "other", "license_name": "unknown"}
    tags = ["gan", "image-generation", "fastgan", config.networks.network]
    header = ModelCardData(library_name="fastgan", pipeline_tag="unconditional-image-generation", tags=tags, **known)
    height, width = config.data.image_size
    return CARD.format(
        header=header.to_yaml(),
        title=escape(name or config.run_dir.name),
        size=f"{height}x{width}x{config.data.channels}",
        version=fastgan.__version__,
        preset=escape(config.preset),
        count=num_samples,
        last=num_samples - 1,
        samples=SAMPLES,
        name=name or "path/to/this/folder",
        facts="\n".join(f"| {key} | {value} |" for key, value in _facts(config, about, record)),
        metrics=_metrics(rows),
    )


def check_license(name: str | None) -> None:
    """Raise UserError unless the license is named as the hub names it, or not at all."""
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", name):
        raise UserError(f"license is {name!r}: give it as the hub names it, like apache-2.0 or cc-by-4.0")


def escape(text: object) -> str:
    """Return the text for Markdown as it is, on one line: none of it is markup, HTML or a link."""
    shown = "".join(char if char.isprintable() else " " for char in str(text))
    marked = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(shown.split()))
    return marked.replace("\\&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")


def _facts(config: Config, about: dict[str, str], record: DatasetRecord | None) -> list[tuple[str, object]]:
    networks, data = config.networks, "not known"
    if record is not None:
        data = (
            f"{escape(record.name)}, {record.num_images:,} images, hash of their content {escape(record.content_hash)}"
        )
    facts: list[tuple[str, object]] = [
        ("network", escape(networks.network)),
        ("latents", f"{networks.z_dim} normal numbers"),
        ("images seen in training", f"{int(about['images_seen']):,}"),
        ("weights", f"the average {escape(about['average'])}"),
        ("data", data),
    ]
    if networks.condition == "vector":
        facts.append(("condition", f"a vector of {networks.vector_dim} numbers"))
    if networks.num_classes:
        names = ((record and record.classes) or [])[:MOST_CLASSES]
        more = networks.num_classes - len(names)
        shown = ", ".join(map(escape, names)) + (f" and {more} more" if names and more else "")
        facts.append(("classes", f"{networks.num_classes}: {shown}" if names else networks.num_classes))
    return facts


def _metrics(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each protocol, which stands before it; the whole of it is in metrics.json."""
    parts = []
    for row in rows:
        protocol = ", ".join(f"{escape(key)} {escape(row['protocol'].get(key))}" for key in PROTOCOL)
        lines = [f"| {escape(metric)} | {value:.4g} |" for metric, value in row["metrics"].items()]
        parts.append(
            "\n".join([f"Of these weights, by {protocol}:", "", "| metric | value |", "| --- | --- |", *lines])
        )
    end = f"The whole protocol is in {METRICS}." if rows else "Of these weights nothing was measured."
    return "\n\n".join([*parts, end])
