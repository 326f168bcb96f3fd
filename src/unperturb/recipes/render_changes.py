"""Logit changes on a reproduction's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unperturb.recipes.words import (
    Record,
    accuracy_text,
    cell_text,
    header_of,
    line_of,
    paper_text,
    share_text,
    threat_text,
)

__all__ = [
    "accuracy_table",
    "approach_lines",
    "changes_part",
    "curve_values",
    "failed_table",
    "pattern_table",
]

Part = Mapping[str, Any]


def changes_part(record: Record) -> list[str]:
    """Pictures and tables of all subjects."""
    told = record["changes"]
    shown = [f"![{name}]({name})" for name in record.get("files", ()) if name.endswith(".png")]
    lines = ["## Logit changes", "", *shown, ""] if shown else ["## Logit changes", ""]
    for subject in told["subjects"]:
        if subject["status"] != "done":
            lines += [f"{subject['name']}: not run: {cell_text(subject['reason'])}", ""]
    if not done_of(told):
        return lines
    for table in (accuracy_table, pattern_table, failed_table, approach_lines):
        lines += [*table(told), ""]
    return lines


def done_of(told: Part) -> list[Part]:
    """Subjects that were measured."""
    return [subject for subject in told["subjects"] if subject["status"] == "done"]


def accuracy_table(told: Part) -> list[str]:
    """What is right before and after purification and in the end, and what is flagged."""
    lines = [
        "Right answers by the logits before purification, by those after it, by their difference "
        "alone, and of the defense; what its detector flags. Wilson 95 % intervals in brackets.",
        "",
        *header_of([
            "", "attack, gradient, label", "images", "before", "after", "difference alone",
            "defense", "paper", "flagged", "AUROC",
        ]),
    ]  # fmt: skip
    for subject in done_of(told):
        found = subject["found"]
        how = f"{found['attack']} {threat_text(found)}, {found['gradient']}, {found['away_from']}"
        for kind in ("clean", "attacked"):
            part = found[kind]
            quoted = subject["paper"].get(f"answer {kind}")
            lines.append(
                line_of([
                    cell_text(subject["name"]) if kind == "clean" else "",
                    how if kind == "attacked" else "",
                    f"{kind}, {found['n']:,}",
                    *(accuracy_text(part[key]) for key in ("before", "after", "difference",
                                                           "answer")),
                    "" if quoted is None else cell_text(paper_text(quoted)),
                    share_text(part["flagged"]),
                    "" if kind == "clean" or found["auroc"] is None else f"{found['auroc']:.3f}",
                ])
            )  # fmt: skip
    notes = [
        f"- **{cell_text(subject['name'])}**: {subject['note']}"
        for subject in told["subjects"]
        if subject["note"]
    ]
    return [*lines, *(["", *notes] if notes else [])]


def pattern_table(told: Part) -> list[str]:
    """Of successful attacks: which class drops most, the three cases, how far logits move."""
    lines = [
        "Successful attacks are those that turn the logits before from right to wrong. Changes are "
        "means over them, attacked less clean.",
        "",
        *header_of([
            "", "successful", "true class drops most", "paper", "true class rises most again",
            "true down, adversarial up", "both down", "both up", "true", "adversarial",
            "others, absolute", "defense right",
        ]),
    ]  # fmt: skip
    for subject in done_of(told):
        found = subject["found"]["successful"]
        quoted = subject["paper"].get("drops most")
        moved = found["changes"]
        lines.append(
            line_of([
                cell_text(subject["name"]), f"{found['n']:,}", share_text(found["drops_most"]),
                "" if quoted is None else cell_text(paper_text(quoted)),
                share_text(found["rises_most"]),
                *(share_text(found["cases"][name])
                  for name in ("true down, adversarial up", "both down", "both up")),
                *(_signed(moved[name]) for name in ("true", "adversarial", "others_absolute")),
                share_text(found["right"]),
            ])
        )  # fmt: skip
    return lines


def failed_table(told: Part) -> list[str]:
    """Of attacks that did not turn the logits: what the defense makes of them."""
    lines = [
        "Attacks that failed leave the logits before right. A flag sends their images to the "
        "difference, which means nothing there.",
        "",
        *header_of([
            "", "failed", "flagged", "right", "right where flagged", "right by the logits after",
            "right by the difference", "flagged of all though right before",
        ]),
    ]  # fmt: skip
    for subject in done_of(told):
        found = subject["found"]["failed"]
        flagged = subject["found"]["flagged_though_right"]["attacked"]
        lines.append(
            line_of([
                cell_text(subject["name"]), f"{found['n']:,}",
                *(share_text(found[key]) for key in ("flagged", "right", "right_where_flagged",
                                                     "right_after", "right_by_difference")),
                share_text(flagged["share_of_flagged"]),
            ])
        )  # fmt: skip
    return lines


def approach_lines(told: Part) -> list[str]:
    """Distances against the number of steps."""
    lines: list[str] = []
    for subject in done_of(told):
        rows: Sequence[Part] = subject["found"].get("approach", ())
        if not rows:
            continue
        lines += [
            f"**{cell_text(subject['name'])}**: medians of mean squared errors per pixel; the "
            f"perturbation itself is {rows[0]['perturbation']:.3g}.",
            "",
            *header_of(["steps N", "purified to attacked", "purified to clean",
                        "purified clean to clean", "nearer to clean than the attacked image"]),
            *(line_of([str(row["steps"]), *(f"{row[key]:.3g}" for key in (
                "reconstruction", "to_clean", "clean")), f"{row['nearer']:.1%}"]) for row in rows),
            "",
        ]  # fmt: skip
    return lines


def curve_values(told: Part) -> dict[str, list[tuple[float, float]]]:
    """Lines of Figures 3 and 4: label to (place, share), places in order."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for subject in sorted(done_of(told), key=lambda one: one["place"] or 0.0):
        found = subject["found"]
        values = {
            "clean, right": found["clean"]["answer"]["accuracy"],
            "attacked, right": found["attacked"]["answer"]["accuracy"],
            "attacked, flagged": found["attacked"]["flagged"]["rate"],
            "clean, flagged": found["clean"]["flagged"]["rate"],
        }
        for label, value in values.items():
            lines.setdefault(label, []).append((float(subject["place"] or 0.0), float(value)))
    return lines


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
