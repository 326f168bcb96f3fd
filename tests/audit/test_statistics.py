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
from unperturb.audit.statistics import accuracy, mcnemar, wilson
from unperturb.audit.summary import eps_text
from unperturb.presets import tpap
from unperturb.threat import L2, Linf


def wilson_by_hand(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
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
def test_wilson_is_the_closed_form(k: int, n: int, confidence: float) -> None:
    low, high = wilson(k, n, confidence=confidence)
    assert (low, high) == pytest.approx(wilson_by_hand(k, n, confidence), abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1


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


def test_mcnemar_without_a_difference() -> None:
    same = np.array([True, False])
    assert mcnemar(same, same) == (0, 0, 1.0)


def test_accuracy_of_nothing_is_none() -> None:
    assert accuracy(np.array([], dtype=bool)) is None
    assert accuracy(np.array([True, False, True, True])) == {
        "accuracy": 0.75, "correct": 3, "n": 4,
        "interval": pytest.approx(list(wilson_by_hand(3, 4))),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (1 / 255, "1/255"), (10 / 255, "10/255"), (0.5, "0.5"), (0.15, "0.15"),
     (0.031, "0.031"), (1.0, "1"), (0.123456, "0.1235")],
)  # fmt: skip
def test_eps_as_people_write_it(eps: float, text: str) -> None:
    assert eps_text(eps) == text


# -- all figures once more, by loops over dictionaries ------------------------------------------


class Naive:
    """The figures of an audit from its raw rows, the slow and obvious way."""

    def __init__(self, result: AuditResult) -> None:
        rows = result.rows
        self.rows = [
            {name: rows[name][i].item() if hasattr(rows[name][i], "item") else rows[name][i]
             for name in rows}
            for i in range(len(rows["draw"]))
        ]  # fmt: skip
        self.ids = result.plan["ids"]
        self.attackers = result.plan["settings"]["attackers"]

    def right(self, image: str, column: str = "correct", **where: str) -> bool:
        votes = [
            row[column]
            for row in self.rows
            if row["image_id"] == image and all(row[k] == v for k, v in where.items())
        ]
        assert votes
        return 2 * sum(votes) > len(votes)

    def worst(self, image: str, subject: str, attackers: list[str]) -> bool:
        if not self.right(image, subject=subject, attack="clean"):
            return False
        tried = {
            (row["attack"], row["attacker"], row["backward"])
            for row in self.rows
            if row["subject"] == subject and row["attacker"] in attackers
        }
        return all(
            self.right(image, subject=subject, attack=a, attacker=b, backward=c)
            for a, b, c in tried
        )

    def cell(self, subject: str, attacker: str, attack: str) -> int:
        backwards = {
            row["backward"]
            for row in self.rows
            if (row["subject"], row["attacker"], row["attack"]) == (subject, attacker, attack)
        }
        return sum(
            all(
                self.right(i, subject=subject, attacker=attacker, attack=attack, backward=b)
                for b in backwards
            )
            for i in self.ids
        )


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


@pytest.fixture(scope="module", params=[deterministic, l2_without_a_defense, random_one])
def result(request: pytest.FixtureRequest) -> AuditResult:
    found: AuditResult = request.param()
    return found


def test_headline_figures(result: AuditResult) -> None:
    naive, summary = Naive(result), result.summary
    n = len(naive.ids)
    subjects = ["target", "baseline"] if summary["has_defense"] else ["target"]
    for subject in subjects:
        figures = summary[subject]
        clean = [naive.right(i, subject=subject, attack="clean") for i in naive.ids]
        same(figures["clean"], sum(clean), n)
        worst = [naive.worst(i, subject, naive.attackers) for i in naive.ids]
        same(figures["worst_case"], sum(worst), n)
        for attacker in naive.attackers:
            worst_of = [naive.worst(i, subject, [attacker]) for i in naive.ids]
            same(figures["worst_by_attacker"][attacker], sum(worst_of), n)
            for row in summary["table"]:
                cell = row["cells"][subject][attacker]
                same(cell, naive.cell(subject, attacker, row["attack"]), n)
    if not summary["has_defense"]:
        assert summary["baseline"]["worst_case"] == summary["target"]["worst_case"]
        assert summary["gains"] == []


def test_figures_of_each_attack(result: AuditResult) -> None:
    naive, summary = Naive(result), result.summary
    norm = summary["threat"]["norm"]
    groups = defaultdict(list)
    for row in naive.rows:
        if row["attack"] != "clean":
            key = (row["subject"], row["attack"], row["attacker"], row["backward"])
            groups[key].append(row)
    keys = [(a["subject"], a["name"], a["attacker"], a["backward"]) for a in summary["attacks"]]
    assert sorted(keys) == sorted(groups)
    for entry, key in zip(summary["attacks"], keys, strict=True):
        where = dict(zip(("subject", "attack", "attacker", "backward"), key, strict=True))
        right = {i: naive.right(i, **where) for i in naive.ids}
        clean = {i: naive.right(i, subject=key[0], attack="clean") for i in naive.ids}
        first = {row["image_id"]: row for row in groups[key] if row["draw"] == 0}
        n = len(naive.ids)
        assert entry["n"] == n
        assert entry["robust_accuracy"] == sum(right.values()) / n
        assert entry["interval"] == pytest.approx(list(wilson_by_hand(sum(right.values()), n)))
        fell = [first[i][norm] for i in naive.ids if clean[i] and not right[i]]
        assert entry["median_distance"] == (pytest.approx(median(fell)) if fell else None)
        eight = [naive.right(i, "correct_8bit", **where) for i in naive.ids]
        assert entry["accuracy_8bit"] == pytest.approx(sum(eight) / n)
        queries = [first[i]["queries"] for i in naive.ids]
        assert entry["queries_per_image"] == pytest.approx(sum(queries) / n)
        budget = entry["settings"]["steps"] * entry["settings"]["restarts"]
        zero = [2 * first[i]["zero_gradients"] > budget for i in naive.ids]
        assert entry["zero_gradient_share"] == pytest.approx(sum(zero) / n)
        wrong = [right[i] for i in naive.ids if not clean[i]]
        expected = sum(wrong) / len(wrong) if wrong else None
        assert entry["wrong_when_clean_accuracy"] == pytest.approx(expected)
        assert entry["stop"] == ("fixed" if key[2] == "oblivious" else "first-success")
        assert (entry["eps"], entry["norm"]) == (summary["threat"]["eps"], norm)
        assert entry["seconds"] > 0


def test_gains(result: AuditResult) -> None:
    naive = Naive(result)
    for gain in result.summary["gains"]:
        what = gain["what"]
        named = [a for a in naive.attackers if a in what] or naive.attackers
        answers = {
            subject: [
                naive.right(i, subject=subject, attack="clean")
                if what == "clean"
                else naive.worst(i, subject, named)
                for i in naive.ids
            ]
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
    for subject in ("target", "baseline"):
        figures = summary[subject]
        worst = figures["worst_case"]["accuracy"]
        assert worst <= figures["clean"]["accuracy"]
        assert all(worst <= part["accuracy"] for part in figures["worst_by_attacker"].values())
    for entry in summary["attacks"]:
        assert summary[entry["subject"]]["worst_case"]["accuracy"] <= entry["robust_accuracy"]
