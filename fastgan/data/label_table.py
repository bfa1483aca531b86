"""Files of labels: CSV with any of the usual delimiters, and JSON as StyleGAN's dataset.json has it.

What a column is for is never guessed: where two fit, an error names them and asks.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastgan.data.archives import clean
from fastgan.data.file_kinds import is_image
from fastgan.data.skipped import show
from fastgan.errors import UserError

FILE_WORDS = ("filename", "file_name", "file", "filepath", "file_path", "path", "image", "img", "image_path")
ID_WORDS = ("id", "image_id", "img_id", "name", "image_name")  # the file, where no other column is
LABEL_WORDS = ("label", "labels", "class", "class_name", "category", "cls", "target")
ROW_WORDS = ("", "index", "unnamed: 0")  # as pandas writes rows' numbers
OTHER_WORDS: tuple[str, ...] = (*ROW_WORDS, "split", "set", "subset", "fold", "partition", "width", "height", "size")
OTHER_WORDS += ("md5", "url", "text", "caption", "description", "prompt")
MISSING = ("", "nan")
NAMED_COLUMNS = 12

Vector = tuple[float, ...]
Label = int | str | Vector


class LabelFault(UserError):
    """Labels that can't be used: why, and the way out."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Columns:
    """The columns of a CSV file that were asked for, by their names, or by their numbers from 1 where it has none."""

    file: str | None = None
    label: str | None = None  # several for a vector, with commas between
    are_vectors: bool = False


class Table(NamedTuple):
    """What a file of labels says."""

    labels: dict[str, Label]  # by the images' names
    columns: str  # those taken, for a CSV; else empty


def read_table(path: Path, names_image: Callable[[str], bool], columns: Columns) -> Table:
    """Read a CSV or JSON file; `names_image` says which texts name an image of the set. Raises LabelFault."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"cannot read the labels in {path} ({error.strerror})"
        raise LabelFault(reason, "give --labels a CSV or JSON file") from None
    if path.suffix.lower() != ".json":
        table = _parse_csv(data, str(path), names_image, columns)
    elif columns.file or columns.label:
        raise LabelFault(f"{path} has no columns", "leave --file-column and --label-column out")
    else:
        table = Table(parse_json(data, str(path)), "")
    if not table.labels:
        raise LabelFault(f"{path} has no labels", "give rows of file and label")
    return table


def parse_json(data: bytes, path: str) -> dict[str, Label]:
    """Return the labels of {"labels": [[file, label], ...]}, the list, or {file: label}; empty where they are null.

    A label is a whole number, a name, or a vector: a number with a fraction or a list of numbers. Raises LabelFault.
    """
    value = load_json(data, path)
    if isinstance(value, dict) and isinstance(value.get("labels"), list | dict | None):
        value = value.get("labels", value)
    if value is None:
        return {}
    pairs = list(value.items()) if isinstance(value, dict) else value
    are_pairs = isinstance(pairs, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    found: list[tuple[str, Label]] = []
    for pair in pairs if are_pairs else [pairs]:
        file, value = pair if are_pairs else (None, None)
        label = plain(value)
        if not isinstance(file, str) or (label is None and value is not None):
            text = show(str(pair))[:60]
            raise LabelFault(f"{path} has {text!r}", "give [file, label] with a number, a name or a list of numbers")
        if label is not None:
            found.append((file, label))
    return as_table(found, path)


def load_json(data: bytes, path: str) -> Any:
    """Return the value that JSON text holds. Raises LabelFault."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LabelFault(f"{path} is no JSON file ({error})", "fix it") from None


def plain(value: Any) -> Label | None:
    """Return a label in the form by which it is compared: "7" is 7, a vector a tuple of floats.

    None for anything else.
    """
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) else value
    if type(value) is int:
        return value
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        return None
    return tuple(map(float, numbers))


def as_name(file: str) -> str:
    """Return a file's name in the form by which it is looked up."""
    return clean(file.replace("\\", "/")) or file


def as_table(pairs: Iterable[tuple[str, Label]], path: str) -> dict[str, Label]:
    """Return labels by the files' names. Raises LabelFault where a file has two."""
    table: dict[str, Label] = {}
    for file, label in pairs:
        name = as_name(file)
        if table.setdefault(name, label) != label:
            raise LabelFault(f"{path} gives {show(file)!r} the labels {table[name]!r} and {label!r}", "leave one")
    return table


def _parse_csv(data: bytes, path: str, names_image: Callable[[str], bool], columns: Columns) -> Table:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelFault(f"{path} is no CSV file in UTF-8 ({error})", "save it so") from None
    rows = _rows(text, path)
    if not rows:
        return Table({}, "")
    sheet = _Sheet(path, rows, names_image, columns)
    file, labels = sheet.choose()
    pairs = [(sheet.cell(row, file), sheet.label(row, labels)) for row in sheet.data]
    shown = ", ".join(sheet.names[column] for column in labels[:NAMED_COLUMNS])
    more = f" and {len(labels) - NAMED_COLUMNS} more" if len(labels) > NAMED_COLUMNS else ""
    return Table(as_table(pairs, path), f"files in column {sheet.names[file]}, labels in {shown}{more}")


class _Row(NamedTuple):
    number: int  # of its line in the file, from 1
    cells: list[str]


def _rows(text: str, path: str) -> list[_Row]:
    """The rows that hold anything, by the delimiter that gives all of them as many columns, two at least."""
    found, faults = [], []
    delimiters = "\t,;|" if path.lower().endswith(".tsv") else ",;\t|"
    if said := re.match(r"sep=(.)\r?\n", text):  # as Excel reads it
        delimiters, text = said[1], text[said.end() :]
    for delimiter in delimiters:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
        rows: list[_Row] = []
        try:
            for cells in reader:
                rows.append(_Row(reader.line_num, [cell.strip() for cell in cells]))
        except csv.Error as error:
            line = rows[-1].number + 1 if rows else 1
            why = "opens a quote and doesn't close it" if "unexpected end" in str(error) else f"is no CSV ({error})"
            faults.append(LabelFault(f"{path}, row {line} {why}", "fix it"))
            continue
        rows = [row for row in rows if any(row.cells)]
        if rows and len(rows[0].cells) > 1:
            found.append(rows)
    if not found:
        if faults or not text.strip():
            raise faults[0] if faults else LabelFault(f"{path} has no labels", "give rows of file and label")
        first = show(text.strip().splitlines()[0])[:60]
        raise LabelFault(f"{path}, row 1 is {first!r}", "give a file and a label, with a comma between")
    even = [rows for rows in found if len({len(row.cells) for row in rows}) == 1]
    return (even or found)[0]


class _Sheet:
    """A CSV file's rows, and which column is what."""

    def __init__(self, path: str, rows: list[_Row], names_image: Callable[[str], bool], asked: Columns) -> None:
        self.path, self.asked, self._names_image = path, asked, names_image
        self.words = [cell.lower() for cell in rows[0].cells]
        self.has_header = self._is_header(rows[0].cells)
        self.data = rows[1:] if self.has_header else rows
        self.names = rows[0].cells if self.has_header else [str(n + 1) for n in range(len(rows[0].cells))]

    def choose(self) -> tuple[int, list[int]]:
        """Return the column of the files and those of the labels. Raises LabelFault where that isn't sure."""
        label = self._columns_named(self.asked.label, "label") if self.asked.label else self._by_words(LABEL_WORDS)
        if self.asked.file:
            (file,) = self._columns_named(self.asked.file, "file")
        else:
            file = self._file_column(label)
        rest = [column for column in range(len(self.names)) if column != file]
        if self.asked.label:
            if file in label or (len(label) > 1 and not self.asked.are_vectors):
                raise self._ask("label", f"label_column is {self.asked.label!r}: it isn't one column of labels")
            return file, label
        if self.asked.are_vectors:
            return file, self._vector_columns(rest)
        known = [column for column in label if column != file]
        if len(known) != 1 and len(rest) == 1 and not (self.has_header and self.words[rest[0]] in OTHER_WORDS):
            known = rest
        if len(known) != 1:
            raise self._ask("label", f"which column of {self.path} are the labels?")
        return file, known

    def cell(self, row: _Row, column: int) -> str:
        if column >= len(row.cells) or not row.cells[column]:
            text = show(",".join(row.cells))[:60]
            raise LabelFault(f"{self.path}, row {row.number} is {text!r}", "give a file and a label")
        if "\n" in row.cells[column] or "\r" in row.cells[column]:
            text = show(row.cells[column])[:60]
            raise LabelFault(f"{self.path}, row {row.number} has several lines in {text!r}", "close its quote")
        return row.cells[column]

    def label(self, row: _Row, columns: list[int]) -> Label:
        if self.asked.are_vectors:
            return self._vector(row, columns)
        text = self.cell(row, columns[0])
        where = f"{self.path}, row {row.number} has the label {show(text)[:60]!r}"
        if text.lower() in MISSING:
            raise LabelFault(where, "give one, or leave the row out")
        if re.fullmatch(r"-?\d+\.0*", text):  # as tables write whole numbers where some are missing
            return int(float(text))
        if re.fullmatch(r"-?\d*\.\d+", text):
            raise LabelFault(where, "give whole numbers or names; of numbers with fractions, --condition vector")
        label = plain(text)
        assert label is not None
        return label

    def _vector(self, row: _Row, columns: list[int]) -> Vector:
        texts = [self.cell(row, column) for column in columns]
        found = [_number(text) for text in texts]
        for column, text, number in zip(columns, texts, found, strict=True):
            if number is None:
                where = f"{self.path}, row {row.number}, column {self.names[column]}"
                raise LabelFault(f"{where} is {show(text)[:60]!r}", "a vector needs a number there")
        return tuple(number for number in found if number is not None)

    def _is_header(self, cells: list[str]) -> bool:
        if self.asked.file and self.asked.file.lower() in self.words:
            return True
        is_known = [word in (*FILE_WORDS, *ID_WORDS, *LABEL_WORDS) for word in self.words]
        if any(word in LABEL_WORDS for word in self.words) and sum(is_known) > 1:
            return True
        if any(is_image(cell) or self._names_image(cell) for cell in cells):
            return False
        return any(word in FILE_WORDS for word in self.words) or all(_number(cell) is None for cell in cells)

    def _by_words(self, words: tuple[str, ...]) -> list[int]:
        return [column for column, word in enumerate(self.words) if word in words] if self.has_header else []

    def _file_column(self, labels: list[int]) -> int:
        found = self._by_words(FILE_WORDS)
        if len(found) == 1:
            return found[0]
        others = [column for column in range(len(self.names)) if column not in labels]
        for test in (lambda cell: is_image(cell) and self._names_image(cell), is_image, self._names_image):
            fits = [column for column in found or others if any(map(test, self._cells(column)))]
            if len(fits) == 1:
                return fits[0]
            if fits:
                break
        else:  # what names none of the images is refused by its reader
            named = self._by_words(ID_WORDS)
            if not found and (len(named) == 1 or len(others) == 1):
                return named[0] if len(named) == 1 else others[0]
        raise self._ask("file", f"which column of {self.path} are the files?")

    def _cells(self, column: int) -> list[str]:
        return [row.cells[column] for row in self.data if column < len(row.cells)]

    def _vector_columns(self, rest: list[int]) -> list[int]:
        for column in rest:
            odd = self.has_header and self.words[column] in (*OTHER_WORDS, *ID_WORDS, *LABEL_WORDS, *FILE_WORDS)
            are_numbers = all(_number(cell) is not None or cell.lower() in MISSING for cell in self._cells(column))
            if (odd and len(rest) > 1) or not are_numbers:
                why = f"{show(self.names[column]) or 'a nameless column'} {'may be none' if are_numbers else 'is text'}"
                raise self._ask("label", f"which columns of {self.path} are the vectors ({why})?", ", several as a,b,c")
        return rest

    def _columns_named(self, text: str, what: str) -> list[int]:
        found = []
        for name in text.split(",") if what == "label" else [text]:
            word = name.strip().lower()
            matches = [column for column, name in enumerate(self.names) if name.lower() == word]
            if len(matches) != 1:
                fault = "twice" if matches else "not"
                raise self._ask(what, f"{what}_column is {name!r}, which {self.path} has {fault}")
            found += matches
        return found

    def _ask(self, what: str, question: str, more: str = "") -> LabelFault:
        names = [show(name) or "''" for name in self.names[:NAMED_COLUMNS]]
        if len(self.names) > NAMED_COLUMNS:
            names.append(f"... ({len(self.names)} columns)")
        kind = "columns" if self.has_header else "columns, without names,"
        return LabelFault(
            f"{question.rstrip('?')}: its {kind} are {', '.join(names)}", f"give --{what}-column NAME{more}"
        )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
