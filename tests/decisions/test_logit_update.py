"""ALU's decision: the principle by hand, its branches for an attacker, and what it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unperturb.attacks import Surface
from unperturb.audit.arsenal import adaptive_backwards, adaptive_goals
from unperturb.decisions import DECISIONS, LogitUpdate
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import ConfigError
from unperturb.purifiers import FGSMStep, Purifier, UNetDenoiser


def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Before, after and flags of 40 images of 5 classes."""
    before, after = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(1))
    return before, after, torch.arange(40) % 3 == 0


def test_flagged_images_are_answered_by_the_greatest_rise() -> None:
    before, after, flagged = logits()
    scores = LogitUpdate()(before, after, flagged)
    for row in range(40):
        rise = F.softmax(after[row] - before[row], 0)
        wanted = rise.argmax() if flagged[row] else after[row].argmax()
        assert int(scores[row].argmax()) == int(wanted)
    assert torch.equal(scores[flagged], (after - before)[flagged])
    assert torch.equal(scores[~flagged], after[~flagged])


def test_it_undoes_an_attack_that_purification_only_weakens() -> None:
    """The toy case of the paper: after is still wrong, and the true class rose most."""
    true, wrong = 2, 4
    before = torch.tensor([[0.0, 0.0, 1.0, 0.0, 9.0]])
    after = torch.tensor([[0.1, -0.1, 5.0, 0.1, 6.0]])
    flagged = torch.tensor([True])
    assert int(after.argmax()) == wrong
    assert int(LogitUpdate()(before, after, flagged).argmax()) == true
    # Case 3: an attack that raised the true class too is not undone.
    raised = torch.tensor([[0.0, 0.0, 6.0, 0.0, 9.0]])
    assert int(LogitUpdate()(raised, after, flagged).argmax()) != true


def test_branches_have_routes() -> None:
    decision = LogitUpdate()
    before, after, _ = logits()
    branches = decision.branches(before, after)
    assert set(branches) == set(decision.routes)
    assert torch.equal(branches["difference"], after - before)
    assert torch.equal(branches["after"], after)
    assert dict(decision.routes) == {"difference": True, "after": False}
    assert DECISIONS["logit-update"] is LogitUpdate


@pytest.mark.parametrize(
    "purifier", [FGSMStep(radius=0.1), UNetDenoiser()], ids=lambda purifier: purifier.name
)
def test_it_works_with_any_purifier(conv: Any, pixels: Any, purifier: Purifier) -> None:
    images = pixels(30)
    probe = Defense(conv(), purifier=purifier, detector=ThresholdDetector(threshold=0.0))
    scores = probe.predict(images).detector_score
    assert scores is not None
    middle = float(scores.median())
    defense = Defense(
        conv(), purifier=purifier, detector=ThresholdDetector(threshold=middle),
        decision=LogitUpdate(),
    )  # fmt: skip
    found = defense.predict(images)
    assert found.before is not None
    assert found.after is not None
    assert torch.equal(
        found.scores,
        torch.where(found.flagged[:, None], found.after - found.before, found.after),
    )
    if purifier.name == "fgsm-step":
        assert 10 <= int(found.flagged.sum()) <= 20


def test_a_threshold_below_every_score_is_the_principle_by_itself(conv: Any, pixels: Any) -> None:
    defense = Defense(
        conv(), purifier=FGSMStep(radius=0.1), detector=ThresholdDetector(threshold=-1.0),
        decision=LogitUpdate(),
    )  # fmt: skip
    found = defense.predict(pixels(8))
    assert bool(found.flagged.all())
    assert found.before is not None
    assert found.after is not None
    assert torch.equal(found.scores, found.after - found.before)


def test_an_adaptive_audit_goes_for_both_branches_and_the_threshold(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True), pixels(6)
    defense = Defense(
        net, purifier=FGSMStep(radius=0.1), detector=ThresholdDetector(threshold=3.0),
        decision=LogitUpdate(),
    )  # fmt: skip
    assert adaptive_goals(defense) == ("branch:difference", "branch:after")
    assert adaptive_backwards(defense) == ("identity", "smoothed-sign", "undefended")
    labels = net(images).argmax(1)
    terms = defense.terms(images)
    assert terms.slack is not None
    for branch, lack in (
        ("difference", (-terms.slack).clamp(max=0)),
        ("after", terms.slack.clamp(max=0)),
    ):
        surface = Surface(defense, goal=f"branch:{branch}")
        value = surface.objective(terms, labels, "ce")
        loss = F.cross_entropy(terms.branches[branch], labels, reduction="none")
        torch.testing.assert_close(value, loss + lack)


def test_without_a_detector_it_is_refused(conv: Any) -> None:
    with pytest.raises(ConfigError, match="'logit-update' chooses by a flag.*no detector"):
        Defense(conv(), purifier=FGSMStep(), decision=LogitUpdate())
