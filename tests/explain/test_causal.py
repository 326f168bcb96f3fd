"""Lowering supporting classes: on a corrector whose answers hang on one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unperturb.audit.statistics import wilson
from unperturb.correction import Corrector
from unperturb.errors import ConfigError, InputError
from unperturb.explain import causal_check, supporting_classes
from unperturb.networks.corrector import CorrectionNetwork

Gate = Callable[..., Any]


def test_without_the_gate_every_answer_returns_to_the_attack(gated: Gate) -> None:
    made = gated()
    found = causal_check(made.network, made.logits, made.labels, [made.gate], controls=60)
    assert torch.equal(found.before, made.labels)
    assert torch.equal(found.real.answers, found.adversarial)
    # The gate is no image's true class: sparing changes nothing.
    assert torch.equal(found.real.spared, found.adversarial)
    facts = found.to_dict()
    assert facts["before"]["accuracy"] == 1
    for way in ("lowered", "spared"):
        assert facts[way]["after"]["accuracy"] == 0
        assert facts[way]["returned"] == {
            "rate": 1.0, "count": 110, "n": 110, "interval": list(wilson(110, 110))
        }  # fmt: skip
        assert facts[way]["rank"] == 1
    # One class in twelve is the gate; any other takes the 10 images of 110 that it is true in,
    # or, where an image's own class is spared, none.
    drawn = [control.classes[0] for control in found.controls]
    assert drawn.count(made.gate) > 0
    expected = [0.0 if k == made.gate else 100 / 110 for k in drawn]
    assert facts["lowered"]["controls"]["accuracies"] == pytest.approx(expected)
    spared = [0.0 if k == made.gate else 1.0 for k in drawn]
    assert facts["spared"]["controls"]["accuracies"] == spared
    assert facts["lowered"]["p"] == pytest.approx((1 + drawn.count(made.gate)) / 61)
    assert facts["unrelated"]["before"]["n"] == 110


def test_lowering_the_true_class_is_told_apart(gated: Gate) -> None:
    made = gated()
    facts = causal_check(made.network, made.logits, made.labels, [0, 1, 2], controls=5).to_dict()
    assert facts["true_class_lowered"] == 30
    # It breaks exactly the images whose own class was lowered; spared, none.
    assert facts["lowered"]["after"]["correct"] == 80
    assert facts["spared"]["after"]["correct"] == 110
    # Neither i nor j among the three: 8 classes for i, 7 others for j.
    assert facts["unrelated"]["before"]["n"] == 8 * 7
    assert facts["unrelated"]["after"]["accuracy"] == 1
    # With j as far above the gates as before, it is class c's tenth that wins then, not j.
    returned = facts["lowered"]["returned"]
    assert (returned["count"], returned["n"]) == (0, 110)


def test_answers_are_those_of_changed_logits() -> None:
    """The same by hand, with a random network, in one batch, row by row for what is spared."""
    network = CorrectionNetwork(num_classes=15, width=40, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(50, 15, generator=generator)
    labels = torch.randint(15, (50,), generator=generator)
    kept = logits.clone()
    found = causal_check(
        Corrector(network), logits, labels, (2, 7, 9), lower=3.5, controls=4, seed=8, batch_size=7
    )
    assert torch.equal(logits, kept), "the caller's logits are as they were"
    assert torch.equal(found.before, network(logits).argmax(1))
    assert torch.equal(found.adversarial, logits.argmax(1))
    assert len({control.classes for control in found.controls}) > 1
    for each in (found.real, *found.controls):
        assert len(set(each.classes)) == 3
        changed = logits.clone()
        changed[:, list(each.classes)] -= 3.5
        assert torch.equal(each.answers, network(changed).argmax(1))
        for row in range(50):
            changed[row, labels[row]] = logits[row, labels[row]]
        assert torch.equal(each.spared, network(changed).argmax(1))
    assert any(not torch.equal(each.answers, each.spared) for each in found.controls)


def test_controls_are_named_by_the_seed(gated: Gate) -> None:
    made = gated()

    def drawn(seed: int, controls: int = 20) -> list[tuple[int, ...]]:
        found = causal_check(
            made.network, made.logits, made.labels, [5, 1], seed=seed, controls=controls
        )
        return [control.classes for control in found.controls]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0)[:7] == drawn(0, controls=7)
    assert all(0 <= low < high < 12 for low, high in drawn(2))
    # Each class has its turn: 200 draws of two of twelve.
    assert {k for pair in drawn(3, controls=200) for k in pair} == set(range(12))


def test_ranks_and_shares_of_known_answers() -> None:
    """By definition, on answers put in by hand."""
    from unperturb.explain.causal import Causal, Lowered

    labels, adversarial = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 3, 0])

    def lowered(*answers: int) -> Lowered:
        found = torch.tensor(answers)
        return Lowered((9,), found, found)

    found = Causal(
        labels, adversarial, before=torch.tensor([0, 1, 2, 0]), real=lowered(1, 1, 2, 0),
        controls=(lowered(0, 1, 2, 3), lowered(0, 0, 0, 0), lowered(9, 1, 2, 9)),
        settings={},
    ).to_dict()  # fmt: skip
    assert found["fooled"] == 3
    assert found["before"]["correct"] == 3
    facts = found["lowered"]
    assert facts["after"]["correct"] == 2
    # Fooled and corrected before: images 0 and 2; of them 0 goes back to the attack's answer.
    assert (facts["returned"]["count"], facts["returned"]["n"]) == (1, 2)
    assert facts["controls"] == {
        "accuracies": [1.0, 0.25, 0.5], "mean": pytest.approx(7 / 12), "min": 0.25, "max": 1.0
    }  # fmt: skip
    # One draw is below it; one more ties.
    assert (facts["rank"], facts["p"]) == (2, pytest.approx(3 / 4))


def test_what_is_written_can_be_read_and_a_set_names_its_classes(gated: Gate) -> None:
    made = gated()
    supporting = supporting_classes(made.network, made.logits, made.labels, top=1)
    found = causal_check(made.network, made.logits, made.labels, supporting, controls=2)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["classes"] == [made.gate]
    assert (facts["lower"], facts["draws"], facts["n"]) == (20.0, 2, 110)


def test_images_that_were_never_fooled_return_nowhere(gated: Gate) -> None:
    made = gated()
    logits = made.logits.clone()
    logits[torch.arange(len(logits)), made.labels] = 3.0
    facts = causal_check(made.network, logits, made.labels, [5], controls=1).to_dict()
    assert facts["fooled"] == 0
    assert facts["lowered"]["returned"] is None


def test_a_network_in_training_mode_is_not_asked_to_drop(gated: Gate, untouched: Any) -> None:
    made = gated()
    made.network.train()
    with untouched(made.network):
        found = causal_check(made.network, made.logits, made.labels, [5], controls=1)
    assert torch.equal(found.before, made.labels)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"classes": []}, ConfigError, r"lower are \[\]"),
        ({"classes": [1, 1]}, ConfigError, "different ones"),
        ({"classes": [12]}, ConfigError, "from 0 to 11"),
        ({"classes": [-1]}, ConfigError, "from 0 to 11"),
        ({"lower": 0}, ConfigError, "lower is 0"),
        ({"lower": float("nan")}, ConfigError, "lower is nan"),
        ({"lower": float("inf")}, ConfigError, "lower is inf"),
        ({"controls": 0}, ConfigError, "controls is 0"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"logits": torch.zeros(110, 11)}, InputError, "11 classes"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, InputError, "one label for each"),
        ({"corrector": None}, InputError, "NoneType"),
    ],
)
def test_mistakes_are_named(
    changes: dict[str, Any], kind: type[Exception], words: str, gated: Gate
) -> None:
    made = gated()
    given: dict[str, Any] = {
        "corrector": made.network, "logits": made.logits, "labels": made.labels, "classes": [5],
        **changes,
    }  # fmt: skip
    with pytest.raises(kind, match=words):
        causal_check(**given)


def test_half_logits_are_lowered_in_the_networks_precision() -> None:
    network = CorrectionNetwork(num_classes=8, width=30, seed=5).eval()
    logits: Tensor = (torch.arange(64.0).view(8, 8) / 7).to(torch.bfloat16)
    found = causal_check(network, logits, torch.arange(8), [3], lower=0.01, controls=1)
    changed = logits.float()
    changed[:, 3] -= 0.01
    assert torch.equal(found.real.answers, network(changed).argmax(1))
