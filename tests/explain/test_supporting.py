"""Supporting classes: of correctors that are known, and against counting by brute force."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unperturb.correction import Corrector
from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.explain import (
    Supporting,
    contributions,
    explain_correction,
    instance_shares,
    supporting_classes,
)
from unperturb.networks.corrector import CorrectionNetwork

Gate = Callable[..., Any]


def _random(count: int = 60, classes: int = 30) -> tuple[CorrectionNetwork, Tensor, Tensor]:
    network = CorrectionNetwork(num_classes=classes, width=80, seed=2).double().eval()
    generator = torch.Generator().manual_seed(4)
    logits = 5 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    # Half of the labels are what it answers, so that there are corrected images and others.
    labels = torch.randint(classes, (count,), generator=generator)
    labels[::2] = network(logits).argmax(1)[::2]
    return network, logits, labels


# -- by hand --------------------------------------------------------------------------------------


def test_the_gate_is_found(gated: Gate) -> None:
    made = gated()
    found = supporting_classes(made.network, made.logits, made.labels, top=3)
    n, k = len(made.labels), 12
    assert (len(found), found.given, found.top) == (n, n, 3)
    assert bool(found.corrected.all())
    assert not bool((found.adversarial == found.labels).any())
    expected = torch.stack([torch.full((n,), made.gate), made.labels, found.adversarial], 1)
    assert torch.equal(found.score.indices, expected)
    values = torch.tensor([50 + 399.9 / k, 10.1 - 10.1 / k, 89.9 / k])
    torch.testing.assert_close(found.score.values, values.expand(n, 3), atol=1e-5, rtol=1e-5)
    # Pull up: the gate, then the class itself. Push down: the gate, then the fooled answer.
    assert torch.equal(found.pull.indices[:, :2], expected[:, :2])
    assert torch.equal(found.push.indices[:, :2], expected[:, [0, 2]])
    torch.testing.assert_close(found.push.values[:, 0], torch.full((n,), (450 - 50 - 0.1) / k))
    counts = found.counts()
    assert int(counts[made.gate]) == n
    # Each other class is the true one in 10 images and the fooled answer in 10.
    assert counts[torch.arange(k) != made.gate].tolist() == [20] * 11
    assert found.classes() == (made.gate, 0, 1)
    assert found.warnings == ()


def test_a_linear_corrector_has_the_lists_of_its_weights() -> None:
    network = CorrectionNetwork(num_classes=9, depth=1, seed=3).eval()
    labels = torch.tensor([0, 4, 4, 8])
    found = supporting_classes(network, torch.zeros(4, 9), labels, top=4)
    weights = network.layers[0].weight.detach()
    score = weights[labels] - weights.mean(0)
    assert torch.equal(found.score.indices, score.argsort(1, descending=True)[:, :4])
    assert torch.equal(found.pull.indices, weights[labels].argsort(1, descending=True)[:, :4])
    push = (-weights.mean(0)).argsort(descending=True)[:4]
    assert torch.equal(found.push.indices, push.expand(4, 4))


# -- by brute force -------------------------------------------------------------------------------


@pytest.mark.parametrize("only", ["all", "corrected"])
@pytest.mark.parametrize("batch_size", [7, 512])
def test_counts_are_those_of_brute_force(only: str, batch_size: int) -> None:
    network, logits, labels = _random()
    found = supporting_classes(
        Corrector(network), logits, labels, top=5, only=only, batch_size=batch_size,
        keep_scores=True,
    )  # fmt: skip
    right = network(logits).argmax(1) == labels
    assert 10 < int(right.sum()) < 50
    rows = right.nonzero().flatten() if only == "corrected" else torch.arange(60)
    assert torch.equal(found.rows, rows)
    assert torch.equal(found.corrected, right[rows])
    assert torch.equal(found.adversarial, logits.argmax(1)[rows])
    whole = contributions(network, logits, labels)
    values = {"score": whole.pull - whole.mean, "pull": whole.pull, "push": -whole.mean}
    for which, each in values.items():
        tally: Counter[int] = Counter()
        for row in rows.tolist():
            listed = sorted(range(30), key=lambda k: -float(each[row, k]))[:5]
            tally.update(listed)
        assert found.counts(which).tolist() == [tally[k] for k in range(30)]
        best = sorted(range(30), key=lambda k: (-tally[k], k))[:5]
        assert found.classes(which) == tuple(best)
        assert int(found.counts(which).sum()) == 5 * len(rows)
    assert found.full is not None
    torch.testing.assert_close(found.full, values["score"][rows].float())


def test_the_scores_are_kept_only_on_demand() -> None:
    network, logits, labels = _random()
    found = supporting_classes(network, logits, labels)
    assert found.full is None
    held = [v for v in vars(found).values() if isinstance(v, Tensor)]
    held += [t for v in (found.score, found.pull, found.push) for t in v]
    assert max(tensor.numel() for tensor in held) == 60 * 10


@pytest.mark.parametrize(
    ("classes", "top"), [(2, 1), (3, 1), (10, 3), (29, 9), (30, 10), (200, 10)]
)
def test_few_classes_have_short_lists(classes: int, top: int) -> None:
    network = CorrectionNetwork(num_classes=classes, width=8)
    found = supporting_classes(network, torch.eye(classes), torch.arange(classes))
    assert found.top == top
    assert not any("every class" in warning for warning in found.warnings)


@pytest.mark.parametrize("top", [10, 12])
def test_a_list_of_every_class_is_called_out(top: int) -> None:
    network = CorrectionNetwork(num_classes=10, width=8)
    found = supporting_classes(network, torch.eye(10), torch.arange(10), top=top)
    assert found.top == 10
    assert found.counts().tolist() == [10 - int(found.flat.sum())] * 10
    assert "10 of 10 classes holds every class" in found.warnings[0]
    assert "every class" in found.to_dict()["warnings"][0]


def test_images_on_which_nothing_acts_are_not_counted() -> None:
    network = CorrectionNetwork(num_classes=4, width=6).eval()
    with torch.no_grad():
        network.layers[0].bias.fill_(-5.0)
    logits = torch.zeros(3, 4)
    logits[1] = 30.0 * network.layers[0].weight[0].detach().sign()
    found = supporting_classes(network, logits, torch.tensor([0, 1, 2]), top=2)
    assert found.flat.tolist() == [True, False, True]
    assert int(found.counts().sum()) == 2
    assert "2 of 3 images have no class" in found.warnings[0]
    only = supporting_classes(network, logits[:1], torch.tensor([0]), top=2)
    assert only.classes() == ()
    with pytest.raises(InputError, match="No image has supporting classes"):
        instance_shares(only)


# -- what is written ------------------------------------------------------------------------------


def test_what_is_written_can_be_read(gated: Gate) -> None:
    made = gated()
    found = supporting_classes(made.network, made.logits, made.labels, top=3)
    names = [f"name, {k}" for k in range(11)]
    facts = json.loads(json.dumps(found.to_dict(names), allow_nan=False))
    assert facts["classes"]["score"][0] == {"class": 5, "name": "name, 5", "count": 110}
    assert facts["counts"]["score"] == {
        str(k): n for k, n in enumerate(found.counts().tolist()) if n
    }
    assert (facts["fooled"], facts["corrected"], facts["num_classes"]) == (110, 110, 12)
    rows = list(csv.DictReader(io.StringIO(found.to_csv(names))))
    assert [int(row["score"]) for row in rows] == found.counts().tolist()
    assert [int(row["push"]) for row in rows] == found.counts("push").tolist()
    assert [row["name"] for row in rows] == [*names, "class 11"]
    assert [k for k, row in enumerate(rows) if row["supporting"] == "1"] == [0, 1, 5]


# -- single images --------------------------------------------------------------------------------


def _instances(indices: list[list[int]], labels: list[int], answers: list[int]) -> Supporting:
    from unperturb.explain.supporting import TopClasses

    lists = TopClasses(torch.tensor(indices), torch.zeros(len(labels), len(indices[0])))
    count = len(labels)
    return Supporting(
        num_classes=9, given=count, only="all", rows=torch.arange(count),
        labels=torch.tensor(labels), adversarial=torch.full((count,), 8),
        answers=torch.tensor(answers), pull=lists, push=lists, score=lists,
        flat=torch.zeros(count, dtype=torch.bool),
    )  # fmt: skip


def test_shares_of_single_images() -> None:
    found = _instances(
        [[1, 7, 2, 3], [7, 1, 2, 0], [4, 5, 6, 7], [7, 4, 2, 1], [3, 2, 0, 7]],
        labels=[1, 7, 5, 0, 3],
        answers=[1, 7, 0, 0, 1],
    )
    shares = instance_shares(found)
    assert (shares["focus"], shares["among"], shares["n"]) == (7, 3, 5)
    assert shares["top_is_true"]["count"] == 3
    on_top = shares["focus_on_top"]
    # Rows 0, 1, 3 have class 7 among their first three and are corrected; 2 and 4 are neither.
    assert (on_top["corrected"]["count"], on_top["corrected"]["n"]) == (3, 3)
    assert (on_top["uncorrected"]["count"], on_top["uncorrected"]["n"]) == (0, 2)
    assert (on_top["all"]["count"], on_top["all"]["n"]) == (3, 5)
    assert on_top["all"]["interval"][0] < 0.6 < on_top["all"]["interval"][1]
    other = instance_shares(found, focus=4, among=9)
    assert (other["among"], other["focus_on_top"]["all"]["count"]) == (4, 2)


def test_a_share_of_no_image_is_none(gated: Gate) -> None:
    made = gated()
    shares = explain_correction(made.network, made.logits, made.labels, controls=2).instances
    assert shares["focus"] == made.gate
    assert shares["focus_on_top"]["corrected"]["rate"] == 1
    assert shares["focus_on_top"]["uncorrected"] is None
    assert shares["top_is_true"]["rate"] == 0


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"top": 0}, ConfigError, "top is 0"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"only": "fooled"}, SpecError, "one of all, corrected"),
        ({"logits": torch.zeros(60, 29)}, InputError, "29 classes"),
        ({"labels": torch.zeros(59, dtype=torch.int64)}, InputError, "one label for each"),
        ({"labels": torch.full((60,), 30)}, InputError, "labels from 0 to 29"),
        ({"corrector": "runs/corrector"}, InputError, "load_corrector"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], kind: type[Exception], words: str) -> None:
    network, logits, labels = _random()
    given: dict[str, Any] = {"corrector": network, "logits": logits, "labels": labels, **changes}
    with pytest.raises(kind, match=words):
        supporting_classes(**given)


def test_no_corrected_image_at_all_is_told() -> None:
    network, logits, _ = _random()
    wrong = (network(logits).argmax(1) + 1) % 30
    with pytest.raises(InputError, match=r"none of 60 images right.*only='all'"):
        supporting_classes(network, logits, wrong, only="corrected")


def test_mistakes_about_lists_and_places_are_named(gated: Gate) -> None:
    made = gated()
    found = supporting_classes(made.network, made.logits, made.labels)
    with pytest.raises(SpecError, match="did you mean 'push'"):
        found.counts("pusch")
    with pytest.raises(ConfigError, match="among is 0"):
        instance_shares(found, among=0)
    with pytest.raises(ConfigError, match="focus is 12"):
        instance_shares(found, focus=12)
