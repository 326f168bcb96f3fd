"""Draws, gradients, pairs of rows and panels on a reproduction's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unperturb.recipes.draws import KINDS
from unperturb.recipes.words import Record, accuracy_text, cell_text, header_of, line_of

__all__ = ["difference_text", "draw_lines", "gradient_lines", "pair_lines", "panel_lines"]


def draw_lines(record: Record, row: str) -> list[str]:
    """Single draw, worst of N and majority of a row, each beside the same on clean images."""
    cells = [c for c in record["cells"] if c["row"] == row and c.get("draws")]
    if not cells:
        return []
    count = cells[0]["draws"]["n"]
    kinds = ("single draw", f"worst of {count}", f"more than half of {count}")
    lines = [
        f"The defense is random. Over {count} fresh draws, each beside the same on the clean "
        "images of the same audit:",
        "",
        *header_of(["", "attacker", *kinds, *(f"clean, {kind}" for kind in kinds), "n"]),
    ]
    for cell in cells:
        draws = cell["draws"]
        clean = draws.get("clean")
        lines.append(
            line_of([
                cell_text(cell["column"]),
                "" if clean is None else cell["attacker"],
                *(accuracy_text(draws[kind]) for kind in KINDS),
                *("" if clean is None else accuracy_text(clean[kind]) for kind in KINDS),
                f"{cell['n']:,}",
            ])
        )  # fmt: skip
    return [*lines, ""]


def gradient_lines(record: Record, row: str) -> list[str]:
    """Accuracy of a row by the gradient that the attacker takes through the defense."""
    cells = [c for c in record["cells"] if c["row"] == row and c.get("by_gradient")]
    if not cells:
        return []
    names = list(dict.fromkeys(name for cell in cells for name in cell["by_gradient"]))
    lines = [
        "By the gradient that the attacker takes (*exact*: autograd through all of the defense; "
        "*identity*: the purifier is skipped in the backward pass; *undefended*: that of the bare "
        "network):",
        "",
        *header_of(["", "attacker", *names, "n"]),
    ]
    for cell in cells:
        found = [accuracy_text(cell["by_gradient"].get(name)) for name in names]
        lines.append(
            line_of([cell_text(cell["column"]), cell["attacker"], *found, f"{cell['n']:,}"])
        )
    return [*lines, ""]


def pair_lines(record: Record) -> list[str]:
    """Rows compared image by image."""
    pairs = record.get("pairs")
    if not pairs:
        return []
    lines = [
        "### Compared image by image",
        "",
        "On the same images under the same attack, with the same seeds; of a random defense an "
        "image counts as right where more than half are. Intervals of the difference are "
        "Newcombe's of 95 %, the test is the exact McNemar test.",
        "",
        *header_of([
            "pair", "column", "attacker", "first", "second", "difference (points)",
            "only the first right", "only the second right", "McNemar p", "n",
        ]),
    ]  # fmt: skip
    for pair in pairs:
        first, second = pair["rows"]
        lines.append(
            line_of([
                cell_text(f"{first} / {second}"), cell_text(pair["column"]),
                "" if pair["attacker"] == "none" else pair["attacker"],
                f"{pair['one']['accuracy']:.1%}", f"{pair['other']['accuracy']:.1%}",
                difference_text(pair), f"{pair['only_one']}", f"{pair['only_other']}",
                f"{pair['mcnemar_p']:g}", f"{pair['one']['n']:,}",
            ])
        )  # fmt: skip
    return [*lines, ""]


def difference_text(pair: Mapping[str, Any]) -> str:
    """A difference of two accuracies with its interval, in percent.

    Example:
        >>> difference_text({"difference": 0.125, "interval": [0.05, 0.2]})
        '12.5% (5.0% to 20.0%)'
    """
    low, high = pair["interval"]
    return f"{pair['difference']:.1%} ({low:.1%} to {high:.1%})"


def panel_lines(found: Mapping[str, Any]) -> list[str]:
    """Right answers at every stage, clean and attacked."""
    lines = header_of(["stage", "right, clean", "right, attacked"])
    for column in found["columns"]:
        name = f"{column['transform'] or ''} {column['stage']}".strip()
        share = column["accuracy"]
        lines.append(line_of([name, f"{share['clean']:.1%}", f"{share['attacked']:.1%}"]))
    return [*lines, "", f"n = {found['n']}, `{found['attack']}`, {found['attacker']}."]
