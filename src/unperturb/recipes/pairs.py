"""Rows compared image by image: exact McNemar tests of every column and attacker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unperturb.attacks import make_attack
from unperturb.audit import AuditResult, read_result
from unperturb.audit.paired import compare_pair
from unperturb.recipes.cells import CLEAN, Cells
from unperturb.recipes.schema import Column, Pair, Recipe, Row

__all__ = ["run_pairs"]


def run_pairs(recipe: Recipe, found: Cells, audits: Path) -> list[dict[str, Any]]:
    """Compare the recipe's pairs wherever both rows have a figure on the same images.

    Args:
        recipe: Names them.
        found: The cells.
        audits: Folder of the audits.
    """
    read: dict[str, AuditResult] = {}

    def result(key: str) -> AuditResult:
        if key not in read:
            read[key] = read_result(audits / key)
        return read[key]

    cells = {
        (cell["row"], cell["column"], cell["attacker"]): cell
        for cell in found.cells
        if cell.get("accuracy") is not None
    }
    made = []
    for pair in recipe.pairs:
        for column in recipe.columns.values():
            for attacker in (CLEAN,) if column.attack is None else recipe.attackers:
                one, other = (
                    cells.get((row, column.name, attacker)) for row in (pair.one, pair.other)
                )
                if one is None or other is None:
                    continue
                first, second = result(one["audit"]), result(other["audit"])
                if first.plan["ids"] != second.plan["ids"]:
                    continue
                names = [_attack(column, recipe.rows[row]) for row in (pair.one, pair.other)]
                told = compare_pair(first, second, names[0], attacker, other_attack=names[1])
                if told is not None:
                    made.append({**_head(pair, column, attacker), **told})
    return made


def _attack(column: Column, row: Row) -> str | None:
    spec = column.attack_of(row)
    return None if spec is None else make_attack(spec).name


def _head(pair: Pair, column: Column, attacker: str) -> dict[str, Any]:
    return {
        "pair": pair.name,
        "rows": [pair.one, pair.other],
        "column": column.name,
        "attacker": attacker,
    }
