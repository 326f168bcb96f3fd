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
    "detector_table",
    "done_of",
    "effort_table",
    "failed_table",
    "paired_table",
    "pattern_table",
    "quality_table",
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
    tables = (
        accuracy_table, detector_table, paired_table, effort_table, pattern_table, failed_table,
        quality_table, approach_lines,
    )  # fmt: skip
    for table in tables:
        if part := table(told):
            lines += [*part, ""]
    return lines


def done_of(told: Part) -> list[Part]:
    """Subjects that were measured."""
    return [subject for subject in told["subjects"] if subject["status"] == "done"]


def accuracy_table(told: Part) -> list[str]:
    """What is right before and after purification and in the end, and what is flagged."""
    quotes = any(subject["paper"] for subject in done_of(told))
    lines = [
        "Right answers by the logits before purification, by those after it, by their difference "
        "alone, and of the defense; what its detector flags. Wilson 95 % intervals in brackets.",
        "",
        *header_of([
            "", "attack, gradient, label", "images", "before", "after", "difference alone",
            "defense", *(["paper"] if quotes else []), "flagged", "AUROC",
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
                    *(["" if quoted is None else cell_text(paper_text(quoted))] if quotes else []),
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


def paired_table(told: Part) -> list[str]:
    """Subjects that are compared with another, image by image; nothing where none is."""
    pairs = [subject for subject in done_of(told) if subject.get("paired")]
    if not pairs:
        return []
    lines = [
        "Image by image, the defense under attack: on the first images that both have. Newcombe's "
        "95 % intervals, exact McNemar test.",
        "",
        *header_of(["", "compared with", "this", "that", "difference", "only this right",
                    "only that right", "McNemar p", "n"]),
    ]  # fmt: skip
    for subject in pairs:
        found = subject["paired"]
        low, high = found["interval"]
        lines.append(
            line_of([
                cell_text(subject["name"]), cell_text(subject["against"]),
                f"{found['one']['accuracy']:.1%}", f"{found['other']['accuracy']:.1%}",
                f"{found['difference']:+.1%} ({low:+.1%} to {high:+.1%})",
                f"{found['only_one']}", f"{found['only_other']}", f"{found['mcnemar_p']:.3g}",
                f"{found['n']:,}",
            ])
        )  # fmt: skip
    return lines


def detector_table(told: Part) -> list[str]:
    """What the threshold flags, and wrong answers that it does not; nothing without a detector."""
    subjects = [one for one in done_of(told) if one["found"]["false_positives"] is not None]
    if not subjects:
        return []
    lines = [
        "What the detector's threshold does. False positives and AUROC are over clean test images "
        "(n in brackets, Wilson 95 % intervals).",
        "",
        *header_of(["", "false positives", "attacked images flagged", "successful attacks flagged",
                    "clean: wrong and not flagged", "attacked: wrong and not flagged", "AUROC",
                    "AUROC, successful"]),
    ]  # fmt: skip
    for subject in subjects:
        found = subject["found"]
        areas = ("" if found[key] is None else f"{found[key]:.3f}"
                 for key in ("auroc", "auroc_successful"))  # fmt: skip
        lines.append(
            line_of([
                cell_text(subject["name"]), share_text(found["false_positives"]),
                share_text(found["attacked"]["flagged"]),
                share_text(found["successful"]["flagged"]),
                share_text(found["clean"]["wrong_unflagged"]),
                share_text(found["attacked"]["wrong_unflagged"]), *areas,
            ])
        )  # fmt: skip
    return lines


def effort_table(told: Part) -> list[str]:
    """Gradients until the first success; nothing where they were not counted."""
    subjects = [one for one in done_of(told) if one["found"]["effort"] is not None]
    if not subjects:
        return []
    lines = [
        "What the attack spends on an image until what it attacks first answers wrongly, over the "
        "images that are right when clean.",
        "",
        *header_of(["", "turned", "gradients to the first success, median", "mean"]),
    ]
    for subject in subjects:
        effort = subject["found"]["effort"]
        middle, mean = effort["median"], effort["mean"]
        lines.append(
            line_of([
                cell_text(subject["name"]), share_text(effort["turned"]),
                "" if middle is None else f"{middle:g}", "" if mean is None else f"{mean:.3g}",
            ])
        )  # fmt: skip
    return lines


def quality_table(told: Part) -> list[str]:
    """What purification leaves of clean images, against the steps; nothing without steps."""
    subjects = [one for one in done_of(told) if one["found"].get("approach")]
    if not subjects:
        return []
    lines = [
        "Clean test images, purified: the mean of their PSNR, and the classifier on them.",
        "",
        *header_of(["", "steps N", "PSNR", "classifier right", "not purified"]),
    ]
    for subject in subjects:
        for number, row in enumerate(subject["found"]["approach"]):
            name = "" if number else cell_text(subject["name"])
            lines.append(
                line_of([
                    name, str(row["steps"]), f"{row['psnr']:.2f} dB", accuracy_text(row["right"]),
                    accuracy_text(row["right_clean"]),
                ])
            )  # fmt: skip
    return lines


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
        if subject.get("series"):
            # A second series has the two lines that say whether it serves as well.
            values = {f"{subject['series']}: {label}": values[label]
                      for label in ("attacked, right", "attacked, flagged")}  # fmt: skip
        for label, value in values.items():
            lines.setdefault(label, []).append((float(subject["place"] or 0.0), float(value)))
    return lines


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
