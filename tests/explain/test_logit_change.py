"""Logit changes: hand-made cases, a defense whose purifier is known, distances in closed form."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.defense import Defense
from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.explain import (
    LogitChange,
    approach,
    figure_approach,
    figure_bars,
    figure_changes,
    figure_statistic,
    logit_change,
    save_figure,
)
from unperturb.explain.logit_change import Logits
from unperturb.explain.logit_figures import cases_of, roc
from unperturb.networks.vae import VAE
from unperturb.presets import alu, tpap
from unperturb.threat import L2, Linf

Net = Callable[..., nn.Module]
# The package exports a function of the module's name.
module = importlib.import_module("unperturb.explain.logit_change")
LABELS = torch.tensor([0, 1, 2, 3])
EPS = Linf(0.1)


@pytest.fixture
def defense(conv: Net) -> Defense:
    """ALU with a VAE that was never trained."""
    net = conv()
    shape = (3, 8, 8)
    return alu(net, vae=VAE(image_shape=shape, width=2, downsample=1), steps=2, threshold=0.5)


def by_hand(clean: list[list[float]], attacked: list[list[float]], after: list[list[float]],
            labels: list[int], flagged: list[bool]) -> LogitChange:  # fmt: skip
    """Three classes, and logits that are given."""

    def part(before: list[list[float]], then: list[list[float]], flags: list[bool]) -> Logits:
        one, two = torch.tensor(before), torch.tensor(then)
        flag = torch.tensor(flags)
        answers = torch.where(flag, (two - one).argmax(1), two.argmax(1))
        images = torch.zeros(len(one), 1, 2, 2)
        return Logits(one, two, answers, flag, (two - one).abs().sum(1), images, images)

    count = len(labels)
    return LogitChange(
        torch.tensor(labels), tuple(map(str, range(count))), part(clean, clean, [False] * count),
        part(attacked, after, flagged), None, 1.0, torch.ones(count, dtype=torch.bool),
        {"attack": "by-hand", "norm": "linf", "eps": 0.1, "gradient": "undefended",
         "away_from": "true", "statistic": "absolute-change", "purifier": {"name": "none"}},
    )  # fmt: skip


@pytest.fixture
def hand() -> LogitChange:
    """One successful attack of each case, one that failed, one image that was wrong anyway."""
    return by_hand(
        clean=[[5, 1, 0], [5, 1, 0], [5, 4, 0], [5, 1, 0], [1, 5, 0]],
        attacked=[[2, 4, 0], [0.5, 0.9, 0.6], [6, 7, 0], [4, 2, 0], [0, 6, 0]],
        after=[[4, 3, 0], [3, 1, 0], [5, 7, 0], [4, 3, 0], [1, 5, 0]],
        labels=[0, 0, 0, 0, 0],
        flagged=[True, True, True, True, False],
    )


def test_the_three_cases_and_what_is_counted(hand: LogitChange) -> None:
    assert hand.successful.tolist() == [True, True, True, False, False]
    assert hand.failed.tolist() == [False, False, False, True, False]
    told = {name: chosen.tolist() for name, chosen in cases_of(hand).items()}
    assert told == {
        "true down, adversarial up": [True, False, False],
        "both down": [False, True, False],
        "both up": [False, False, True],
        "true up, adversarial down": [False, False, False],
    }
    figures = hand.to_dict()
    part = figures["successful"]
    assert part["n"] == 3
    # The third attack raises the true class's logit, so that another one drops most.
    assert (part["drops_most"]["count"], part["drops"]["count"]) == (2, 2)
    # Purification lifts the true class most in the first two.
    assert part["rises_most"]["count"] == 2
    assert part["right"]["count"] == 2
    assert part["changes"]["true"] == pytest.approx((-3 - 4.5 + 1) / 3)
    assert part["changes"]["adversarial"] == pytest.approx((3 - 0.1 + 3) / 3)
    assert part["changes"]["others_absolute"] == pytest.approx(0.6 / 3)
    failed = figures["failed"]
    # Flagged without need, and answered by the difference: class 1.
    assert (failed["n"], failed["flagged"]["count"], failed["right"]["count"]) == (1, 1, 0)
    assert failed["right_after"]["count"] == 1
    assert figures["flagged_though_right"]["attacked"]["n"] == 1
    assert figures["flagged_though_right"]["clean"]["share_of_flagged"] is None
    low, high = part["drops_most"]["interval"]
    assert low < 2 / 3 < high
    json.dumps(figures)


def test_the_detector_s_curve() -> None:
    curve = roc(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([2.5, 9.0]), points=5)
    assert curve[0] == [1.0, 1.0]
    assert curve[-1] == [0.0, 0.5]
    rates = [point[0] for point in curve]
    assert rates == sorted(rates, reverse=True)


def test_logits_are_those_of_the_defense(defense: Defense, pixels: Any) -> None:
    images = pixels(4)
    found = logit_change(
        defense, images, LABELS, attack="fgsm", threat=EPS, train=pixels(3), batch_size=3
    )
    again = defense.predict(found.attacked.images)
    assert torch.allclose(found.attacked.before, again.before, atol=1e-5)
    assert torch.allclose(found.attacked.after, again.after, atol=1e-5)
    assert torch.equal(found.attacked.answers, again.labels)
    assert torch.allclose(found.clean.before, defense.classifier(images), atol=1e-5)
    assert found.train is not None
    assert len(found.train) == 3
    assert bool(found.inside.all())
    assert found.threshold == 0.5


@pytest.mark.parametrize("gradient", ["encode-decode", "unrolled", "encoder-decoder", "identity"])
def test_what_is_attacked_is_named(defense: Defense, pixels: Any, gradient: str) -> None:
    found = logit_change(
        defense, pixels(4), LABELS, attack="pgd-2", threat=EPS, gradient=gradient
    )  # fmt: skip
    bare = logit_change(defense, pixels(4), LABELS, attack="pgd-2", threat=EPS)
    assert found.settings["gradient"] == gradient
    assert not torch.equal(found.attacked.images, bare.attacked.images)
    assert bool(found.inside.all())


def test_away_from_the_prediction(defense: Defense, pixels: Any) -> None:
    images = pixels(4)
    answers = defense.classifier(images).argmax(1)
    control = logit_change(defense, images, (answers + 1) % 5, attack="fgsm", threat=EPS,
                           away_from="predicted")  # fmt: skip
    plain = logit_change(defense, images, answers, attack="fgsm", threat=EPS)
    assert torch.equal(control.attacked.images, plain.attacked.images)
    assert control.to_dict()["clean"]["before"]["accuracy"] == 0.0


def test_noise_knows_no_gradient(defense: Defense, pixels: Any) -> None:
    images = pixels(4)
    found = logit_change(defense, images, LABELS, attack="noise", threat=EPS, ids="abcd")
    moved = (found.attacked.images - images).abs()
    assert moved.max() <= 0.1 + 1e-6
    assert (moved > 0.09).float().mean() > 0.5
    alone = logit_change(defense, images[1:2], LABELS[1:2], attack="noise", threat=EPS, ids="b")
    assert torch.equal(alone.attacked.images, found.attacked.images[1:2])
    with pytest.raises(ConfigError, match="noise"):
        logit_change(defense, images, LABELS, attack="noise", threat=L2(0.5))


def test_any_purifier(conv: Net, pixels: Any) -> None:
    found = logit_change(tpap(conv(), radius=0.1), pixels(4), LABELS, attack="fgsm", threat=EPS)
    assert found.threshold is None
    assert not found.attacked.flagged.any()
    assert torch.allclose(
        found.attacked.scores, (found.attacked.after - found.attacked.before).abs().sum(1)
    )


def test_wrong_use(defense: Defense, conv: Net, pixels: Any) -> None:
    with pytest.raises(SpecError, match="nothing that purifies"):
        logit_change(conv(), pixels(4), LABELS)
    with pytest.raises(SpecError, match="did you mean 'unrolled'"):
        logit_change(defense, pixels(4), LABELS, gradient="unroled")
    with pytest.raises(SpecError, match="encode-decode"):
        logit_change(tpap(conv()), pixels(4), LABELS, gradient="encode-decode")
    with pytest.raises(SpecError, match="label to step away from"):
        logit_change(defense, pixels(4), LABELS, away_from="false")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        logit_change(defense, pixels(4), LABELS, batch_size=0)


def test_pictures(defense: Defense, pixels: Any, hand: LogitChange, tmp_path: Path) -> None:
    found = logit_change(defense, pixels(4), LABELS, attack="fgsm", threat=EPS, train=pixels(3))
    for place, one in enumerate((found, hand)):
        for name, draw in (("bars", figure_bars), ("changes", figure_changes)):
            save_figure(draw(one, classes=list("abcde")), tmp_path / f"{name}{place}.png")
        save_figure(figure_statistic(one), tmp_path / f"statistic{place}.png")
    assert len(list(tmp_path.glob("*.png"))) == 6
    words = [text.get_text() for axes in figure_statistic(hand).axes
             for text in axes.get_legend().get_texts()]  # fmt: skip
    assert words == ["clean test images (n = 5)", "attacked test images (n = 5)", "threshold 1"]


def test_distances_against_steps(defense: Defense, pixels: Any, tmp_path: Path) -> None:
    images = pixels(4)
    came = (images + 0.05).clamp(0, 1)
    found = approach(defense, images, came, steps=[0, 2, 30])
    assert [row["steps"] for row in found] == [0, 2, 30]
    expected = (came - images).square().flatten(1).mean(1).median().item()
    assert all(row["perturbation"] == pytest.approx(expected) for row in found)
    purified = defense.predict(came).purified
    assert purified is not None
    direct = (purified - came).square().flatten(1).mean(1).median().item()
    assert found[1]["reconstruction"] == pytest.approx(direct, rel=1e-4)
    assert found[2]["reconstruction"] < found[0]["reconstruction"]
    save_figure(figure_approach(found), tmp_path / "approach.png")
    with pytest.raises(ConfigError, match="increasing"):
        approach(defense, images, came, steps=[2, 1])
    with pytest.raises(InputError, match="one shape"):
        approach(defense, images, came[:2], steps=[1])


def test_distances_need_images(conv: Net, pixels: Any) -> None:
    with pytest.raises(SpecError, match="fgsm-step"):
        approach(tpap(conv()), pixels(2), pixels(2), steps=[0])


def test_nothing_successful(defense: Defense, pixels: Any) -> None:
    images: Tensor = pixels(4)
    answers = defense.classifier(images).argmax(1)
    found = logit_change(defense, images, answers, attack="noise", threat=Linf(1e-6))
    part = found.to_dict()["successful"]
    assert (part["n"], part["drops_most"], part["changes"]["true"]) == (0, None, None)
    figure_changes(found)


def test_the_predicted_label_is_that_of_what_is_attacked(
    conv: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, images = conv(), torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    vae = VAE(image_shape=(3, 8, 8), width=2, downsample=1).eval()
    # The threshold -1 flags every image: what ALU answers is not what the network behind the VAE
    # says.
    defense = alu(net, vae=vae, steps=2, threshold=-1.0)
    aims: dict[str, Tensor] = {}
    real = module.attacked_images

    def spied(defense: Defense, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        aims[options["gradient"]] = labels
        return real(defense, images, labels, **options)

    monkeypatch.setattr(module, "attacked_images", spied)
    for gradient in ("undefended", "encode-decode", "identity"):
        logit_change(
            defense, images, torch.arange(16) % 5, attack="fgsm", gradient=gradient,
            away_from="predicted", batch_size=5,
        )  # fmt: skip
    with torch.no_grad():
        wanted = {
            "undefended": net(images).argmax(1),
            "encode-decode": net(vae.decode(vae.encode(images)[0])).argmax(1),
            "identity": defense.predict(images).labels,
        }
    for gradient, answers in wanted.items():
        assert torch.equal(aims[gradient], answers), gradient
    assert not torch.equal(wanted["encode-decode"], wanted["identity"])


def test_further_images_effort_and_wrong_answers_without_a_flag(hand: LogitChange) -> None:
    plain = hand.to_dict()
    assert plain["effort"] is None
    # Of the clean answers only the last is wrong, and nothing clean is flagged.
    assert plain["clean"]["wrong_unflagged"]["count"] == 1
    assert plain["right"]["attacked"] == "".join(
        "1" if one == 0 else "0" for one in hand.attacked.answers.tolist()
    )
    told = replace(
        hand,
        further=torch.tensor([0.5, 2.0, 0.2, 0.1]),
        turned=torch.tensor([True, True, False, False, True]),
        spent=torch.tensor([3, 5, 20, 20, 0]),
    ).to_dict()
    assert told["false_positives"]["count"] == 1
    assert told["false_positives"]["n"] == 4
    # The last image was wrong anyway and is left out.
    assert told["effort"]["turned"]["count"] == 2
    assert told["effort"]["turned"]["n"] == 4
    assert told["effort"]["mean"] == 4.0
    unflagged = [not flag and answer != 0 for flag, answer in zip(
        hand.attacked.flagged.tolist(), hand.attacked.answers.tolist(), strict=True
    )]  # fmt: skip
    assert told["attacked"]["wrong_unflagged"]["count"] == sum(unflagged)


def test_approach_tells_psnr_and_accuracy(defense: Defense) -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 5
    found = approach(defense, images, images, steps=[0], labels=labels)[0]
    own = defense.purifier.vae
    with torch.no_grad():
        made = own.decode(own.encode(images)[0])
        right = defense.classifier(made).argmax(1) == labels
        clean = defense.classifier(images).argmax(1) == labels
    wanted = -10 * (made - images).square().flatten(1).mean(1).log10().mean()
    assert found["psnr"] == pytest.approx(float(wanted), abs=1e-4)
    assert found["right"]["correct"] == int(right.sum())
    assert found["right_clean"]["correct"] == int(clean.sum())
