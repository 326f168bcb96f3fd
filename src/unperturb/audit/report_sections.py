"""Sections of a report beyond its main tables; each is left out where there is nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unperturb.audit import report_text as words
from unperturb.audit.report_plots import curves_section, detector_section
from unperturb.audit.report_tables import (
    Cell,
    Section,
    Table,
    accuracy_cell,
    plain_cells,
    rate_cell,
)

__all__ = ["sections"]

Summary = Mapping[str, Any]

_MANY = 6
"""Rows of a table of attacks that a page shows unasked."""


def sections(summary: Summary) -> list[Section]:
    """All sections that this audit has something for, in the page's order."""
    made = (make(summary) for make in _SECTIONS)
    return [section for section in made if section is not None]


def _who(summary: Summary, subject: str) -> str:
    return words.subject_name(subject, summary["has_defense"])


def _each(entry: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(attacker, subject, cell) of an entry's cells that were run, undefended first."""
    found = []
    for attacker in words.ATTACKER_ORDER:
        for subject in ("baseline", "target"):
            cell = (entry["cells"].get(subject) or {}).get(attacker)
            if cell:
                found.append((attacker, subject, cell))
    return found


def _random(summary: Summary) -> Section | None:
    facts = summary.get("random")
    if not facts:
        return None
    draws, selection = facts["draws"], facts.get("selection_draws")
    rows = [
        (
            Cell(row["what"]),
            *(accuracy_cell(row[kind]) for kind in ("single", "worst_of_n", "majority")),
        )
        for row in facts["rows"]
    ]
    short = [row for row in rows if row[0].value.startswith(("clean", "worst case"))]
    rest = [row for row in rows if row not in short]
    how = (
        f"The worst attack of each image was selected on {selection} draws and scored on {draws} "
        "fresh ones: on the draws by which it was picked an attack looks stronger than it is."
        if selection
        else f"Selection and scoring share {draws} draws, which errs on the attacker's side."
    )
    columns = ("accuracy", "single draw", f"worst of {draws}", f"majority of {draws}")
    return Section(
        id="random",
        nav="Draws",
        title="A random defense, draw by draw",
        words=(
            f"The defense answers at random. {how} A single draw is what one query meets; worst "
            f"of {draws} is left to an attacker who may ask {draws} times and needs one wrong "
            f"answer; majority of {draws} is a defense that votes, and what all other figures of "
            "this report count.",
        ),
        tables=(Table(columns=columns, rows=tuple(short)),),
        folded=(Table(columns=columns, rows=tuple(rest)),) if rest else (),
        fold_title="The same for each attack",
    )


def _measure(cell: Mapping[str, Any], key: str) -> str:
    value = (cell.get("measure") or {}).get(key)
    return "none" if value is None else f"{value:.4g}"


def _own(summary: Summary) -> Section | None:
    entries = summary.get("own") or []
    rows = []
    for entry in entries:
        for attacker, subject, cell in _each(entry):
            rows.append(
                (
                    *plain_cells(entry["attack"], attacker, _who(summary, subject)),
                    accuracy_cell(cell["accuracy"]),
                    *plain_cells(_measure(cell, "median"), _measure(cell, "max")),
                    Cell(words.distance(cell.get("median_linf"), "linf")),
                    Cell(words.distance(cell.get("median_l2"), "l2")),
                )
            )
    if not rows:
        return None
    return Section(
        id="own-bounds",
        nav="Own bounds",
        title="Attacks bounded in a measure of their own",
        words=(
            "These attacks do not stay in the threat model's ball: each is bounded in its own "
            "measure (see the attack's page). They enter no worst case and no gain.",
        ),
        tables=(
            Table(
                columns=(
                    "attack", "attacker", "scored on", "accuracy", "median, own measure",
                    "greatest, own measure", "median L\N{INFINITY}", "median L2",
                ),
                rows=tuple(rows),
                texts=3,
            ),
        ),
    )  # fmt: skip


def _minimal(summary: Summary) -> Section | None:
    threat = summary["threat"]
    rows = []
    for entry in summary.get("minimal") or []:
        for attacker, subject, cell in _each(entry):
            rows.append(
                (
                    *plain_cells(entry["attack"], attacker, _who(summary, subject)),
                    accuracy_cell(cell["within"]),
                    accuracy_cell(cell["as_returned"]),
                    Cell(f"{cell['successes']:,}"),
                    Cell(words.distance(cell["median_distance"], threat["norm"])),
                )
            )
    if not rows:
        return None
    return Section(
        id="minimal",
        nav="Minimal norm",
        title="Minimal-norm attacks",
        words=(
            "These attacks look for the nearest image that is answered wrongly. Within eps "
            f"({threat['eps_text']}) an image counts as broken only where what was found lies in "
            "the threat model's ball: the figure that enters the worst case. As returned it "
            "counts wherever it lies.",
        ),
        tables=(
            Table(
                columns=(
                    "attack", "attacker", "scored on", "within eps", "as returned", "found",
                    f"median {words.norm_name(threat['norm'])} distance",
                ),
                rows=tuple(rows),
                texts=3,
            ),
        ),
    )  # fmt: skip


def _benign(summary: Summary) -> Table | None:
    entries = summary.get("benign") or []
    if not entries:
        return None
    last = "right when clean, wrong now"
    if not summary["has_defense"]:
        rows = tuple(
            (Cell(e["name"]), accuracy_cell(e["target"]), rate_cell(e.get("changed")))
            for e in entries
        )
        return Table(columns=("images", "classifier", last), rows=rows)
    columns = ("images", "reading", "undefended", "defended", "points", "McNemar p", last)
    return Table(columns=columns, rows=tuple(_benign_row(e) for e in entries), texts=2)


def _benign_row(entry: Mapping[str, Any]) -> tuple[Cell, ...]:
    reading = points = p = words.NOT_RUN
    if entry.get("difference") is not None:
        reading = words.verdict(entry)
        points, p = words.points(entry["difference"]), words.p_value(entry["mcnemar_p"])
    return (
        Cell(entry["name"]),
        Cell(reading, "", reading if reading in ("better", "worse") else ""),
        accuracy_cell(entry["baseline"]),
        accuracy_cell(entry["target"]),
        *plain_cells(points, p),
        rate_cell(entry.get("changed")),
    )


def _failed(summary: Summary) -> Table | None:
    rows = []
    for entry in summary.get("failed_attacks") or []:
        goal = f" ({entry['goal']})" if entry.get("goal", "wrong") != "wrong" else ""
        rows.append(
            (
                Cell(entry["attack"] + goal),
                Cell(f"{entry['n']:,}"),
                rate_cell(entry["target_wrong"]),
            )
        )
    if not rows:
        return None
    return Table(
        columns=("attack", "images it did not break", "of these, wrong when defended"),
        rows=tuple(rows),
        caption="Attacks on the undefended classifier that failed: it still answers rightly.",
    )


def _harmless(summary: Summary) -> Section | None:
    benign, failed = _benign(summary), _failed(summary)
    if benign is None and failed is None:
        return None
    # A row for each attack and goal: more than a reader asked for.
    long = failed is not None and len(failed.rows) > _MANY
    tables = tuple(t for t in (benign, None if long else failed) if t is not None)
    told = "Noise and JPEG at the size of the threat model: changes that nobody chose."
    title = "Changes that are no attack"
    if summary["has_defense"]:
        title = "What the defense does to images that need none"
        told = (
            "Noise, JPEG, and attacks that failed: the undefended classifier copes with these by "
            "itself, and what the defense breaks here is its price."
        )
    return Section(
        id="harmless",
        title=title,
        nav="Harmless",
        words=(told,),
        tables=tables,
        folded=(failed,) if long and failed is not None else (),
        fold_title="Attacks that failed, one by one",
    )


def _control(summary: Summary) -> Section | None:
    facts = summary.get("control")
    if not facts:
        return None
    rows = []
    for subject in ("baseline", "target"):
        found = (facts["subjects"] or {}).get(subject)
        if not found:
            continue
        wrong = found.get("wrong_when_clean") or {}
        rows.append(
            (
                Cell(_who(summary, subject)),
                accuracy_cell(found["clean"]),
                accuracy_cell(found["true_label"]),
                accuracy_cell(found["predicted_label"]),
                Cell(f"{wrong.get('n', 0):,}"),
                rate_cell(wrong.get("true_label")),
                rate_cell(wrong.get("predicted_label")),
            )
        )
    if not rows:
        return None
    table = Table(
        columns=(
            "scored on", "clean", "away from the true label", "away from the predicted label",
            "images wrong when clean", "of these right, true label",
            "of these right, predicted label",
        ),
        rows=tuple(rows),
    )  # fmt: skip
    return Section(
        id="leaking",
        nav="Label leaking",
        title="Label leaking, and its control",
        words=(
            "An attack that steps away from the true label writes that label into the image, "
            "where a defense can read it: such figures flatter. The control is the same attack "
            f"({facts['attack']}, oblivious) away from the predicted label, which is all a real "
            "attacker knows. Labels leak where images that were wrong when clean come out right "
            "under the first and not under the second.",
        ),
        tables=(table,),
    )


def _outside(summary: Summary) -> Section | None:
    entries = summary.get("outside") or []
    if not entries:
        return None
    rows, listed = [], []
    for entry in entries:
        facts, count = entry["checks"] or {}, entry["only_outside_count"]
        cells = [accuracy_cell(entry["target"])]
        if summary["has_defense"]:
            cells.insert(0, accuracy_cell(entry["baseline"]))
        rows.append(
            (
                Cell(entry["name"]),
                Cell(f"{entry['n']:,}"),
                Cell(f"{entry['n'] - entry['inside']:,}"),
                *cells,
                accuracy_cell(entry["as_returned"]),
                Cell(f"{count:,}"),
            )
        )
        missing = facts.get("missing")
        told = f"for {missing:,} images of this audit it brought none. " if missing else ""
        told += facts.get("note") or ""
        if told:
            listed.append(f"{entry['name']}: {told}".strip())
        if entry["only_outside"]:
            ids = ", ".join(map(str, entry["only_outside"]))
            more = " and others" if count > len(entry["only_outside"]) else ""
            listed.append(f"Broken by {entry['name']} and by no attack of ours: {ids}{more}.")
    who = ["undefended", "defended"] if summary["has_defense"] else ["classifier"]
    table = Table(
        columns=("from", "scored", "rejected: outside the ball", *who, "as returned",
                 "broken by these only"),
        rows=tuple(rows),
    )  # fmt: skip
    return Section(
        id="outside",
        nav="Outside images",
        title="Adversarial images made elsewhere",
        words=(
            "Images that another tool made were checked against the threat model and scored like "
            "our own. One that lies outside the ball breaks nothing and counts with its clean "
            "answer; the others enter the worst case. As returned, an image counts wherever it "
            "lies.",
            *listed,
        ),
        tables=(table,),
    )


def _worst_of(summary: Summary) -> Section | None:
    entries = summary.get("worst_of") or []
    if not entries:
        return None
    rows = tuple(
        (
            *plain_cells(
                entry["attack"], entry["attacker"], entry["backward"], entry.get("goal", "wrong")
            ),
            Cell(f"{entry['images']:,}"),
        )
        for entry in sorted(entries, key=lambda e: -e["images"])
    )
    columns = ("attack", "attacker", "backward", "goal", "images")
    rest = rows[_MANY:]
    return Section(
        id="worst-of",
        nav="Who broke what",
        title="Which attack broke the images",
        words=("Every image that was broken is counted once, for the attack that was worst.",),
        tables=(Table(columns=columns, rows=rows[:_MANY], texts=4),),
        folded=(Table(columns=columns, rows=rest, texts=4),) if rest else (),
        fold_title=f"{len(rest)} more",
    )


_SECTIONS: tuple[Callable[[Summary], Section | None], ...] = (
    _random,
    curves_section,
    _minimal,
    _own,
    _worst_of,
    detector_section,
    _harmless,
    _control,
    _outside,
)
