"""What stands together: figures on TensorBoard's custom page and on a report's, in the same groups and order.

A chart is a title and regular expressions; a figure is on it where one of them matches the start of its name.
"""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from fastgan.config import Config


def _always(config: Config) -> bool:
    return True


def _never(config: Config) -> bool:
    return False


def _is_stacked(config: Config) -> bool:
    return config.data.data == "stacked-mnist"


def _is_measured(config: Config) -> bool:
    return config.run.eval_every != 0 and not _is_stacked(config)


def _has_full(config: Config) -> bool:
    """Whether the measure at the end is of more images than the curve's: then the two don't share an axis."""
    run = config.run
    return _is_measured(config) and bool(run.eval_every) and run.eval_curve_images < run.eval_images


def _is_penalized(config: Config) -> bool:
    return config.objective.penalty != "none"


class Chart(NamedTuple):
    """Figures that share an axis, and of which runs to expect them."""

    title: str
    patterns: tuple[str, ...]
    is_expected: Callable[[Config], bool] = _always

    def has(self, name: str) -> bool:
        return any(re.match(pattern, name) for pattern in self.patterns)


def _measures(kind: str, is_expected: Callable[[Config], bool]) -> tuple[Chart, ...]:
    """Distances and what goes with them, of the figures KIND/NAME."""

    def may_be_digits(config: Config) -> bool:
        return is_expected(config) and config.data.channels == 1 and config.data.image_size == (28, 28)

    return (
        Chart("distance to the real images (less is better)", (f"{kind}/(fid|fd)_",), is_expected),
        Chart("kernel distance (less is better)", (f"{kind}/kid_(?!std)",), is_expected),
        Chart("precision and recall (more is better)", (f"{kind}/(precision|recall)_",), is_expected),
        Chart("density and coverage (more is better)", (f"{kind}/(density|coverage)_",), is_expected),
        Chart("inception score (more is better)", (f"{kind}/is_(?!std)",), is_expected),
        Chart("legible digits, shares of classes", (f"{kind}/(confident|min_class|max_class)",), may_be_digits),
    )


CHART_GROUPS: dict[str, tuple[Chart, ...]] = {
    "Losses and logits": (
        Chart("losses of G and D", ("loss/",)),
        Chart("D's logits of reals and fakes", ("logits/",)),
    ),
    "Metrics": (
        *_measures("metrics", _is_measured),
        Chart("divergence from equally frequent modes (less is better)", ("metrics/kl",), _is_stacked),
        Chart("modes found", ("metrics/modes$",), _is_stacked),
    ),
    "Full measures": _measures("full", _has_full),
    "Penalties and gradients": (
        Chart("norms of the gradients", ("grad_norm/",)),
        Chart("scales of the losses", ("loss_scale/",), lambda config: config.networks.precision == "float16"),
        Chart("gradient penalties", ("penalty/(?!share)",), _is_penalized),
        Chart("the penalties' share of D's loss", ("penalty/share$",), _is_penalized),
        Chart("augmentation", ("augment/",), lambda config: config.objective.augment_target is not None),
    ),
    "Health": (
        Chart("share that D judges right", ("health/d_accuracy",)),
        Chart("gaps between D's logits", (r"health/\w+_gap$",)),
        Chart("how steep D is", ("health/slope",)),
        Chart(
            "share that D rejects in another class (0.5: it doesn't care)",
            ("health/label",),
            lambda config: config.networks.is_conditional,
        ),
        Chart("diversity of samples, nearness to training images", ("health/(diversity|nearest)",)),
        Chart("share of saturated values", ("health/saturation",)),
        Chart("other signs", (r"health/(?!d_accuracy|\w+_gap$|slope|label|diversity|nearest|saturation)",), _never),
    ),
    "Performance": (
        Chart("images a second", ("speed/images_per_s$",)),
        Chart("share of time without a batch", ("speed/input_wait$",)),
        Chart("peak memory, GiB", ("speed/peak_memory_gib$",)),
        Chart("seconds beside training", (r"speed/(?!\w+_write_s$)\w+(?<!images_per)_s$",)),
        Chart("pauses of training to save, ms", (r"speed/\w+_pause_ms$",)),
        Chart("seconds of writing in the background", (r"speed/\w+_write_s$",)),
    ),
}


def groups_of(names: Collection[str]) -> dict[str, list[tuple[Chart, list[str]]]]:
    """Return the charts that some of the figures are on, with those figures, by group.

    Figures of no chart are left out.
    """
    groups = {}
    for group, charts in CHART_GROUPS.items():
        found = [(chart, [name for name in names if chart.has(name)]) for chart in charts]
        if kept := [(chart, on_it) for chart, on_it in found if on_it]:
            groups[group] = kept
    return groups


def custom_scalars(config: Config) -> dict[str, dict[str, list]]:
    """Return the charts to expect of a run, as TensorBoard's custom page takes them."""
    return {
        group: {chart.title: ["Multiline", list(chart.patterns)] for chart in charts if chart.is_expected(config)}
        for group, charts in CHART_GROUPS.items()
        if any(chart.is_expected(config) for chart in charts)
    }
