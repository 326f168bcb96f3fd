"""Panels of restoration: every stage is what it says, and so is the picture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.defense import Defense
from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.explain import Panels, figure_panels, restoration_panels, save_figure
from unperturb.presets import tpap
from unperturb.purifiers import Restoration
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, restore
from unperturb.randomness import Keys
from unperturb.threat import Linf

Net = Callable[..., nn.Module]
LABELS = torch.tensor([0, 1, 2, 3])
EPS = Linf(0.1)


@pytest.fixture
def defense(conv: Net) -> Defense:
    """A restoration network that was never trained, by rt2 of its own settings."""
    options = {"width": 4, "coarse_width": 2}
    return Defense(conv(), purifier=Restoration(options=options, sigma=0.1, patch=2))


def panels(defense: Defense, images: Tensor, **options: Any) -> Panels:
    return restoration_panels(defense, images, LABELS, threat=EPS, ids="abcd", **options)


def test_the_stages_of_every_transform(defense: Defense, pixels: Any) -> None:
    names = [column.name for column in panels(defense, pixels(4)).columns]
    assert names == [
        "original", "rt1 masked", "rt1 restored", "rt2 noisy", "rt2 masked", "rt2 restored",
        "rt3 noisy", "rt3 masked", "rt3 completed", "rt3 restored",
    ]  # fmt: skip
    found = panels(defense, pixels(4), transforms=["rt3", "rt1"], all_passes=True)
    names = [column.name for column in found.columns]
    stages = [f"rt3 {kind} {i}" for i in (1, 2, 3, 4) for kind in ("masked", "completed")]
    assert names == [
        "original", "rt3 noisy", *stages, "rt3 restored", "rt1 masked", "rt1 restored"
    ]  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_each_column_shows_what_it_says(
    defense: Defense, conv: Net, pixels: Any, batch_size: int
) -> None:
    net, images = conv(), pixels(4)
    found = panels(defense, images, all_passes=True, batch_size=batch_size)
    columns = {column.name: column for column in found.columns}
    attack = make_attack("fgsm")
    named = Keys.of(0, "abcd", domain="attack/fgsm")
    made = attack.run(Surface(net), images, LABELS, threat=EPS, keys=named, stop="fixed").images
    keys = Keys.of(0, "abcd", domain="explain")
    network = defense.purifier.network  # type: ignore[attr-defined]
    for row, given in enumerate((images, made)):
        torch.testing.assert_close(columns["original"].images[row], given)
        for name in ("rt1", "rt2", "rt3"):
            sigma = None if name == "rt1" else 0.1
            transform = RandomTransform(name=name, sigma=sigma, patch=2)
            with torch.no_grad():
                expected = restore(network, given, transform, KeyedDraws(keys, given))
            noisy, masks = expected.corrupted
            torch.testing.assert_close(columns[f"{name} restored"].images[row], expected.images)
            if sigma is not None:
                torch.testing.assert_close(columns[f"{name} noisy"].images[row], noisy)
            if name != "rt3":
                torch.testing.assert_close(columns[f"{name} masked"].images[row], masks[0] * noisy)
                continue
            for i, mask in enumerate(masks):
                shown = columns[f"rt3 masked {i + 1}"].images[row]
                torch.testing.assert_close(shown, mask * noisy)
                shown = columns[f"rt3 completed {i + 1}"].images[row]
                torch.testing.assert_close(shown, (1 - mask) * expected.passes[i])
            added = [columns[f"rt3 completed {i}"].images[row] for i in (1, 2, 3, 4)]
            torch.testing.assert_close(torch.stack(added).sum(0), expected.images)
    for column in found.columns:
        logits = net(column.images.flatten(0, 1)).detach()
        assert torch.equal(column.predictions, logits.argmax(1).view(2, 4))
        torch.testing.assert_close(column.probabilities, logits.softmax(1).amax(1).view(2, 4))
    assert bool(found.inside.all())


def test_the_defenses_own_transform_is_what_it_purifies_by(defense: Defense, pixels: Any) -> None:
    found = panels(defense, pixels(4), transforms=["rt2"])
    told = defense.predict(pixels(4), keys=Keys.of(0, "abcd", domain="explain"))
    assert told.purified is not None
    torch.testing.assert_close(found.columns[-1].images[0], told.purified)
    assert torch.equal(found.columns[-1].predictions[0], told.labels)


def test_clean_and_attacked_images_meet_the_same_mask_and_noise(
    defense: Defense, pixels: Any
) -> None:
    found = panels(defense, pixels(4), transforms=["rt2"])
    columns = {column.name: column.images for column in found.columns}
    original, noisy, masked = (columns[n] for n in ("original", "rt2 noisy", "rt2 masked"))
    torch.testing.assert_close(noisy[0] - original[0], noisy[1] - original[1])
    assert torch.equal(masked[0] == 0, masked[1] == 0)
    assert not torch.equal(original[0], original[1])


def test_an_adaptive_attacker_attacks_the_defense(defense: Defense, pixels: Any) -> None:
    one = panels(defense, pixels(4), transforms=["rt1"])
    two = panels(defense, pixels(4), transforms=["rt1"], attacker="adaptive")
    assert not torch.equal(one.columns[0].images[1], two.columns[0].images[1])
    assert two.settings["attacker"] == "adaptive"


def test_figures_and_tensors(defense: Defense, pixels: Any) -> None:
    found = panels(defense, pixels(4), transforms=["rt2"], seed=3)
    facts = json.loads(json.dumps(found.to_dict()))
    assert (facts["n"], facts["seed"], facts["attack"]) == (4, 3, "fgsm")
    assert facts["transforms"][0]["sigma"] == 0.1
    assert facts["columns"][0]["transform"] is None
    right = found.columns[0].predictions == LABELS
    assert facts["columns"][0]["accuracy"]["attacked"] == float(right[1].double().mean())
    tensors = found.tensors()
    assert len(tensors) == 1 + 2 * 4
    assert torch.equal(tensors["rt2 masked.attacked"], found.columns[2].images[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture(conv: Net, pixels: Any, channels: int, tmp_path: Path) -> None:
    net = conv(channels=channels)
    options = {"width": 4, "coarse_width": 2, "channels": channels}
    defense = Defense(net, purifier=Restoration(options=options))
    found = panels(defense, pixels(4, channels))
    figure = figure_panels(found, classes=["a_{b}$", "dog"])
    assert len(figure.axes) == 4 * 2 * len(found.columns)
    titles = [axes.get_title() for axes in figure.axes]
    expected = []
    for image in range(4):
        for row in range(2):
            for column in found.columns:
                said = int(column.predictions[row, image])
                mark = "✓" if said == int(LABELS[image]) else "✗"
                name = ["a_{b}$", "dog", "class 2", "class 3", "class 4"][said]
                share = float(column.probabilities[row, image])
                expected.append(f"{mark} {name} {share:.0%}")
    assert titles == expected
    texts = " ".join(text.get_text() for text in figure.texts)
    for word in ("RT1", "RT2", "RT3", "noisy", "completed", "attacked", "fgsm, linf 25.5/255"):
        assert word in texts
    # Nothing is drawn outside of the picture, and images do not overlap.
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    first = boxes[: len(found.columns)]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(first))
    save_figure(figure, tmp_path / "panels.png", dpi=50)
    assert (tmp_path / "panels.png").stat().st_size > 1000


def test_wrong_subjects_and_settings(
    defense: Defense, conv: Net, pixels: Any, untouched: Any
) -> None:
    for subject, found in ((conv(), "a bare classifier"), (tpap(conv()), "'fgsm-step'")):
        with pytest.raises(SpecError, match=f"the purifier is {found}.*atop.purifier=FOLDER"):
            restoration_panels(subject, pixels(4), LABELS)
    with pytest.raises(SpecError, match="Unknown random transform 'rt4'"):
        panels(defense, pixels(4), transforms=["rt4"])
    with pytest.raises(SpecError, match="Unknown attacker"):
        panels(defense, pixels(4), attacker="someone")
    with pytest.raises(InputError, match="one id for each image"):
        restoration_panels(defense, pixels(4), LABELS, ids="abc")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        panels(defense, pixels(4), batch_size=0)
    sized = Restoration(options={"width": 4}, image_shape=(3, 16, 16))
    with pytest.raises(InputError, match="16x16"):
        panels(Defense(conv(), purifier=sized), pixels(4))
    with untouched(defense):
        panels(defense, pixels(4), transforms=["rt1"])
