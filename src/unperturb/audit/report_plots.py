"""Sections of a report that are drawn: the security curve, and a detector's ROC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unperturb.audit import report_text as words
from unperturb.audit.report_curves import (
    COLORS,
    Curve,
    Point,
    measured,
    roc_chart,
    security_chart,
)
from unperturb.audit.report_tables import (
    Cell,
    Chart,
    Section,
    Table,
    accuracy_cell,
    plain_cells,
    rate_cell,
)

__all__ = ["curves_section", "detector_section", "security_curves"]

Summary = Mapping[str, Any]

# A chart with more curves, or a page with more rows, cannot be read.
_CURVES_EACH = 2
_MANY = 8


def security_curves(summary: Summary, kinds: Mapping[str, Sequence[str]], who: str) -> list[Curve]:
    """Curves of accuracy against eps.

    Args:
        summary: The summary.
        kinds: Classes of the curves of each subject, in order; what has none left is not drawn.
        who: Stands in place of the subject's name, where it is not empty.
    """
    facts = summary.get("curves") or {}
    left = {subject: list(names) for subject, names in kinds.items()}
    huge = facts.get("huge") or {}
    made = []
    for entry in facts.get("series") or []:
        subject, probe = entry["subject"], entry["source"] == "probe"
        if not entry["points"] or not left.get(subject):
            continue
        points = tuple(measured(p["eps"], p, p["eps_text"]) for p in entry["points"])
        name = who or words.subject_name(subject, summary["has_defense"])
        name = f"{name}, {entry['attack']} (n = {entry['n']:,})"
        end = None
        if probe and huge.get(subject):
            end = measured(huge["eps"], huge[subject], huge["eps_text"])
        made.append(
            Curve(name=name, kind=left[subject].pop(0), points=points, huge=end, marks=probe)
        )
    return made


def curves_section(summary: Summary) -> Section | None:
    """Accuracy against the size of the perturbation."""
    kinds = {s: (s, f"{s} dash1", f"{s} dash2", f"{s} dash3") for s in ("target", "baseline")}
    drawn = security_curves(summary, kinds, "")
    if not drawn:
        return None
    threat, facts = summary["threat"], summary["curves"]
    chart = security_chart(
        drawn, eps=threat["eps"], eps_text=threat["eps_text"],
        label="Accuracy against the size of the perturbation",
    )  # fmt: skip
    return Section(
        id="curve",
        nav="Curve",
        title="Accuracy against the size of the perturbation",
        words=(
            "The attacker knows what is attacked; an image that is broken at a smaller size stays "
            "broken. At the huge size, which destroys any image, nothing can be robust: accuracy "
            "left there shows a broken attack, not a strong model.",
        ),
        charts=(Chart("", chart),),
        folded=_curve_tables(summary, facts),
        fold_title="The same in numbers",
    )


def _curve_tables(summary: Summary, facts: Mapping[str, Any]) -> tuple[Table, ...]:
    probes = [entry for entry in facts["series"] if entry["source"] == "probe"]
    sizes = {p["eps"]: p["eps_text"] for entry in probes for p in entry["points"]}
    huge = facts.get("huge") or {}
    rows = []
    for entry in probes:
        by_size = {point["eps"]: point for point in entry["points"]}
        cells = [accuracy_cell(by_size.get(eps)) for eps in sorted(sizes)]
        if huge:
            cells.append(accuracy_cell(huge.get(entry["subject"])))
        who = words.subject_name(entry["subject"], summary["has_defense"])
        rows.append((*plain_cells(who, entry["attack"]), *cells))
    if not rows:
        return ()
    columns = [sizes[eps] for eps in sorted(sizes)] + [f"{huge.get('eps_text')}, huge"] * bool(huge)
    return (Table(columns=("scored on", "attack", *columns), rows=tuple(rows), texts=2),)


def detector_section(summary: Summary) -> Section | None:
    """ROC, AUROC and rates of a detector."""
    facts = summary.get("detection")
    if not facts:
        return None
    action = {
        "reject": "It rejects what it flags: the headline counts answers that are wrong and not "
        "flagged.",
        "route": "It only decides which branch answers: flags enter no headline.",
    }.get(facts["action"], "")
    threshold = facts.get("threshold")
    at = "" if threshold is None else f", flags above {threshold:.6g}"
    rate = facts.get("false_positive_rate")
    false = "Its false-positive rate was not measured."
    if rate:
        false = (
            f"It flags {rate['count']:,} of {rate['n']:,} clean test images: a false-positive "
            f"rate of {words.rate(rate)} ({words.rate_interval(rate)})."
        )
    entries = facts["by_attack"]
    shown = _weakest(entries)
    long = len(entries) > _MANY
    table = _rates_table(shown if long else entries)
    return Section(
        id="detector",
        nav="Detector",
        title="The detector",
        words=(
            f"Detector {facts['name']}{at}. {action} {false}",
            "AUROC is the chance that an attacked image looks more suspicious than a clean one: "
            "0.5 is a coin, 1 is perfect. True-positive rates are those at the threshold in use; "
            "successful are images that break the classifier in the third column.",
        ),
        charts=_roc(shown, rate),
        tables=(table,),
        folded=(_rates_table(entries),) if long else (),
        fold_title=f"All {len(entries)} attacks",
    )


def _weakest(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each attacker the attacks that the detector tells least from clean images."""
    found: list[Mapping[str, Any]] = []
    for attacker in dict.fromkeys(entry["attacker"] for entry in entries):
        best: dict[str, Mapping[str, Any]] = {}
        for entry in entries:
            if entry["attacker"] != attacker or entry.get("goal") == "predicted-label":
                continue
            known = best.get(entry["attack"])
            if known is None or _telling(entry) < _telling(known):
                best[entry["attack"]] = entry
        found += sorted(best.values(), key=_telling)[:_CURVES_EACH]
    return found


def _telling(entry: Mapping[str, Any]) -> float:
    return 2.0 if entry["auroc"] is None else float(entry["auroc"])


def _rates_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        columns=(
            "attack", "attacker", "successful on", "AUROC", "flagged", "AUROC, successful",
            "flagged, successful", "n, successful",
        ),
        rows=tuple(_rates(entry) for entry in entries),
        texts=3,
    )  # fmt: skip


def _area(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _attacker(entry: Mapping[str, Any]) -> str:
    """The attacker of an entry, with the backward rule and goal that tell it from others."""
    extra = [
        entry[key] for key, plain in (("backward", ("exact", "none")), ("goal", ("wrong", "none")))
        if entry.get(key) and entry[key] not in plain
    ]  # fmt: skip
    return str(entry["attacker"]) + (f" ({', '.join(extra)})" if extra else "")


def _rates(entry: Mapping[str, Any]) -> tuple[Cell, ...]:
    good = entry.get("successful") or {}
    return (
        *plain_cells(entry["attack"], _attacker(entry)),
        Cell({"baseline": "undefended", "target": "defended"}.get(entry["successful_on"], "")),
        Cell(_area(entry["auroc"])),
        rate_cell(entry["tpr"]),
        Cell(_area(good.get("auroc"))),
        rate_cell(good.get("tpr")),
        Cell(f"{good.get('n', 0):,}"),
    )


def _roc(entries: Sequence[Mapping[str, Any]], rate: Mapping[str, Any] | None) -> tuple[Chart, ...]:
    shown = [entry for entry in entries if entry["roc"]]
    if not shown:
        return ()
    curves, places = [], []
    for entry, kind in zip(shown, COLORS, strict=False):
        points = tuple(Point(x, y, y, y) for x, y in entry["roc"])
        name = f"{entry['attack']}, {_attacker(entry)}: {_area(entry['auroc'])}"
        curves.append(Curve(name=name, kind=kind, points=points, marks=False))
        found = rate and entry["tpr"]
        places.append(Point(rate["rate"], entry["tpr"]["rate"], 0, 0) if rate and found else None)
    title = (
        "ROC and AUROC, of each attacker for the attacks that the detector tells least from clean "
        "images; rings mark the threshold in use"
    )
    return (Chart(title, roc_chart(curves, threshold=places, label="ROC of the detector")),)
