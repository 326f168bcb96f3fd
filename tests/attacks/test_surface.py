"""What an attacker sees: rules, goals, branches, slack."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.losses import margin
from unperturb.attacks.surface import Surface
from unperturb.context import Context
from unperturb.decisions import Decision
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import AttackError, SpecError
from unperturb.presets import tpap
from unperturb.purifiers import FGSMStep, Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf


class Darker(Purifier):
    """Half the brightness, smoothly."""

    name = "darker"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images / 2, images / 2)


class Branching(Decision):
    """After, or the change of the logits where flagged."""

    name = "branching"
    routes: ClassVar = {"difference": True, "after": False}
    reads = frozenset({"before", "after"})

    def branches(self, before: Tensor | None, after: Tensor | None) -> dict[str, Tensor]:
        assert before is not None
        assert after is not None
        return {"difference": before - after, "after": after}

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        both = self.branches(before, after)
        return torch.where(flagged[:, None], both["difference"], both["after"])


def run(surface: Surface, images: Tensor, labels: Tensor, **settings: Any) -> Any:
    made = FirstOrder(
        **{"name": "own", "steps": 20, "step_size": 0.1, "loss": "margin", **settings}
    )
    keys = Keys.of(0, [str(i) for i in range(len(images))])
    return made.run(surface, images, labels, threat=Linf(0.15), keys=keys, stop="first-success")


@pytest.mark.parametrize("branch", ["difference", "after"])
def test_goal_branch(conv: Any, pixels: Any, branch: str) -> None:
    """The branch is the means; success is a wrong answer of the whole."""
    net, images = conv(scale=0.4).double(), pixels(30).double()
    defense = Defense(net, purifier=Darker(), decision=Branching())
    with torch.no_grad():
        labels = defense(images).argmax(1)
        values = defense.terms(images).branches[branch]
        margins = Surface(defense, goal=f"branch:{branch}").judge(images, labels, None).margins
    torch.testing.assert_close(margins, margin(values, labels))
    found = run(Surface(defense, goal=f"branch:{branch}"), images, labels)
    with torch.no_grad():
        answer = defense(found.images).argmax(1)
    assert torch.equal(found.success, answer != labels)
    if branch == "after":  # without a detector nothing is flagged, and "after" answers
        assert int(found.success.sum()) > 10


def test_a_branch_is_attacked_where_it_is_taken(conv: Any, pixels: Any) -> None:
    """The slack is driven to the side on which the decision takes the branch."""
    net, images = conv(scale=0.4).double(), pixels(6).double()
    detector = ThresholdDetector(threshold=0.1)
    defense = Defense(net, purifier=Darker(), detector=detector, decision=Branching())
    terms = defense.terms(images)
    labels = terms.scores.argmax(1)
    assert terms.slack is not None
    for branch, sign in (("difference", -1.0), ("after", 1.0)):
        surface = Surface(defense, goal=f"branch:{branch}")
        plain = margin(terms.branches[branch], labels)
        pushed = plain + (sign * terms.slack).clamp(max=0.0)
        torch.testing.assert_close(surface.objective(terms, labels, "margin"), pushed)


def test_undefended_gradient_with_the_defenses_verdict(conv: Any, pixels: Any) -> None:
    net, images = conv(scale=0.4).double(), pixels(8).double()
    defense = Defense(net, purifier=Darker())
    surface, labels = Surface(defense, backward="undefended"), torch.arange(8) % 5
    leaf = images.clone().requires_grad_()
    terms = surface.terms(leaf, None)
    with torch.no_grad():
        assert torch.equal(terms.scores, defense(images))
    assert not terms.scores.requires_grad
    value = surface.objective(terms, labels, "ce").sum()
    (found,) = torch.autograd.grad(value, leaf)
    bare = images.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(net(bare), labels, reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(loss, bare)[0])
    with pytest.raises(SpecError):
        Surface(net, backward="undefended")


def test_restarts_judge_by_the_branch(conv: Any, pixels: Any) -> None:
    """The image kept is that with the greatest margin of the branch that is attacked."""
    net, images = conv().double(), pixels(30).double()
    defense = Defense(net, purifier=Darker(), decision=Branching())
    surface = Surface(defense, goal="branch:difference")
    with torch.no_grad():
        labels = defense.terms(images).branches["difference"].argmax(1)
        margins = surface.judge(images, labels, None).margins
        scores = net(images) - net(images / 2)
    true = scores.gather(1, labels[:, None]).squeeze(1)
    others = scores.scatter(1, labels[:, None], float("-inf")).amax(1)
    torch.testing.assert_close(margins, others - true)


def test_goal_wrong_unflagged(conv: Any, pixels: Any) -> None:
    net, images = conv(scale=0.4).double(), pixels(40).double()
    plain = Defense(net, purifier=Darker())
    with torch.no_grad():
        labels = plain(images).argmax(1)
        change = (net(images / 2) - net(images)).abs().sum(1)
    threshold = change.quantile(0.9).item()
    detector = ThresholdDetector(threshold=threshold, action="reject")
    defense = Defense(net, purifier=Darker(), detector=detector)
    found = run(Surface(defense, goal="wrong-unflagged"), images, labels)
    answer = defense.predict(found.images)
    assert torch.equal(found.success, (answer.labels != labels) & ~answer.flagged)
    blind = run(Surface(defense, goal="wrong"), images, labels)
    answer = defense.predict(blind.images)
    assert torch.equal(blind.success, answer.labels != labels)
    unseen = int(((answer.labels != labels) & ~answer.flagged).sum())
    # Who heeds the detector gets at least as many past it as who does not.
    assert 0 < unseen <= int(found.success.sum())


def test_wrong_and_flagged_is_no_success(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(40)
    with torch.no_grad():
        change = (net(images / 2) - net(images)).abs().sum(1)
        answer = net(images / 2).argmax(1)
    labels = torch.where(torch.arange(40) % 2 == 0, answer, (answer + 1) % 5)
    detector = ThresholdDetector(threshold=change.median().item(), action="reject")
    defense = Defense(net, purifier=Darker(), detector=detector)
    wrong, unflagged = labels != answer, change <= change.median()
    both = Surface(defense, goal="wrong-unflagged").judge(images, labels, None)
    assert torch.equal(both.success, wrong & unflagged)
    assert torch.equal(both.flagged, ~unflagged)
    assert len({*zip(wrong.tolist(), unflagged.tolist(), strict=True)}) == 4
    assert torch.equal(Surface(defense).judge(images, labels, None).success, wrong)


def test_the_slack_pulls_flagged_images_back(linear: Any, pixels: Any) -> None:
    net, images = linear().double(), pixels(8, 1, 4).double()
    with torch.no_grad():
        change = (net(images / 2) - net(images)).abs().sum(1)
    detector = ThresholdDetector(threshold=change.median().item(), action="reject")
    surface = Surface(
        Defense(_as(net), purifier=Darker(), detector=detector), goal="wrong-unflagged"
    )
    labels = torch.arange(8) % 2
    terms = surface.terms(images, None)
    assert terms.slack is not None
    wrong = Surface(surface.target).objective(terms, labels, "margin")
    both = surface.objective(terms, labels, "margin")
    torch.testing.assert_close(both - wrong, (change.median() - change).clamp(max=0.0))


def _as(net: Any) -> Any:
    from unperturb.classifiers import as_classifier

    return as_classifier(net, num_classes=2, input_shape=(1, 4, 4))


def test_judge(linear: Any, pixels: Any) -> None:
    net, images = linear(), pixels(10, 1, 4)
    labels = torch.arange(10) % 2
    judged = Surface(net).judge(images, labels, None)
    scores = net(images).detach()
    assert torch.equal(judged.predictions, scores.argmax(1))
    assert torch.equal(judged.success, scores.argmax(1) != labels)
    rows = torch.arange(10)
    torch.testing.assert_close(judged.margins, scores[rows, 1 - labels] - scores[rows, labels])
    assert not judged.flagged.any()


def test_rules_and_goals_are_checked(conv: Any) -> None:
    net = conv()
    Surface(tpap(net), backward="smoothed-sign")
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"target": net, "backward": "identity"}, SpecError, "'identity'.*one of exact"),
        (
            {"target": tpap(net), "backward": "smooth-sign"},
            SpecError,
            "did you mean 'smoothed-sign'",
        ),
        ({"target": Defense(net), "backward": "identity"}, SpecError, "one of exact"),
        ({"target": net, "goal": "wrongg"}, SpecError, "Unknown goal 'wrongg'.*'wrong'"),
        ({"target": net, "goal": "branch:after"}, AttackError, "needs a decision with branches"),
        ({"target": tpap(net), "goal": "wrong-unflagged"}, AttackError, "whose flag rejects"),
        ({"target": net, "goal": "wrong-unflagged"}, AttackError, "action 'reject'"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message):
            Surface(**options)


def test_a_detector_that_routes_rejects_nothing(conv: Any) -> None:
    defense = Defense(conv(), purifier=FGSMStep(), detector=ThresholdDetector(threshold=1.0))
    with pytest.raises(AttackError, match="whose flag rejects"):
        Surface(defense, goal="wrong-unflagged")


def test_unknown_branch(conv: Any, pixels: Any) -> None:
    defense = Defense(conv(), purifier=Darker(), decision=Branching())
    with pytest.raises(SpecError, match="branch of the decision 'diff'.*difference"):
        run(Surface(defense, goal="branch:diff"), pixels(2), torch.zeros(2).long())
