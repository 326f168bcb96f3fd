"""Pictures of supporting classes, of single images' classes and of overlaps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from unperturb.errors import InputError, MissingExtraError, SpecError
from unperturb.explain import (
    Supporting,
    figure_instance,
    figure_overlap,
    figure_supporting,
    overlap,
    save_figure,
    supporting_classes,
)
from unperturb.explain.canvas import RIGHT, WRONG
from unperturb.explain.supporting_figure import BAR, SHARED
from unperturb.networks.corrector import CorrectionNetwork

LONG = [
    "American Staffordshire terrier, Staffordshire terrier, American pit bull terrier, pit bull",
    "soft-coated wheaten terrier",
    "n02443114 polecat, fitch, foulmart",
    "supercalifragilisticexpialidocious hound of the far north",
    "costs $x_1$",
]


def _sets(classes: int, count: int = 2, *, top: int | None = None) -> dict[str, Supporting]:
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(30, classes, generator=generator)
    labels = torch.randint(classes, (30,), generator=generator)
    return {
        f"pgd-{k}?step_size=0.125": supporting_classes(
            CorrectionNetwork(num_classes=classes, width=40, seed=k), logits, labels, top=top
        )
        for k in range(count)
    }


def _names(classes: int) -> list[str]:
    return [LONG[k % len(LONG)] for k in range(classes)]


def _inside(figure: Figure) -> None:
    """Every piece of text that is shown lies inside of the picture."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text():
            box = text.get_window_extent(renderer)
            inside = box.x0 >= 0 and box.y0 >= 0
            inside &= box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            assert inside, (text.get_text(), box, figure.bbox)


def _apart(figure: Figure) -> None:
    """Slanted names below bars have room beside each other: less than a bar's step, slanted."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for axes in (axes for axes in figure.axes if axes.patches):
        ticks = [tick for tick in axes.get_xticklabels() if tick.get_text()]
        if len(ticks) < 2:
            continue
        place = axes.transData.transform([(0, 0), (1, 0)])
        step = (place[1][0] - place[0][0]) * 2**-0.5
        for tick in ticks:
            assert tick.get_rotation() == 45
            tick.set_rotation(0)
            assert tick.get_window_extent(renderer).height < step
            tick.set_rotation(45)


@pytest.mark.parametrize(("classes", "count"), [(3, 1), (10, 2), (10, 4), (200, 1), (200, 4)])
@pytest.mark.parametrize("named", [True, False])
def test_bars_are_the_counts_and_names_are_whole(classes: int, count: int, named: bool) -> None:
    sets = _sets(classes, count)
    names = _names(classes) if named else ()
    examples = {k: torch.rand(3, 5, 5, generator=torch.Generator()) for k in range(0, classes, 2)}
    figure = figure_supporting(sets, classes=names, examples=examples)
    panels = [axes for axes in figure.axes if axes.patches]
    assert len(panels) == count
    common = set.intersection(*(set(found.classes()) for found in sets.values()))
    pictures = 0
    for axes, found in zip(panels, sets.values(), strict=True):
        listed, counts = found.classes(), found.counts()
        heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
        assert heights == pytest.approx([int(counts[k]) / 30 for k in listed])
        colors = [patch.get_facecolor() for patch in axes.patches]
        from matplotlib.colors import to_rgba

        dark = [to_rgba(SHARED if k in common and count > 1 else BAR) for k in listed]
        assert colors == dark
        pictures += sum(k in examples for k in listed)
        labels = [tick.get_text() for tick in axes.get_xticklabels()]
        if named:
            first = [names[k].partition(",")[0].removeprefix("n02443114 ") for k in listed]
            for label, name in zip(labels, first, strict=True):
                shown = label.replace("-\n", "-").replace("\n", " ")
                assert shown == name or (shown.endswith("…") and len(name) > 44)
        else:
            assert labels == [f"class {k}" for k in listed]
        assert max(axes.get_yticks()) <= 1
    assert len(figure.axes) == count + pictures
    _inside(figure)
    _apart(figure)


def test_example_images_stand_above_their_bars_and_apart() -> None:
    sets = _sets(200, 1)
    found = next(iter(sets.values()))
    examples = {k: torch.full((1, 4, 4), 0.5) for k in found.classes()}
    figure = figure_supporting(sets, examples=examples)
    panel, *pictures = figure.axes
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [axes.get_window_extent(renderer) for axes in pictures]
    assert len(boxes) == 10
    for patch, box in zip(panel.patches, boxes, strict=True):
        bar = patch.get_window_extent(renderer)
        assert box.y0 > bar.y1
        assert (box.x0 + box.x1) / 2 == pytest.approx((bar.x0 + bar.x1) / 2, abs=1)
        assert box.width == pytest.approx(box.height)
        assert box.y1 <= panel.get_window_extent(renderer).y1
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_a_list_of_every_class_is_called_out_in_the_picture() -> None:
    figure = figure_supporting(_sets(10, 1, top=10))
    texts = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "holds every class" in texts
    _inside(figure)


def test_other_lists_can_be_drawn_and_equal_sets_give_equal_files(tmp_path: Path) -> None:
    sets = _sets(20, 1)
    figure = figure_supporting(sets, which="push")
    counts = next(iter(sets.values())).counts("push").sort(descending=True).values[:6]
    heights = [patch.get_height() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert heights == pytest.approx((counts / 30).tolist())
    for name in ("one.png", "two.png"):
        save_figure(figure_supporting(sets), tmp_path / name, dpi=40)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


# -- single images --------------------------------------------------------------------------------


def test_one_image_under_several_attacks(gated: Any) -> None:
    made = gated()
    found = supporting_classes(made.network, made.logits, made.labels, top=3)
    figure = figure_instance(
        {"a": found, "b": found},
        17,
        classes=_names(12),
        image=torch.full((3, 8, 8), 0.5),
        name="t/17",
    )
    panels = [axes for axes in figure.axes if axes.patches]
    assert len(panels) == 2
    from matplotlib.colors import to_rgba

    for axes in panels:
        bars = axes.patches
        assert [bar.get_facecolor() for bar in bars] == [to_rgba(c) for c in (BAR, RIGHT, WRONG)]
        heights = [bar.get_height() for bar in bars]  # type: ignore[attr-defined]
        assert heights == pytest.approx(found.score.values[17].tolist())
        assert [text.get_text() for text in axes.texts] == [axes.texts[0].get_text(), "corrected"]
    assert "t/17" in figure.texts[0].get_text()
    _inside(figure)
    _apart(figure)


def test_a_set_without_the_image_is_left_out_and_negative_bars_fit() -> None:
    sets = _sets(40, 2)
    one, two = sets.values()
    kept = one.rows != 4
    fewer = Supporting(
        **{
            **vars(one), "rows": one.rows[kept], "labels": one.labels[kept],
            "adversarial": one.adversarial[kept], "answers": one.answers[kept],
            "score": type(one.score)(one.score.indices[kept], one.score.values[kept]),
        }
    )  # fmt: skip
    negative = Supporting(
        **{**vars(two), "score": type(two.score)(two.score.indices, two.score.values - 0.5)}
    )
    figure = figure_instance({"fewer": fewer, "two": negative}, 4, classes=_names(40))
    assert len([axes for axes in figure.axes if axes.patches]) == 1
    low, high = figure.axes[0].get_ylim()
    assert low < float(negative.score.values[4].min())
    assert high >= 0
    with pytest.raises(InputError, match=r"No set has the image 4.*0 to 29"):
        figure_instance({"fewer": fewer}, 4)
    with pytest.raises(InputError, match="No set has the image 30"):
        figure_instance(sets, 30)


def test_labels_that_differ_are_refused(gated: Any) -> None:
    made = gated()
    one = supporting_classes(made.network, made.logits, made.labels)
    two = supporting_classes(made.network, made.logits.flip(0), made.labels.flip(0))
    with pytest.raises(InputError, match=r"the labels \[0, 11\]"):
        figure_instance({"a": one, "b": two}, 0)


# -- overlaps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_heat_map_carries_its_numbers(count: int) -> None:
    sets = {f"resnet50-with-a-long-name-for-imagenet: {k}": v for k, v in _sets(40, count).items()}
    found = overlap(sets, draws=20)
    figure = figure_overlap(found)
    axes = figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    for i in range(count):
        assert texts.count("1.000") >= count
        for j in range(count):
            assert f"{float(found.values[i, j]):.3f}" in texts
            low, high = float(found.low[i, j]), float(found.high[i, j])
            assert i == j or f"{low:.3f} to {high:.3f}" in texts
    _inside(figure)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    whole = axes.get_window_extent(renderer)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [tick.get_window_extent(renderer) for tick in ticks]
        assert not any(box.overlaps(whole) for box in boxes)
        assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_a_name_is_folded_where_its_settings_begin() -> None:
    names = ["C&W", "net: pgd-10?step_size=0.1&restarts=2"]
    figure = figure_overlap(overlap(dict(zip(names, _sets(40, 2).values(), strict=True)), draws=2))
    folded = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert folded == ["C&W", "net:\npgd-10\n?step_size=0.1\n&restarts=2"]


# -- what is refused ------------------------------------------------------------------------------


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = _sets(10, 1)
    with pytest.raises(InputError, match="no set to draw"):
        figure_supporting({})
    with pytest.raises(SpecError, match="pull, push, score"):
        figure_supporting(sets, which="S")
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    for draw in (
        lambda: figure_supporting(sets),
        lambda: figure_instance(sets, 0),
        lambda: figure_overlap(overlap(sets, draws=2)),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'unperturb\[explain\]'"):
            draw()
