"""README, docs and CONTRIBUTING: links lead somewhere, commands parse, examples run."""

import pkgutil
import re
import runpy
import shlex
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from conftest import DEVICE

from fastgan import networks, presets
from fastgan.cli import DATA_VERBS, USAGE, VERBS
from fastgan.config import Config
from fastgan.data.loaders import build_loader, open_dataset
from fastgan.presets import parse_config
from fastgan.training.losses import LOSSES, Loss
from fastgan.training.trainer import Trainer
from fastgan.utils.arguments import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(ROOT / f"{name}/README.md" for name in ("launch", "benchmarks", "kernels")),
    ]
)


BEFORE_FLAGS = {"train": 0, "sweep": 1, "import": 2}  # words before the options of `fastgan train`


def commands(text: str) -> list[str]:
    """The lines of a page that show a command, without their comments."""
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    starts = ("accelerate launch", "fastgan ", "launch/", "tensorboard ")
    return [line.split("  #")[0].strip() for line in lines if line.startswith(starts)]


def check(line: str) -> None:
    """Raise, or end, where the command isn't understood."""
    words = shlex.split(line)
    if words[0] == "accelerate":
        given = launch_command_parser().parse_args(words[2:])
        if given.module:
            assert given.training_script in ("fastgan.cli", "fastgan.train")
            verb = ["train"] * given.training_script.endswith("train")
            return check_verb([*verb, *given.training_script_args])
        assert (ROOT / given.training_script).exists()
        parse_config(given.training_script_args)
    elif words[0].startswith("launch/"):
        assert (ROOT / words[0]).exists()
    elif words[0] == "fastgan":
        check_verb(words[1:])


def check_verb(words: list[str]) -> None:
    verbs = {"data": DATA_VERBS}.get(words[0], VERBS)
    verb, *args = words[1:] if verbs is DATA_VERBS else words
    options = typing.get_type_hints(pkgutil.resolve_name(verbs[verb])).get("options")
    if options is not None:
        parse(options, args, prog=f"fastgan {verb}")
    elif verb in BEFORE_FLAGS:
        parse_config(args[BEFORE_FLAGS[verb] :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each link to a file of the project names one that is there, and each to a heading of this page, one it has."""
    text = page.read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_understood(page: Path) -> None:
    """Each command on the page parses, and names scripts that are there."""
    for line in commands(page.read_text()):
        check(line)


def test_commands_of_the_usage() -> None:
    """`fastgan` alone shows the tasks of README first, in its words, with commands that are understood."""
    tasks = re.findall(r"^\*\*(.*?)\.\*\*", (ROOT / "README.md").read_text(), re.MULTILINE)
    places = [USAGE.index(f"\n{task}") for task in tasks]
    assert len(tasks) == 5 and places == sorted(places) and places[-1] < USAGE.index("\n  new SRC ")
    for task, start, end in zip(tasks, places, [*places[1:], USAGE.index("\n  new SRC ")], strict=True):
        assert commands(USAGE[start:end]), task
    for line in commands(USAGE):
        check(line)


def test_wrong_commands_are_noticed() -> None:
    """A flag that doesn't exist is an error."""
    for line in ("accelerate launch fastgan/train.py --preset mnist28 --epoch 3", "fastgan sample runs/x --seed 3"):
        with pytest.raises(Exception, match=r"epoch|seed"):
            check(line)


def test_readme_is_short() -> None:
    """It has at most 150 lines; the rest is docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[Callable[[str], SimpleNamespace]]:
    """Runs the example under a heading of CONTRIBUTING.md, and takes back what it added."""
    losses, builders = dict(LOSSES), dict(networks.BUILDERS)

    def run(heading: str) -> SimpleNamespace:
        section = (ROOT / "CONTRIBUTING.md").read_text().split(f"\n## {heading}\n")[1]
        path = tmp_path / "example.py"
        path.write_text(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0])
        return SimpleNamespace(**runpy.run_path(str(path)))

    yield run
    for registry, before in ((LOSSES, losses), (networks.BUILDERS, builders)):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]


def test_example_of_a_loss(examples) -> None:
    """It is a loss as the others are: a value an image, and nothing to gain for a D that is sure."""
    examples("A loss")
    loss: Loss = LOSSES["margin"]
    sure = loss.d(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, -3.0]))
    assert sure.tolist() == [0, 0] and float(loss.d(torch.zeros(1), torch.zeros(1))) == 2


def test_example_of_a_network(examples) -> None:
    """It is built by its name, and trains."""
    examples("A network")
    config: Config = presets.get("debug")
    config = replace(config, networks=replace(config.networks, network="linear"))
    loader = build_loader(config, open_dataset(config), DEVICE)
    trainer = Trainer(config, networks.build(config, DEVICE), loader)
    before = trainer.G.net.dense.weight.clone()
    metrics = trainer.train_step(loader.batch(0))
    assert bool(metrics["loss/D"].isfinite()) and not torch.equal(before, trainer.G.net.dense.weight)


def test_example_of_a_metric(examples) -> None:
    """It is 0 between equal Gaussians, and the distance of the means else."""
    mean_distance = examples("A metric").mean_distance
    a, b = (SimpleNamespace(mean=torch.tensor(mean)) for mean in ([0.0, 0.0], [3.0, 4.0]))
    assert mean_distance(a, a) == 0 and mean_distance(a, b) == 5
