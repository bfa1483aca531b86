import dataclasses
import json
import math
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import refusal

from fastgan import presets
from fastgan.config import (
    BATCH_NORM_IN_D,
    MAX_SEED,
    Config,
    DataConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    flat,
)
from fastgan.errors import UserError
from fastgan.training.losses import LOSSES


def changed(config: Config, section: str, **values: Any) -> Config:
    """The config with other values in one of its sections."""
    return replace(config, **{section: replace(getattr(config, section), **values)})


SECTIONS = {"data", "networks", "objective", "optimizer", "run"}
VARIANTS: dict[str, Callable[[], Config]] = {
    **presets.PRESETS,
    "default": Config,
    "run folder": lambda: changed(presets.debug(), "run", run_dir=Path("/some where/else"), images=7, eval_every=0),
    "weights": lambda: changed(presets.mnist28(), "run", inception_weights=Path("weights.pth"), epochs=0.5),
    "largest seed": lambda: replace(presets.mnist28(), seed=MAX_SEED),
    "text that looks like others": lambda: changed(presets.mnist28(), "data", data="null", image_size=(8, 9)),
    "small numbers": lambda: changed(presets.mnist28(), "optimizer", g_lr=1e-300, betas=(0.1 + 0.2, 0.0)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_json_round_trip(name: str) -> None:
    """A config that was written as JSON and read is equal to what it was, types included."""
    config = VARIANTS[name]()
    back = Config.from_json(config.to_json())
    assert back == config
    assert {field: type(value) for field, value in flat(back).items()} == {
        field: type(value) for field, value in flat(config).items()
    }
    assert back.run_dir == config.run_dir


def test_json_without_a_field() -> None:
    """A field that the JSON doesn't have, as an older version may have left it out, gets its default."""
    plain = json.loads(changed(Config(), "optimizer", eps=0.5).to_json())
    del plain["optimizer"]["ema_ramp"], plain["seed"]
    assert Config.from_json(json.dumps(plain)) == changed(Config(), "optimizer", eps=0.5)


@pytest.mark.parametrize("section", [None, *sorted(SECTIONS)])
def test_json_with_an_unknown_field(section: str | None) -> None:
    """JSON with a field that this version doesn't know, at the top or in a section, is refused by its name."""
    plain = json.loads(Config().to_json())
    (plain if section is None else plain[section])["g_warmth"] = 1
    with pytest.raises(UserError, match="g_warmth") as caught:
        Config.from_json(json.dumps(plain))
    assert "\n" not in str(caught.value)


def test_json_is_checked() -> None:
    """A wrong value in JSON is refused like any other."""
    plain = json.loads(Config().to_json())
    plain["data"]["batch_size"] = 0
    with pytest.raises(UserError, match="batch_size is 0"):
        Config.from_json(json.dumps(plain))


WRONG: list[tuple[type, str, Any]] = [
    (Config, "seed", -1),
    (Config, "seed", MAX_SEED + 1),
    (DataConfig, "data", ""),
    (DataConfig, "image_size", (0, 28)),
    (DataConfig, "image_size", (28, -1)),
    (DataConfig, "channels", 0),
    (DataConfig, "batch_size", 0),
    (DataConfig, "batch_size", -256),
    (NetworkConfig, "z_dim", 0),
    (NetworkConfig, "width", 0.0),
    (NetworkConfig, "width", math.inf),
    (NetworkConfig, "stages", (64, 0)),
    (NetworkConfig, "blocks", 0),
    (NetworkConfig, "expansion", 0),
    (NetworkConfig, "group_width", -1),
    (NetworkConfig, "num_classes", -1),
    (ObjectiveConfig, "label_smoothing", -0.1),
    (ObjectiveConfig, "label_smoothing", 0.5),
    (ObjectiveConfig, "gamma", -1.0),
    (ObjectiveConfig, "gamma", math.nan),
    (ObjectiveConfig, "gamma_end", math.inf),
    (ObjectiveConfig, "penalty_every", 0),
    (ObjectiveConfig, "logit_centring", -0.01),
    (ObjectiveConfig, "augment_p", 1.5),
    (ObjectiveConfig, "augment_p", -0.1),
    (OptimizerConfig, "g_lr", 0.0),
    (OptimizerConfig, "g_lr", math.nan),
    (OptimizerConfig, "d_lr", -1e-4),
    (OptimizerConfig, "d_lr", math.inf),
    (OptimizerConfig, "betas", (1.0, 0.9)),
    (OptimizerConfig, "betas", (0.9, 1.5)),
    (OptimizerConfig, "betas", (-0.1, 0.9)),
    (OptimizerConfig, "betas", (0.9, math.nan)),
    (OptimizerConfig, "beta2_end", 1.0),
    (OptimizerConfig, "beta2_end", -0.1),
    (OptimizerConfig, "beta2_end", math.nan),
    (OptimizerConfig, "eps", 0.0),
    (OptimizerConfig, "rho", 1.0),
    (OptimizerConfig, "lr_decay", -1e-8),
    (OptimizerConfig, "g_lr_end", -1e-8),
    (OptimizerConfig, "d_lr_end", math.inf),
    (OptimizerConfig, "burn_in", -1),
    (OptimizerConfig, "ema_half_lives", (0.0,)),
    (OptimizerConfig, "ema_half_lives", (500.0, -1.0)),
    (OptimizerConfig, "ema_half_lives", (math.nan,)),
    (OptimizerConfig, "ema_half_lives", (500.0, math.inf)),
    (OptimizerConfig, "ema_ramp", 0.0),
    (OptimizerConfig, "ema_ramp", -0.05),
    (RunConfig, "epochs", 0.0),
    (RunConfig, "epochs", math.inf),
    (RunConfig, "epochs", math.nan),
    (RunConfig, "images", 0),
    (RunConfig, "log_every", 0),
    (RunConfig, "grid_every", 0),
    (RunConfig, "grid_side", -4),
    (RunConfig, "checkpoint_every", -1),
    (RunConfig, "keep_checkpoints", 0),
    (RunConfig, "eval_every", -1),
    (RunConfig, "health_every", -1),
    (RunConfig, "eval_images", 0),
]


@pytest.mark.parametrize(("section", "field", "value"), WRONG)
def test_wrong_value(section: type, field: str, value: Any) -> None:
    """A wrong value is refused in one line that has the field, the value and what would be right."""
    with pytest.raises(UserError) as caught:
        section(**{field: value})
    text = str(caught.value)
    assert text.startswith((f"{field} is {value!r}: give ", f"{field} is {value!r}: name "))
    assert "\n" not in text


def d_with_batch_norm(network: str, penalty: Any) -> Config:
    return Config(networks=NetworkConfig(network=network), objective=ObjectiveConfig(penalty=penalty))


# What can't work together: what makes it, the field that is refused, why, and the way out.
MISMATCHES: dict[str, tuple[Callable[[], Any], str, str, str]] = {
    "r1 of a D with BatchNorm": (
        lambda: d_with_batch_norm("dcgan128", "r1"),
        "penalty is 'r1': ",
        "D of dcgan128 has BatchNorm",
        "give --penalty none or --network r3gan",
    ),
    "wgan-gp of a D with BatchNorm": (
        lambda: d_with_batch_norm("dcgan128", "wgan-gp"),
        "penalty is 'wgan-gp': ",
        "no image has a gradient of its own",
        "give --penalty none or --network r3gan",
    ),
    "lazy penalty of the relativistic loss": (
        lambda: ObjectiveConfig(loss="relativistic", penalty="r1+r2", penalty_every=16),
        "penalty_every is 16: ",
        "make the relativistic loss unstable",
        "give 1",
    ),
    "relativistic loss with r1 alone": (
        lambda: ObjectiveConfig(loss="relativistic", penalty="r1"),
        "penalty is 'r1': ",
        "diverges with r1 alone",
        "give r1+r2",
    ),
    "smoothing of a loss without labels": (
        lambda: ObjectiveConfig(loss="hinge", label_smoothing=0.1),
        "label_smoothing is 0.1: ",
        "the loss hinge has no labels",
        "give 0 or --loss nonsaturating",
    ),
    "finite differences of wgan-gp": (
        lambda: ObjectiveConfig(loss="wasserstein", penalty="wgan-gp", penalty_form="finite-difference"),
        "penalty_form is 'finite-difference': ",
        "not wgan-gp",
        "give exact",
    ),
    "finite differences of nothing": (
        lambda: ObjectiveConfig(penalty_form="finite-difference"),
        "penalty_form is 'finite-difference': ",
        "not none",
        "give exact",
    ),
    "strength without an augmentation": (
        lambda: ObjectiveConfig(augment_p=0.3),
        "augment_p is 0.3: ",
        "no augmentation is chosen",
        "give --augment ada, or 0",
    ),
    "a target without an augmentation": (
        lambda: ObjectiveConfig(augment_target=0.6),
        "augment_target is 0.6: ",
        "no augmentation is chosen",
        "give --augment ada",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_mismatch(name: str) -> None:
    """What is known to fail is refused in one line with the field, its value, the reason and what would be right."""
    make, start, reason, remedy = MISMATCHES[name]
    text = refusal(make)
    assert text.startswith(start) and reason in text and text.endswith(remedy)


@pytest.mark.parametrize(
    "make",
    [
        lambda: d_with_batch_norm("dcgan128", "none"),
        lambda: d_with_batch_norm("dcgan28", "r1"),
        lambda: d_with_batch_norm("r3gan", "wgan-gp"),
        lambda: ObjectiveConfig(loss="relativistic", penalty="r1+r2"),
        lambda: ObjectiveConfig(loss="relativistic"),
        lambda: ObjectiveConfig(penalty="r1", penalty_every=16, penalty_form="finite-difference"),
        lambda: ObjectiveConfig(loss="hinge", penalty="r1+r2", penalty_form="finite-difference"),
        lambda: ObjectiveConfig(loss="wasserstein", penalty="wgan-gp", penalty_every=2),
        lambda: ObjectiveConfig(augment="ada", augment_p=0.3, augment_target=0.6),
        lambda: NetworkConfig(precision="bfloat16"),
        lambda: NetworkConfig(precision="float16"),
    ],
)
def test_match(make: Callable[[], Any]) -> None:
    """The refusals go no further than their reasons: what lies beside them is taken."""
    make()


def test_networks_with_batch_norm_in_d() -> None:
    """The networks whose D couples the images of a batch are the ones under which penalties are refused."""
    from fastgan import networks
    from fastgan.networks.layers import BatchNorm

    stages = {"r3gan": (8, 8, 8), "dcgan": (8, 8)}
    for network in networks.BUILDERS:
        config = changed(presets.debug(), "networks", network=network, stages=stages.get(network, ()), group_width=0)
        config = changed(config, "data", image_size=(128, 128) if network == "dcgan128" else (28, 28))
        _, D = networks.build(config)
        assert any(isinstance(module, BatchNorm) for module in D.modules()) == (network in BATCH_NORM_IN_D)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (Config, "seed", 0),
        (Config, "seed", MAX_SEED),
        (DataConfig, "image_size", (1, 1)),
        (DataConfig, "batch_size", 1),
        (OptimizerConfig, "betas", (0.0, 0.0)),
        (OptimizerConfig, "ema_half_lives", ()),
        (OptimizerConfig, "ema_half_lives", (1.0, 2.0)),
        (OptimizerConfig, "g_lr_end", 0.0),
        (OptimizerConfig, "burn_in", 0),
        (NetworkConfig, "group_width", 0),
        (ObjectiveConfig, "gamma", 0.0),
        (ObjectiveConfig, "label_smoothing", 0.499),
        (ObjectiveConfig, "penalty_every", 1),
        (RunConfig, "epochs", 1e-3),
        (RunConfig, "eval_every", 0),
        (RunConfig, "health_every", 0),
        (RunConfig, "eval_every", None),
        (RunConfig, "keep_checkpoints", 1),
    ],
)
def test_value_at_the_edge(section: type, field: str, value: Any) -> None:
    """The outermost right values are taken as they are."""
    assert getattr(section(**{field: value}), field) == value


def test_field_names_are_unique() -> None:
    """No two sections share a field's name: each is a flag, and a key of `flat`."""
    names = [part.name for part in dataclasses.fields(Config) if part.name not in SECTIONS]
    for section in (DataConfig, NetworkConfig, ObjectiveConfig, OptimizerConfig, RunConfig):
        names += [part.name for part in dataclasses.fields(section)]
    assert len(set(names)) == len(names)
    assert set(flat(Config())) == set(names)


def test_flat_has_the_values() -> None:
    """`flat` has each section's values under the fields' own names."""
    values = flat(changed(presets.mnist28(), "data", batch_size=17))
    assert values["batch_size"] == 17 and values["preset"] == "mnist28" and values["betas"] == (0.9, 0.999)


def test_differences_of_equal_configs() -> None:
    """A config has no differences from itself or from its copy by way of JSON."""
    config = presets.debug()
    assert config.differences(config) == []
    assert config.differences(Config.from_json(config.to_json())) == []


def another(kind: object, value: object) -> object:
    """A value that a field of this type may have as well."""
    if typing.get_origin(kind) is typing.Literal:
        return next(word for word in typing.get_args(kind) if word != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return Path("elsewhere") if Path in typing.get_args(kind) else 1


def test_differences_ignore_the_run() -> None:
    """Where to, how long and how often may change: every field of the run section at once is no difference."""
    kinds = typing.get_type_hints(RunConfig)
    ours = presets.debug().run
    other = RunConfig(**{name: another(kind, getattr(ours, name)) for name, kind in kinds.items()})
    assert all(getattr(other, part.name) != getattr(ours, part.name) for part in dataclasses.fields(RunConfig))
    assert presets.debug().differences(replace(presets.debug(), run=other)) == []


@pytest.mark.parametrize("loss", LOSSES)
def test_only_a_g_that_needs_reals_has_its_own(loss: str) -> None:
    """G's phase may have reals of its own exactly where G's loss compares with reals."""
    if LOSSES[loss].g_needs_reals:
        assert not ObjectiveConfig(loss=loss, reuse_reals=False).reuse_reals  # type: ignore[arg-type]
    else:
        wanted = f"reuse_reals is False: under the loss {loss} G sees no reals: give --reuse-reals"
        assert refusal(lambda: ObjectiveConfig(loss=loss, reuse_reals=False)).startswith(wanted)  # type: ignore[arg-type]


def test_configs_of_before_mean_what_they_meant() -> None:
    """A config without the two fields reuses D's reals in G's phase and augments pairs alike."""
    fields = json.loads(Config().to_json())
    for name in ("reuse_reals", "augment_pairs"):
        del fields["objective"][name]
    objective = Config.from_json(json.dumps(fields)).objective
    assert objective.reuse_reals and objective.augment_pairs


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("data", "data", "fashion-mnist"),
        ("data", "keep_partial_batch", False),
        ("networks", "width", 0.5),
        ("objective", "reuse_fakes", False),
        ("optimizer", "betas", (0.5, 0.99)),
    ],
)
def test_differences_name_the_rest(section: str, field: str, value: Any) -> None:
    """A field that decides what is learned is named with both values, and alone."""
    mine = presets.mnist28()
    assert mine.differences(changed(mine, section, **{field: value})) == [
        f"{field}: {getattr(getattr(mine, section), field)}, not {value}"
    ]


def test_differences_of_seed_and_several_fields() -> None:
    """The seed is a difference too, and several differences are all named."""
    mine = presets.mnist28()
    other = replace(changed(mine, "optimizer", g_lr=0.5, d_lr=0.25), seed=1)
    assert mine.differences(other) == ["seed: 0, not 1", "g_lr: 0.0001, not 0.5", "d_lr: 0.0001, not 0.25"]


def test_run_dir() -> None:
    """Without a run folder the run goes into runs/ and the preset's name."""
    assert presets.debug().run_dir == Path("runs/debug")
    assert changed(presets.debug(), "run", run_dir=Path("mine")).run_dir == Path("mine")


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_presets_bear_their_names(name: str) -> None:
    """A preset's config has the preset's name in it, and each call gives an equal one."""
    assert presets.get(name).preset == name
    assert presets.get(name) == presets.get(name)


def test_unknown_preset() -> None:
    """An unknown preset is refused with the names there are."""
    with pytest.raises(UserError, match="'mnist'") as caught:
        presets.get("mnist")
    assert all(name in str(caught.value) for name in presets.PRESETS)


def test_no_torch() -> None:
    """Config and presets are imported without torch and numpy."""
    code = "import sys, fastgan.config, fastgan.presets; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == "[]\n"
