"""A record in a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["terminal_lines"]


def terminal_lines(record: Mapping[str, Any]) -> list[str]:
    """One line for each row and column or explained corrector, and what was left out."""
    lines = []
    for row in record["rows"]:
        for column in record["columns"]:
            cells = [
                cell
                for cell in record.get("cells", ())
                if (cell["row"], cell["column"]) == (row["name"], column["name"])
            ]
            done = [cell for cell in cells if cell.get("accuracy") is not None]
            if not done:
                continue
            quoted = done[0]["paper"]
            parts = [f"paper {quoted:g} %"] if isinstance(quoted, int | float) else []
            for cell in done:
                who = "" if cell["attacker"] == "none" else f"{cell['attacker']} "
                parts.append(f"{who}{cell['accuracy']:.1%}")
            lines.append(f"{row['name']}, {column['name']}: {', '.join(parts)} (n={done[0]['n']})")
    for subject in record.get("explanation", {}).get("subjects", ()):
        if "attacked" in subject:
            part = subject["attacked"]
            lines.append(
                f"{subject['name']}: right {part['uncorrected']['accuracy']:.1%}, corrected "
                f"{part['corrected']['accuracy']:.1%} (n={subject['n']})"
            )
    return [*lines, *(f"left out: {words}" for words in record["left_out"])]
