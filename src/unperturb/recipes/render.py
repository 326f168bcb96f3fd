"""The page of a reproduction, from its record alone: every number on it stands in the record."""

from __future__ import annotations

from unperturb.recipes.render_parts import costs_part, curves_part, figures_part, sweeps_part
from unperturb.recipes.render_tables import accuracy_tables
from unperturb.recipes.words import Record

__all__ = ["render"]


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
    lines += ["", *_warnings(record)]
    if record["left_out"]:
        lines += ["**Not all was run.**", "", *(f"- {words}" for words in record["left_out"]), ""]
    parts = {
        "curves": curves_part,
        "sweeps": sweeps_part,
        "figures": figures_part,
        "costs": costs_part,
    }
    for key, part in parts.items():
        if record.get(key):
            lines += part(record)
    if record.get("cells") and not record.get("sweeps"):
        lines += accuracy_tables(record)
    if paper["notes"]:
        lines += ["## Of the paper's figures", "", *(f"- {note}" for note in paper["notes"]), ""]
    lines += [*_models(record), *_audits(record)]
    return "\n".join(lines).rstrip() + "\n"


def _warnings(record: Record) -> list[str]:
    """Models that TPAP is put around and that never reached the state it needs."""
    models = record.get("models", {})
    found: list[str] = []
    rules: list[str] = []
    for row in record["rows"]:
        model = models.get(row["model"]) if row["model"] else None
        if model is None or row["defense"] is None:
            continue
        preset = record["defenses"][row["defense"]]["preset"]
        monitor = model["monitor"] or {}
        if (
            preset == "tpap"
            and str(model["objective"]).startswith("fgsm")
            and monitor
            and (not monitor.get("robust_overfitting"))
        ):
            found.append(row["name"])
            rules.append(monitor.get("rule", ""))
    told = " ".join(f"The rule: {rule}." for rule in dict.fromkeys(rules) if rule)
    if not found:
        return []
    return [
        f"**Warning.** Never in robust overfitting, the state that TPAP needs: the networks of "
        f"{'; '.join(dict.fromkeys(found))}. {told}",
        "",
    ]


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
