"""Words and numbers of a reproduction's page, shared by its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unperturb.audit.summary import eps_text

__all__ = [
    "Cell",
    "Record",
    "accuracy_text",
    "cell_text",
    "cells_of",
    "header_of",
    "line_of",
    "ours_text",
    "paper_text",
    "share_text",
    "spelled",
    "threat_text",
]

Record = Mapping[str, Any]
Cell = Mapping[str, Any]


def accuracy_text(part: Mapping[str, Any] | None) -> str:
    if part is None or part.get("accuracy") is None:
        return ""
    low, high = part["interval"]
    return f"{part['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def share_text(part: Mapping[str, Any] | None) -> str:
    """A share of images with its interval, as ``statistics.rate`` gives it."""
    if part is None:
        return "no such image"
    low, high = part["interval"]
    return f"{part['rate']:.1%} ({low:.1%} to {high:.1%}; n = {part['n']:,})"


def spelled(seconds: float) -> str:
    """A time in words.

    Example:
        >>> spelled(40), spelled(600), spelled(9000)
        ('40 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def paper_text(value: Any) -> str:
    if value is None:
        return "not reported"
    return f"{value:g} %" if isinstance(value, int | float) else str(value)


def cell_text(text: str) -> str:
    """Text as a table's cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def ours_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell["status"] in ("not run", "quoted"):
        return f"not run: {cell_text(cell['reason'])}"
    return accuracy_text(cell)


def line_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def header_of(names: Sequence[str]) -> list[str]:
    return [line_of(names), "|" + "---|" * len(names)]


def threat_text(threat: Mapping[str, Any]) -> str:
    name = {"linf": "Linf", "l2": "L2"}.get(threat["norm"], threat["norm"])
    return (
        f"{name} {eps_text(threat['eps'])}"
        if threat["norm"] == "linf"
        else (f"{name} {threat['eps']:g}")
    )


def cells_of(record: Record, row: str, column: str) -> dict[str, Cell]:
    return {
        cell["attacker"]: cell
        for cell in record["cells"]
        if (cell["row"], cell["column"]) == (row, column)
    }
