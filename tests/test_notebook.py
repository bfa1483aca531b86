"""docs/quickstart.ipynb: its cells run one after the other, and it is stored as nobody has run it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BOOK: dict[str, Any] = json.loads((DOCS / "quickstart.ipynb").read_text())
SHORTER = {
    "minutes = 1 ": "minutes = 0.05 ",
    "range(3000)": "range(300)",
    "[::188]": "[::19]",
    "images=2000": "images=100",
}


def sources(kind: str) -> list[str]:
    """The texts of all cells of a kind."""
    return ["".join(cell["source"]) for cell in BOOK["cells"] if cell["cell_type"] == kind]


def test_nothing_is_stored_but_the_cells() -> None:
    """No cell has outputs or a count of when it was run, and each has a name of its own, as the format wants it."""
    assert (BOOK["nbformat"], BOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in BOOK["cells"]}) == len(BOOK["cells"])
    for cell in BOOK["cells"]:
        assert cell["metadata"] == {}
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_links_lead_somewhere() -> None:
    """Each link is to a page that is there."""
    targets = re.findall(r"\]\(([^)\s]+)\)", "\n".join(sources("markdown")))
    assert len(targets) > 3 and all((DOCS / target).exists() for target in targets)


@pytest.mark.slow
@pytest.mark.usefixtures("keep_signal_handlers", "here")
def test_cells_run() -> None:
    """On fewer images and for a shorter time all cells run in order, without a network, to images and metrics."""
    program = "\n".join(sources("code"))
    for words, fewer in SHORTER.items():
        assert program.count(words) == 1
        program = program.replace(words, fewer)
    names: dict[str, Any] = {}
    exec(compile(program, "quickstart.ipynb", "exec"), names)
    assert names["images"].shape == (16, 28, 28, 1) and names["images"].dtype == "uint8"
    assert names["g"].images_seen > 0 and names["g"].classes == ["box", "cross", "ring"]
    assert names["metrics"]["fd_digits"] > 0
