"""The short table at the end of an audit on the command line; plain ASCII, 100 columns at most."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from unperturb.audit import report_text as words

__all__ = ["WIDTH", "table_text"]

WIDTH = 100
_NAME = 26
_COLUMN = 17

Summary = Mapping[str, Any]


def _ascii(text: str) -> str:
    """Characters that no terminal encoding lacks; control characters are shown, not obeyed."""
    text = text.replace("\N{INFINITY}", "inf").replace("\N{MINUS SIGN}", "-")
    return "".join(c if " " <= c <= "~" else "?" for c in text.replace("\N{EN DASH}", "-"))


def _clip(text: str, width: int) -> str:
    text = _ascii(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(_ascii(text), WIDTH, subsequent_indent="  ") or [""]


def _overall(summary: Summary, subjects: list[str]) -> str:
    has_defense = summary["has_defense"]
    named = summary["attackers"]
    who = "all attackers" if len(named) > 1 else f"{named[0]} attacker only"
    parts = []
    for subject in reversed(subjects):
        accuracy = summary[subject].get("worst_case")
        between = f" [{words.interval(accuracy, '-')}]" if accuracy else ""
        name = f"{words.subject_name(subject, has_defense)} " if has_defense else ""
        parts.append(f"{name}{words.percent(accuracy)}{between}")
    return f"Worst case per image, {who}: " + ", ".join(parts)


def table_text(summary: Summary) -> str:
    """Render a checked summary; see :func:`unperturb.audit.report.terminal_table`."""
    has_defense = summary["has_defense"]
    attackers, subjects = words.columns(summary)
    column = _COLUMN if has_defense else 30
    lines = [_clip(summary["title"], WIDTH)]
    lines += _wrap(words.setting_line(summary, ", ", ascii_only=True))
    lines.append("")
    span = column * len(subjects)
    headings = [words.attacker_heading(attacker, has_defense) for attacker in attackers]
    lines.append(" " * _NAME + "".join(f"{heading.title:>{span}}" for heading in headings))
    lines.append(" " * _NAME + "".join(f"{heading.subtitle:>{span}}" for heading in headings))
    if has_defense:
        names = [words.subject_name(subject, True) for _ in attackers for subject in subjects]
    else:
        names = [heading.short for heading in headings]
    lines.append(" " * _NAME + "".join(f"{name:>{column}}" for name in names))
    rule = "-" * (_NAME + span * len(attackers))
    lines.append(rule)
    for row in words.attack_rows(summary):
        if row.kind == "worst":
            lines.append(rule)
        cells = [words.percent(row.cells[a][s]) for a in attackers for s in subjects]
        name = _clip(row.name, _NAME - 1)
        lines.append(f"{name:<{_NAME}}" + "".join(f"{cell:>{column}}" for cell in cells))
    lines += ["", *_wrap(_overall(summary, subjects))]
    for attacker in words.ATTACKER_ORDER:
        if attacker not in attackers:
            heading = words.attacker_heading(attacker, has_defense)
            lines += _wrap(f"{heading.title} ({heading.subtitle}): {words.NOT_RUN}")
    if words.draws_line(summary):
        lines += _wrap(words.draws_line(summary))
    rejection = summary.get("rejection")
    if rejection:
        worst, rate = (
            rejection["wrong_unflagged"].get("worst_case"),
            rejection.get("false_positive_rate"),
        )
        lines += _wrap(
            f"Wrong and not flagged, worst case: {words.rate(worst)} "
            f"[{words.rate_interval(worst, '-')}]; clean images rejected: {words.rate(rate)}"
        )
    for entry in summary.get("outside") or []:
        lines += _wrap(
            f"Images from {entry['name']}: {entry['n']:,} scored, {entry['inside']:,} inside the "
            f"ball; accuracy {words.percent(entry['target'])}"
        )
    flags = summary["flags"]
    lines += _wrap(f"Red flags: {len(flags)}" if flags else "Red flags: none (not a proof)")
    for flag in flags:
        lines += _wrap(f"  ! {flag['title']}")
    if not summary["complete"]:
        lines += _wrap("NOT COMPLETE: " + ("; ".join(summary["left_out"]) or "work is left"))
    if summary["lesson"]:
        lines += ["", *_wrap(summary["lesson"])]
    return "\n".join(line.rstrip() for line in lines)
