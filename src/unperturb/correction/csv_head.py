"""The head of a CSV file: its columns, which of them hold numbers, and whether they have names."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from unperturb.errors import DataError, unknown_name

__all__ = ["HEADERS", "CsvHead", "read_head"]

HEADERS = ("auto", "yes", "no")
_SAMPLE = 100
_MISSING = frozenset(("", "nan", "na", "n/a", "#n/a", "null", "none", "-nan"))


@dataclass(frozen=True)
class CsvHead:
    """What the first lines tell.

    Attributes:
        names: Names of the columns; their numbers from 0 where the file has none.
        numeric: Named columns that hold numbers.
        header: Whether the first line holds names.
        rows: Rows that were looked at.
        about: Rows of the file, estimated by its lines.
    """

    names: list[str]
    numeric: list[str]
    header: bool
    rows: int
    about: int


def read_head(path: Path, header: str = "auto") -> CsvHead:
    """Look at the first hundred rows.

    A first line is taken for names if no column of numbers has a number there, or if those are
    whole numbers that name columns (``0,1,2``, as pandas writes them).

    Args:
        path: The file.
        header: ``"yes"``, ``"no"`` or ``"auto"``.

    Raises:
        DataError: It is no text, is empty, or names cannot be told from numbers.
        SpecError: ``header`` is something else.
    """
    if header not in HEADERS:
        raise unknown_name("header", header, HEADERS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(islice((line for line in csv.reader(stream) if line), _SAMPLE + 1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read ({str(error).splitlines()[0].rstrip('.')})",
            expected="UTF-8 text, with commas between cells",
            fix="write or fetch it again, and check its permissions",
        ) from error
    if not lines:
        raise DataError(f"{path} is empty", expected="rows of logits", fix="write it again")
    named = _has_names(lines, path) if header == "auto" else header == "yes"
    names = lines[0] if named else [str(number) for number in range(len(lines[0]))]
    rows = lines[1:] if named else lines
    numeric = [name for name, holds in zip(names, _numeric(rows, len(names)), strict=True) if holds]
    # A column without a name is an index that a data frame wrote.
    return CsvHead(
        names, [name for name in numeric if name], named, len(rows), _lines(path) - int(named)
    )


def _has_names(lines: Sequence[Sequence[str]], path: Path) -> bool:
    first, rest = lines[0], lines[1:]
    holds = _numeric(rest, len(first))
    cells = [cell for cell, number in zip(first, holds, strict=True) if number] or list(first)
    cells = [cell.strip() for cell in cells if not _missing(cell)]
    numbers = [cell for cell in cells if _number(cell)]
    if len(numbers) < len(cells):
        if all(re.fullmatch(r"\d+", cell) for cell in numbers):
            return True
        raise DataError(
            f"The first line of {path} mixes names and numbers "
            f"({next(cell for cell in cells if not _number(cell))!r}, {numbers[0]!r})",
            expected="a line of names, or a row of logits",
            fix="correct it, or say which it is with --header yes or --header no",
        )
    counted = [str(number) for number in range(len(cells))]
    return len(cells) > 1 and cells in (counted, [str(int(cell) + 1) for cell in counted])


def _numeric(rows: Sequence[Sequence[str]], width: int) -> list[bool]:
    """Which columns hold numbers in every row that was looked at, missing ones aside."""
    found = []
    for column in range(width):
        cells = [row[column] for row in rows if column < len(row) and row[column].strip()]
        found.append(bool(cells) and all(_number(cell) or _missing(cell) for cell in cells))
    return found


def _missing(cell: str) -> bool:
    return cell.strip().lower() in _MISSING


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(part.count(b"\n") for part in iter(lambda: stream.read(1 << 20), b""))
