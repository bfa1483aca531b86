from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from fastgan import presets
from fastgan.commands.evaluate import EvaluateOptions
from fastgan.config import Config, flat
from fastgan.errors import UserError
from fastgan.presets import parse_config
from fastgan.utils.arguments import parse


@dataclass(frozen=True)
class Bread:
    """A loaf."""

    grain: Literal["rye", "wheat"] = "rye"
    """What it is made of."""
    minutes: int = 45
    """In the oven."""
    seeds: bool = False
    """On top."""


def refusal(*args: str) -> str:
    """The text, one line, of the UserError to which these flags of `fastgan train` lead."""
    with pytest.raises(UserError) as caught:
        parse_config(args)
    text = str(caught.value)
    assert "\n" not in text and text == text.strip() and text
    assert not any(mark in text for mark in "│╭╮╰╯─")
    return text


def test_defaults() -> None:
    """Without flags the defaults stand: the class's, or those of the instance that is given."""
    assert parse(Bread, [], prog="bake") == Bread()
    assert parse(Bread, [], prog="bake", default=Bread("wheat", 30, True)) == Bread("wheat", 30, True)


def test_flags_stand_over_defaults() -> None:
    """A flag changes its own field and leaves the others as the default instance has them."""
    default = Bread("wheat", 30, True)
    assert parse(Bread, ["--minutes", "50"], prog="bake", default=default) == Bread("wheat", 50, True)
    assert parse(Bread, ["--no-seeds", "--grain=rye"], prog="bake", default=default) == Bread("rye", 30, False)


def test_no_flags_is_the_default_preset() -> None:
    """An empty command line is the default preset."""
    assert parse_config([]) == presets.get(presets.DEFAULT)


@pytest.mark.parametrize("args", [["--preset", "debug"], ["--preset=debug"]])
def test_preset(args: list[str]) -> None:
    """`--preset` names the config that the other fields come from."""
    assert parse_config(args) == presets.debug()


def test_flags_stand_over_the_preset() -> None:
    """Flags change the preset, wherever `--preset` stands; all other fields are the preset's."""
    flags = ["--batch-size", "8", "--betas", "0.25", "0.75", "--no-reuse-fakes", "--run-dir", "there", "--width=0.5"]
    wanted = flat(presets.debug()) | {
        "batch_size": 8,
        "betas": (0.25, 0.75),
        "reuse_fakes": False,
        "run_dir": Path("there"),
        "width": 0.5,
    }
    assert flat(parse_config(["--preset", "debug", *flags])) == wanted
    assert flat(parse_config([*flags, "--preset=debug"])) == wanted
    assert flat(presets.debug())["reuse_fakes"] is True


def test_a_flag_may_undo_the_preset() -> None:
    """A flag wins also where its value is the class's default, not the preset's."""
    assert parse_config(["--preset", "debug", "--batch-size", "256"]).data.batch_size == 256
    assert presets.debug().data.batch_size != 256


def test_every_field_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` shows a flag for every field, without a section's name before it, and ends with success."""
    with pytest.raises(SystemExit) as end:
        parse_config(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr()
    words = shown.out.replace(",", " ").split()
    for name in flat(Config()):
        assert f"--{name.replace('_', '-')}" in words, name
    assert "Images a step, all processes together." in " ".join(shown.out.replace("│", " ").split())
    assert shown.err == ""


def test_unknown_flag() -> None:
    """An unknown flag is named, with the nearest one and all the others."""
    text = refusal("--batchsize", "3")
    assert "'--batchsize'" in text and "did you mean --batch-size?" in text
    for name in flat(Config()):
        assert f"--{name.replace('_', '-')}" in text


def test_flags_of_other_verbs() -> None:
    """A flag that only a description names is no option of the verb: it isn't suggested, least of all to itself."""
    with pytest.raises(UserError, match="unknown option '--best-by': did you mean --best") as caught:
        parse(EvaluateOptions, ["run", "--best-by", "fd"], prog="fastgan evaluate")
    listed = str(caught.value).split("The options are ")[1].split(", ")
    assert "--images" in listed and not {"--best-by", "--ema-stds"} & {*listed}


def test_unknown_flag_like_no_other() -> None:
    """Where no flag is near, none is suggested."""
    text = refusal("--xyzzy=1")
    assert "'--xyzzy=1'" in text and "did you mean" not in text and "--batch-size" in text


def test_word_too_many() -> None:
    """A word that belongs to no flag is named."""
    assert "'everything'" in refusal("--seed", "1", "everything")


def test_wrong_kind_of_value() -> None:
    """A value that isn't a number where one is needed is named with its flag."""
    text = refusal("--batch-size", "many")
    assert "--batch-size" in text and "'many'" in text


def test_wrong_choice() -> None:
    """A word outside of a fixed list is named with its flag and the list."""
    text = refusal("--extractor", "alexnet")
    assert "'alexnet'" in text and "--extractor" in text
    assert all(f"'{word}'" in text for word in ("auto", "inception", "digits"))


@pytest.mark.parametrize("args", [["--batch-size"], ["--image-size", "28"], ["--preset"]])
def test_missing_value(args: list[str]) -> None:
    """A flag without its value, or with too few, is named."""
    assert args[0] in refusal(*args)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch-size", "0"], "batch_size is 0"),
        (["--batch-size", "-1"], "batch_size is -1"),
        (["--g-lr", "nan"], "g_lr is nan"),
        (["--betas", "0.5", "1"], "betas is (0.5, 1.0)"),
        (["--seed", "-1"], "seed is -1"),
        (["--images", "0"], "images is 0"),
        (["--epochs", "inf"], "epochs is inf"),
    ],
)
def test_value_out_of_range(args: list[str], said: str) -> None:
    """A value that the config refuses is refused with its field, the value and the remedy."""
    text = refusal(*args)
    assert said in text and "give" in text


def test_unknown_preset() -> None:
    """An unknown preset is named, with those there are."""
    text = refusal("--preset", "mnist")
    assert "'mnist'" in text and all(name in text for name in presets.PRESETS)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is an exception and prints nothing by itself."""
    for args in (["--batch-size", "many"], ["--xyzzy"], ["--extractor", "alexnet"], ["--seed", "-1"]):
        refusal(*args)
    assert capsys.readouterr() == ("", "")
