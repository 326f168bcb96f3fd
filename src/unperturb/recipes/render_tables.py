"""Tables of accuracy on a reproduction's page: the paper beside both attackers, line by line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unperturb.recipes.render_draws import draw_lines, gradient_lines, pair_lines
from unperturb.recipes.schema import OWN
from unperturb.recipes.words import (
    Cell,
    Record,
    accuracy_text,
    cell_text,
    cells_of,
    header_of,
    line_of,
    ours_text,
    paper_text,
    threat_text,
)

__all__ = ["accuracy_tables", "column_notes", "leaking", "legend"]

_ATTACKERS = {
    "oblivious": "*Oblivious*: the attacker ignores the defense; the attack is run on the "
    "undefended network and its images are shown to the defense (the published protocol).",
    "adaptive": "*Adaptive*: the attacker knows the defense; the figure is the per-image worst "
    "over the gradients that an attacker may take through it.",
}
_STOPS = {
    "fixed": "all steps",
    "first-success": "first success",
    "minimal": "nearest image",
}


def accuracy_tables(record: Record) -> list[str]:
    lines = ["## Accuracy", "", *legend(record), ""]
    for row in record["rows"]:
        lines += [f"### {row['name']}", ""]
        if row["note"] and row["model"]:
            lines += [row["note"], ""]
        if row.get("attack"):
            threat = row["threat"] or record["threat"]
            lines += [f"Attack: `{row['attack']}`, {threat_text(threat)}.", ""]
        for name, attack in (row.get("attacks") or {}).items():
            lines += [f"{name}: `{attack}` in the place of the column's attack.", ""]
        lines += [*_section(record, row), ""]
        lines += [*draw_lines(record, row["name"]), *gradient_lines(record, row["name"])]
    lines += pair_lines(record)
    return [*lines, *column_notes(record), *leaking(record)]


def legend(record: Record) -> list[str]:
    found = [
        f"Threat model {threat_text(record['threat'])} unless a line says otherwise; the first n "
        "test images; Wilson 95 % intervals in brackets."
    ]
    found += [words for name, words in _ATTACKERS.items() if name in record["attackers"]]
    found.append(
        "Each line states where its attacks stop, in the order of the attackers: figures of "
        "different rules, or on other numbers of images, are not to be compared."
    )
    counts = {cell["draws"]["n"] for cell in record.get("cells", ()) if cell.get("draws")}
    if counts:
        draws = " or ".join(str(count) for count in sorted(counts))
        found.append(
            "Of a random defense these are the images that more than half of its "
            f"{draws} fresh draws get right; single draws, of which most papers' figures are, "
            "stand below."
        )
    if not record.get("side_effects", True):
        found.append(
            "Benign changes and the controls of label leaking were not measured in these audits."
        )
    if any(row["model"] and row["defense"] is None for row in record["rows"]):
        found.append(
            "Where there is no defense both attackers know all there is: they differ in where they "
            "stop, and in their random starts, which moves a figure by a few images."
        )
    return [" ".join(found)]


def _section(record: Record, row: Mapping[str, Any]) -> list[str]:
    attackers, defended = record["attackers"], row["defense"] is not None
    quoted = any(
        cell.get("paper_bare") is not None for cell in record["cells"] if cell["row"] == row["name"]
    )
    names = ["", *(["paper, undefended"] if quoted else []), "paper"]
    if defended:
        names += [f"undefended, {attacker}" for attacker in attackers]
    ours = f"with {row['defense']}" if defended else "ours"
    names += [f"{ours}, {attacker}" for attacker in attackers]
    lines = header_of([*names, "n", "stops at"])
    for column in record["columns"]:
        cells = cells_of(record, row["name"], column["name"])
        if not cells:
            continue
        first = next(iter(cells.values()))
        line = [cell_text(column["name"])]
        line += [cell_text(paper_text(first.get("paper_bare")))] if quoted else []
        line.append(cell_text(paper_text(first["paper"])))
        if column["attack"] is None:
            whole = [accuracy_text(first.get("undefended"))] * len(attackers) if defended else []
            line += [*whole, *[ours_text(first)] * len(attackers)]
        else:
            some = [cells.get(attacker) for attacker in attackers]
            if defended:
                line += [accuracy_text((cell or {}).get("undefended")) for cell in some]
            line += [ours_text(cell) for cell in some]
        lines.append(line_of([*line, _counts(cells.values()), _stops(cells, attackers)]))
        lines += _as_returned(column, cells, attackers, defended, quoted)
    return lines


def _as_returned(
    column: Mapping[str, Any],
    cells: Mapping[str, Cell],
    attackers: Sequence[str],
    defended: bool,
    quoted: bool,
) -> list[str]:
    """A second line for an attack that looks for the nearest image, wherever that is."""
    some = [cells.get(attacker) or {} for attacker in attackers]
    if not any(cell.get("as_returned") for cell in some):
        return []
    line = [f"{cell_text(column['name'])}, at any distance", *[""] * (1 + quoted)]
    if defended:
        line += [accuracy_text(cell.get("undefended_as_returned")) for cell in some]
    line += [accuracy_text(cell.get("as_returned")) for cell in some]
    return [line_of([*line, _counts(cells.values()), _stops(cells, attackers)])]


def _counts(cells: Iterable[Cell]) -> str:
    return ", ".join(dict.fromkeys(f"{c['n']:,}" for c in cells if c.get("n") is not None))


def _stops(cells: Mapping[str, Cell], attackers: Sequence[str]) -> str:
    found = [
        " and ".join(_STOPS.get(stop, stop) for stop in cells[attacker].get("stops", ()))
        for attacker in attackers
        if attacker in cells
    ]
    return "; ".join(dict.fromkeys(part for part in found if part))


def column_notes(record: Record) -> list[str]:
    found = []
    for column in record["columns"]:
        words = []
        if column.get("selected"):
            words.append(_selected(record))
        if column["threat"] is not None:
            words.append(f"an image counts as broken within {threat_text(column['threat'])}.")
        if column.get("gradients"):
            words.append(
                f"the attacker who knows the defense takes only these gradients through it: "
                f"{', '.join(column['gradients'])}."
            )
        if column["note"]:
            words.append(column["note"])
        if words:
            attack = column["attack"] if column["attack"] != OWN else None
            attack = f" (`{attack}`)" if attack else ""
            found.append(f"- **{column['name']}**{attack}: {' '.join(words)}")
    return [*found, ""] if found else []


def _selected(record: Record) -> str:
    """Which images the selected ones are."""
    told = [
        f"the first test images that {facts['model']} gets right, at most {facts['per_class']} of "
        f"each class ({facts['n']:,} in all)."
        for _, facts in sorted(record.get("selected", {}).items())
    ]
    return " ".join(told) or "test images that a reference gets right."


def leaking(record: Record) -> list[str]:
    """Lines on figures under attack that stand above the clean one of the same images."""
    found = []
    for cell in record["cells"]:
        clean = cell.get("clean")
        if cell["attacker"] != "oblivious" or not clean or cell["n"] != clean["n"]:
            continue
        if cell["accuracy"] > clean["accuracy"]:
            share = cell.get("right_although_wrong_when_clean")
            told = (
                ""
                if share is None
                else (f"; of the images that are wrong when clean, {share:.1%} are right under it")
            )
            found.append(
                f"- {cell['row']}, {cell['column']}: {cell['accuracy']:.1%} against "
                f"{clean['accuracy']:.1%} clean{told}"
            )
    controls = _controls(record)
    if not found and not controls:
        return []
    lines = [
        "### Label leaking",
        "",
        "Attacks step away from the *true* label, which writes that label into the image: an "
        "oblivious attack can repair images that are wrong when clean. No attacker would, and it "
        "is no robustness.",
        "",
    ]
    return [*lines, *found, *controls, ""]


def _controls(record: Record) -> list[str]:
    """The same attack away from the predicted label, which leaks nothing."""
    found = []
    for _, audit in sorted(record["audits"].items()):
        control = audit["control"]
        target = (control or {}).get("subjects", {}).get("target")
        if control is None or target is None:
            continue
        one, two = target["true_label"], target["predicted_label"]
        if one is None or two is None or one["accuracy"] <= two["accuracy"]:
            continue
        found.append(
            f"- {audit['row']}, control: `{control['attack']}` away from the true label leaves "
            f"{one['accuracy']:.1%}, away from the predicted label {two['accuracy']:.1%} "
            f"(n = {one['n']:,})"
        )
    return found
