"""The folders stand in the order of their imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"fastgan": ROOT / "fastgan", "fastgan.kernels": ROOT / "kernels"}
# A folder imports folders of smaller numbers, and itself; those of one number don't know each other.
FLOORS = {
    "errors": 0,
    "kernels": 1,
    "utils": 2,
    "run_config": 3,
    "config": 4,
    "presets": 5,
    "data": 5,
    "runs": 5,
    "distributed": 6,
    "networks": 7,
    "training": 8,
    "evaluation": 8,
    "monitor": 9,
    "planning": 9,
    "commands": 10,
    "api": 11,
    "train": 11,
    "cli": 12,
}


def modules() -> dict[str, Path]:
    """All modules of the package by name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imported(module: str, known: dict[str, Path]) -> set[str]:
    """The package's modules that this one imports anywhere, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(known[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found |= {name for name in (full if full in known else node.module,) if name in known}
    return found - {"fastgan", module}  # fastgan itself has a version only


def folder_of(module: str) -> str:
    return module.split(".")[1]


def test_every_import_goes_down() -> None:
    known = modules()
    upward = [
        f"{module} imports {other}"
        for module in known
        if module != "fastgan"
        for other in imported(module, known)
        if folder_of(module) != folder_of(other) and FLOORS[folder_of(other)] >= FLOORS[folder_of(module)]
    ]
    assert upward == []


def test_no_circle() -> None:
    known = modules()
    edges = {module: imported(module, known) for module in known}
    while leaves := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert edges == {}


@pytest.mark.parametrize("name", ["fastgan/train.py", "fastgan/cli.py"])
def test_no_name_beside_a_script_hides_a_library(name: str) -> None:
    """A script's folder comes first in sys.path, where `import runs` or `import data` finds what lies there."""
    import importlib.metadata
    import sys

    beside = {path.stem for path in (ROOT / name).parent.iterdir() if path.suffix in ("", ".py")}
    libraries = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    assert beside & libraries == set()
