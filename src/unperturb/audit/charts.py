"""Charts of a report as inline SVG: no script, no fonts, colors by the page's style sheet.

Marks carry classes (``target``, ``baseline``, ``whisker``, ...), so that light, dark and print
colors are decided in one place. Every text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from unperturb.audit.report_text import NOT_RUN, Row, interval, percent

__all__ = [
    "accuracy_chart",
    "clip",
    "diverging_bar",
    "line",
    "meter",
    "put_text",
    "rect",
    "score_bars",
    "softmax",
    "svg",
]

Accuracy = Mapping[str, Any]


def svg(width: float, height: float, label: str, body: str, kind: str) -> str:
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" '
        f'height="{height:g}"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"/>'


def put_text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _whisker(x: float, y: float, scale: float, accuracy: Accuracy, half: float) -> str:
    low, high = (x + scale * end for end in accuracy["interval"])
    return (
        line(low, y, high, y, "whisker")
        + line(low, y - half, low, y + half, "whisker")
        + line(high, y - half, high, y + half, "whisker")
    )


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def meter(accuracy: Accuracy | None, subject: str) -> str:
    """One accuracy as a thin bar from 0 to 100 % with its interval.

    Example:
        >>> "<svg" in meter({"accuracy": 0.5, "n": 10, "interval": [0.2, 0.8]}, "target")
        True
    """
    body = rect(2, 4, 296, 8, "track")
    if accuracy is not None:
        body += rect(2, 4, 296 * accuracy["accuracy"], 8, subject)
        body += _whisker(2, 8, 296, accuracy, 5)
    label = f"{percent(accuracy)}, 95% interval {interval(accuracy) or NOT_RUN}"
    return svg(300, 16, label, body, "meter")


def accuracy_chart(rows: Sequence[Row], attacker: str, subjects: Sequence[str], label: str) -> str:
    """Horizontal bars with 95 % intervals of one attacker: a group for each row of the table.

    Args:
        rows: Rows of the accuracy table.
        attacker: Whose column is drawn.
        subjects: Bars of each group, top to bottom.
        label: What a screen reader says.
    """
    names = [_row_label(row.name) for row in rows]
    longest = max(len(part) for pair in names for part in pair)
    left, right, top = min(7.2 * longest + 14, 160), 54, 8
    bar, width = 13, 520
    group = max(bar * len(subjects) + 14, 34)
    scale, bottom = width - left - right, top + group * len(rows)
    body = ""
    for tick in (0, 25, 50, 75, 100):
        x = left + scale * tick / 100
        body += line(x, top, x, bottom, "axis" if tick == 0 else "grid")
        body += put_text(x, bottom + 16, f"{tick}%", "tick", "middle")
    for index, row in enumerate(rows):
        y = top + group * index
        if row.kind == "worst":
            body += line(0, y, width, y, "rule")
        name, option = names[index]
        middle = y + group / 2
        body += put_text(left - 8, middle + (-1 if option else 4), name, f"name {row.kind}", "end")
        if option:
            body += put_text(left - 8, middle + 12, option, "tick", "end")
        offset = y + (group - bar * len(subjects)) / 2
        for place, subject in enumerate(subjects):
            accuracy = row.cells[attacker][subject]
            center = offset + bar * place + bar / 2
            if accuracy is None:
                body += put_text(left + 4, center + 4, NOT_RUN, "tick")
                continue
            body += rect(left, center - bar / 2 + 1, scale * accuracy["accuracy"], bar - 2, subject)
            body += _whisker(left, center, scale, accuracy, 3.5)
            end = left + scale * max(accuracy["interval"][1], accuracy["accuracy"])
            body += put_text(end + 5, center + 4, percent(accuracy), "value")
    return svg(width, bottom + 24, label, body, "bars")


def _row_label(name: str) -> tuple[str, str]:
    head, _, option = name.partition("?")
    return clip(head, 20), clip(option.replace("&", ", "), 20)


def diverging_bar(difference: float, kind: str, scale: float = 1.0) -> str:
    """A gain in points, left or right of zero.

    Args:
        difference: Difference of two accuracies, -1 to 1.
        kind: Class of the bar: ``better``, ``worse`` or ``unclear``.
        scale: Difference that fills one side, above 0.
    """
    reach = 58 * difference / scale
    body = rect(min(60, 60 + reach), 3, abs(reach), 10, kind) + line(60, 0, 60, 16, "axis")
    return svg(120, 16, f"{100 * difference:+.1f} points", body, "diverging")


def softmax(scores: Sequence[float]) -> list[float]:
    """Softmax in double precision; all zero where a score is not finite.

    Example:
        >>> softmax([0.0, 0.0])
        [0.5, 0.5]
    """
    if not all(math.isfinite(score) for score in scores):
        return [0.0] * len(scores)
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def score_bars(
    scores: Mapping[str, Sequence[float]], label: int, names: Sequence[str], *, limit: int = 4
) -> str:
    """Softmax of the leading classes, one thin bar for each subject.

    Args:
        scores: Scores by subject (``baseline``, ``target``), K each; drawn in this order.
        label: True class: always shown and marked.
        names: Class names, K.
        limit: Classes shown at most.
    """
    shares = {subject: softmax(values) for subject, values in scores.items()}
    classes = range(len(next(iter(scores.values()))))
    leading = sorted(classes, key=lambda k: (k != label, -max(s[k] for s in shares.values()), k))
    shown = sorted(leading[:limit], key=lambda k: (-max(s[k] for s in shares.values()), k))
    thick = 10
    left, scale, group = 104, 172, thick * len(scores) + 10
    body, spoken = "", []
    for index, k in enumerate(shown):
        y = 2 + group * index
        name = names[k] if k < len(names) else f"class {k}"
        mark = "\N{CHECK MARK} " if k == label else ""
        kind = "name true" if k == label else "name"
        middle = y + thick * len(scores) / 2 + 4
        body += put_text(left - 8, middle, mark + clip(name, 12), kind, "end")
        for place, (subject, share) in enumerate(shares.items()):
            row = y + thick * place
            raw = f"{scores[subject][k]:.2f}"
            body += f"<g><title>{escape(f'{name}, {subject}: score {raw}')}</title>"
            body += rect(left, row + 0.5, max(scale * share[k], 0.8), thick - 1, subject) + "</g>"
            text = f"{100 * share[k]:.0f}%"
            body += put_text(left + scale * share[k] + 4, row + thick - 1.5, text, "share")
        spoken.append(f"{name} " + ", ".join(f"{100 * s[k]:.0f}%" for s in shares.values()))
    body += line(left, 0, left, 2 + group * len(shown) - 8, "axis")
    told = f"Softmax of the leading classes ({' then '.join(shares)}): {'; '.join(spoken)}"
    return svg(320, 2 + group * len(shown), told, body, "scores")
