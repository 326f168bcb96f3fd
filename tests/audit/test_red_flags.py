"""Red flags: their thresholds, what they say, and that honest nets raise none.

That each is raised by a masked model is tested in ``test_masked_models.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from audit.doubles import conv_net, digits, linear_net
from unperturb.audit import AuditResult, audit
from unperturb.audit.red_flags import EFFECT, SIGNIFICANCE, Evidence, Gradients, find_flags
from unperturb.audit.summary import summarize
from unperturb.classifiers import as_classifier
from unperturb.classifiers.base import Origin
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.threat import Linf

COUNT = 60


def ids(result: AuditResult) -> list[str]:
    return [flag["id"] for flag in result.summary["flags"]]


def run(subject: nn.Module, eps: float = 0.1, count: int = COUNT, **changes: Any) -> AuditResult:
    images, labels = digits(count)
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
    # Random starts differ between the two, and the defense is attacked by one gradient more.
    assert all(abs(gain["difference"]) < 0.04 for gain in found.summary["gains"])
    assert "adds no robustness that can be told from zero" in found.summary["lesson"]


def test_an_attack_that_is_too_small_to_hurt() -> None:
    assert ids(run(linear_net(), eps=1e-5)) == [], "on few images an honest attack may break none"
    found = run(linear_net(), eps=1e-5, count=128)
    assert set(ids(found)) == {"attack-does-nothing"}
    evidence = [flag["evidence"] for flag in found.summary["flags"]]
    assert any(words.startswith("pgd-5, adaptive: accuracy") for words in evidence)
    assert len(evidence) == 4


@pytest.mark.parametrize(("zeros", "told"), [(2, False), (3, False), (4, True), (6, True)])
def test_most_gradients_are_counted_over_all_restarts(zeros: int, told: bool) -> None:
    found = run(linear_net(), attacks="fgsm,pgd-2?restarts=3", attackers=("adaptive",))
    attacked = found.rows["attack"] == "pgd-2?restarts=3"
    held = found.rows["correct"][attacked]
    assert held.sum() > 7, "enough images withstand it"
    counts = {"gradients": 6, "zero_gradients": zeros}
    rows = {**found.rows, **{n: np.where(attacked, count, 0) for n, count in counts.items()}}
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


@pytest.mark.parametrize(
    ("step", "objective", "told"),
    [("pgd", "fgsm", True), ("pgd", "", True), ("pgd", "trades", False), ("cw", "pgd", True),
     ("cw", "cw", False), ("fgsm", "pgd", False)],
)  # fmt: skip
def test_a_step_of_another_attack_than_the_training(step: str, objective: str, told: bool) -> None:
    card = {"objective": objective} if objective else {}
    net = as_classifier(linear_net(), origin=Origin(arch="net", card=card))
    found = run(tpap(net, step=step))
    assert ("purified-by-another-attack" in ids(found)) is told
    assert any("presumes a network trained on the attack" in n for n in found.summary["notes"]) is (
        told
    )


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


@pytest.mark.parametrize(("n", "dead", "told"), [(100, 7, False), (100, 8, True),
                                                 (1000, 9, False), (1000, 10, True)])  # fmt: skip
@pytest.mark.parametrize("kind", ["zero", "nan"])
def test_dead_gradients_are_told_by_both_thresholds(
    kind: str, n: int, dead: int, told: bool
) -> None:
    # Eight images are what McNemar's test needs, and ten what a point of a thousand is.
    held, none = right(n // 2, n), right(0, n)
    some = right(dead, n)
    seen = Gradients(held, some if kind == "zero" else none, some if kind == "nan" else none)
    found = find_flags(
        replace(evidence(), answers={}, gradients={("target", "pgd", "adaptive"): seen})
    )
    assert [f.id for f in found] == ([f"{kind}-gradients"] if told else [])
    if told:
        assert found[0].numbers["share"] == dead / n


def test_black_box_attacks_have_opponents_of_their_own() -> None:
    clean = right(900)

    def flagged(**answers: np.ndarray[Any, Any]) -> list[str]:
        found = replace(evidence(**answers), access={"square": "scores", "hsj": "labels"})
        return [f.id for f in find_flags(found)]

    assert flagged(square=right(400), pgd=right(420)) == ["black-box-beats-white-box"]
    assert flagged(square=right(420), pgd=right(400)) == []
    # All white-box attacks together are the opponent.
    ends = clean & ~right(500)
    assert flagged(square=right(400), pgd=right(500), mim=ends) == []
    assert flagged(hsj=right(400), square=right(600), pgd=right(420)) == [
        "black-box-beats-white-box"
    ]
    # An attack that sees nothing may do nothing: that is a matter of queries.
    blind = {("target", "none", "clean"): clean, ("target", "adaptive", "square"): clean}
    found = replace(evidence(), answers=blind, access={"square": "scores"})
    assert find_flags(found) == []


@pytest.mark.parametrize("name", ["huge", "probe-more-steps", "probe-more-draws"])
def test_probes_are_told_by_both_thresholds(name: str) -> None:
    ids = {"huge": "accuracy-at-huge-eps", "probe-more-steps": "more-steps-lower-accuracy",
           "probe-more-draws": "more-draws-lower-accuracy"}  # fmt: skip

    def flagged(weak: np.ndarray[Any, Any], strong: np.ndarray[Any, Any]) -> list[str]:
        probes = {("target", name): strong, ("target", "probe"): weak}
        if name == "huge":
            probes = {("target", "huge"): weak & ~strong}
        found = find_flags(replace(evidence(), answers={}, probes=probes, huge="0.5"))
        assert all(f.numbers["n"] == len(weak) for f in found)
        return [f.id for f in found]

    assert flagged(right(40, 100), right(32, 100)) == [ids[name]]
    assert flagged(right(40, 100), right(33, 100)) == [], "seven images, p = 0.016"
    assert flagged(right(409), right(400)) == [], "less than a point"
    assert flagged(right(410), right(400)) == [ids[name]]
    assert flagged(right(400), right(400)) == []


def test_the_ignorant_attacker_needs_a_defense_to_ignore() -> None:
    answers = {
        ("target", "oblivious", "pgd"): right(300),
        ("target", "adaptive", "pgd"): right(400),
    }
    alone = replace(evidence(), answers=answers)
    assert find_flags(alone) == []
    defended = replace(alone, subjects={"target": "it", "baseline": "bare"})
    (flag,) = find_flags(defended)
    assert flag.id == "transfer-beats-adaptive"
    assert flag.to_dict()["numbers"]["first"] == 0.3
    # A worst case that was selected and scored apart takes the place of a plain conjunction.
    chosen = {("target", "oblivious", "any"): right(410), ("target", "adaptive", "any"): right(400)}
    assert find_flags(replace(defended, worst=chosen)) == []


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
