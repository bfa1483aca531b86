"""README's table of results, picked from the tables in results/.

python benchmarks/summary.py            # README has it
python benchmarks/summary.py --check    # 1 where README has another
"""

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: benchmarks/summary.py -->", "<!-- end of results -->"


class Shown(NamedTuple):
    """A cell of a results file: of the last row that begins so, and the column of that name."""

    what: str
    theme: str
    row: str
    column: str


SHOWN = (
    Shown("`mnist28`'s networks, batch 256: training, images/s", "peers", "fastgan, preset mnist28", "images/s"),
    Shown("... times the same networks in Keras, one `tf.function`", "peers", "Keras", "fastgan is faster by"),
    Shown("... times the usual PyTorch loop, eager", "peers", "PyTorch", "fastgan is faster by"),
    Shown("`mnist28-fast`, batch 64: training, images/s", "step", "mnist28-fast", "images/s"),
    Shown("`mnist28` on two processes, of one on both cores", "scaling", "mnist28 | 256 | 2", "of one process's"),
    Shown("prepared 128x128 PNGs from DALI, images/s", "data", "dali", "images/s"),
    Shown("... of bare DALI decoding", "data", "dali", "of bare DALI"),
    Shown("... from memory, images/s", "data", "in_memory", "images/s"),
    Shown("evaluation of generated images, of bare extraction", "metrics", "generated images", "of bare"),
)


MACHINE = "intelr-xeonr-processor"  # which README's table is of


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def find(text: str, shown: Shown) -> str | None:
    """The cell's content; None where no table has it."""
    found, head = None, []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells(line)
        elif shown.column in head and line.startswith(f"| {shown.row}"):
            found = cells(line)[head.index(shown.column)]
    return found


def table() -> str:
    """A row for everything shown that has been measured."""
    lines = ["| | median of rounds (lowest - highest) | |", "| --- | --- | --- |"]
    for shown in SHOWN:
        for path in sorted(RESULTS.glob(f"{shown.theme}-{MACHINE}-*.md")):
            value = find(path.read_text(), shown)
            if value is not None:
                lines.append(f"| {shown.what} | {value} | [{shown.theme}]({path.relative_to(ROOT)}) |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The text with the table of now between its marks."""
    before, rest = text.split(BEGIN, maxsplit=1)
    after = rest.split(END, maxsplit=1)[1]
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    if "--check" in sys.argv[1:]:
        return int(with_table(text) != text)
    readme.write_text(with_table(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
