"""Columns of clean, attacked and purified images, and their picture."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.errors import (
    ConfigError,
    InputError,
    MissingExtraError,
    OutputError,
    SpecError,
)
from unperturb.explain import Columns, figure_gradcam, gradcam, gradcam_columns, save_figure
from unperturb.explain.canvas import RIGHT, WRONG, new_figure
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf

Net = Callable[..., nn.Module]
LABELS = torch.tensor([0, 1, 2, 3])
EPS = Linf(0.1)


@pytest.fixture
def columns(conv: Net, pixels: Callable[..., Tensor]) -> Columns:
    """Four images before and after a defense."""
    return gradcam_columns(
        tpap(conv(), radius=0.05), pixels(4), LABELS, attack="pgd-3", threat=EPS, ids="abcd"
    )


def test_a_defense_has_four_columns_and_a_classifier_two(
    conv: Net, pixels: Callable[..., Tensor], columns: Columns
) -> None:
    names = [column.name for column in columns.columns]
    assert names == ["clean", "attacked", "clean-purified", "attacked-purified"]
    for subject in (conv(), Defense(conv())):
        found = gradcam_columns(subject, pixels(4), LABELS, attack="pgd-3", threat=EPS, ids="abcd")
        assert [column.name for column in found.columns] == names[:2]
        for ours, theirs in zip(found.columns, columns.columns, strict=False):
            assert torch.equal(ours.images, theirs.images)
            torch.testing.assert_close(ours.maps, theirs.maps)


def test_each_column_shows_what_it_says(
    conv: Net, pixels: Callable[..., Tensor], columns: Columns
) -> None:
    net, images = conv(), pixels(4)
    defense = tpap(net, radius=0.05)
    attack = make_attack("pgd-3")
    keys = Keys.of(0, "abcd", domain="attack/pgd-3")
    made = attack.run(Surface(net), images, LABELS, threat=EPS, keys=keys, stop="fixed").images
    expected = {
        "clean": images,
        "attacked": made,
        "clean-purified": defense.predict(images).purified,
        "attacked-purified": defense.predict(made).purified,
    }
    for column in columns.columns:
        shown = expected[column.name]
        assert shown is not None
        torch.testing.assert_close(column.images, shown)
        logits = net(shown).detach()
        assert torch.equal(column.predictions, logits.argmax(1))
        torch.testing.assert_close(column.probabilities, logits.softmax(1).amax(1))
        torch.testing.assert_close(column.maps, gradcam(net, shown).maps)
        if column.answers is not None:
            assert torch.equal(column.answers, column.predictions)
    assert columns.columns[0].answers is None


def test_the_true_class_can_be_explained(conv: Net, pixels: Callable[..., Tensor]) -> None:
    net, images = conv(), pixels(4)
    found = gradcam_columns(net, images, LABELS, attack="fgsm", target="true", layer="2")
    for column in found.columns:
        assert torch.equal(column.targets, LABELS)
        expected = gradcam(net, column.images, labels=LABELS, layer="2").maps
        torch.testing.assert_close(column.maps, expected)


def test_an_adaptive_attacker_attacks_the_defense(
    conv: Net, pixels: Callable[..., Tensor], columns: Columns
) -> None:
    images = pixels(4)
    defense = tpap(conv(), radius=0.05)
    found = gradcam_columns(
        defense, images, LABELS, attack="pgd-3", threat=EPS, attacker="adaptive", ids="abcd"
    )
    surface = Surface(defense, backward="identity")
    keys = Keys.of(0, "abcd", domain="attack/pgd-3")
    attack = make_attack("pgd-3")
    made = attack.run(surface, images, LABELS, threat=EPS, keys=keys, stop="fixed")
    torch.testing.assert_close(found.columns[1].images, made.images)
    assert not torch.equal(made.images, columns.columns[1].images)


def test_a_purified_image_may_leave_the_range_and_a_flag_stays(
    conv: Net, pixels: Callable[..., Tensor], untouched: Any
) -> None:
    net = conv()
    images = (pixels(4) > 0.5).float()
    with untouched(net):
        found = gradcam_columns(tpap(net, radius=0.2, clip=False), images, LABELS, attack="fgsm")
    assert float(found.columns[2].images.max()) > 1


def test_what_is_written_is_complete(columns: Columns) -> None:
    facts = json.loads(json.dumps(columns.to_dict(), allow_nan=False))
    assert (facts["layer"], facts["attack"], facts["attacker"]) == ("6", "pgd-3", "oblivious")
    assert facts["ids"] == list("abcd")
    right = [c["predictions"][k] == k for c in facts["columns"] for k in range(4)]
    assert [c["accuracy"] for c in facts["columns"]] == [
        sum(right[i : i + 4]) / 4 for i in range(0, 16, 4)
    ]
    assert len(columns.tensors()) == 1 + 2 * 4


def test_images_outside_of_the_ball_are_counted(conv: Net, pixels: Callable[..., Tensor]) -> None:
    found = gradcam_columns(conv(), pixels(4), LABELS, attack="deepfool-5", threat=Linf(1e-5))
    outside = int((~found.inside).sum())
    assert outside > 0
    assert found.to_dict()["outside_ball"] == outside
    texts = [text.get_text() for text in figure_gradcam(found).texts]
    assert any(f"{outside} of 4 images outside eps" in text.replace("\n", " ") for text in texts)


# -- the picture ----------------------------------------------------------------------------------


def test_titles_name_class_and_probability_and_tell_right_from_wrong(columns: Columns) -> None:
    names = ["a$b$", "class two", "c", "d", "a name that is far too long for a title"]
    figure = figure_gradcam(columns, classes=names)
    cells = [axes for axes in figure.axes if axes.get_title()]
    assert len(cells) == 16
    seen = set()
    for number, axes in enumerate(cells):
        column, row = columns.columns[number // 4], number % 4
        answer = int(column.predictions[row])
        right = answer == row
        seen.add(right)
        assert axes.title.get_color() == (RIGHT if right else WRONG)
        title = axes.get_title()
        assert title[0] == ("✓" if right else "✗")
        assert title.endswith(f"{float(column.probabilities[row]):.0%}")
        assert names[answer][:15] in title
    assert seen == {True, False}, "the test needs right and wrong answers"


def test_the_heat_is_drawn_over_the_image(columns: Columns) -> None:
    figure = figure_gradcam(columns)
    picture, heat = figure.axes[0].get_images()
    image = columns.columns[0].images[0].permute(1, 2, 0).numpy()
    assert picture.get_array().data.tolist() == image.tolist()  # type: ignore[union-attr]
    assert heat.get_array().data.tolist() == columns.columns[0].maps[0].numpy().tolist()  # type: ignore[union-attr]


def test_equal_columns_give_equal_files(
    columns: Columns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its figures are global: importing it fails from here on.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for name in ("one.png", "two.png"):
        save_figure(figure_gradcam(columns), tmp_path / name, dpi=40)
    one = (tmp_path / "one.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert (tmp_path / "two.png").read_bytes() == one


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_the_suffix_says_the_format(suffix: str, start: bytes, tmp_path: Path) -> None:
    save_figure(new_figure(1, 1), tmp_path / f"cam.{suffix}")
    assert (tmp_path / f"cam.{suffix}").read_bytes().startswith(start)


def test_grey_images_and_images_of_many_channels(conv: Net, pixels: Callable[..., Tensor]) -> None:
    for channels in (1, 4):
        net = conv(channels=channels)
        found = gradcam_columns(net, pixels(2, channels=channels), LABELS[:2], attack="fgsm")
        shown = figure_gradcam(found).axes[0].get_images()[0].get_array()
        assert shown is not None
        assert shown.shape == (8, 8, 3)


# -- what is refused ------------------------------------------------------------------------------


class _Hidden(Purifier):
    """Gives the classifier something that is no image to look at."""

    name = "hidden"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images, None)


def test_mistakes_are_named(conv: Net, pixels: Callable[..., Tensor]) -> None:
    net, images = conv(), pixels(4)

    def call(**changes: Any) -> None:
        given = {"subject": net, "images": images, "labels": LABELS, "attack": "fgsm", **changes}
        gradcam_columns(given.pop("subject"), given.pop("images"), given.pop("labels"), **given)

    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"attack": "pdg-20"}, SpecError, "did you mean 'pgd'"),
        ({"attacker": "adaptve"}, SpecError, "did you mean 'adaptive'"),
        ({"target": "best"}, SpecError, "one of predicted, true"),
        ({"layer": "x"}, SpecError, "Unknown layer 'x'"),
        ({"labels": LABELS - 1}, InputError, "labels from 0 to 4"),
        ({"images": images[:0]}, InputError, "There is no image"),
        ({"ids": ("a",)}, InputError, "1 ids and 4 images"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"subject": Defense(net, purifier=_Hidden())}, SpecError, "'hidden' gives the classifier"),
        ({"attack": "autoattack?version=fast"}, SpecError, "rand, standard"),
    ]
    for changes, kind, words in wrong:
        with pytest.raises(kind, match=words):
            call(**changes)


def test_other_formats_and_places_are_refused(tmp_path: Path) -> None:
    figure = new_figure(1, 1)
    for name in ("cam.jpg", "cam"):
        with pytest.raises(ConfigError, match=r"ends in .png, .svg or .pdf"):
            save_figure(figure, tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        save_figure(figure, tmp_path / "file" / "cam.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_matplotlib_the_fix_is_named(
    columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'unperturb\[explain\]'"):
        figure_gradcam(columns)


@pytest.mark.realdata
def test_on_real_images_purification_moves_answers_back(assets: Path) -> None:
    from unperturb.classifiers import load_classifier
    from unperturb.data import load_images

    net = Path(__file__).resolve().parents[2] / "zoo" / "cifar10-resnet20-fgsm"
    if not net.is_dir() or not os.access(assets / "data" / "cifar10", os.R_OK):
        pytest.skip("no network of the zoo, or no CIFAR-10")
    data = load_images(str(assets / "data" / "cifar10"), split="test", limit=8)
    found = gradcam_columns(
        tpap(load_classifier(str(net))), data.images(), data.labels, attack="pgd-10", ids=data.ids
    )
    right = [column["accuracy"] for column in found.to_dict()["columns"]]
    assert found.settings["layer"] == "layer3"
    assert right[1] <= 1 / 8
    assert min(right[0], right[2], right[3]) >= 5 / 8
    heat = {column.name: column.maps for column in found.columns}
    moved = (heat["attacked"] - heat["clean"]).abs().mean()
    assert moved > (heat["clean-purified"] - heat["clean"]).abs().mean()
