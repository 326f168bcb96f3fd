"""Bar charts of supporting classes, a panel for each set (Li et al. 2019, Figures 2 and 3)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from unperturb.errors import InputError
from unperturb.explain.canvas import INK, MUTED, new_figure, picture_of, small_print, tidy
from unperturb.explain.supporting import Supporting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_supporting"]

BAR, SHARED = "#8fa8c8", "#2b5c9e"
# Inches: a bar with its room, a panel's bars, a title above, an example image, the left margin.
STEP, TALL, TITLE, IMAGE = 0.52, 1.75, 0.5, 0.42
LEFT = 0.85
_LETTERS = 22


class Panels(NamedTuple):
    """An empty figure with places for panels, row by row."""

    figure: Figure
    axes: list[Any]


def figure_supporting(
    sets: Mapping[str, Supporting],
    *,
    which: str = "score",
    classes: Sequence[str] = (),
    examples: Mapping[int, Tensor] | None = None,
) -> Figure:
    """Draw the supporting classes of each set, the most frequent first.

    A bar's height is the share of the set's images that have the class in their list. Where there
    are several panels, classes that support all of them are darker.

    Args:
        sets: What `supporting_classes` found, by name: attacks, networks, or both.
        which: Lists by ``score``, ``pull`` or ``push``.
        classes: Names of the classes; of names that are synonyms with commas, the first is shown.
        examples: An image (C, H, W) of each class, to stand above its bar.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        InputError: There is no set.
        SpecError: Another ``which``.
        MissingExtraError: matplotlib is not installed.
    """
    if not sets:
        raise InputError("There is no set to draw", expected="at least one")
    chosen = {name: found.classes(which) for name, found in sets.items()}
    common = set.intersection(*(set(listed) for listed in chosen.values()))
    foot = [
        {
            "score": "lists by S: pull of the true class up less the pull of all classes",
            "pull": "lists by H: pull of the true class up",
            "push": "lists by -mean H: push of all classes down",
        }[which]
        + f"; a list has {_numbers({found.top for found in sets.values()})} of "
        f"{_numbers({found.num_classes for found in sets.values()})} classes; bars: the share of "
        "images with the class in their list"
    ]
    if len(sets) > 1:
        foot.append("dark: supports every panel" if common else "no class supports every panel")
    foot += sorted({warning for found in sets.values() for warning in found.warnings})
    most = max(1, *(len(listed) for listed in chosen.values()))
    names = {k: short_name(k, classes) for listed in chosen.values() for k in listed}
    panels = empty_panels(len(sets), bars=most, names=names.values(), foot=foot)
    for (name, found), axes in zip(sets.items(), panels.axes, strict=True):
        listed, counts = chosen[name], found.counts(which)
        colors = [SHARED if k in common and len(sets) > 1 else BAR for k in listed]
        shares = [int(counts[k]) / len(found) for k in listed]
        fitted = int(found.corrected.sum()) / len(found)
        heading(axes, name, f"n = {len(found):,}, {fitted:.1%} corrected")
        draw_bars(axes, shares, colors, [names[k] for k in listed], most)
        _axis(axes, shares, room=0.19 + (IMAGE + 0.06) * bool(examples))
        digits = 0 if max([*shares, 0.0]) >= 0.195 else 1
        for place, (k, share) in enumerate(zip(listed, shares, strict=True)):
            axes.annotate(
                f"{share:.{digits}%}", (place, share), xytext=(0, 2), textcoords="offset points",
                ha="center", va="bottom", fontsize=7.5, color=INK,
            )  # fmt: skip
            if examples and k in examples:
                _picture(panels.figure, axes, place, share, examples[k])
    return panels.figure


def empty_panels(
    count: int,
    *,
    bars: int,
    names: Iterable[str],
    foot: Sequence[str],
    left: float = LEFT,
) -> Panels:
    """Places for panels of so many bars each, two or three in a row, with small print below.

    Args:
        count: Panels.
        bars: Bars of the widest.
        names: What may stand below bars: the longest decides how much room there is.
        foot: Sentences of the small print.
        left: Inches left free before the first panel of a row.
    """
    wide = max(2.6, STEP * bars)
    across = min(count, 3 if wide < 3.5 and count != 4 else 2)
    down = -(-count // across)
    width = left + across * wide + (across - 1) * LEFT + 0.2
    lines = small_print(foot, width - 0.4)
    bottom = 0.2 + 0.13 * len(lines)
    longest = max((len(line) for name in names for line in name.splitlines()), default=0)
    # Slanted by half a right angle; two lines of them are a quarter of an inch high.
    below = 0.3 + 0.045 * longest
    height = 0.1 + down * (TITLE + TALL + below) + bottom
    figure = new_figure(width, height)
    axes = []
    for place in range(count):
        row, column = divmod(place, across)
        x = left + column * (wide + LEFT)
        y = height - 0.1 - row * (TITLE + TALL + below) - TITLE - TALL
        axes.append(figure.add_axes((x / width, y / height, wide / width, TALL / height)))
    figure.text(
        0.2 / width, 0.08 / height, "\n".join(lines), fontsize=7.5, color=MUTED, va="bottom",
        parse_math=False,
    )  # fmt: skip
    return Panels(figure, axes)


def heading(axes: Any, name: str, facts: str) -> None:
    """A panel's name, shortened to its width, and a line of facts below it."""
    width = axes.get_position().width * axes.figure.get_figwidth()
    letters = max(8, int(width / 0.085))
    short = name if len(name) <= letters else f"{name[: letters // 2]}…{name[1 - letters // 2 :]}"
    place = {"transform": axes.transAxes, "va": "bottom", "parse_math": False}
    axes.text(0, 1 + 0.27 / TALL, short, fontsize=9.5, weight="bold", color=INK, **place)
    axes.text(0, 1 + 0.1 / TALL, facts, fontsize=7.5, color=MUTED, **place)


def draw_bars(
    axes: Any, heights: Sequence[float], colors: Sequence[str], names: Sequence[str], places: int
) -> None:
    """Bars with names below, slanted so that long ones have room beside each other."""
    axes.bar(range(len(heights)), heights, color=colors, width=min(0.75, 0.13 * places + 0.2))
    axes.set_xlim(-0.6, places - 0.4)
    axes.set_xticks(range(len(names)))
    ticks = axes.set_xticklabels(
        names, rotation=45, ha="right", va="center", rotation_mode="anchor", fontsize=7.5,
        color=INK, linespacing=1.0,
    )  # fmt: skip
    for text in ticks:
        text.set_parse_math(False)
    tidy(axes, 7.5)
    axes.tick_params(axis="x", length=0, pad=8, labelcolor=INK)


def short_name(label: int, classes: Sequence[str]) -> str:
    """A class's name on at most two lines: of synonyms with commas the first, no WordNet number.

    Example:
        >>> short_name(0, ["Staffordshire bullterrier, Staffordshire bull terrier"])
        'Staffordshire\\nbullterrier'
        >>> short_name(0, ["n01443537 goldfish"])
        'goldfish'
        >>> short_name(640, [])
        'class 640'
    """
    name = classes[label] if 0 <= label < len(classes) else f"class {label}"
    first = re.sub(r"^n\d{8}[ _]", "", name.partition(",")[0].strip()) or name
    for letters in range(18, _LETTERS):
        lines = textwrap.wrap(first, letters)
        if len(lines) <= 2:
            return "\n".join(lines)
    return textwrap.fill(first, _LETTERS, max_lines=2, placeholder="…")


def _axis(axes: Any, shares: Sequence[float], *, room: float) -> None:
    """An axis of shares that leaves ``room`` inches above the highest bar."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    most = max([*shares, 1e-9])
    axes.set_ylim(0, most / (1 - room / TALL))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    limit = min(1.0, axes.get_ylim()[1])
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= limit])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _picture(figure: Figure, axes: Any, place: int, share: float, image: Tensor) -> None:
    box, (low, high) = axes.get_position(), axes.get_xlim()
    width, height = figure.get_figwidth(), figure.get_figheight()
    x = box.x0 + (place - low) / (high - low) * box.width - IMAGE / 2 / width
    y = box.y0 + share / axes.get_ylim()[1] * box.height + 0.19 / height
    own = figure.add_axes((x, y, IMAGE / width, IMAGE / height))
    own.imshow(picture_of(image), interpolation="nearest")
    own.set_axis_off()


def _numbers(found: set[int]) -> str:
    return " or ".join(str(number) for number in sorted(found))
