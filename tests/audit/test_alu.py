"""ALU on digits, audited: what helps against an attacker who does not know it, and who does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unperturb as up
from small_vae import digit_set, digits_vae
from unperturb.attacks import Surface, make_attack
from unperturb.classifiers import as_classifier
from unperturb.decisions import LogitUpdate
from unperturb.defense import Defense
from unperturb.purifiers import LatentOptimization
from unperturb.randomness import Keys
from unperturb.threat import Linf
from unperturb.thresholds import fit_threshold

THREAT = Linf(0.2)


def defended(net: nn.Module, **options: Any) -> Defense:
    classifier = as_classifier(net, input_shape=(1, 8, 8))
    purifier = LatentOptimization(vae=digits_vae(), **{"steps": 5, "lr": 0.1, **options})
    detector = fit_threshold(classifier, purifier, digit_set(300), quantile=0.95)
    return Defense(classifier, purifier=purifier, detector=detector, decision=LogitUpdate())


@pytest.fixture
def some(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Digits that nothing was trained on."""
    return digits[0][1200:1248], digits[1][1200:1248]


def keys(images: Tensor) -> Keys:
    return Keys.of(0, [str(i) for i in range(len(images))])


def test_blind_attacks_are_flagged_and_half_undone(
    digits_net: nn.Module, some: tuple[Tensor, Tensor]
) -> None:
    images, labels = some
    # Five steps of L-BFGS follow the attack so closely that fewer than half are flagged.
    defense = defended(digits_net, optimizer="adam")
    blind = make_attack("pgd-20").run(
        Surface(digits_net), images, labels, threat=THREAT, keys=keys(images), stop="fixed"
    )
    clean, attacked = defense.predict(images), defense.predict(blind.images)
    assert float(clean.flagged.float().mean()) < 0.25
    assert float((clean.labels == labels).float().mean()) > 0.7
    assert float(blind.success.float().mean()) > 0.9
    assert float(attacked.flagged.float().mean()) > 0.5
    assert attacked.after is not None
    purified = float((attacked.after.argmax(1) == labels).float().mean())
    assert float((attacked.labels == labels).float().mean()) > purified + 0.1


@pytest.mark.parametrize("start", ["encoder", "random"])
def test_adaptive_attacks_leave_little(
    digits_net: nn.Module, some: tuple[Tensor, Tensor], start: str
) -> None:
    images, labels = (part[:24] for part in some)
    more = {"steps": 10, "lr": 0.3} if start == "random" else {}
    defense = defended(digits_net, start=start, **more)
    left = torch.ones(24, dtype=torch.bool)
    for rule in defense.purifier.adaptive[:2]:
        for goal in ("wrong", "branch:difference", "branch:after"):
            attack = make_attack("pgd-10", draws=4)
            surface = Surface(defense, backward=rule, goal=goal)
            found = attack.run(surface, images, labels, threat=THREAT, keys=keys(images))
            assert not bool(found.nan_gradients.any())
            left &= ~found.success
    # Four draws are few against a random start, and the branches are attacked by their means.
    assert int(left.sum()) <= (3 if start == "encoder" else 9)


def test_an_audit_of_both_branches_by_every_gradient(
    digits_net: nn.Module, some: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    images, labels = (part[:8] for part in some)
    report = up.audit(  # type: ignore[operator]
        defended(digits_net, steps=2), images, labels, threat=THREAT, attacks="pgd-5",
        attackers=("oblivious", "adaptive"), out=tmp_path, batch_size=8, show=False,
    )  # fmt: skip
    tried = {
        (row["backward"], row["goal"])
        for row in report.summary["attacks"]
        if row["attacker"] == "adaptive"
    }
    for rule in ("unrolled", "encoder-decoder", "identity"):
        for goal in ("wrong", "branch:difference", "branch:after"):
            assert (rule, goal) in tried
    assert ("undefended", "wrong") in tried
