"""What units mean: who is attacked, by which rule and gradient, who is scored, what is told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.doubles import EPS, Blind, SometimesNegative, arguments, conv_net, digits, linear_net
from audit.units import SMALL, column, kept, sha
from unperturb.attacks import Surface, make_attack
from unperturb.audit import AuditResult, audit
from unperturb.classifiers import as_classifier
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf


def test_oblivious_is_the_fixed_step_attack_on_the_undefended_classifier(
    audited: AuditResult,
) -> None:
    images, labels = digits(30)
    net, defense = conv_net(), tpap(conv_net(), radius=0.1)
    for name in ("fgsm", "pgd-4"):
        keys = Keys.of(0, audited.plan["ids"], domain=f"attack/{name}/oblivious/baseline/exact")
        ours = make_attack(name).run(
            Surface(as_classifier(net)), images, labels, threat=Linf(SMALL), keys=keys, stop="fixed"
        )
        theirs = kept(audited, attack=name, attacker="oblivious")
        torch.testing.assert_close(theirs, ours.images, rtol=0, atol=1e-6)
        with torch.no_grad():
            answers = {"baseline": net(theirs).argmax(1), "target": defense(theirs).argmax(1)}
        for subject, answer in answers.items():
            where = {"attack": name, "attacker": "oblivious", "subject": subject}
            found = column(audited, "prediction", **where)
            assert list(found.values()) == [
                int(answer[audited.plan["ids"].index(i)]) for i in found
            ]
            assert set(column(audited, "rule", **where).values()) == {"fixed"}
    # All steps were run: images that fell early moved on, so that most lie at the edge.
    moved = (kept(audited, attack="pgd-4", attacker="oblivious") - images).flatten(1).abs().amax(1)
    torch.testing.assert_close(moved, torch.full_like(moved, SMALL), rtol=0, atol=1e-6)


def test_adaptive_stops_at_the_first_success(audited: AuditResult) -> None:
    images, _ = digits(30)
    where = {"attack": "pgd-4", "attacker": "adaptive", "subject": "target", "backward": "identity"}
    moved = (kept(audited, **where) - images).flatten(1).abs().amax(1)
    clean = column(audited, "correct", attack="clean", subject="target")
    correct = column(audited, "correct", **where)
    wrong = [i for i, right in clean.items() if not right]
    assert wrong, "some images are wrong as they are"
    for i in wrong:
        assert moved[int(i)] == 0, "what is wrong already is left as it is"
        assert not correct[i]
    queries = column(audited, "queries", **where)
    held = [i for i in correct if correct[i]]
    fell = [i for i in correct if clean[i] and not correct[i]]
    assert held
    assert fell
    assert min(queries[i] for i in held) > min(queries[i] for i in fell)
    assert max(queries[i] for i in wrong) < min(queries[i] for i in held)


@pytest.mark.parametrize("subject", ["target", "baseline"])
def test_an_adaptive_attacker_is_never_above_clean(audited: AuditResult, subject: str) -> None:
    clean = column(audited, "correct", attack="clean", subject=subject)
    for entry in audited.summary["attacks"]:
        if entry["attacker"] != "adaptive" or entry["subject"] != subject:
            continue
        where = {k: entry[k] for k in ("attacker", "subject", "backward")}
        right = column(audited, "correct", attack=entry["name"], **where)
        assert all(clean[i] or not right[i] for i in right), "an image can only fall"
        assert entry["robust_accuracy"] <= audited.summary[subject]["clean"]["accuracy"]


# -- random defenses ----------------------------------------------------------------------------


def test_a_defense_that_answers_at_random_a_tenth_of_the_time() -> None:
    images, labels = digits(60)
    defense = Defense(linear_net(), purifier=SometimesNegative(probability=0.1))
    found = audit(
        defense, images, labels, threat=Linf(0.02), attacks="fgsm", attackers=("adaptive",),
        gradient_draws=3,
    )  # fmt: skip
    rows = found.rows
    target = rows["subject"] == "target"
    assert set(rows["draw"][target]) == set(range(10))
    assert set(rows["draw"][~target]) == {0}
    net_right = (linear_net()(images).argmax(1) == labels).numpy()
    clean = target & (rows["attack"] == "clean")
    right = {i: [] for i in found.plan["ids"]}
    for image, correct in zip(rows["image_id"][clean], rows["correct"][clean], strict=True):
        right[image].append(bool(correct))
    votes = np.array([right[i] for i in found.plan["ids"]])
    # Draws are fresh: some images meet the coin, in about a tenth of 600 throws.
    wrong = 1 - votes[net_right].mean()
    assert 0.06 < wrong < 0.15
    assert len({tuple(v) for v in votes[net_right].tolist()}) > 5, "each image has its own draws"
    # The majority is what the net itself says, although most images met one unlucky draw.
    assert found.clean_accuracy == pytest.approx(net_right.mean())
    assert votes.all(1).mean() < found.clean_accuracy - 0.2
    assert any("most of 10 fresh draws" in note for note in found.summary["notes"])


def test_scoring_uses_no_draw_an_attack_was_optimized_or_selected_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The random words themselves: what is drawn under other names must be other numbers.
    seen: dict[str, set[tuple[int, ...]]] = {"attack": set(), "select": set(), "score": set()}
    honest = Keys._words

    def watched(self: Keys, stage: str, *rest: Any) -> Any:
        words = honest(self, stage, *rest)
        if self.domain not in ("fresh", "check"):  # cost and repeatability: nothing is scored
            kind = self.domain if self.domain in ("select", "score") else "attack"
            assert kind != "attack" or self.domain.startswith(("attack/", "benign/"))
            seen[kind] |= {tuple(row) for row in torch.stack([w[:, 0] for w in words], 1).tolist()}
        return words

    monkeypatch.setattr(Keys, "_words", watched)
    audit(**arguments(batch_size=24))
    assert len(seen["attack"]) > 100
    assert len(seen["score"]) == len(seen["select"]) == 24 * 3
    assert not seen["attack"] & (seen["score"] | seen["select"])
    assert not seen["score"] & seen["select"]


def test_a_defense_that_is_not_random_is_scored_once() -> None:
    images, labels = digits(6)
    found = audit(tpap(linear_net()), images, labels, threat=Linf(EPS), attacks="fgsm",
                  scoring_draws=7)  # fmt: skip
    assert set(found.rows["draw"]) == {0}
    assert set(found.rows["purpose"]) == {"score"}
    assert found.plan["settings"]["scoring_draws"] == 1
    assert found.summary["random"] is None


# -- what is told -------------------------------------------------------------------------------


def test_the_short_object(audited: AuditResult) -> None:
    found = audited.to_json()
    issue = {"clean_accuracy", "worst_case_accuracy", "baseline", "attacks"}
    # Beyond them only whether that is all of the audit, what is not, and its digest.
    assert found.keys() == issue | {"complete", "left_out", "digest"}
    assert found["left_out"] == []
    assert found["baseline"].keys() == {"clean_accuracy", "worst_case_accuracy"}
    for attack in found["attacks"]:
        assert list(attack) == [
            "name", "attacker", "backward", "eps", "norm", "n", "robust_accuracy", "interval",
            "median_distance", "seconds",
        ]  # fmt: skip
    named = {(a["name"], a["attacker"], a["backward"]) for a in found["attacks"]}
    assert named == {
        (name, attacker, backward)
        for name in ("fgsm", "pgd-4")
        for attacker, backward in (
            ("oblivious", "exact"), ("adaptive", "identity"), ("adaptive", "smoothed-sign"),
            ("adaptive", "undefended"),
        )
    }  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["clean_accuracy"] == audited.clean_accuracy
    assert found["complete"] is True


# -- who is audited, by whom --------------------------------------------------------------------


def test_a_classifier_by_itself() -> None:
    images, labels = digits(20)
    found = audit(linear_net(), images, labels, threat=Linf(EPS), attacks="fgsm,pgd-3")
    assert set(found.rows["subject"]) == {"target"}
    short = found.to_json()
    assert short["baseline"]["clean_accuracy"] == short["clean_accuracy"]
    assert short["baseline"]["worst_case_accuracy"] == short["worst_case_accuracy"]
    assert not found.summary["has_defense"]
    # On a linear net one step is the optimum, so that every first-order attack finds the same.
    cells = [c for row in found.summary["table"] for c in row["cells"]["target"].values()]
    assert {cell["correct"] for cell in cells} == {cells[0]["correct"]}


def test_a_classifier_against_another() -> None:
    images, labels = digits(20)
    common: dict[str, Any] = {"threat": Linf(0.1), "attacks": "fgsm", "baseline": conv_net()}
    both = audit(linear_net(), images, labels, **common)
    # Images made on another network say nothing: each is attacked where it is undefended.
    for subject, net in (("target", linear_net()), ("baseline", conv_net())):
        keys = Keys.of(0, both.plan["ids"], domain=f"attack/fgsm/oblivious/{subject}/exact")
        made = make_attack("fgsm").run(
            Surface(as_classifier(net)), images, labels, threat=Linf(0.1), keys=keys, stop="fixed"
        )
        hashes = column(both, "pixels", attack="fgsm", attacker="oblivious", subject=subject)
        assert [hashes[i] for i in both.plan["ids"]] == [sha(image) for image in made.images]
    assert both.summary["failed_attacks"] == [], "those of one say nothing about the other"
    found = audit(linear_net(), images, labels, attackers=["adaptive"], **common)
    right = {n: (net(images).argmax(1) == labels).float().mean() for n, net in
             (("target", linear_net()), ("baseline", conv_net()))}  # fmt: skip
    for subject, share in right.items():
        assert found.summary[subject]["clean"]["accuracy"] == pytest.approx(float(share))
    assert set(found.rows["subject"]) == {"target", "baseline"}
    assert len(found.summary["gains"]) == 3


class Nothing(Purifier):
    """A purifier whose reading is not a number."""

    name = "nothing"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        reading = images * float("nan")
        return Purified(reading, reading)


def test_an_answer_that_is_not_a_number_is_never_right() -> None:
    images, _ = digits(8)
    # The argmax of nothing but NaN is class 0.
    labels = torch.zeros(8, dtype=torch.int64)
    found = audit(Defense(linear_net(), purifier=Nothing()), images, labels, threat=Linf(EPS),
                  attacks="fgsm")  # fmt: skip
    assert found.clean_accuracy == 0.0
    assert found.worst_case_accuracy == 0.0


def test_only_one_attacker() -> None:
    images, labels = digits(8)
    for attacker in ("oblivious", "adaptive"):
        found = audit(tpap(linear_net()), images, labels, threat=Linf(EPS), attacks="fgsm",
                      attackers=[attacker])  # fmt: skip
        assert set(found.rows["attacker"]) == {"none", "benign", attacker}
        assert list(found.summary["target"]["worst_by_attacker"]) == [attacker]
        assert found.complete


def test_the_declared_gradients_are_all_tried() -> None:
    images, labels = digits(8)
    for defense, rules in (
        (tpap(conv_net()), {"identity", "smoothed-sign", "undefended"}),
        (Defense(conv_net(), purifier=Blind()), {"exact", "undefended"}),
        (Defense(conv_net()), {"exact", "undefended"}),
    ):
        found = audit(defense, images, labels, threat=Linf(EPS), attacks="fgsm",
                      attackers=("adaptive",))  # fmt: skip
        entries = [a for a in found.to_json()["attacks"] if a["attacker"] == "adaptive"]
        assert {a["backward"] for a in entries} == rules
