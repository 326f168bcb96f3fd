"""Each red flag is raised by a case made for it, and by no honest net."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.doubles import Blind, Rounding, conv_net, digits, linear_net
from unperturb.audit import AuditResult, audit
from unperturb.audit.red_flags import EFFECT, SIGNIFICANCE, Evidence, find_flags
from unperturb.audit.summary import summarize
from unperturb.classifiers import as_classifier
from unperturb.classifiers.base import Origin
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.threat import Linf

COUNT = 60


def ids(result: AuditResult) -> list[str]:
    return [flag["id"] for flag in result.summary["flags"]]


def run(subject: nn.Module, eps: float = 0.1, **changes: Any) -> AuditResult:
    images, labels = digits(COUNT)
    arguments = {"threat": Linf(eps), "attacks": "fgsm,pgd-5", **changes}
    return audit(subject, images, labels, **arguments)


@pytest.mark.parametrize("net", [linear_net, conv_net])
def test_an_honest_net_raises_none(net: Any) -> None:
    found = run(net())
    assert ids(found) == []
    assert found.worst_case_accuracy is not None
    assert found.clean_accuracy is not None
    assert found.worst_case_accuracy < found.clean_accuracy - 0.2, "the attacks did work"


def test_a_defense_that_does_nothing_raises_none() -> None:
    found = run(Defense(conv_net()))
    assert ids(found) == []
    assert [gain["difference"] for gain in found.summary["gains"]] == [0, 0, 0, 0]
    assert "adds no robustness that can be told from zero" in found.summary["lesson"]


def test_an_attack_that_is_too_small_to_hurt() -> None:
    found = run(linear_net(), eps=1e-5)
    assert set(ids(found)) == {"attack-does-nothing"}
    evidence = [flag["evidence"] for flag in found.summary["flags"]]
    assert any(words.startswith("pgd-5, adaptive: accuracy") for words in evidence)
    assert len(evidence) == 4


def test_masked_gradients_are_zero_gradients() -> None:
    found = run(Rounding(linear_net()))
    assert "zero-gradients" in ids(found)
    flag = next(f for f in found.summary["flags"] if f["id"] == "zero-gradients")
    assert "at most steps of" in flag["evidence"]
    assert "not attacked at all" in flag["meaning"]


class Wavy(nn.Module):
    """A net whose gradient has its sign turned where an iterated attack would arrive.

    Near the clean image the gradient is honest; a step size below the full one moves into a
    region in which the pixels are read as they were, so that only the whole step does harm.
    """

    def __init__(self, net: nn.Module, origin: Tensor, width: float) -> None:
        super().__init__()
        self.net, self.width = net, width
        self.register_buffer("origin", origin)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        # Which of the known images this is: the nearest one.
        flat, known = images.flatten(1), self.origin.flatten(1)
        nearest = known[torch.cdist(flat.detach(), known).argmin(1)].view_as(images)
        delta = images - nearest
        far = (delta.abs() > self.width).to(images.dtype)
        honest = self.net(images)
        masked = self.net(nearest + far * delta - (1 - far) * delta)
        return torch.where(delta.flatten(1).abs().amax(1, keepdim=True) == 0, honest, masked)


def test_one_step_beats_an_iterated_attack() -> None:
    images, _ = digits(COUNT)
    net = Wavy(linear_net(), images, 0.09)
    found = run(net, attacks="fgsm,bim-2", attackers=("oblivious",))
    by = {row["attack"]: row["cells"]["target"]["oblivious"] for row in found.summary["table"]}
    assert by["fgsm"]["accuracy"] < by["bim-2"]["accuracy"] - 0.1
    assert "one-step-beats-iterative" in ids(found)
    flag = next(f for f in found.summary["flags"] if f["id"] == "one-step-beats-iterative")
    assert "oblivious attacker: accuracy under fgsm and bim-2" in flag["evidence"]


def test_transfer_beats_an_adaptive_attacker_without_gradients() -> None:
    found = run(Defense(linear_net(), purifier=Blind()))
    assert {"transfer-beats-adaptive", "zero-gradients"} <= set(ids(found))
    by = found.summary["target"]["worst_by_attacker"]
    assert by["oblivious"]["accuracy"] < by["adaptive"]["accuracy"]
    # The headline is not taken in.
    assert found.worst_case_accuracy == by["oblivious"]["accuracy"]


def test_saturated_logits_have_zero_gradients() -> None:
    honest, saturated = run(linear_net()), run(linear_net(scale=1e6))
    assert saturated.clean_accuracy == honest.clean_accuracy
    assert "zero-gradients" in ids(saturated)
    assert honest.worst_case_accuracy is not None
    assert saturated.worst_case_accuracy is not None
    assert saturated.worst_case_accuracy > honest.worst_case_accuracy + 0.1, "it looks robust"
    # The margin does not saturate: the same attack with it finds what is there.
    margin = run(linear_net(scale=1e6), attacks="fgsm?loss=margin,pgd-5?loss=margin")
    assert "zero-gradients" not in ids(margin)


class Rooted(nn.Module):
    """Adds nothing, with a gradient that is not a number."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        nothing = (images * 0).sum((1, 2, 3)).sqrt()[:, None]
        return self.net(images) + nothing  # type: ignore[no-any-return]


def test_gradients_that_are_not_numbers() -> None:
    found = run(Rooted(linear_net()))
    assert "nan-gradients" in ids(found)
    flag = next(f for f in found.summary["flags"] if f["id"] == "nan-gradients")
    assert flag["title"] == "Gradients are not a number"


@pytest.mark.parametrize(("zeros", "told"), [(2, False), (3, False), (4, True), (6, True)])
def test_most_gradients_are_counted_over_all_restarts(zeros: int, told: bool) -> None:
    found = run(linear_net(), attacks="fgsm,pgd-2?restarts=3", attackers=("adaptive",))
    attacked = found.rows["attack"] == "pgd-2?restarts=3"
    rows = {**found.rows, "zero_gradients": np.where(attacked, zeros, 0)}
    timings = found.store.timings(found.units)
    summary = summarize(found.plan, rows, found.units, timings, digest=None, cost=None)
    assert ("zero-gradients" in [flag["id"] for flag in summary["flags"]]) is told
    shares = {a["name"]: a["zero_gradient_share"] for a in summary["attacks"]}
    assert shares == {"fgsm": 0.0, "pgd-2?restarts=3": float(told)}


def test_tpap_around_a_net_that_is_not_known_to_be_overfit() -> None:
    found = run(tpap(linear_net()))
    flag = next(f for f in found.summary["flags"] if f["id"] == "robust-overfitting-never-reached")
    assert "nothing in its card says" in flag["evidence"]
    assert "undefended accuracy under FGSM here is" in flag["evidence"]
    assert any("not the defense the paper proposes" in note for note in found.summary["notes"])


@pytest.mark.parametrize("reached", [False, True])
def test_tpap_and_what_the_card_says_of_training(reached: bool) -> None:
    monitor = {"robust_overfitting": reached, "train_fgsm": 0.97, "train_pgd": 0.31}
    net = as_classifier(linear_net(), origin=Origin(arch="net", card={"monitor": monitor}))
    found = run(tpap(net))
    assert ("robust-overfitting-never-reached" in ids(found)) is not reached
    assert any("not the defense the paper" in n for n in found.summary["notes"]) is not reached
    if not reached:
        flag = next(f for f in found.summary["flags"] if f["id"].startswith("robust-over"))
        assert "FGSM at the training eps 97.0%, PGD 31.0% on training images" in flag["evidence"]


def test_a_net_without_tpap_needs_no_overfitting() -> None:
    assert "robust-overfitting-never-reached" not in ids(run(Defense(linear_net())))


# -- thresholds ---------------------------------------------------------------------------------


def evidence(**answers: np.ndarray[Any, Any]) -> Evidence:
    return Evidence(
        answers={("target", "adaptive", name): values for name, values in answers.items()},
        steps={"fgsm": 1, "pgd": 20, "mim": 10},
        gradients={},
        subjects={"target": "it"},
        purifier="identity",
        card={},
    )


def right(count: int, n: int = 1000) -> np.ndarray[Any, Any]:
    return np.arange(n) < count


def test_both_thresholds_are_needed() -> None:
    assert (EFFECT, SIGNIFICANCE) == (0.01, 0.01)

    def flagged(one: np.ndarray[Any, Any], many: np.ndarray[Any, Any]) -> bool:
        return [f.id for f in find_flags(evidence(fgsm=one, pgd=many))] == [
            "one-step-beats-iterative"
        ]

    assert flagged(right(490), right(510)), "two points, p = 2e-6"
    assert flagged(right(500), right(510)), "one point, p = 0.002"
    assert not flagged(right(501), right(510)), "less than a point"
    assert not flagged(right(10, 40), right(16, 40)), "fifteen points, p = 0.03"
    assert not flagged(right(510), right(490)), "the right way round"


def test_the_strongest_iterated_attack_is_the_opponent() -> None:
    weak_beside_strong = evidence(fgsm=right(400), pgd=right(600), mim=right(300))
    assert find_flags(weak_beside_strong) == []


def test_a_share_of_one_point_of_dead_gradients_is_told() -> None:
    for share, told in ((0.009, False), (0.01, True)):
        found = find_flags(
            Evidence({}, {}, {("target", "pgd", "adaptive"): (share, 0.0)}, {"target": "it"},
                     "identity", {})
        )  # fmt: skip
        assert [f.id for f in found] == (["zero-gradients"] if told else [])


def test_tpap_around_a_network_whose_card_says_standard() -> None:
    card = {"monitor": {"robust_overfitting": False, "heldout_clean": 0.9}}
    net = as_classifier(conv_net(), origin=Origin(arch="net", card=card))
    flags = [f for f in run(tpap(net)).summary["flags"] if "overfitting" in f["id"]]
    assert len(flags) == 1
    assert "trained in another way" in flags[0]["evidence"]


def test_accuracy_under_an_attack_above_clean() -> None:
    clean = np.arange(100) < 50
    attacked = np.arange(100) < 70
    answers = {
        ("target", "none", "clean"): clean,
        ("target", "oblivious", "pgd-20"): attacked,
        ("target", "adaptive", "pgd-20"): clean & (np.arange(100) < 10),
    }
    evidence = Evidence(answers, {"pgd-20": 20}, {}, {"target": "net"}, "identity", {})
    leaks = [flag for flag in find_flags(evidence) if flag.id == "attack-above-clean"]
    assert len(leaks) == 1
    assert "40.0% of the images that were wrong when clean" in leaks[0].evidence
