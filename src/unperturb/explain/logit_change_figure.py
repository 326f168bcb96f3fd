"""Pictures of logit changes: bars of single images, the detector's statistic, the changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unperturb.explain.canvas import (
    INK,
    MUTED,
    RIGHT,
    WRONG,
    class_name,
    new_figure,
    picture_of,
    small_print,
    tidy,
)
from unperturb.explain.logit_change import LogitChange
from unperturb.explain.logit_figures import roc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_bars", "figure_changes", "figure_roc", "figure_statistic"]

_CLEAN, _TRAIN, _ATTACKED, _OTHERS = "#2b5c9e", "#57a3a0", "#d9822b", "#9aa4ae"
_BINS = 40
_NAMED = 20
"""Classes up to which each has its name below a chart."""


def figure_bars(found: LogitChange, *, count: int = 4, classes: Sequence[str] = ()) -> Figure:
    """Logits of attacked images before and after purification, and their difference (Figure 6).

    A row for each image: it, its purified self, and three panels of bars. The true class is green,
    the class that the bare classifier answers red. Successful attacks come first, in the order of
    the images.

    Args:
        found: What `logit_change` found.
        count: Images, at most.
        classes: Names of the classes.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    order = torch.cat([found.successful.nonzero()[:, 0], (~found.successful).nonzero()[:, 0]])
    rows = order[:count].tolist()
    cell, wide, gap, top, left = 1.1, 2.2, 0.45, 0.6, 0.3
    foot = small_print(_caption(found), 2 * cell + 3 * wide)
    width = left + 2 * (cell + 0.1) + 3 * (wide + gap) + 0.1
    bottom = 0.25 + 0.13 * len(foot)
    height = top + len(rows) * (cell + 0.55) + bottom
    figure = new_figure(width, height)
    names = ("input", "purified", "logits of the input", "logits of the purified", "difference")
    for place, row in enumerate(rows):
        y = height - top - place * (cell + 0.55) - cell
        part = found.attacked
        answer = int(part.before[row].argmax())
        shown = [part.images[row], None if part.purified is None else part.purified[row]]
        for column, image in enumerate(shown):
            x = left + column * (cell + 0.1)
            axes = figure.add_axes((x / width, y / height, cell / width, cell / height))
            axes.set_axis_off()
            if image is not None:
                axes.imshow(picture_of(image), interpolation="nearest")
            said = answer if column == 0 else int(part.after[row].argmax())
            _title(axes, said, int(found.labels[row]), classes)
            if place == 0:
                _heading(figure, names[column], (x + cell / 2) / width, 1 - 0.2 / height)
        for column, values in enumerate((part.before[row], part.after[row], part.change[row])):
            x = left + 2 * (cell + 0.1) + gap + column * (wide + gap)
            axes = figure.add_axes((x / width, y / height, wide / width, cell / height))
            _bars(axes, values, int(found.labels[row]), answer)
            if column == 2:
                words = "flagged" if bool(part.flagged[row]) else "not flagged"
                axes.set_title(
                    f"{words}; answer {class_name(int(part.answers[row]), classes)}",
                    fontsize=7, color=MUTED, pad=3, parse_math=False,
                )  # fmt: skip
            if place == 0:
                _heading(figure, names[2 + column], (x + wide / 2) / width, 1 - 0.2 / height)
    _foot(figure, foot, left / width, 0.08 / height)
    return figure


def figure_statistic(found: LogitChange) -> Figure:
    """The detector's scores of clean training, clean test and attacked images (Figure 2).

    Args:
        found: What `logit_change` found.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    sets = {
        "clean training images": (found.train, _TRAIN),
        "clean test images": (found.clean.scores, _CLEAN),
        "attacked test images": (found.attacked.scores, _ATTACKED),
    }
    given = {name: (scores, color) for name, (scores, color) in sets.items() if scores is not None}
    joined = torch.cat([scores for scores, _ in given.values()])
    # Few scores lie far out; the last bin holds them.
    low, high = float(joined.min()), float(torch.quantile(joined, 0.99))
    foot = small_print([*_caption(found), "scores beyond the right end are in the last bin"], 5.2)
    width, height = 6.0, 3.4 + 0.13 * len(foot)
    figure = new_figure(width, height)
    base = 0.75 + 0.13 * len(foot)
    box = (0.65 / width, base / height, (width - 0.85) / width, (height - base - 0.3) / height)
    axes = figure.add_axes(box)
    for name, (scores, color) in given.items():
        _histogram(axes, scores, low, max(high, low + 1e-6), color, f"{name} (n = {len(scores):,})")
    if found.threshold is not None:
        axes.axvline(
            found.threshold, color=WRONG, linewidth=1, linestyle="--",
            label=f"threshold {found.threshold:.3g}",
        )  # fmt: skip
    tidy(axes)
    axes.set_xlabel(found.settings["statistic"], fontsize=8, color=MUTED)
    axes.set_ylabel("share of images", fontsize=8, color=MUTED)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    _foot(figure, foot, 0.65 / width, 0.08 / height)
    return figure


def figure_changes(found: LogitChange, *, classes: Sequence[str] = ()) -> Figure:
    """Logits of one image clean and attacked, and the changes of all (Figure 7).

    The image is the first whose attack succeeded. On the right, of all successful attacks: how
    far the logit of the true class, of the adversarial class and of each other class moves.

    Args:
        found: What `logit_change` found.
        classes: Names of the classes.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    chosen = found.successful
    many = f"{int(chosen.sum()):,} successful attacks; changes beyond the ends are in the last bins"
    foot = small_print([*_caption(found), many], 8.0)
    every = range(found.clean.before.shape[1])
    named = bool(classes) and len(every) <= _NAMED
    base = (1.1 if named else 0.75) + 0.13 * len(foot)
    width, height = 9.0, base + 2.55
    figure = new_figure(width, height)
    tall = (height - base - 0.4) / height
    left = figure.add_axes((0.6 / width, base / height, 3.6 / width, tall))
    right = figure.add_axes((5.0 / width, base / height, 3.8 / width, tall))
    for axes in (left, right):
        tidy(axes)
    if bool(chosen.any()):
        row = int(chosen.nonzero()[0, 0])
        pairs = ((found.clean, _CLEAN, "clean"), (found.attacked, _ATTACKED, "attacked"))
        for shift, (part, color, name) in zip((-0.2, 0.2), pairs, strict=True):
            values = part.before[row]
            places = [k + shift for k in range(len(values))]
            left.bar(places, values.tolist(), width=0.4, color=color, label=name)
        label = int(found.labels[row])
        left.set_title(
            f"image {found.ids[row]}: {class_name(label, classes)}", fontsize=9, color=INK,
            parse_math=False,
        )  # fmt: skip
        if named:
            left.set_xticks(
                every, [class_name(k, classes) for k in every], rotation=45, ha="right",
                rotation_mode="anchor", parse_math=False,
            )  # fmt: skip
        else:
            left.set_xlabel("class", fontsize=8, color=MUTED)
        left.set_ylabel("logit", fontsize=8, color=MUTED)
        left.legend(frameon=False, fontsize=8, labelcolor=INK)
        for name, (values, color) in _moved(found).items():
            low, high = -_far(found), _far(found)
            _histogram(right, values, low, high, color, name)
        right.set_title("change by the attack", fontsize=9, color=INK)
        right.set_xlabel("logit, attacked less clean", fontsize=8, color=MUTED)
        right.set_ylabel("share", fontsize=8, color=MUTED)
        right.legend(frameon=False, fontsize=8, labelcolor=INK)
    _foot(figure, foot, 0.6 / width, 0.08 / height)
    return figure


def figure_roc(found: LogitChange) -> Figure:
    """The detector's ROC curves: of all attacked images, and of successful attacks alone.

    Args:
        found: What `logit_change` found.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    negatives = found.clean.scores if found.further is None else found.further
    foot = small_print([*_caption(found), f"{len(negatives):,} clean test images"], 4.0)
    width, height = 4.6, 3.9 + 0.13 * len(foot)
    figure = new_figure(width, height)
    base = 0.75 + 0.13 * len(foot)
    box = (0.65 / width, base / height, (width - 0.85) / width, (height - base - 0.2) / height)
    axes = figure.add_axes(box)
    scores = found.attacked.scores
    sets = {"all attacked images": scores, "successful attacks": scores[found.successful]}
    for (name, some), color in zip(sets.items(), (_CLEAN, _ATTACKED), strict=True):
        if len(some):
            points = sorted(roc(negatives, some, points=201))
            label = f"{name} (n = {len(some):,})"
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.4, label=label)
    if found.threshold is not None:
        at = [float((part > found.threshold).double().mean()) for part in (negatives, scores)]
        axes.plot(*at, marker="o", color=WRONG, linestyle="", label="the threshold, all attacked")
    axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8, linestyle="--")
    tidy(axes)
    axes.set_xlabel("clean test images flagged", fontsize=8, color=MUTED)
    axes.set_ylabel("attacked images flagged", fontsize=8, color=MUTED)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    _foot(figure, foot, 0.65 / width, 0.08 / height)
    return figure


def _moved(found: LogitChange) -> dict[str, tuple[Tensor, str]]:
    chosen = found.successful
    labels, now = found.labels[chosen], found.attacked.before[chosen]
    moved = now - found.clean.before[chosen]
    rows = torch.arange(len(moved))
    others = torch.ones_like(moved, dtype=torch.bool)
    others[rows, labels] = False
    others[rows, now.argmax(1)] = False
    return {
        "other classes": (moved[others], _OTHERS),
        "adversarial class": (moved[rows, now.argmax(1)], _ATTACKED),
        "true class": (moved[rows, labels], _CLEAN),
    }


def _far(found: LogitChange) -> float:
    moved = found.attacked.before - found.clean.before
    return max(float(torch.quantile(moved.abs(), 0.995)), 1e-6)


def _histogram(axes: Any, values: Tensor, low: float, high: float, color: str, label: str) -> None:
    if not values.numel():
        return
    counts = torch.histc(values.clamp(low, high).float(), bins=_BINS, min=low, max=high)
    edges = torch.linspace(low, high, _BINS + 1).tolist()
    shares = (counts / values.numel()).tolist()
    axes.stairs(shares, edges, fill=True, color=color, alpha=0.35)
    axes.stairs(shares, edges, color=color, linewidth=1.2, label=label)


def _bars(axes: Any, values: Tensor, label: int, answer: int) -> None:
    colors = [
        RIGHT if k == label else WRONG if k == answer else _OTHERS for k in range(len(values))
    ]
    axes.bar(range(len(values)), values.tolist(), color=colors, width=0.8)
    axes.axhline(0, color=MUTED, linewidth=0.6)
    tidy(axes)


def _title(axes: Any, said: int, label: int, classes: Sequence[str]) -> None:
    right = said == label
    axes.set_title(
        f"{'✓' if right else '✗'} {class_name(said, classes)}", fontsize=7,
        color=RIGHT if right else WRONG, pad=2, parse_math=False,
    )  # fmt: skip


def _heading(figure: Figure, words: str, x: float, y: float) -> None:
    figure.text(x, y, words, ha="center", va="center", fontsize=9, color=INK)


def _foot(figure: Figure, lines: Sequence[str], x: float, y: float) -> None:
    figure.text(x, y, "\n".join(lines), fontsize=7.5, color=MUTED, va="bottom", parse_math=False)


def _caption(found: LogitChange) -> list[str]:
    facts = found.settings
    eps = f"{facts['eps'] * 255:.3g}/255" if facts["norm"] == "linf" else f"{facts['eps']:.3g}"
    return [
        f"{facts['attack']}, {facts['norm']} {eps}, gradient {facts['gradient']}, away from the "
        f"{facts['away_from']} label; purifier {facts['purifier']['name']}; n = "
        f"{len(found.labels)}",
    ]
