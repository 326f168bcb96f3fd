"""One image's supporting classes under several attacks (Li et al. 2019, Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unperturb.errors import InputError
from unperturb.explain.canvas import INK, MUTED, RIGHT, WRONG, picture_of
from unperturb.explain.supporting import Supporting
from unperturb.explain.supporting_figure import (
    BAR,
    LEFT,
    draw_bars,
    empty_panels,
    heading,
    short_name,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_instance"]

_SIDE = 1.3


def figure_instance(
    sets: Mapping[str, Supporting],
    row: int,
    *,
    classes: Sequence[str] = (),
    image: Tensor | None = None,
    name: str = "",
) -> Figure:
    """Draw the greatest ``S_k`` of one image, a panel for each set.

    The true class is green, the classifier's answer under attack red.

    Args:
        sets: What `supporting_classes` found of the same images, by name.
        row: The image's position among the logits that were handed in.
        classes: Names of the classes.
        image: The clean image (C, H, W), to stand at the side.
        name: The image's name, for the small print.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        InputError: No set has such an image, or their labels of it differ.
        MissingExtraError: matplotlib is not installed.
    """
    places = {key: _place(found, row) for key, found in sets.items()}
    there = {key: place for key, place in places.items() if place is not None}
    if not there:
        count = max((found.given for found in sets.values()), default=0)
        raise InputError(
            f"No set has the image {row}",
            expected=f"a position from 0 to {count - 1}"
            + ("" if all(f.only == "all" for f in sets.values()) else " of an image they keep"),
        )
    labels = {int(sets[key].labels[place]) for key, place in there.items()}
    if len(labels) > 1:
        raise InputError(
            f"Image {row} has the labels {sorted(labels)}",
            expected="one: sets of the same images in the same order",
        )
    label = labels.pop()
    foot = [
        f"{name or f'image {row}'}: the greatest S, the derivative of the corrected true logit "
        "less that of the mean of all corrected logits; green: true class, red: the classifier's "
        "answer under attack"
    ]
    bars = max(sets[key].top for key in there)
    left = LEFT + (0.0 if image is None else _SIDE + 0.35)
    listed = {k for key, place in there.items() for k in sets[key].score.indices[place].tolist()}
    names = [short_name(k, classes) for k in listed]
    panels = empty_panels(len(there), bars=bars, names=names, foot=foot, left=left)
    for (key, place), axes in zip(there.items(), panels.axes, strict=True):
        _panel(axes, key, sets[key], place, classes, bars)
    if image is not None:
        _at_the_side(panels.figure, panels.axes[0], image, short_name(label, classes))
    return panels.figure


def _place(found: Supporting, row: int) -> int | None:
    where = (found.rows == row).nonzero()
    return int(where[0, 0]) if len(where) else None


def _panel(
    axes: Any, name: str, found: Supporting, place: int, classes: Sequence[str], bars: int
) -> None:
    label, answer = int(found.labels[place]), int(found.adversarial[place])
    listed = found.score.indices[place].tolist()
    colors = [RIGHT if k == label else WRONG if k == answer else BAR for k in listed]
    corrected = int(found.answers[place])
    if corrected == label:
        facts = "corrected" if answer != label else "not fooled, kept"
    else:
        what = "not corrected" if answer != label else "not fooled, spoiled"
        facts = f"{what}: {short_name(corrected, classes)}".replace("\n", " ")
    heading(axes, name, facts)
    values = found.score.values[place].tolist()
    draw_bars(axes, values, colors, [short_name(k, classes) for k in listed], bars)
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * ((high - low) or 1.0)
    axes.set_ylim(low - room * (low < 0), high + room)
    axes.axhline(0, color="#d0d7de", linewidth=0.8)
    axes.set_ylabel("S", fontsize=8, color=MUTED, rotation=0, labelpad=8)
    axes.locator_params(axis="y", nbins=4)


def _at_the_side(figure: Figure, axes: Any, image: Tensor, name: str) -> None:
    width, height = figure.get_figwidth(), figure.get_figheight()
    top = axes.get_position().y1 * height
    own = figure.add_axes((0.2 / width, (top - _SIDE) / height, _SIDE / width, _SIDE / height))
    own.imshow(picture_of(image), interpolation="nearest")
    own.set_axis_off()
    figure.text(
        0.2 / width, (top - _SIDE - 0.06) / height, name, va="top", fontsize=8.5, color=INK,
        parse_math=False,
    )  # fmt: skip
