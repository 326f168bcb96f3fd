"""A fabricated summary with everything the second schema can hold."""

from __future__ import annotations

import copy
import math
from typing import Any

from audit.summaries import acc, make_summary
from unperturb.audit.statistics import wilson

EPS = 8 / 255


def rate(count: int, n: int = 1000) -> dict[str, Any]:
    return {"rate": count / n, "count": count, "n": n, "interval": list(wilson(count, n))}


def mean(value: float, n: int = 1000) -> dict[str, Any]:
    """A mean over draws: its count is no whole number."""
    return {**acc(round(value * n), n), "accuracy": value, "correct": value * n}


def _text(eps: float) -> str:
    return f"{round(eps * 255)}/255" if eps else "0"


def _series(subject: str, source: str, attack: str, scale: float) -> dict[str, Any]:
    sizes = [0.0, 2 / 255, 4 / 255, EPS, 16 / 255, 32 / 255]
    if source == "minimal":
        sizes = [step / 255 for step in range(33)]
    points = [
        {"eps": eps, "eps_text": _text(eps), **acc(round(256 * 0.8 * math.exp(-eps / scale)), 256)}
        for eps in sizes
    ]
    return {
        "subject": subject, "source": source, "attack": attack, "attacker": "adaptive",
        "n": 256, "points": points,
    }  # fmt: skip


def _roc(power: float) -> list[list[float]]:
    return [[k / 100, (k / 100) ** power] for k in range(101)]


def _detected(attack: str, attacker: str, power: float, **more: Any) -> dict[str, Any]:
    area = 1 / (1 + power)
    return {
        "attack": attack, "attacker": attacker, "backward": "exact", "goal": "wrong", "n": 1000,
        "auroc": area, "tpr": rate(round(1000 * 0.05**power)), "successful_on": "baseline",
        "successful": {"n": 900, "auroc": area, "tpr": rate(round(900 * 0.05**power), 900)},
        "roc": _roc(power), **more,
    }  # fmt: skip


def _cells(**figures: Any) -> dict[str, dict[str, Any]]:
    """``baseline_oblivious=...`` and so on as cells."""
    found: dict[str, dict[str, Any]] = {"baseline": {}, "target": {}}
    for name, value in figures.items():
        subject, attacker = name.split("_")
        found[subject][attacker] = value
    return found


def _own(accuracy: int) -> dict[str, Any]:
    return {
        "accuracy": acc(accuracy), "measure": {"median": 0.0312, "max": 0.05, "n": 990},
        "median_linf": 0.213, "median_l2": 2.54,
    }  # fmt: skip


def _near(within: int, returned: int) -> dict[str, Any]:
    return {
        "within": acc(within), "as_returned": acc(returned), "median_distance": 0.0121,
        "successes": 1000 - returned,
    }  # fmt: skip


def _benign(name: str, target: int, baseline: int, p: float) -> dict[str, Any]:
    return {
        "name": name, "target": acc(target), "baseline": acc(baseline), "clean": acc(800),
        "difference": (target - baseline) / 1000, "only_target": 40, "only_baseline": 9,
        "mcnemar_p": p, "changed": rate(31, 800),
    }  # fmt: skip


def make_rich() -> dict[str, Any]:
    """A random defense whose detector rejects, audited with everything."""
    summary = copy.deepcopy(make_summary())
    both = {"bound": "threat", "access": "gradients"}
    for row in summary["table"]:
        row.update(both)
    for attack in summary["attacks"]:
        attack.update(
            both, goal="wrong", in_worst_case=True, outside_ball=0, flagged_share=0.2,
            nan_gradient_share=0.0, single=0.4, worst_of_n=0.3, measure=None,
        )  # fmt: skip
    summary["attacks"].append({**summary["attacks"][2], "goal": "wrong-unflagged"})
    summary["target"]["worst_case_8bit"] = acc(3)
    summary["baseline"]["worst_case_8bit"] = acc(0)
    summary["cost"].update(target_peak_mb=2.31, baseline_peak_mb=0.77, memory_ratio=3.0)
    return summary | {
        "schema_version": 2,
        "suite": "standard",
        "scoring_draws": 10,
        "selection_draws": 10,
        "worst_of": [
            {"attack": "pgd-20", "attacker": "adaptive", "backward": "smoothed-sign",
             "goal": "wrong", "images": 701},
            {"attack": "fgsm", "attacker": "oblivious", "backward": "exact", "goal": "wrong",
             "images": 97},
        ],
        "own": [
            {"attack": "stadv", "cells": _cells(
                baseline_oblivious=_own(31), target_oblivious=_own(402), target_adaptive=_own(12),
            )},
        ],
        "minimal": [
            {"attack": "ddn-100", "cells": _cells(
                baseline_oblivious=_near(20, 0), target_oblivious=_near(512, 498),
                baseline_adaptive=_near(20, 0), target_adaptive=_near(44, 2),
            )},
        ],
        "random": {
            "draws": 10,
            "selection_draws": 10,
            "rows": [
                {"what": what, "single": mean(single), "worst_of_n": acc(worst),
                 "majority": acc(majority)}
                for what, single, worst, majority in (
                    ("clean", 0.7834, 611, 800), ("worst case, oblivious", 0.2713, 101, 276),
                    ("worst case, adaptive", 0.0131, 0, 2), ("worst case", 0.0131, 0, 2),
                )
            ],
        },
        "rejection": {
            "wrong_unflagged": {
                "clean": rate(123), "worst_case": rate(640),
                "worst_by_attacker": {"oblivious": rate(211), "adaptive": rate(640)},
            },
            "baseline_wrong": {
                "clean": rate(449), "worst_case": rate(1000),
                "worst_by_attacker": {"oblivious": rate(1000), "adaptive": rate(1000)},
            },
            "false_positive_rate": rate(52),
            "right_unflagged_clean": rate(771),
            "gain": {
                "what": "wrong and not flagged", "target": acc(360), "baseline": acc(0),
                "difference": 0.36, "only_target": 360, "only_baseline": 0, "mcnemar_p": 1e-50,
            },
        },
        "detection": {
            "name": "threshold", "action": "reject", "threshold": 1.25,
            "false_positive_rate": rate(52),
            "by_attack": [
                _detected("pgd-20", "oblivious", 0.15), _detected("fgsm", "oblivious", 0.4),
                _detected("pgd-20", "adaptive", 0.9, successful_on="target"),
                _detected("mim-10", "adaptive", 1.0, successful_on="target", goal="wrong-unflagged",
                          successful={"n": 0, "auroc": None, "tpr": None}),
            ],
        },
        "control": {
            "attack": "pgd-20",
            "subjects": {
                "baseline": {
                    "clean": acc(551), "true_label": acc(0), "predicted_label": acc(12),
                    "wrong_when_clean": {"n": 449, "true_label": rate(0, 449),
                                         "predicted_label": rate(12, 449)},
                },
                "target": {
                    "clean": acc(800), "true_label": acc(821), "predicted_label": acc(702),
                    "wrong_when_clean": {"n": 200, "true_label": rate(71, 200),
                                         "predicted_label": rate(9, 200)},
                },
            },
        },
        "benign": [
            _benign("uniform-noise", 790, 540, 1e-9), _benign("gaussian-noise", 541, 549, 0.4),
            _benign("jpeg-75", 520, 548, 1e-4),
        ],
        "failed_attacks": [{"attack": "fgsm", "goal": "wrong", "n": 803,
                            "target_wrong": rate(501, 803)}],
        "curves": {
            "norm": "linf",
            "series": [
                _series("target", "probe", "pgd-20", 0.012),
                _series("baseline", "probe", "pgd-20", 0.004),
                _series("target", "minimal", "ddn-100", 0.010),
            ],
            "huge": {"eps": 0.5, "eps_text": "0.5", "target": acc(3, 256), "baseline": acc(0, 256)},
        },
        "outside": [
            {"name": "foolbox-pgd", "n": 980, "inside": 961, "target": acc(44, 980),
             "checks": {"name": "import:foolbox-pgd", "source": "adv.npz", "n": 980, "missing": 20,
                        "rejected": 19, "note": "19 of 980 images lie outside the ball."},
             "baseline": acc(0, 980), "as_returned": acc(30, 980),
             "only_outside": ["00017", "00231"], "only_outside_count": 2},
        ],
    }  # fmt: skip
