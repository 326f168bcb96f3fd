"""Random defenses: single draw, worst of N, majority; worst attacks selected on other draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.doubles import SometimesNegative, digits, linear_net
from audit.records import attack, cell, clean, plan, summary
from unperturb.audit import AuditResult, audit
from unperturb.audit.report import terminal_table
from unperturb.audit.summary import summarize
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.threat import Linf

P = 0.1  # how often the defense answers at random
N = 10


def binomial(k: int, n: int = N, p: float = 1 - P) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


# Of images whose answer is right but for the tenth of the draws at which it is wrong.
CLOSED = {
    "single": 1 - P,
    "worst_of_n": (1 - P) ** N,
    "majority": sum(binomial(k) for k in range(N // 2 + 1, N + 1)),
}


def safe_digits() -> tuple[Tensor, Tensor]:
    """Digits that the net gets right by a margin, and whose negatives it gets wrong."""
    images, labels = digits(500)
    net = linear_net()
    scores = net(images)
    top = scores.topk(2, 1).values
    sure = (scores.argmax(1) == labels) & (top[:, 0] - top[:, 1] > 0.3)
    kept = sure & (net(1 - images).argmax(1) != labels)
    return images[kept], labels[kept]


class Tossed(Purifier):
    """As ``SometimesNegative``, with a coin that every change of a pixel throws anew."""

    name = "tossed"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        pixels = torch.arange(1.0, images[0].numel() + 1).sqrt()
        moved = (images.detach().flatten(1).double() * pixels).sum(1).mul(1e4).frac()
        coin = (ctx.uniform("coin", (1, 1, 1)) + moved.view(-1, 1, 1, 1)).frac()
        negative = (coin < P).to(images.dtype)
        reading = negative * (1 - images) + (1 - negative) * images
        return Purified(reading, reading)


def test_a_defense_that_answers_at_random_a_tenth_of_the_time() -> None:
    images, labels = safe_digits()
    n = len(images)
    assert n > 200
    found = audit(
        Defense(linear_net(), purifier=SometimesNegative(probability=P)), images, labels,
        threat=Linf(1e-4), attacks="fgsm", attackers=("adaptive",), gradient_draws=3,
        scoring_draws=N, keep_images="none",
    )  # fmt: skip
    random = found.summary["random"]
    assert (random["draws"], random["selection_draws"]) == (N, N)
    rows = {row["what"]: row for row in random["rows"]}
    assert {"clean", "worst case", "worst case, adaptive", "fgsm, adaptive"} == set(rows)
    for what, row in rows.items():
        for kind, expected in CLOSED.items():
            # Four standard errors of n images; a mean of N draws errs less.
            slack = 4 * math.sqrt(expected * (1 - expected) / n) + 1e-9
            got = row[kind]["accuracy"]
            assert got == pytest.approx(expected, abs=slack), (what, kind)
    # The baseline never throws a coin, and is told once.
    assert found.summary["baseline"]["clean"]["accuracy"] == 1.0
    assert found.summary["target"]["clean"] == rows["clean"]["majority"]


@pytest.fixture(scope="module")
def tossed() -> AuditResult:
    """Six equally bad attacks: none of them does anything but throw coins."""
    images, labels = safe_digits()
    specs = ",".join(f"pgd-1?restarts={k}" for k in range(1, 7))
    return audit(
        Defense(linear_net(), purifier=Tossed()), images[:120], labels[:120], threat=Linf(1e-3),
        attacks=specs, attackers=("oblivious",), scoring_draws=N, keep_images="none",
    )  # fmt: skip


def single(summary: dict[str, Any], what: str = "worst case") -> float:
    row = next(row for row in summary["random"]["rows"] if row["what"] == what)
    return float(row["single"]["accuracy"])


def test_selecting_and_scoring_on_the_same_draws_would_flatter_the_attacker(
    tossed: AuditResult,
) -> None:
    n = len(tossed.plan["ids"])
    # Apart: the worst of seven (with the clean image) coin-throwers is right as often as each.
    error = math.sqrt(P * (1 - P) / (n * N))
    assert single(tossed.summary) == pytest.approx(1 - P, abs=4 * error)
    # Together: it is the unluckiest of them.
    rows = tossed.rows
    scoring = rows["purpose"] == "score"
    cut = {name: values[scoring] for name, values in rows.items()}
    timings = tossed.store.timings(tossed.units)
    biased = summarize(tossed.plan, cut, tossed.units, timings, digest=None, cost=None)
    assert biased["random"]["selection_draws"] is None
    assert single(biased) < 1 - P - 0.1
    assert any("errs on the side of the attacker" in note for note in biased["notes"])
    assert any("none of which it is scored on" in note for note in tossed.summary["notes"])


def test_the_bias_has_its_closed_form() -> None:
    """The least of K means of N coins, against one mean of N fresh coins."""
    random, n, attacks = np.random.default_rng(0), 400, 8
    cells = [clean(np.ones((n, N)), margin=-9.0), clean(np.ones((n, N)), purpose="select")]
    for number in range(attacks):
        facts = {"backward": f"rule-{number}"}
        cells += [
            cell(random.random((n, N)) > P, purpose=purpose, **facts)
            for purpose in ("score", "select")
        ]
    settings = plan(n, [attack("pgd-20")], scoring_draws=N, has_defense=False)
    apart = summary(settings, *cells)
    together = summary(settings, *(c for c in cells if c["purpose"][0] == "score"))
    # P[least of K binomials >= k] = P[binomial >= k]^K.
    above = [sum(binomial(i) for i in range(k, N + 1)) ** attacks for k in range(1, N + 1)]
    assert single(together) == pytest.approx(sum(above) / N, abs=0.02)
    assert single(apart) == pytest.approx(1 - P, abs=4 * math.sqrt(P * (1 - P) / (n * N)))


def test_ties_go_to_the_greater_margin_of_the_selecting_draws() -> None:
    right = np.ones((2, 4))
    bad = np.zeros((2, 4))
    settings = plan(2, [attack("a"), attack("b")], scoring_draws=4, has_defense=False)
    found = summary(
        settings,
        clean(right, margin=-9.0), clean(right, purpose="select", margin=-9.0),
        # Both hold while it is selected, and one of them falls when it is scored.
        cell(bad, attack="a", margin=5.0), cell(right, attack="a", purpose="select", margin=-2.0),
        cell(right, attack="b"), cell(right, attack="b", purpose="select",
                                      margin=np.array([-1.0, -3.0])),
    )  # fmt: skip
    assert found["target"]["worst_case"]["correct"] == 1, "the second image met the attack a"
    cells = {row["attack"]: row["cells"]["target"]["adaptive"] for row in found["table"]}
    assert (cells["a"]["correct"], cells["b"]["correct"]) == (0, 2)


def test_figures_of_a_few_votes() -> None:
    votes = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    settings = plan(4, [attack("pgd-20")], scoring_draws=4, has_defense=False)
    found = summary(settings, clean(np.ones((4, 4))), cell(votes), cell(votes, purpose="select"))
    row = next(r for r in found["random"]["rows"] if r["what"] == "pgd-20, adaptive")
    assert row["single"]["accuracy"] == pytest.approx(9 / 16)
    assert row["worst_of_n"]["correct"] == 1
    assert row["majority"]["correct"] == 2, "half is no majority"
    (entry,) = found["attacks"]
    assert (entry["single"], entry["worst_of_n"]) == (pytest.approx(9 / 16), 0.25)
    assert entry["robust_accuracy"] == 0.5


def test_a_deterministic_defense_has_no_such_figures() -> None:
    found = summary(plan(2, [attack("pgd-20")]), clean([1, 1]), cell([1, 0]))
    assert found["random"] is None
    assert found["selection_draws"] is None


@pytest.mark.parametrize("bare", [True, False])
def test_a_random_baseline_does_not_make_the_defense_random(bare: bool) -> None:
    images, labels = digits(8)
    random = Defense(linear_net(), purifier=SometimesNegative(probability=P))
    target = linear_net() if bare else tpap(linear_net())
    common: dict[str, Any] = {"threat": Linf(0.05), "attacks": "fgsm", "scoring_draws": 3,
                              "gradient_draws": 2}  # fmt: skip
    found = audit(target, images, labels, baseline=random, **common).summary
    assert found["random"] is None
    assert not any("The defense is random" in note for note in found["notes"])
    (told,) = [note for note in found["notes"] if "random" in note]
    assert told.startswith("Only the baseline is random, and the target is not: for the baseline")
    assert "most of 3 fresh draws" in told
    assert "The defense is random" not in terminal_table(found)
    other = audit(random, images, labels, baseline=target, **common).summary
    assert other["random"]["draws"] == 3
    assert any(note.startswith("The defense is random: an image") for note in other["notes"])
