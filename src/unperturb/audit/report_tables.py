"""What the sections of a report are made of, whatever form it is then written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from unperturb.audit import report_text as words

__all__ = ["Cell", "Chart", "Section", "Table", "accuracy_cell", "plain_cells", "rate_cell"]


class Cell(NamedTuple):
    """One cell: its text, what stands in small print beside it, and the class of its color."""

    value: str
    small: str = ""
    kind: str = ""


class Chart(NamedTuple):
    """A picture for HTML only; what it shows is in a table or in words as well."""

    title: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        columns: Headings.
        rows: Cells, one for each column.
        caption: A sentence above it.
        texts: Columns from the left that are text; the others are numbers.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    texts: int = 1


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report.

    Attributes:
        id: Where links lead.
        title: Its heading.
        nav: Its name in the list of sections; the heading where it is empty.
        words: Paragraphs below it.
        charts: Pictures.
        tables: Tables.
        folded: Tables that a page shows only when asked.
        fold_title: What is folded.
    """

    id: str
    title: str
    nav: str = ""
    words: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    fold_title: str = ""


def accuracy_cell(accuracy: Mapping[str, Any] | None, kind: str = "") -> Cell:
    """An accuracy with its interval.

    Example:
        >>> accuracy_cell({"accuracy": 0.5, "n": 10, "interval": [0.24, 0.76]}).value
        '50.0%'
    """
    return Cell(words.percent(accuracy), words.interval(accuracy), kind)


def plain_cells(*values: str) -> tuple[Cell, ...]:
    """Cells of text only.

    Example:
        >>> plain_cells("a", "b")[1].value
        'b'
    """
    return tuple(Cell(value) for value in values)


def rate_cell(rate: Mapping[str, Any] | None) -> Cell:
    """A share of images with its interval; ``none`` where there is no such image.

    Example:
        >>> rate_cell({"rate": 0.05, "count": 1, "n": 20, "interval": [0.01, 0.24]}).value
        '5.0%'
    """
    return Cell(words.rate(rate), words.rate_interval(rate))
