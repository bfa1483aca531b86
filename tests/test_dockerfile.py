"""launch/Dockerfile, read as `docker build` would: what it copies, installs and starts is there."""

import configparser
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from fastgan import cli
from fastgan.presets import parse_config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "launch" / "Dockerfile").read_text()
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def instructions(name: str) -> list[str]:
    """What follows each instruction of the name, on one line."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in lines.splitlines() if line]
    assert {word for word, _ in found} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    return [rest for word, rest in found if word == name]


def usage() -> list[list[str]]:
    """The words of each command in the comment at the top."""
    lines = [line.removeprefix("#").strip() for line in TEXT.split("\nFROM")[0].splitlines()]
    return [shlex.split(found) for found in re.findall(r"^docker .*", "\n".join(lines).replace("\\\n", ""), re.M)]


def test_base_has_a_python_that_is_supported() -> None:
    """The base image's Python is one that setup.cfg allows."""
    (base,) = instructions("FROM")
    found = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert found is not None
    assert SETUP["options"]["python_requires"] == ">=3.11" and int(found[1]) >= 11


def test_what_is_copied_is_there() -> None:
    """Each source of a COPY exists, and they are all that an install needs."""
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    needed = {SETUP["metadata"]["license_files"], SETUP["metadata"]["long_description"].removeprefix("file: ")}
    assert {"setup.cfg", "pyproject.toml", "fastgan", "kernels", *needed} <= copied


def test_what_is_installed_is_known() -> None:
    """Each extra that is installed is one of setup.cfg."""
    (install,) = (line for line in instructions("RUN") if line.startswith("pip "))
    (extras,) = re.findall(r"\.\[(.*?)\]", install)
    assert {*extras.split(",")} <= {*SETUP["options.extras_require"]}


@pytest.mark.parametrize("line", instructions("RUN"))
def test_shell_syntax(line: str) -> None:
    """Each RUN line is a shell's."""
    subprocess.run(["bash", "-n", "-c", line], check=True, timeout=60)


def test_what_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    """The entry point is the program that setup.cfg installs; without words of the user's it shows the usage."""
    (entry,), (command,) = map(json.loads, instructions("ENTRYPOINT")), map(json.loads, instructions("CMD"))
    assert f"{entry[0]} = fastgan.cli:main" in SETUP["options.entry_points"]["console_scripts"]
    assert cli.main([*entry[1:], *command]) == 0 and capsys.readouterr().out.startswith("usage: fastgan")


def test_commands_of_the_comment() -> None:
    """The comment's commands build this file and train by options that are understood."""
    build, alone, several = usage()
    assert (ROOT / build[build.index("--file") + 1]) == ROOT / "launch" / "Dockerfile"
    assert alone[alone.index("fastgan") + 1] == "train"
    parse_config(alone[alone.index("train") + 1 :])
    launch = several[several.index("launch") + 1 :]
    given = launch_command_parser().parse_args(launch)
    assert given.training_script == "fastgan.train" and given.module
    parse_config(given.training_script_args)
