"""The picture of restoration panels: clean and attacked images in pairs of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unperturb.explain.canvas import (
    INK,
    MUTED,
    RIGHT,
    WRONG,
    class_name,
    new_figure,
    picture_of,
    small_print,
)
from unperturb.explain.panels import VERSIONS, PanelColumn, Panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_panels"]

_CELL, _BETWEEN, _SAID = 1.15, 0.1, 0.2
_PAIR, _GROUP = 0.16, 0.22
_LEFT, _TOP = 1.35, 0.62


def figure_panels(found: Panels, *, classes: Sequence[str] = ()) -> Figure:
    """Draw every stage: two rows for each image (clean, attacked), a column for each stage.

    Above each stands what the classifier says of it, with its probability, in green with a tick
    where that is right, in red with a cross where it is wrong.

    Args:
        found: What `restoration_panels` found.
        classes: Names of the classes.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    lefts = _lefts(found.columns)
    width = lefts[-1] + _CELL + 0.15
    foot = small_print(_caption(found), width - _LEFT)
    count = len(found.labels)
    bottom = 0.2 + 0.13 * len(foot)
    height = _TOP + count * (2 * (_CELL + _SAID) + _PAIR) + bottom
    figure = new_figure(width, height)
    for column, left in zip(found.columns, lefts, strict=True):
        figure.text(
            (left + _CELL / 2) / width, 1 - 0.5 / height, column.stage,
            ha="center", va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    _headings(figure, found.columns, lefts, width, height)
    for image in range(count):
        for row, version in enumerate(VERSIONS):
            step = image * (2 * (_CELL + _SAID) + _PAIR) + row * (_CELL + _SAID)
            top = _TOP + _SAID + step
            base = 1 - (top + _CELL) / height
            for column, left in zip(found.columns, lefts, strict=True):
                box = (left / width, base, _CELL / width, _CELL / height)
                _cell(figure.add_axes(box), column, row, image, found, classes)
            middle = base + _CELL / height / 2
            words = f"{class_name(int(found.labels[image]), classes)}\n{version}"
            figure.text(
                (_LEFT - 0.1) / width, middle, words, ha="right", va="center", fontsize=8.5,
                color=INK, parse_math=False,
            )  # fmt: skip
    figure.text(
        _LEFT / width, 0.08 / height, "\n".join(foot), fontsize=7.5, color=MUTED, va="bottom",
        parse_math=False,
    )  # fmt: skip
    return figure


def _lefts(columns: Sequence[PanelColumn]) -> list[float]:
    """Left edges in inches: a wider gap where another transform begins."""
    found, left = [], _LEFT
    for before, column in zip([None, *columns], columns, strict=False):
        if before is not None:
            left += _CELL + (_BETWEEN if before.transform == column.transform else _GROUP)
        found.append(left)
    return found


def _headings(
    figure: Figure, columns: Sequence[PanelColumn], lefts: list[float], width: float, height: float
) -> None:
    """The name of each transform over its columns."""
    names = dict.fromkeys(column.transform for column in columns if column.transform)
    for name in names:
        own = [
            left for column, left in zip(columns, lefts, strict=True) if column.transform == name
        ]
        middle = (own[0] + own[-1] + _CELL) / 2
        figure.text(
            middle / width, 1 - 0.26 / height, name.upper(), ha="center", va="center",
            fontsize=10.5, weight="bold", color=INK,
        )  # fmt: skip


def _cell(
    axes: Any, column: PanelColumn, row: int, image: int, found: Panels, classes: Sequence[str]
) -> None:
    axes.imshow(picture_of(column.images[row, image]), interpolation="nearest")
    axes.set_axis_off()
    said = int(column.predictions[row, image])
    right = said == int(found.labels[image])
    share = float(column.probabilities[row, image])
    axes.set_title(
        f"{'✓' if right else '✗'} {class_name(said, classes)} {share:.0%}",
        fontsize=6.5, color=RIGHT if right else WRONG, pad=2, parse_math=False,
    )  # fmt: skip


def _caption(found: Panels) -> list[str]:
    facts = found.settings
    whom = "undefended classifier" if facts["attacker"] == "oblivious" else "defense"
    eps = f"{facts['eps'] * 255:.3g}/255" if facts["norm"] == "linf" else f"{facts['eps']:.3g}"
    outside = int((~found.inside).sum())
    told = "; ".join(_settings(one) for one in facts["transforms"])
    return [
        f"{facts['attack']}, {facts['norm']} {eps}, on the {whom}"
        + (f"; {outside} of {len(found.labels)} images outside eps" if outside else ""),
        f"{facts['network']} of a defense by {_settings(facts['own_transform'])}; shown: {told}",
        "clean and attacked images meet the same mask and noise; what leaves [0, 1] is clipped "
        "in this picture only",
    ]


def _settings(transform: dict[str, Any]) -> str:
    parts = [
        f"{name} {transform[name]:g}"
        for name in ("patch", "rate", "sigma", "passes")
        if transform[name] is not None
    ]
    return f"{transform['name']} ({', '.join(parts)})"
