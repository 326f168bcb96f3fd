"""Curves of a report as inline SVG: accuracy against eps, and a detector's ROC.

As in ``charts``, colors are the style sheet's, by classes; every text is escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from unperturb.audit.charts import clip, line, put_text, svg

__all__ = ["COLORS", "Curve", "Point", "measured", "roc_chart", "security_chart"]

COLORS = tuple(f"s{number}" for number in range(8))
"""Classes of the colors of curves that are neither target nor baseline."""

_WIDTH = 640.0
_LEGEND = 19.0


class Point(NamedTuple):
    """One point of a curve, and the interval of its height; all but ``x`` in [0, 1]."""

    x: float
    y: float
    low: float
    high: float
    text: str = ""


def measured(x: float, accuracy: Mapping[str, Any], text: str) -> Point:
    """The point of an accuracy and its interval."""
    low, high = accuracy["interval"]
    return Point(x, accuracy["accuracy"], low, high, text)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A named curve.

    Attributes:
        name: What the legend says.
        kind: Classes of its color and dashes: ``target``, ``baseline`` or one of ``COLORS``.
        points: By ascending x.
        huge: What was measured at a size that destroys the image; drawn beyond a break.
        marks: Whether points are drawn as dots.
    """

    name: str
    kind: str
    points: tuple[Point, ...]
    huge: Point | None = None
    marks: bool = True


class _Frame(NamedTuple):
    """Where the unit square lies in the picture."""

    left: float
    top: float
    width: float
    height: float
    end: float  # the greatest x

    def x(self, value: float) -> float:
        return self.left + self.width * value / self.end

    def y(self, value: float) -> float:
        return self.top + self.height * (1 - value)


def _grid(frame: _Frame, right: float) -> str:
    body = ""
    for tick in (0, 25, 50, 75, 100):
        y = frame.y(tick / 100)
        body += line(frame.left, y, right, y, "axis" if tick == 0 else "grid")
        body += put_text(frame.left - 8, y + 4, f"{tick}%", "tick", "end")
    return body


def _path(points: Sequence[tuple[float, float]], kind: str, tag: str = "polyline") -> str:
    spelled = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return f'<{tag} class="{kind}" points="{spelled}"/>'


def _dot(x: float, y: float, kind: str, radius: float = 3.2) -> str:
    return f'<circle class="{kind}" cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}"/>'


def _curve(curve: Curve, frame: _Frame) -> str:
    above = [(frame.x(p.x), frame.y(p.high)) for p in curve.points]
    below = [(frame.x(p.x), frame.y(p.low)) for p in reversed(curve.points)]
    middle = [(frame.x(p.x), frame.y(p.y)) for p in curve.points]
    banded = any(p.low != p.high for p in curve.points)
    body = _path([*above, *below], f"band {curve.kind}", "polygon") if banded else ""
    body += _path(middle, f"curve {curve.kind}")
    if curve.marks:
        for point, (x, y) in zip(curve.points, middle, strict=True):
            told = f"{curve.name}: {100 * point.y:.1f}%" + (f" at {point.text}" * bool(point.text))
            body += f"<g><title>{escape(told)}</title>{_dot(x, y, curve.kind)}</g>"
    return body


def _legend(curves: Sequence[Curve], left: float, top: float, longest: int) -> str:
    body = ""
    for number, curve in enumerate(curves):
        y = top + _LEGEND * number
        body += _path([(left, y - 4), (left + 26, y - 4)], f"curve {curve.kind}")
        body += put_text(left + 34, y, clip(curve.name, longest), "name")
    return body


def _spaced(points: Sequence[Point], frame: _Frame, gap: float = 44) -> list[Point]:
    """Points whose tick labels do not run into one another, the first one kept."""
    kept: list[Point] = []
    for point in sorted({p.x: p for p in points if p.text}.values()):
        if not kept or frame.x(point.x) - frame.x(kept[-1].x) >= gap:
            kept.append(point)
    return kept


def security_chart(curves: Sequence[Curve], *, eps: float, eps_text: str, label: str) -> str:
    """Accuracy against eps, with 95 % intervals as bands.

    Args:
        curves: At least one, each with at least one point.
        eps: The threat model's own size, marked by a vertical line.
        eps_text: Its text.
        label: What a screen reader says.
    """
    huge = any(curve.huge for curve in curves)
    margin = 104.0 if huge else 26.0
    end = max([eps, *(p.x for curve in curves for p in curve.points)]) or 1.0
    frame = _Frame(44, 12, _WIDTH - 44 - margin, 230, end)
    bottom = frame.y(0)
    body = _grid(frame, frame.left + frame.width)
    body += line(frame.x(eps), frame.top, frame.x(eps), bottom, "plan")
    ticks = [Point(eps, 0, 0, 0, eps_text)]
    others = [p for curve in curves if curve.marks for p in curve.points]
    near = [p for p in others if abs(frame.x(p.x) - frame.x(eps)) >= 44]
    for point in [*ticks, *_spaced(near, frame)]:
        kind = "tick plan" if point.x == eps else "tick"
        body += put_text(frame.x(point.x), bottom + 16, point.text, kind, "middle")
    if huge:
        body += _beyond(curves, frame)
    body += "".join(_curve(curve, frame) for curve in curves)
    middle = frame.left + frame.width / 2
    body += put_text(
        middle, bottom + 34, "eps (the dashed line is the audit's own)", "tick", "middle"
    )
    top = bottom + 60
    body += _legend(curves, frame.left, top, 84)
    return svg(_WIDTH, top + _LEGEND * (len(curves) - 1) + 8, label, body, "curves")


def _beyond(curves: Sequence[Curve], frame: _Frame) -> str:
    """What was measured at the huge eps, right of a break in the axis."""
    edge, x, bottom = frame.left + frame.width, _WIDTH - 40, frame.y(0)
    body = line(x - 26, bottom, x + 26, bottom, "axis")
    for shift in (14, 20):
        body += line(edge + shift, bottom + 5, edge + shift + 5, bottom - 5, "axis")
    shown = next(curve.huge for curve in curves if curve.huge is not None)
    body += put_text(x, bottom + 16, shown.text, "tick", "middle")
    body += put_text(x, bottom + 34, "(huge)", "tick", "middle")
    present = [curve for curve in curves if curve.huge is not None]
    for number, curve in enumerate(present):
        assert curve.huge is not None
        at = x + 9 * (number - (len(present) - 1) / 2)
        y = frame.y(curve.huge.y)
        told = f"{curve.name}: {100 * curve.huge.y:.1f}% at {curve.huge.text}"
        body += line(at, frame.y(curve.huge.low), at, frame.y(curve.huge.high), "whisker")
        body += f"<g><title>{escape(told)}</title>{_dot(at, y, curve.kind)}</g>"
    return body


def roc_chart(curves: Sequence[Curve], *, threshold: Sequence[Point | None], label: str) -> str:
    """True-positive rate against false-positive rate; the threshold in use as rings.

    Args:
        curves: One for each attack, from (0, 0) to (1, 1).
        threshold: Where the threshold in use puts each curve, in the same order; None draws none.
        label: What a screen reader says.
    """
    frame = _Frame(44, 12, 270, 270, 1.0)
    bottom, right = frame.y(0), frame.x(1)
    body = _grid(frame, right)
    for tick in (0, 25, 50, 75, 100):
        body += put_text(frame.x(tick / 100), bottom + 16, f"{tick}%", "tick", "middle")
    body += line(frame.left, bottom, right, frame.top, "rule")
    body += "".join(_curve(curve, frame) for curve in curves)
    for curve, point in zip(curves, threshold, strict=True):
        if point is None:
            continue
        body += _dot(frame.x(point.x), frame.y(point.y), f"ring {curve.kind}", 5)
    words = "clean images flagged; upward: attacked images flagged"
    body += put_text(frame.left, bottom + 34, words, "tick")
    body += _legend(curves, right + 24, frame.top + 14, 48)
    height = max(bottom + 44, frame.top + 14 + _LEGEND * len(curves))
    return svg(_WIDTH + 100, height, label, body, "roc")
