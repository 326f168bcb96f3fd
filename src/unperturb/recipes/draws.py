"""What a cell says of a random defense's draws, and of each gradient that was tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unperturb.audit import AuditResult

__all__ = ["KINDS", "draw_facts", "gradient_facts"]

KINDS = ("single", "worst_of_n", "majority")
"""Accuracy of a single draw, of images that every draw gets right, of most draws' answers."""


def draw_facts(result: AuditResult, what: str) -> dict[str, Any]:
    """Single draw, worst of N and majority, beside the same of the clean images.

    Args:
        result: The audit.
        what: Which of its rows: ``clean``, or attack and attacker.

    Returns:
        ``draws``, or nothing where the target is not random.
    """
    random = result.summary["random"]
    if random is None:
        return {}
    rows = {row["what"]: row for row in random["rows"]}
    if what not in rows or "clean" not in rows:
        return {}
    return {
        "draws": {
            "n": random["draws"],
            **{kind: rows[what][kind] for kind in KINDS},
            **({} if what == "clean" else {"clean": {k: rows["clean"][k] for k in KINDS}}),
        }
    }


def gradient_facts(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy by the gradient that was taken, where there were several.

    Args:
        entries: What an audit says of an attack and an attacker; those of goals beside a wrong
            answer are left out.
    """
    found = {
        entry["backward"]: {
            "accuracy": entry["robust_accuracy"],
            "n": entry["n"],
            "interval": list(entry["interval"]),
        }
        for entry in entries
        if entry["goal"] == "wrong"
    }
    return {"by_gradient": found} if len(found) > 1 else {}
