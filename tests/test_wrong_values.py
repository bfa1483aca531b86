"""Whatever is typed, and whatever a damaged run holds: one line, no traceback, no endless loop, nothing lost."""

import dataclasses
import json
import shutil
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import refusal
from PIL import Image

from fastgan import cli
from fastgan.commands import train
from fastgan.commands.doctor import DoctorOptions
from fastgan.commands.ema import EmaOptions
from fastgan.commands.evaluate import EvaluateOptions
from fastgan.commands.new import NewOptions
from fastgan.commands.report.page import ReportOptions
from fastgan.commands.sample import SampleOptions
from fastgan.commands.walk import WalkOptions
from fastgan.config import Config
from fastgan.data.preparation.info import InfoOptions
from fastgan.data.preparation.prepare import PrepareOptions
from fastgan.planning.hardware import Cluster
from fastgan.presets import PRESETS, parse_config
from fastgan.runs import resume_state
from fastgan.runs.checkpoint import Checkpoints, _hash_json
from fastgan.runs.run_folder import RunFolder
from fastgan.training.schedules import preset_gamma_note
from fastgan.utils.stop import StopRequest

pytestmark = pytest.mark.usefixtures("keep_signal_handlers", "here")

TINY = ("--preset", "debug", "--data", "toy", "--images", "16", "--batch-size", "8", "--width", "0.02")
SHORT = ("--minutes", "0.001")  # where a wrong value is right, and asks for years
HUGE = str(10**30)
WORST = {  # by the kind of an option
    "int": ("-1", HUGE, str(2**40), "nan", ""),
    "float": ("nan", "1e308", "-1", "1e-300"),
    "Path": ("a\0b", "FILE/x", "x" * 300, "\udcff"),
    "str": ("", "\0", "\udcff", "FILE/x"),
    "Literal": ("word",),
}


def options(kind: Any) -> Iterator[tuple[str, str]]:
    """The flags of a dataclass, those of its parts too, and what their values are."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if "Positional" in str(hint) or "bool" in str(hint):
            continue
        if dataclasses.is_dataclass(hint):
            yield from options(hint)
        else:
            of = next((word for word in WORST if word in str(hint).replace("pathlib", "")), None)
            if of is not None:
                yield f"--{'class' if name == 'class_number' else name.replace('_', '-')}", of


def ends_well(args: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with the command's end, None where nothing is: it did it, or says in one line why not."""
    try:
        code = cli.main(args)
    except Exception as error:
        return f"{args}: {type(error).__name__}: {error}"[:300]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastgan: ")]
    return None if code == 0 or (code in (1, 2, 3) and len(said) <= 1) else f"{args}: exit {code}, {said}"


def wrong(commands: Sequence[str], kind: Any, capsys: pytest.CaptureFixture[str], most: int = 5) -> list[str]:
    """What ends badly of the command with each wrong value of each of its options."""
    (here := Path("FILE")).write_text("no folder")
    found = []
    for flag, of in options(kind):
        for value in WORST[of][:most]:
            twice = 2 if flag in ("--image-size", "--betas") else 1
            if (fault := ends_well([*commands, flag, *[value] * twice], capsys)) is not None:
                found.append(fault)
    assert here.read_text() == "no folder"
    return found


def test_training(capsys: pytest.CaptureFixture[str]) -> None:
    """No wrong value of any of train's options is a traceback."""
    assert wrong(["train", *TINY, *SHORT, "--run-dir", "run"], Config, capsys, most=2) == []


@pytest.fixture
def folder(here: Path) -> Path:
    """A folder of nine grey images."""
    for number in range(9):
        path = Path("images") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (28, 28), 20 * number).save(path)
    return Path("images")


def test_other_commands(debug_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is one of any other command's options."""
    run = str(debug_run)
    prepared = ["data", "prepare", str(folder), "prepared", "--size", "8", "--workers", "1"]
    assert cli.main(prepared) == 0
    commands: list[tuple[list[str], Any]] = [
        (["plan", *TINY], Cluster),
        (["evaluate", run, "--images", "4", "--extractor", "digits"], EvaluateOptions),
        (["sample", run, "--seeds", "0-1", "--out", "out"], SampleOptions),
        (["walk", run, "--seeds", "0-1", "--frames", "2", "--grid", "1", "--out", "walk.gif"], WalkOptions),
        (["ema", run, "--length", "0.1"], EmaOptions),
        (["report", run, "--out", "report.html"], ReportOptions),
        (["doctor", run], DoctorOptions),
        (prepared, PrepareOptions),
        (["data", "info", "prepared"], InfoOptions),
        (["new", "toy"], NewOptions),
    ]
    found = [fault for command, kind in commands for fault in wrong(command, kind, capsys)]
    assert found == [], "\n".join(found)
    places = ["", "FILE", "FILE/x", "a\0b", "nowhere", "/dev/null", "\udcff", "images"]
    commands = [([*verb.split()], None) for verb in ("evaluate", "sample", "walk", "report", "doctor", "data info")]
    assert [fault for verb, _ in commands for place in places if (fault := ends_well([*verb, place], capsys))] == []


# Memory


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--z-dim", "1000000000"], ["z_dim 1000000000", "GB"]),
        (["--width", "1e6"], ["width 1e+06", "GB"]),
        (["--width", "1e308"], ["width 1e+308", "no machine"]),
        (["--image-size", "1000000", "1000000"], ["image_size 1000000 1000000", "GB"]),
        (["--channels", "9999999999"], ["channels 9999999999", "GB"]),
        (["--grid-side", "100000"], ["grid_side 100000", "GB"]),
        (["--threads", "100000"], ["threads is 100000", "cores"]),
        (["--loader", "torch", "--workers", "100000"], ["workers is 100000", "cores"]),
        (["--epochs", "1e308"], ["epochs is 1e+308", "fewer"]),
        (["--timeout-s", "1e300"], ["timeout_s is 1e+300", "31,536,000"]),
        (["--ema-stds", "1e-300"], ["ema_stds is (1e-300,)", "0.001"]),
        (["--blocks", "1000000000"], ["blocks is 1000000000", "1,000"]),
        (["--run-dir", "a\0b"], ["run_dir is 'a\\x00b'", "NUL"]),
        (["--run-dir", "\udcff"], ["run_dir is '\\udcff'", "UTF-8"]),
    ],
)
def test_what_no_machine_holds(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What memory, threads or 64 bits can't hold is refused in one line that names the value, before it is taken."""
    before = psutil.Process().memory_info().rss
    assert cli.main(["train", *TINY[:4], *([] if "--epochs" in args else TINY[4:6]), *args]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and all(word in text for word in words), text
    assert psutil.Process().memory_info().rss - before < 2**28


def test_memory_that_processes_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU all processes of this machine take of its memory: what one has room for, two haven't."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = parse_config([*TINY, "--loader", "in_memory", "--run-dir", "run"])
    for free, word in ((1_450_000, "loader is in_memory"), (1_000_000, "adam's states")):
        monkeypatch.setattr("fastgan.utils.memory.free_bytes", lambda device, free=free: free)
        said = refusal(lambda: train.train(config, StopRequest()))
        assert word in said and "in each of 2 processes of this machine" in said and "or start fewer" in said, said
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train._sharers(torch.device("cpu")) == 0 and train._sharers(torch.device("cuda")) == 1


@pytest.mark.parametrize("free", [700_000, 600_000, 1_000])
def test_planned_memory(free: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the weights, their optimizers and averages, and the data need is compared with what is free."""
    monkeypatch.setattr("fastgan.utils.memory.free_bytes", lambda device: free)
    assert cli.main(["train", *TINY, "--loader", "in_memory", "--run-dir", "run"]) == 2
    said = capsys.readouterr().err
    assert "free" in said and ("loader is in_memory" in said if free == 700_000 else "adam's states" in said), said
    assert not Path("run/checkpoints").exists()


# Data sets and presets


def test_a_batch_that_is_too_large(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names a number that does, and with that number it does."""
    args = ["train", *TINY, "--data", str(folder), "--run-dir", "run"]
    assert cli.main([*args, "--batch-size", "16"]) == 2
    assert "has only 9 images; give --batch-size 9 or less" in capsys.readouterr().err
    assert cli.main([*args, "--batch-size", "9"]) == 0


def test_an_evaluation_that_cannot_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one real or generated image it is refused before the first step, and by `evaluate` before anything is made."""
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    args = ["train", *TINY, "--data", str(folder), "--batch-size", "1", "--run-dir", "run", "--extractor", "digits"]
    assert cli.main([*args, "--eval-every", "16"]) == 2
    said = capsys.readouterr()
    assert "10,000 generated" not in said.err and "1 real images: metrics need two" in said.err
    assert "--eval-every 0" in said.err and not Path("run/log.jsonl").exists()
    assert cli.main([*args, "--eval-every", "0"]) == 0
    assert cli.main(["evaluate", "run", "--extractor", "digits"]) == 2
    assert "1 real images" in capsys.readouterr().err and not Path("run/evaluation.jsonl").exists()


RECIPE = "gamma 150 and gamma_end 15: ffhq256's, for 256x256 and batches of 256"


@pytest.mark.usefixtures("folder")
def test_a_presets_gamma_at_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    """At another size it is said in one line, with the rule's value: by the plan, at the start and by doctor."""
    recipe = "--preset ffhq256 --image-size 28 28 --stages 8 8 8 --channels 1 --batch-size 9 --group-width 0"
    recipe += " --augment none --augment-p 0 --precision float32 --eval-every 0 --images 9 --data images"
    args = recipe.split()
    for verb in (["train", "--dry-run"], ["plan"], ["train", "--run-dir", "run"], ["doctor", "run"]):
        assert cli.main([*verb, *(args if verb != ["doctor", "run"] else [])]) == 0
        said = capsys.readouterr().out
        assert said.count(RECIPE) == 1 and "it would be --gamma 51 --gamma-end 5.1" in said, said


@pytest.mark.parametrize(
    "args",
    [
        "",
        "--gamma 51 --image-size 128 128 --stages 8 8 8 8 8 8",
        "--batch-size 200",
        "--image-size 128 128 --stages 8 8 8 8 8 8 --batch-size 64",
        "--penalty none --image-size 128 128 --stages 8 8 8 8 8 8",
    ],
)
def test_a_gamma_that_fits(args: str) -> None:
    """Nothing is said of a gamma that is the user's own, or for as many pixels over the batch size, or nearly."""
    assert preset_gamma_note(parse_config(["--preset", "ffhq256", *args.split()])) is None


# Damaged runs


CONFIGS = (
    "",
    "[]",
    "null",
    "[" * 2000,
    '{"data": 3}',
    '{"run": []}',
    '{"preset": 5}',
    '{"seed": "a"}',
    '{"seed": true}',
    '{"data": {"batch_size": "8"}}',
    '{"data": {"batch_size": 8.5}}',
    '{"data": {"image_size": [28]}}',
    '{"networks": {"stages": 3}}',
    '{"networks": {"stages": ["a"]}}',
    '{"networks": {"width": NaN}}',
    '{"objective": {"loss": "none"}}',
    '{"objective": {"gamma": "1"}}',
    '{"optimizer": {"betas": [0, 0.9, 0.9]}}',
    '{"run": {"run_dir": 5}}',
    '{"run": {"epochs": null}}',
)


@pytest.mark.parametrize("text", CONFIGS)
def test_a_config_that_is_wrong(text: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values of another type or none at all in a config.json are one line, of every command that reads it."""
    (here / "config.json").write_text(text)
    for verb in ("doctor", "sample", "report"):
        assert cli.main([verb, "."]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_every_preset_is_read_as_it_was_written() -> None:
    """No field of any preset is taken for one of another type."""
    for name in PRESETS:
        config = parse_config(["--preset", name, "--run-dir", "x", "--ema-stds", "0.1"])
        assert Config.from_json(config.to_json()) == config


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states") / "run"
    assert cli.main(["train", *TINY, "--checkpoint-every", "8", "--log-every", "3", "--run-dir", str(folder)]) == 0
    return folder


def sums(meter: Any, value: Any) -> Any:
    return {**meter, "sums": [{"loss/D": value}], "times": [{"loss/D": 1.0}]}


STATES: dict[str, Any] = {  # what becomes of a whole state
    "no images_seen": lambda state: {name: value for name, value in state.items() if name != "images_seen"},
    "images_seen is text": lambda state: state | {"images_seen": "16"},
    "images_seen is NaN": lambda state: state | {"images_seen": float("nan")},
    "images_seen is negative": lambda state: state | {"images_seen": -16},
    "images_seen is a fraction": lambda state: state | {"images_seen": 16.0},
    "images_seen is another": lambda state: state | {"images_seen": 8},
    "images_seen is nothing": lambda state: state | {"images_seen": None},
    "warm is text": lambda state: state | {"warm": "no"},
    "no meter": lambda state: {name: value for name, value in state.items() if name != "meter"},
    "meter is a list": lambda state: state | {"meter": []},
    "meter has no count": lambda state: state | {"meter": {"sums": [], "times": []}},
    "count is negative": lambda state: state | {"meter": state["meter"] | {"count": -1}},
    "count is NaN": lambda state: state | {"meter": state["meter"] | {"count": float("nan")}},
    "no sums": lambda state: state | {"meter": {"times": [], "count": 0}},
    "sums is a number": lambda state: state | {"meter": state["meter"] | {"sums": 3}},
    "a sum is NaN": lambda state: state | {"meter": sums(state["meter"], float("nan"))},
    "a sum is text": lambda state: state | {"meter": sums(state["meter"], "1")},
    "fewer times than sums": lambda state: state | {"meter": sums(state["meter"], 1.0) | {"times": []}},
    "a time is negative": lambda state: state | {"meter": sums(state["meter"], 1.0) | {"times": [{"loss/D": -1}]}},
    "loss_scales is a list": lambda state: state | {"loss_scales": [1]},
    "a scale is zero": lambda state: state | {"loss_scales": {"G": {"scale": 0.0}}},
    "the state is a list": lambda state: [*state],
    "the state is nothing": lambda state: None,
}


def tamper(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change what the newest checkpoint's state.json holds, and its hash with it; returns the checkpoint."""
    path = Checkpoints(run / "checkpoints").paths()[-1] / "state.json"
    content = json.loads(path.read_text())
    change(content)
    content["sha256"] = _hash_json(content["files"], content["state"])
    path.write_text(json.dumps(content))
    return path.parent


@pytest.mark.parametrize("kind", STATES)
def test_a_state_that_is_wrong_though_its_hash_is_right(kind: str, two_checkpoints: Path) -> None:
    """It is a damaged checkpoint, and the one before is taken."""
    run, said = Path(shutil.copytree(two_checkpoints, "run")), list[str]()
    path = tamper(run, lambda content: content.update(state=STATES[kind](content["state"])))
    fault = partial(resume_state.fault, config=RunFolder(run).read_config())
    found = Checkpoints(run / "checkpoints").latest(said.append, fault)
    assert found is not None and found.state["images_seen"] == 8
    assert len(said) == 1 and said[0].startswith(f"checkpoint {path} is damaged (") and "\n" not in said[0]


def test_training_resumes_before_a_wrong_state(two_checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that began the run resumes from the checkpoint before, and ends as it did."""
    run = Path(shutil.copytree(two_checkpoints, "run"))
    path = tamper(run, lambda content: content["state"].pop("meter"))
    assert cli.main(["train", *TINY, "--checkpoint-every", "8", "--log-every", "3", "--run-dir", "run"]) == 0
    said = capsys.readouterr().out
    assert f"{path} is damaged (" in said and f"resuming {run} at 8 of 16 images" in said
    ours, theirs = (folder / "checkpoints" / path.name / "G.safetensors" for folder in (run, two_checkpoints))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_checkpoint_without_a_file_it_needs(two_checkpoints: Path) -> None:
    """Where the list of files itself lacks one, with the hash that fits, the checkpoint before is taken."""
    run, said = Path(shutil.copytree(two_checkpoints, "run")), list[str]()
    tamper(run, lambda content: content["files"].pop("optimizers.safetensors"))
    fault = partial(resume_state.fault, config=RunFolder(run).read_config())
    found = Checkpoints(run / "checkpoints").latest(said.append, fault)
    assert found is not None and found.state["images_seen"] == 8 and "optimizers.safetensors is missing" in said[0]
