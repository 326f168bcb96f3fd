"""Threshold detector: statistics, flags, fitting, and refusing another one's threshold."""

from __future__ import annotations

import json

import pytest
import torch

from unperturb.detectors import DETECTORS, STATISTICS, Detector, ThresholdDetector
from unperturb.errors import ConfigError, SpecError, ThresholdError
from unperturb.stages import build_stage

BEFORE = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
AFTER = torch.tensor([[1.0, -1.0, 2.5], [0.0, 0.0, -1.0]])


def test_statistics() -> None:
    assert ThresholdDetector()(BEFORE, AFTER).tolist() == [3.5, 1.0]
    signed = ThresholdDetector(statistic="signed-change")
    assert signed(BEFORE, AFTER).tolist() == [-0.5, -1.0]
    assert ThresholdDetector(statistic="max-change")(BEFORE, AFTER).tolist() == [2.0, 1.0]
    euclid = ThresholdDetector(statistic="l2-change")(BEFORE, AFTER)
    torch.testing.assert_close(euclid, torch.tensor([5.25**0.5, 1.0]))
    p, q = (torch.distributions.Categorical(logits=z) for z in (BEFORE, AFTER))
    divergence = ThresholdDetector(statistic="kl")(BEFORE, AFTER)
    torch.testing.assert_close(divergence, torch.distributions.kl_divergence(p, q))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_of_equal_logits_are_zero_with_a_finite_slope(statistic: str) -> None:
    after = BEFORE.clone().requires_grad_()
    score = STATISTICS[statistic](BEFORE, after)
    torch.testing.assert_close(score, torch.zeros(2))
    (gradient,) = torch.autograd.grad(score.sum(), after)
    assert bool(torch.isfinite(gradient).all())


def test_flags_and_slack_agree() -> None:
    detector = ThresholdDetector(threshold=2.0)
    scores = torch.tensor([1.0, 2.0, 3.0])
    assert detector.flags(scores).tolist() == [False, False, True]
    assert detector.slack(scores).tolist() == [1.0, 0.0, -1.0]


def test_no_threshold() -> None:
    with pytest.raises(ThresholdError, match="'threshold' has no threshold.*fit"):
        ThresholdDetector().flags(torch.zeros(1))


def test_fit_is_the_quantile_and_leaves_the_original() -> None:
    scores = torch.rand(1001, generator=torch.Generator().manual_seed(0))
    detector = ThresholdDetector(action="reject", statistic="signed-change")
    fitted = detector.fit(scores, quantile=0.9, classifier="c" * 64, purifier="p" * 64, split="val")
    assert detector.threshold is None
    assert int(fitted.flags(scores).sum()) == 100
    assert fitted.threshold == pytest.approx(float(scores.sort().values[900]))
    assert (fitted.action, fitted.statistic) == ("reject", "signed-change")
    assert fitted.fitted_on == {
        "classifier": "c" * 64,
        "purifier": "p" * 64,
        "split": "val",
        "quantile": 0.9,
    }
    again = build_stage("detectors", DETECTORS, json.loads(json.dumps(fitted.describe())))
    assert again.fingerprint() == fitted.fingerprint() != detector.fingerprint()


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, 99.5, float("nan")])
def test_fit_refuses_a_bad_quantile(quantile: float) -> None:
    with pytest.raises(ConfigError, match=r"The quantile is .*between 0 and 1"):
        ThresholdDetector().fit(
            torch.ones(3), quantile=quantile, classifier="", purifier="", split=""
        )


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_fit_refuses_bad_scores(scores: list[float]) -> None:
    with pytest.raises(ConfigError, match="finite scores of at least one clean image"):
        ThresholdDetector().fit(torch.tensor(scores), classifier="", purifier="", split="")


@pytest.mark.parametrize("part", ["classifier", "purifier"])
def test_refuses_another_fingerprint(part: str) -> None:
    fitted = ThresholdDetector().fit(
        torch.ones(3), classifier="a" * 64, purifier="b" * 64, split="train"
    )
    right = {"classifier": "a" * 64, "purifier": "b" * 64}
    fitted.check_fitted(**right)
    with pytest.raises(ThresholdError) as caught:
        fitted.check_fitted(**{**right, part: "f" * 64})
    assert f"fitted on another {part} ({right[part][:12]})" in str(caught.value)
    assert f"the {part} ffffffffffff" in str(caught.value)


def test_a_threshold_given_by_hand_fits_everything() -> None:
    ThresholdDetector(threshold=1.0).check_fitted("anything", "at all")


def test_unknown_options() -> None:
    with pytest.raises(SpecError, match="Unknown statistic 'absolute'.*absolute-change"):
        ThresholdDetector(statistic="absolute")
    with pytest.raises(SpecError, match="Unknown detector action 'rejects'.*'reject'"):
        ThresholdDetector(action="rejects")


def test_the_base_class_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="Detector must implement forward"):
        Detector()(None, None)
