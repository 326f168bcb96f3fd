"""Intervals, tests and figures against independent references."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from statistics import NormalDist, median
from typing import Any

import numpy as np
import pytest

from audit.doubles import EPS, arguments, digits, linear_net
from unperturb.attacks import FirstOrder
from unperturb.audit import AuditResult, audit
from unperturb.audit.statistics import (
    accuracy,
    auroc,
    compare,
    mcnemar,
    mean,
    paired_interval,
    rate,
    wilson,
)
from unperturb.audit.summary import eps_text, worst_answers
from unperturb.presets import tpap
from unperturb.threat import L2, Linf


def wilson_by_hand(k: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson 1927: the proportions that the score test does not reject."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def binomial_two_sided(k: int, n: int) -> Fraction:
    """Sum of the probabilities of what is at most as likely as k out of n at 1/2."""
    weights = [math.comb(n, i) for i in range(n + 1)]
    return Fraction(sum(w for w in weights if w <= weights[k]), 2**n)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 24), (791, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_that_of_scipy(k: int, n: int, confidence: float) -> None:
    from scipy.stats import binomtest

    low, high = wilson(k, n, confidence=confidence)
    theirs = binomtest(k, n).proportion_ci(confidence_level=confidence, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1


def test_the_interval_of_a_mean_of_shares_is_too_wide_rather_than_too_narrow() -> None:
    # Each image is right in half of ten draws: the mean hardly varies.
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        shares = random.binomial(10, 0.5, size=50) / 10
        found = mean(shares)
        assert found is not None
        assert found["interval"] == pytest.approx(wilson_by_hand(float(shares.sum()), 50))
        assert found["accuracy"] == pytest.approx(shares.mean())
        missed += not found["interval"][0] <= 0.5 <= found["interval"][1]
    assert missed == 0
    assert mean(np.array([])) is None


@pytest.mark.parametrize("n", [1, 2, 5, 16, 31])
def test_mcnemar_is_the_sum_of_binomial_probabilities(n: int) -> None:
    for only_first in range(n + 1):
        # Images on which both agree change nothing.
        first = np.array([True] * only_first + [False] * (n - only_first) + [True, False, False])
        second = np.array([False] * only_first + [True] * (n - only_first) + [True, False, False])
        found = mcnemar(first, second)
        assert (found.only_first, found.only_second) == (only_first, n - only_first)
        assert found.p == pytest.approx(float(binomial_two_sided(only_first, n)), rel=1e-9)
        assert mcnemar(second, first).p == pytest.approx(found.p, rel=1e-12)


def test_mcnemar_of_many_images() -> None:
    from scipy.stats import binomtest

    first, second = np.arange(9000) < 5100, np.arange(9000) >= 4900
    expected = binomtest(4900, 4900 + 3900, 0.5).pvalue
    assert 0 < expected < 1e-20
    assert mcnemar(first, second).p == pytest.approx(expected, rel=1e-6)


def test_mcnemar_without_a_difference() -> None:
    same = np.array([True, False])
    assert mcnemar(same, same) == (0, 0, 1.0)


def answers(both: int, one: int, two: int, neither: int) -> tuple[Any, Any]:
    """Answers of two on the same images, by how many each gets right."""
    first = [True] * (both + one) + [False] * (two + neither)
    second = [True] * both + [False] * one + [True] * two + [False] * neither
    return np.array(first), np.array(second)


def test_a_paired_interval_covers_the_difference() -> None:
    # Exactly, by all outcomes of 20 images: both right 50 %, one of them 25 % and 10 %.
    n, chances = 20, (0.5, 0.25, 0.1, 0.15)
    covered = least = 0.0
    for both in range(n + 1):
        for one in range(n + 1 - both):
            for two in range(n + 1 - both - one):
                neither = n - both - one - two
                ways = math.factorial(n)
                weight = 1.0
                for count, chance in zip((both, one, two, neither), chances, strict=True):
                    ways //= math.factorial(count)
                    weight *= chance**count
                low, high = paired_interval(*answers(both, one, two, neither))
                assert -1 - 1e-12 <= low <= (one - two) / n <= high <= 1 + 1e-12
                covered += ways * weight * (low <= 0.15 <= high)
                least = max(least, high - low)
    assert 0.945 < covered < 0.97
    assert least < 1.2


def test_a_paired_interval_turns_with_the_answers_and_shrinks_where_they_agree() -> None:
    first, second = answers(40, 9, 3, 8)
    low, high = paired_interval(first, second)
    assert paired_interval(second, first) == pytest.approx((-high, -low))
    # Without correlation it is Newcombe's interval of two independent samples.
    one, two = answers(25, 25, 25, 25)
    (l1, u1), (l2, u2) = wilson_by_hand(50, 100), wilson_by_hand(50, 100)
    reach = math.hypot(0.5 - l1, u2 - 0.5), math.hypot(u1 - 0.5, 0.5 - l2)
    assert paired_interval(one, two) == pytest.approx((-reach[0], reach[1]))
    agree = paired_interval(*answers(49, 1, 1, 49))
    assert agree[1] - agree[0] < 0.4 * sum(reach)
    assert paired_interval(*answers(5, 0, 0, 0))[1] >= 0


def test_accuracy_of_nothing_is_none() -> None:
    assert accuracy(np.array([], dtype=bool)) is None
    assert rate(np.array([], dtype=bool)) is None
    interval = pytest.approx(list(wilson_by_hand(3, 4)))
    votes = np.array([True, False, True, True])
    assert accuracy(votes) == {"accuracy": 0.75, "correct": 3, "n": 4, "interval": interval}
    assert rate(votes) == {"rate": 0.75, "count": 3, "n": 4, "interval": interval}


def test_a_comparison_names_both_sides() -> None:
    found = compare("it", np.array([True, True, False]), np.array([False, True, False]))
    assert (found["what"], found["only_target"], found["only_baseline"]) == ("it", 1, 0)
    assert found["difference"] == pytest.approx(1 / 3)
    assert found["target"]["correct"] == 2
    assert found["baseline"]["correct"] == 1


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_that_of_scikit_learn(levels: int) -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(levels)
    negatives = random.integers(0, levels, 70) / levels
    positives = random.integers(0, levels, 110) / levels + 0.2
    labels = np.repeat([0, 1], [70, 110])
    expected = roc_auc_score(labels, np.concatenate((negatives, positives)))
    assert auroc(negatives, positives) == pytest.approx(expected, abs=1e-12)
    assert auroc(negatives, negatives) == pytest.approx(0.5)
    assert auroc(negatives, np.array([])) is None


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (1 / 255, "1/255"), (10 / 255, "10/255"), (0.5, "0.5"), (0.15, "0.15"),
     (0.031, "0.031"), (1.0, "1"), (0.123456, "0.1235")],
)  # fmt: skip
def test_eps_as_people_write_it(eps: float, text: str) -> None:
    assert eps_text(eps) == text


# -- all figures once more, by loops over dictionaries ------------------------------------------


ATTACKED = ("oblivious", "adaptive")


class Naive:
    """The figures of an audit from its raw rows, the slow and obvious way."""

    def __init__(self, result: AuditResult) -> None:
        rows = result.rows
        self.ids = result.plan["ids"]
        self.attackers = result.plan["settings"]["attackers"]
        self.votes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for i in range(len(rows["draw"])):
            row = {
                n: rows[n][i].item() if hasattr(rows[n][i], "item") else rows[n][i] for n in rows
            }
            self.votes[(self.name(row), row["image_id"], row["purpose"])].append(row)
        self.tried = sorted({name for name, _, _ in self.votes})

    @staticmethod
    def name(row: dict[str, Any]) -> tuple[Any, ...]:
        attacked = row["attacker"] in ATTACKED
        rest = (row["backward"], row["goal"], row["eps"]) if attacked else ("none", "none", 0.0)
        return (row["subject"], row["attack"], row["attacker"], *rest)

    def mean(self, name: tuple[Any, ...], image: str, column: str, purpose: str = "score") -> float:
        votes = self.votes.get((name, image, purpose)) or self.votes[(name, image, "score")]
        assert votes, (name, image)
        if not votes[0]["inside"]:
            return self.mean(
                (name[0], "clean", "none", "none", "none", 0.0), image, column, purpose
            )
        return float(np.mean([row[column] for row in votes]))

    def clean(self, subject: str) -> tuple[Any, ...]:
        return (subject, "clean", "none", "none", "none", 0.0)

    def worst(self, image: str, names: list[tuple[Any, ...]], column: str = "correct") -> float:
        """Share of the scoring draws that are right under the worst attack."""
        here = [n for n in names if (n, image, "score") in self.votes]
        chosen = min(
            here,
            key=lambda n: (self.mean(n, image, column, "select"),
                           -self.mean(n, image, "margin", "select")),
        )  # fmt: skip
        return self.mean(chosen, image, column)

    def attacks(self, subject: str, attackers: Any = ATTACKED) -> list[tuple[Any, ...]]:
        tried = [n for n in self.tried if n[0] == subject and n[2] in attackers]
        return [self.clean(subject), *tried]

    def right(self, names: list[tuple[Any, ...]], column: str = "correct") -> list[bool]:
        return [self.worst(i, names, column) > 0.5 for i in self.ids]

    def cell(self, subject: str, attacker: str, attack: str) -> list[tuple[Any, ...]]:
        return [
            n for n in self.tried if n[:3] == (subject, attack, attacker)
            and n[4] != "predicted-label"
        ]  # fmt: skip


def same(found: dict[str, Any] | None, correct: int, n: int) -> None:
    assert found is not None
    assert (found["correct"], found["n"]) == (correct, n)
    assert found["accuracy"] == correct / n
    assert found["interval"] == pytest.approx(list(wilson_by_hand(correct, n)), abs=1e-12)


def deterministic() -> AuditResult:
    images, labels = digits(30)
    restarted = FirstOrder(
        name="pgd-3?restarts=2", steps=3, step_size=0.5, random_start=True, restarts=2
    )
    return audit(
        tpap(linear_net(), radius=0.1), images, labels, threat=Linf(EPS), batch_size=16,
        attacks=["fgsm", restarted],
    )  # fmt: skip


def l2_without_a_defense() -> AuditResult:
    images, labels = digits(30)
    return audit(linear_net(), images, labels, threat=L2(0.8), attacks="fgsm,pgd-3", batch_size=7)


def random_one() -> AuditResult:
    return audit(**arguments())


def with_probes() -> AuditResult:
    images, labels = digits(30)
    return audit(
        tpap(linear_net(), radius=0.1), images, labels, threat=Linf(0.1), batch_size=10,
        attacks="fgsm", probe_images=20,
    )  # fmt: skip


@pytest.fixture(
    scope="module", params=[deterministic, l2_without_a_defense, random_one, with_probes]
)
def result(request: pytest.FixtureRequest) -> AuditResult:
    found: AuditResult = request.param()
    return found


def test_headline_figures(result: AuditResult) -> None:
    naive, summary = Naive(result), result.summary
    n = len(naive.ids)
    subjects = ["target", "baseline"] if summary["has_defense"] else ["target"]
    for subject in subjects:
        figures = summary[subject]
        same(figures["clean"], sum(naive.right([naive.clean(subject)])), n)
        everything = naive.attacks(subject)
        same(figures["worst_case"], sum(naive.right(everything)), n)
        same(figures["worst_case_8bit"], sum(naive.right(everything, "correct_8bit")), n)
        for attacker in naive.attackers:
            worst = naive.right(naive.attacks(subject, [attacker]))
            same(figures["worst_by_attacker"][attacker], sum(worst), n)
            for row in summary["table"]:
                cell = row["cells"][subject][attacker]
                same(cell, sum(naive.right(naive.cell(subject, attacker, row["attack"]))), n)
        again = worst_answers(result.plan, result.rows, result.units, subject=subject)
        assert again.tolist() == [float(right) for right in naive.right(everything)]
    if not summary["has_defense"]:
        assert summary["baseline"]["worst_case"] == summary["target"]["worst_case"]
        assert summary["gains"] == []


def test_answers_for_a_comparison(result: AuditResult) -> None:
    naive = Naive(result)
    attack = result.summary["table"][0]["attack"]
    for attackers in (["oblivious"], ["adaptive"], None):
        found = worst_answers(
            result.plan, result.rows, result.units, attackers=attackers, attacks=[attack]
        )
        names = naive.attacks("target", ATTACKED if attackers is None else attackers)
        names = [n for n in names if n[1] in ("clean", attack)]
        assert found.tolist() == [float(right) for right in naive.right(names)]
    clean = worst_answers(result.plan, result.rows, result.units, attacks=[])
    assert clean.tolist() == [float(r) for r in naive.right([naive.clean("target")])]


def test_figures_of_each_attack(result: AuditResult) -> None:
    naive, summary = Naive(result), result.summary
    norm = summary["threat"]["norm"]
    names = [n for n in naive.tried if n[2] in ATTACKED and not n[1].startswith("probe")]
    listed = [
        (a["subject"], a["name"], a["attacker"], a["backward"], a["goal"], a["eps"])
        for a in summary["attacks"]
    ]
    assert sorted(listed) == names
    for entry, name in zip(summary["attacks"], listed, strict=True):
        right = {i: naive.mean(name, i, "correct") > 0.5 for i in naive.ids}
        clean = {i: naive.mean(naive.clean(name[0]), i, "correct") > 0.5 for i in naive.ids}
        first = {i: naive.votes[(name, i, "score")][0] for i in naive.ids}
        assert {row["draw"] for row in first.values()} == {0}
        n = len(naive.ids)
        assert entry["n"] == n
        assert entry["robust_accuracy"] == sum(right.values()) / n
        assert entry["interval"] == pytest.approx(list(wilson_by_hand(sum(right.values()), n)))
        fell = [first[i][norm] for i in naive.ids if clean[i] and not right[i]]
        assert entry["median_distance"] == (pytest.approx(median(fell)) if fell else None)
        eight = [naive.mean(name, i, "correct_8bit") > 0.5 for i in naive.ids]
        assert entry["accuracy_8bit"] == pytest.approx(sum(eight) / n)
        queries = [first[i]["queries"] for i in naive.ids]
        assert entry["queries_per_image"] == pytest.approx(sum(queries) / n)
        zero = [2 * first[i]["zero_gradients"] > first[i]["gradients"] for i in naive.ids]
        assert entry["zero_gradient_share"] == pytest.approx(sum(zero) / n)
        wrong = [right[i] for i in naive.ids if not clean[i]]
        expected = sum(wrong) / len(wrong) if wrong else None
        assert entry["wrong_when_clean_accuracy"] == pytest.approx(expected)
        assert entry["stop"] == ("fixed" if name[2] == "oblivious" else "first-success")
        assert (entry["eps"], entry["norm"]) == (summary["threat"]["eps"], norm)
        assert entry["seconds"] > 0
        assert entry["outside_ball"] == 0
        draws = {len(naive.votes[(name, i, "score")]) for i in naive.ids}
        if draws == {1}:
            assert entry["single"] is entry["worst_of_n"] is None
        else:
            shares = [naive.mean(name, i, "correct") for i in naive.ids]
            assert entry["single"] == pytest.approx(np.mean(shares))
            assert entry["worst_of_n"] == pytest.approx(np.mean([s == 1 for s in shares]))


def test_gains(result: AuditResult) -> None:
    naive = Naive(result)
    for gain in result.summary["gains"]:
        what = gain["what"]
        named = [a for a in naive.attackers if a in what] or naive.attackers
        answers = {
            subject: naive.right(
                [naive.clean(subject)] if what == "clean" else naive.attacks(subject, named)
            )
            for subject in ("target", "baseline")
        }
        pairs = list(zip(answers["target"], answers["baseline"], strict=True))
        one, two = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        assert (gain["only_target"], gain["only_baseline"]) == (one, two)
        assert gain["difference"] == pytest.approx((one - two) / len(pairs))
        p = float(binomial_two_sided(one, one + two)) if one + two else 1.0
        assert gain["mcnemar_p"] == pytest.approx(p)
        same(gain["target"], sum(answers["target"]), len(pairs))
        same(gain["baseline"], sum(answers["baseline"]), len(pairs))
    whats = [gain["what"] for gain in result.summary["gains"]]
    if result.summary["has_defense"]:
        assert whats == [
            "clean", "worst case, oblivious", "worst case, adaptive", "worst case"
        ]  # fmt: skip


def test_the_worst_case_is_never_flattering(result: AuditResult) -> None:
    summary = result.summary
    # What is selected on other draws may be luckier on these; a deterministic one never is.
    slack = 0.1 if summary["selection_draws"] else 0.0
    for subject in ("target", "baseline"):
        figures = summary[subject]
        worst = figures["worst_case"]["accuracy"] - slack
        assert worst <= figures["clean"]["accuracy"]
        assert all(worst <= part["accuracy"] for part in figures["worst_by_attacker"].values())
    for entry in summary["attacks"]:
        worst = summary[entry["subject"]]["worst_case"]["accuracy"]
        assert worst - slack <= entry["robust_accuracy"]


def test_which_attack_was_the_worst(result: AuditResult) -> None:
    target = result.summary["target"]["worst_case"]
    listed = result.summary["worst_of"]
    assert sum(entry["images"] for entry in listed) == target["n"] - target["correct"]
    assert [e["images"] for e in listed] == sorted((e["images"] for e in listed), reverse=True)
    assert all(entry["images"] > 0 for entry in listed)
