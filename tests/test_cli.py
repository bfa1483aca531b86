import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import DEVICE

import fastgan
from fastgan import cli, networks, presets
from fastgan.commands import train
from fastgan.config import flat
from fastgan.data import named
from fastgan.data.loaders import build_loader
from fastgan.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("keep_signal_handlers", "here")

Main = Callable[[Sequence[str]], int]


def complaint(main: Main, args: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error with which the command ends; its exit code is 2."""
    assert main(args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("\n") and shown.err.count("\n") == 1
    assert shown.err.startswith("fastgan: error: ") and "Traceback" not in shown.err
    return shown.err


MISTAKES = {
    "preset": (["--preset", "mnist"], ["'mnist'", *presets.PRESETS]),
    "flag": (["--batchsize", "3"], ["'--batchsize'", "did you mean --batch-size", "--seed", "--run-dir"]),
    "kind of value": (["--batch-size", "many"], ["--batch-size", "'many'"]),
    "choice": (["--loader", "fast"], ["--loader", "'fast'", "'auto'", "'in_memory'"]),
    "range": (["--batch-size", "0"], ["batch_size is 0"]),
    "data set": (["--data", "mnits", "--dry-run"], ["'mnits'", *named.NAMES]),
    "network": (["--network", "dcgan29", "--dry-run"], ["'dcgan29'", *networks.BUILDERS]),
    "loss": (["--loss", "wasserstain", "--dry-run"], ["'wasserstain'", "nonsaturating"]),
    "size": (["--image-size", "30", "32", "--dry-run"], ["image_size is (30, 32)", "would do"]),
}


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.parametrize("verb", ["fastgan train", "fastgan/train.py"])
def test_mistake_in_training(verb: str, kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake on the training command, by either name, is one line with the right words, and makes no folder."""
    args, words = MISTAKES[kind]
    text = complaint(*((cli.main, ["train", *args]) if verb == "fastgan train" else (train.main, args)), capsys)
    assert all(word in text for word in words)
    assert list(here.iterdir()) == []


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown verb is named, with those there are."""
    text = complaint(cli.main, ["trian"], capsys)
    assert "'trian'" in text and all(verb in text for verb in ("train", "evaluate", "sample", "data"))


def test_unknown_option_without_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """An option in place of the verb is a mistake like an unknown verb."""
    assert "'--verbose'" in complaint(cli.main, ["--verbose"], capsys)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data"], ["fastgan data"]),
        (["data", "put", "mnist"], ["'put'", "'get'"]),
        (["data", "get", "mnits"], ["'mnits'", *named.NAMES]),
        (["data", "get", "toy", "now"], ["'now'"]),
        (["sample"], ["fastgan sample"]),
        (["sample", "nowhere", "--sedes", "3"], ["'--sedes'", "--seeds"]),
        (["evaluate"], ["fastgan evaluate"]),
        (["evaluate", "nowhere", "--images", "few"], ["--images", "'few'"]),
        (["evaluate", "nowhere"], ["nowhere is no run folder"]),
    ],
)
def test_mistakes_of_other_verbs(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in any other verb is one line with the right words too."""
    text = complaint(cli.main, args, capsys)
    assert all(word in text for word in words)


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_usage(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without a verb, or when asked, the usage is printed: it has every verb, and fits a screen."""
    assert cli.main(args) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") <= 40 and max(map(len, shown.out.splitlines())) <= 120
    assert all(f"\n  {verb} " in shown.out for verb in cli.VERBS) and shown.err == ""


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_help_of_each_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verb's `--help` names the verb and ends with success."""
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr()
    assert f"fastgan {verb}" in shown.out and shown.err == ""


def test_data_get_toy(capsys: pytest.CaptureFixture[str]) -> None:
    """`fastgan data get` of the drawn set succeeds and says that there is nothing to fetch."""
    assert cli.main(["data", "get", "toy"]) == 0
    assert capsys.readouterr().out == "toy: is drawn when it is used\n"


# The plan


def test_dry_run_of_mnist28(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan has both networks' sizes and the steps: 11,750 for fifty epochs; nothing is made or fetched."""
    assert train.main(["--preset", "mnist28", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    G, D = networks.build(presets.mnist28(), DEVICE)
    for name, net in (("G", G), ("D", D)):
        count = sum(parameter.numel() for parameter in net.parameters())
        assert f"{name}: {count:,} parameters\n" in shown
    assert "data: 60,000 images an epoch\n" in shown
    assert "50 epochs, 3,000,000 images, 11,750 steps" in shown and "runs/mnist28" in shown
    assert list(here.iterdir()) == [] and not (here.parent / "cache").exists()


def test_dry_run_of_one_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch of mnist28 has 235 steps, the last one partial; without partial batches fifty epochs have 11,719."""
    train.main(["--preset", "mnist28", "--dry-run", "--epochs", "1"])
    assert "1 epochs, 60,000 images, 235 steps" in capsys.readouterr().out
    train.main(["--preset", "mnist28", "--dry-run", "--no-keep-partial-batch"])
    assert "3,000,000 images, 11,719 steps" in capsys.readouterr().out


def test_dry_run_shows_the_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan begins with the resolved config, flags over preset, and names the folder that isn't made yet."""
    assert cli.main(["train", "--preset", "debug", "--seed", "11", "--run-dir", "new/run", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    config = presets.parse_config(["--preset", "debug", "--seed", "11", "--run-dir", "new/run", "--dry-run"])
    assert shown.startswith(config.to_json()) and flat(config)["seed"] == 11
    assert "into new/run\n" in shown and list(here.iterdir()) == []


@pytest.mark.parametrize(
    "args", [["--epochs", "1.0004"], ["--epochs", "0.0123"], ["--epochs", "2"], ["--images", "33"]]
)
def test_dry_run_tells_the_truth(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The images and steps of the plan are those that the trainer takes, also where an epoch is broken off."""
    config = presets.parse_config(["--preset", "debug", *args])
    loader = build_loader(config, named.load("toy"), DEVICE)
    trainer = Trainer(config, networks.build(config, DEVICE), loader)
    steps = seen = 0
    while seen < trainer.total_images:
        seen += loader.batch(seen).global_size
        steps += 1
    train.main(["--preset", "debug", *args, "--dry-run"])
    assert f" {trainer.total_images:,} images, {steps:,} steps," in capsys.readouterr().out


# The version


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`fastgan --version` prints the package's version."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastgan {fastgan.__version__}\n"


def test_version_of_the_program() -> None:
    """`fastgan --version` as a program prints the version and nothing else."""
    command = [sys.executable, "-m", "fastgan.cli", "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == f"fastgan {fastgan.__version__}\n" and answer.stderr == ""


def test_version_needs_nothing_heavy() -> None:
    """`fastgan --version` imports neither torch, numpy nor tyro."""
    code = (
        "import sys; from fastgan import cli; cli.main(['--version']);"
        "print(sorted({'torch', 'numpy', 'tyro'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_prepare_needs_no_torch() -> None:
    """`fastgan data prepare` starts without torch, whose import takes longer than a thousand images."""
    code = (
        "import sys; from fastgan import cli; cli.main(['data', 'prepare', 'nowhere', 'dest', '--size', '8']);"
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "False" and "there is no 'nowhere'" in answer.stderr


def test_a_clone_that_is_not_installed() -> None:
    """The script of a fresh clone says what to do first."""
    command = [sys.executable, "-S", Path(fastgan.__file__).parent / "train.py"]  # -S: nothing is installed
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("train.py: error: fastgan isn't installed: run `pip install -e .`")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """Output into a pipe that nobody reads any longer, as after `| head -1`, ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "fastgan.cli", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 2 and done.stderr == ""
