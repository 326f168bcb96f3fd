"""The page of a reproduction, from its record alone: every number on it stands in the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unperturb.recipes.render_changes import changes_part
from unperturb.recipes.render_explanations import banks_part, explanation_part, fits_part
from unperturb.recipes.render_networks import networks_part, thresholds_part
from unperturb.recipes.render_parts import costs_part, curves_part, figures_part, sweeps_part
from unperturb.recipes.render_tables import accuracy_tables
from unperturb.recipes.words import Record

__all__ = ["render", "warnings"]


def render(record: Record) -> str:
    """Write the page of a record as Markdown."""
    paper = record["paper"]
    lines = [
        f"# {record['title']}",
        "",
        f"{paper['source']}, {paper['item']}. Recipe `{record['recipe']}`, scale "
        f"`{record['scale']}`, seed {record['seed']}.",
    ]
    if paper["settings"]:
        lines += ["", f"The paper's settings: {paper['settings']}"]
    lines += ["", *warnings(record)]
    if record["left_out"]:
        lines += ["**Not all was run.**", "", *(f"- {words}" for words in record["left_out"]), ""]
    parts = {
        "curves": curves_part,
        "sweeps": sweeps_part,
        "figures": figures_part,
        "costs": costs_part,
        "explanation": explanation_part,
        "changes": changes_part,
    }
    for key, part in parts.items():
        if record.get(key):
            lines += part(record)
    if record.get("cells") and not record.get("sweeps"):
        lines += accuracy_tables(record)
    if paper["notes"]:
        lines += ["## Of the paper's figures", "", *(f"- {note}" for note in paper["notes"]), ""]
    lines += _models(record)
    made = {
        "networks": networks_part,
        "thresholds": thresholds_part,
        "banks": banks_part,
        "fits": fits_part,
    }
    for key, part in made.items():
        if record.get(key):
            lines += part(record)
    lines += _audits(record)
    return "\n".join(lines).rstrip() + "\n"


def warnings(record: Record) -> list[str]:
    """Models that TPAP is put around, or whose curves are drawn, that never reached its state."""
    found = [*_rows_outside(record), *_curves_outside(record)]
    if not found:
        return []
    rules = dict.fromkeys(monitor.get("rule", "") for _, monitor in found)
    told = " ".join(f"The rule: {rule}." for rule in rules if rule)
    return [
        f"**Warning.** Never in robust overfitting, the state that TPAP needs: the networks of "
        f"{'; '.join(dict.fromkeys(name for name, _ in found))}. {told}",
        "",
    ]


def _rows_outside(record: Record) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows with TPAP around a network that is not in the state, and its monitor."""
    for row in record["rows"]:
        model = record.get("models", {}).get(row["model"]) if row["model"] else None
        # What only rows that are not run have is not among the record's defenses.
        defense = record["defenses"].get(row["defense"])
        if model is None or defense is None:
            continue
        if defense["preset"] == "tpap" and _outside(model):
            yield row["name"], model["monitor"]


def _curves_outside(record: Record) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Networks whose curves never enter the state, and their monitors."""
    for name, curve in record.get("curves", {}).items():
        model = record["models"].get(name)
        reached = any(epoch.get("robust_overfitting") for epoch in curve["epochs"])
        if model is not None and _outside(model) and not reached:
            yield model["title"], model["monitor"]


def _outside(model: Mapping[str, Any]) -> bool:
    """Whether a network that is trained for the state has a monitor that says it is not in it."""
    monitor = model["monitor"] or {}
    meant = str(model["objective"]).startswith("fgsm")
    return bool(meant and monitor and not monitor.get("robust_overfitting"))


def _models(record: Record) -> list[str]:
    models = record.get("models")
    if not models:
        return []
    lines = ["## Classifiers", ""]
    for name, facts in sorted(models.items()):
        monitor = facts["monitor"] or {}
        told = [
            f"{key.replace('_', ' ')} {value:.1%}"
            for key, value in sorted(monitor.items())
            if key.startswith(("train_", "heldout_")) and isinstance(value, float)
            and not key.endswith("eps")
        ]  # fmt: skip
        lines.append(
            f"- **{name}**: {facts['title']}; {facts['from']} `{facts['name']}`, "
            f"`{facts['arch']}`, objective {facts['objective'] or 'unknown'}, fingerprint "
            f"`{facts['fingerprint'][:16]}`"
        )
        if told:
            where = f"{monitor['images']} training and held-out images each"
            lines.append(f"    - monitor ({where}): {', '.join(told)}")
    return [*lines, ""]


def _audits(record: Record) -> list[str]:
    audits = record.get("audits")
    if not audits:
        return []
    lines = ["## Audits", ""]
    for key, audit in sorted(audits.items()):
        where = audit["environment"]
        lines.append(
            f"- `{key}`: digest `{audit['digest'] or 'none, not complete'}`, seed "
            f"{audit['seed']}, {where['device']}, {where['instructions']}, {where['threads']} "
            f"threads, torch {where['torch']}"
        )
        lines += [f"    - red flag, {f['title']}: {f['evidence']}" for f in audit["flags"]]
    return [*lines, ""]
