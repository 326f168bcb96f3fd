"""Detectors: ROC, AUROC, rates at the threshold, and the headline where flags reject."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score, roc_curve

from audit.doubles import conv_net, digits
from audit.records import attack, cell, clean, plan, summary
from unperturb.audit import audit
from unperturb.audit.detection import POINTS, roc
from unperturb.audit.statistics import wilson
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.presets import tpap
from unperturb.purifiers import FGSMStep
from unperturb.threat import Linf

REJECTS = {"name": "threshold", "action": "reject", "threshold": 1.0}
ROUTES = {**REJECTS, "action": "route"}


def scores(seed: int, count: int, shift: float, levels: int | None = None) -> np.ndarray[Any, Any]:
    found = np.random.default_rng(seed).normal(size=count) + shift
    return found if levels is None else np.round(found * levels) / levels


@pytest.mark.parametrize("levels", [None, 4])
def test_the_roc_curve_is_that_of_scikit_learn(levels: int | None) -> None:
    negatives, positives = scores(0, 40, 0.0, levels), scores(1, 30, 0.8, levels)
    points = np.array(roc(negatives, positives, points=1000))
    labels = np.repeat([0, 1], [40, 30])
    fpr, tpr, _ = roc_curve(labels, np.concatenate((negatives, positives)), drop_intermediate=False)
    np.testing.assert_allclose(points, np.stack((fpr, tpr), 1), atol=1e-6)


def test_a_long_curve_is_thinned_and_stays_the_curve() -> None:
    negatives, positives = scores(0, 5000, 0.0), scores(1, 4000, 1.0)
    points = np.array(roc(negatives, positives))
    assert len(points) <= POINTS + 1
    assert points[0].tolist() == [0.0, 0.0]
    assert points[-1].tolist() == [1.0, 1.0]
    assert (np.diff(points, axis=0) >= 0).all()
    whole = np.array(roc(negatives, positives, points=10**6))
    kept = {tuple(point) for point in whole.tolist()}
    assert all(tuple(point) in kept for point in points.tolist())
    assert auc(*points.T) == pytest.approx(auc(*whole.T), abs=2e-3)
    assert roc(negatives, np.array([])) == []


def detected(detector: dict[str, Any] | None) -> dict[str, Any]:
    """Eight images: scores known, one of the attacked images' score not a number."""
    right = np.array([1, 1, 1, 1, 1, 1, 0, 0])
    clean_scores = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 1.5, 0.5, 2.0])
    oblivious = np.array([3.0, 0.9, 0.8, 2.0, np.nan, 1.2, 0.1, 4.0])
    adaptive = np.array([0.5, 0.5, 3.0, 0.2, 0.1, 0.9, 0.0, 1.1])
    base_clean = np.array([1, 1, 1, 1, 1, 1, 1, 0])
    base_fell = np.array([0, 0, 0, 1, 0, 1, 0, 0])
    hit = {"attack": "pgd-20", "attacker": "oblivious", "rule": "fixed"}
    return summary(
        plan(8, [attack("pgd-20")], detector=detector),
        clean(right, detector=clean_scores, flagged=clean_scores > 1),
        clean(base_clean, subject="baseline"),
        cell([1, 0, 0, 0, 0, 1, 0, 0], detector=oblivious, flagged=oblivious > 1, **hit),
        cell(base_fell, subject="baseline", **hit),
        cell([0, 0, 0, 1, 1, 1, 0, 0], detector=adaptive, flagged=adaptive > 1),
        cell([0] * 8, subject="baseline"),
    )


def test_rates_at_the_threshold() -> None:
    found = detected(ROUTES)["detection"]
    assert (found["action"], found["threshold"]) == ("route", 1.0)
    fpr = found["false_positive_rate"]
    assert (fpr["count"], fpr["n"]) == (2, 8)
    assert fpr["interval"] == pytest.approx(list(wilson(2, 8)))
    by = {entry["attacker"]: entry for entry in found["by_attack"]}
    assert list(by) == ["adaptive", "oblivious"]
    # 3.0, 2.0, 1.2 and 4.0; what is not a number is not flagged.
    assert (by["oblivious"]["tpr"]["count"], by["oblivious"]["n"]) == (4, 8)
    # Right when clean and wrong under attack on the undefended: images 0, 1, 2, 4 and 6.
    assert by["oblivious"]["successful_on"] == "baseline"
    assert by["oblivious"]["successful"]["n"] == 5
    assert by["oblivious"]["successful"]["tpr"]["count"] == 1
    # An adaptive image succeeds where the defense is wrong: 0, 1, 2, 6 and 7.
    assert by["adaptive"]["successful_on"] == "target"
    assert by["adaptive"]["successful"]["n"] == 5
    assert by["adaptive"]["successful"]["tpr"]["count"] == 2


def test_auroc_takes_what_is_not_a_number_for_the_least_suspicious() -> None:
    by = {e["attacker"]: e for e in detected(ROUTES)["detection"]["by_attack"]}
    negatives = [0.0, 0.1, 0.2, 0.3, 0.4, 1.5, 0.5, 2.0]
    oblivious = [3.0, 0.9, 0.8, 2.0, -99.0, 1.2, 0.1, 4.0]
    expected = roc_auc_score([0] * 8 + [1] * 8, negatives + oblivious)
    assert by["oblivious"]["auroc"] == pytest.approx(expected)
    some = [oblivious[i] for i in (0, 1, 2, 4, 6)]
    expected = roc_auc_score([0] * 8 + [1] * 5, negatives + some)
    assert by["oblivious"]["successful"]["auroc"] == pytest.approx(expected)


def test_the_headline_of_a_detector_that_rejects() -> None:
    found = detected(REJECTS)
    rejection = found["rejection"]
    rates = rejection["wrong_unflagged"]
    # Clean: image 6 is wrong and not flagged, image 7 wrong and flagged.
    assert (rates["clean"]["count"], rates["clean"]["n"]) == (1, 8)
    # Oblivious: 1, 2, 4 and 6 are wrong and unflagged; 3 and 7 are wrong and flagged.
    assert rates["worst_by_attacker"]["oblivious"]["count"] == 4
    # Adaptive: 0, 1 and 6; 2 and 7 are flagged.
    assert rates["worst_by_attacker"]["adaptive"]["count"] == 3
    assert rates["worst_case"]["count"] == 5, "0, 1, 2, 4 and 6"
    assert rejection["baseline_wrong"]["worst_case"]["count"] == 8
    assert rejection["baseline_wrong"]["clean"]["count"] == 1
    assert rejection["false_positive_rate"]["count"] == 2
    assert rejection["right_unflagged_clean"]["count"] == 5
    gain = rejection["gain"]
    assert (gain["only_target"], gain["only_baseline"]) == (3, 0)
    # Accuracies are what they were without a flag.
    assert found["target"]["worst_case"] == detected(ROUTES)["target"]["worst_case"]
    assert any("answered wrongly and not flagged" in note for note in found["notes"])
    assert "62.5% of images are answered wrongly and not flagged" in found["lesson"]
    assert "of clean images 25.0% are flagged" in found["lesson"]


def test_flags_that_route_and_defenses_without_a_detector_have_no_such_headline() -> None:
    assert detected(ROUTES)["rejection"] is None
    none = detected(None)
    assert none["rejection"] is None
    assert none["detection"] is None


def test_a_real_detector() -> None:
    images, labels = digits(40)
    net = conv_net()
    purifier = FGSMStep(radius=0.1)
    prediction = Defense(net, purifier=purifier, detector=ThresholdDetector(threshold=0.0)).predict(
        images
    )
    assert prediction.detector_score is not None
    threshold = float(prediction.detector_score.quantile(0.9))
    defense = Defense(
        net, purifier=purifier, detector=ThresholdDetector(threshold=threshold, action="reject")
    )
    found = audit(
        defense, images, labels, threat=Linf(0.1), attacks="fgsm", keep_images="none"
    ).summary
    fpr = found["detection"]["false_positive_rate"]
    assert fpr["count"] == int((prediction.detector_score > threshold).sum())
    assert 2 <= fpr["count"] <= 6
    entry = next(e for e in found["detection"]["by_attack"] if e["attacker"] == "oblivious")
    assert 0 <= entry["auroc"] <= 1
    # An attacker who goes around the detector is among those of the headline.
    goals = {e["goal"] for e in found["detection"]["by_attack"]}
    assert "wrong-unflagged" in goals
    rates = found["rejection"]["wrong_unflagged"]
    assert rates["worst_case"]["count"] >= rates["worst_by_attacker"]["oblivious"]["count"]
    assert audit(
        tpap(net), images, labels, threat=Linf(0.1), attacks="fgsm", keep_images="none"
    ).summary["detection"] is None  # fmt: skip
