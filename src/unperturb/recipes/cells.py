"""From an audit to the cells of a table: each figure with what it took to get it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unperturb.attacks import make_attack
from unperturb.audit import AuditResult
from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.recipes.draws import draw_facts, gradient_facts
from unperturb.recipes.schema import Column, Recipe, Row
from unperturb.recipes.sources import TIME_BUDGET

__all__ = ["CLEAN", "Cells", "attacked_cell", "audit_facts", "clean_cell", "not_run", "skipped"]

CLEAN = "none"


@dataclass
class Cells:
    """What has been found so far.

    Attributes:
        cells: One for each row, column and attacker.
        audits: Facts of every audit, by key.
        models: Facts of every classifier, by name.
    """

    cells: list[dict[str, Any]] = field(default_factory=list)
    audits: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


def not_run(
    recipe: Recipe, row: Row, columns: Iterable[Column], reason: str
) -> list[dict[str, Any]]:
    """Cells of columns that are not run, each with the reason."""
    found = []
    for column in columns:
        attackers = (CLEAN,) if column.attack is None else column.meant(recipe.attackers)
        for attacker in attackers:
            found.append({**_head(row, column, attacker), "status": "not run", "reason": reason})
    return found


def skipped(recipe: Recipe, row: Row, column: Column) -> list[dict[str, Any]]:
    """Cells of the attackers that a column does not have, each with the column's reason."""
    return [
        {**_head(row, column, attacker), "status": "not run", "reason": reason}
        for attacker, reason in column.skips
        if attacker in column.meant(recipe.attackers)
    ]


def _head(row: Row, column: Column, attacker: str) -> dict[str, Any]:
    return {
        "row": row.name,
        "column": column.name,
        "attack": column.attack_of(row),
        "attacker": attacker,
        "paper": row.paper.get(column.name),
        **({"paper_bare": row.bare.get(column.name)} if row.bare else {}),
    }


def clean_cell(row: Row, column: Column, result: AuditResult, key: str) -> dict[str, Any]:
    """The cell of the unperturbed images."""
    summary = result.summary
    plain = summary["baseline"]["clean"] if summary["has_defense"] else None
    head = _head(row, column, CLEAN)
    cell = _filled(head, summary["target"]["clean"], plain, result, key)
    return {**cell, **draw_facts(result, "clean")} if cell["status"] != "not run" else cell


def attacked_cell(
    row: Row, column: Column, attacker: str, result: AuditResult, key: str
) -> dict[str, Any]:
    """The cell of a column's attack and an attacker."""
    summary = result.summary
    attack = column.attack_of(row)
    assert attack is not None
    name = make_attack(attack).name
    part = next(
        entry for table in ("own", "table") for entry in summary[table] if entry["attack"] == name
    )

    def figure(subject: str) -> Mapping[str, Any] | None:
        value = part["cells"].get(subject, {}).get(attacker)
        if value is not None and part["bound"] == "own":
            return value["accuracy"]  # type: ignore[no-any-return]
        return value  # type: ignore[no-any-return]

    head = _head(row, column, attacker)
    cell = _filled(head, figure("target"), figure("baseline"), result, key)
    entries = [
        entry
        for entry in summary["attacks"]
        if (entry["subject"], entry["name"], entry["attacker"]) == ("target", name, attacker)
    ]
    if cell["status"] == "not run":
        return cell
    # On the very images of this cell, which may be fewer than those of the clean column.
    clean = summary["target"]["clean"]
    returned: Mapping[str, Any] = next(
        (entry["cells"] for entry in summary["minimal"] if entry["attack"] == name), {}
    )
    return {
        **cell,
        "clean": clean,
        "bound": part["bound"],
        "as_returned": _returned(returned, "target", attacker),
        "undefended_as_returned": _returned(returned, "baseline", attacker),
        **_details(entries),
        **draw_facts(result, f"{name}, {attacker}"),
        **gradient_facts(entries),
    }


def _returned(cells: Mapping[str, Any], subject: str, attacker: str) -> Mapping[str, Any] | None:
    """Accuracy on a minimal attack's images whatever their distance; None for other attacks."""
    found = cells.get(subject, {}).get(attacker)
    return None if found is None else found["as_returned"]


def _details(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """How an attacker's figure came about: its rules, its gradients, what it repaired."""
    distances = [e["median_distance"] for e in entries if e["median_distance"] is not None]
    repaired = [e["wrong_when_clean_accuracy"] for e in entries]
    return {
        "stops": sorted({entry["stop"] for entry in entries}),
        "backwards": sorted({entry["backward"] for entry in entries}),
        "outside_ball": sum(entry["outside_ball"] for entry in entries),
        "median_distance": min(distances, default=None),
        "measure": next((e["measure"] for e in entries if e["measure"]), None),
        # Only one gradient, so this is the share of the very images of the cell.
        "right_although_wrong_when_clean": repaired[0] if len(repaired) == 1 else None,
        "seconds": sum(entry["seconds"] for entry in entries),
    }


def _filled(
    head: dict[str, Any],
    target: Mapping[str, Any] | None,
    plain: Mapping[str, Any] | None,
    result: AuditResult,
    key: str,
) -> dict[str, Any]:
    if target is None:
        return {**head, "status": "not run", "reason": TIME_BUDGET, "audit": key}
    planned = len(result.plan["ids"])
    return {
        **head,
        "status": "done" if target["n"] == planned else "cut",
        "reason": "" if target["n"] == planned else f"{TIME_BUDGET} ({planned} images planned)",
        **{name: target[name] for name in ("accuracy", "correct", "n", "interval")},
        "undefended": dict(plain) if plain is not None else None,
        "threat": dict(result.plan["settings"]["threat"]),
        "seed": result.plan["settings"]["seed"],
        "audit": key,
    }


def audit_facts(result: AuditResult, images: ImageSet, row: Row, net: Classifier) -> dict[str, Any]:
    """What a record says of an audit."""
    settings, summary = result.plan["settings"], result.summary
    return {
        "row": row.name,
        "settings_hash": result.plan["settings_hash"],
        "digest": result.digest,
        "complete": result.complete,
        "left_out": summary["left_out"],
        "target": settings["target"]["fingerprint"],
        "classifier": net.fingerprint(),
        "threat": settings["threat"],
        "attacks": settings["attacks"],
        "attackers": settings["attackers"],
        "backwards": settings["backwards"],
        "seed": settings["seed"],
        "batch_size": settings["batch_size"],
        "n": len(images),
        "data": {"source": settings["data"]["source"], "split": settings["data"]["split"],
                 "fingerprint": settings["data"]["fingerprint"]},
        "environment": result.plan["environment"],
        "control": summary["control"],
        "flags": summary["flags"],
        "cost": summary["cost"],
    }  # fmt: skip
