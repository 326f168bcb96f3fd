"""Detectors: logits before and after purification to a score and a flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unperturb.errors import ConfigError, ThresholdError, unknown_name
from unperturb.stages import Stage

__all__ = ["DETECTORS", "STATISTICS", "Detector", "ThresholdDetector"]

Statistic = Callable[[Tensor, Tensor], Tensor]


def _absolute(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).abs().sum(1)


def _signed(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).sum(1)


def _greatest(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).abs().amax(1)


def _euclidean(before: Tensor, after: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(after - before, dim=1)
    return found


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(before, 1), F.log_softmax(after, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


STATISTICS: dict[str, Statistic] = {
    "absolute-change": _absolute,
    "signed-change": _signed,
    "max-change": _greatest,
    "l2-change": _euclidean,
    "kl": _divergence,
}
"""Statistics of the logits before and after, (N, K) twice to (N,).

With ``d = after - before``, over classes: the sum of ``|d|``, the sum of ``d``, the maximum of
``|d|``, the Euclidean norm of ``d``, and ``KL(softmax(before) || softmax(after))`` in nats."""


class Detector(Stage):
    """Base of every detector.

    Attributes:
        action: ``route``: a flag chooses a branch of the decision and nothing is rejected;
            ``reject``: a flagged image is turned away.
        reads: Which logits it reads, of ``before`` and ``after``.
        threshold: Scores above it are flagged; None as long as it is not fitted.
    """

    action: str = "route"
    reads: frozenset[str] = frozenset({"before", "after"})
    threshold: float | None = None

    def forward(self, before: Tensor | None, after: Tensor | None) -> Tensor:
        """Score (N,): the greater, the more suspicious."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward")

    def slack(self, score: Tensor) -> Tensor:
        """Threshold less score, (N,), differentiable: below zero where the image is flagged."""
        if self.threshold is None:
            raise ThresholdError(
                f"The detector {self.name!r} has no threshold",
                expected="a threshold, or one fitted on clean images",
                fix="detector.fit(scores on clean training images, ...)",
            )
        return self.threshold - score

    def flags(self, score: Tensor) -> Tensor:
        """Which scores are flagged, (N,) bool."""
        return self.slack(score) < 0

    def check_fitted(self, classifier: str, purifier: str) -> None:
        """Refuse a threshold that was fitted on another classifier or purifier."""


class ThresholdDetector(Detector):
    """Flags an image whose logits change more than a threshold under purification.

    Args:
        statistic: A name of ``STATISTICS``: ``absolute-change``, ``signed-change``, ``max-change``,
            ``l2-change`` or ``kl``.
        threshold: Scores above it are flagged; None until ``fit``.
        action: ``route`` or ``reject``.
        fitted_on: What ``fit`` wrote: fingerprints of classifier and purifier, split, quantile.

    Raises:
        SpecError: The statistic or the action is unknown.

    Example:
        >>> detector = ThresholdDetector(threshold=1.0)
        >>> score = detector(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
        >>> score.item(), detector.flags(score).item()
        (2.0, True)
    """

    name = "threshold"

    def __init__(
        self,
        *,
        statistic: str = "absolute-change",
        threshold: float | None = None,
        action: str = "route",
        fitted_on: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if statistic not in STATISTICS:
            raise unknown_name("statistic", statistic, STATISTICS)
        if action not in ("route", "reject"):
            raise unknown_name("detector action", action, ("route", "reject"))
        self.statistic, self.threshold, self.action = statistic, threshold, action
        self.fitted_on = fitted_on

    def config(self) -> dict[str, Any]:
        """Statistic, threshold, action and what the threshold was fitted on."""
        return {
            "statistic": self.statistic,
            "threshold": self.threshold,
            "action": self.action,
            "fitted_on": self.fitted_on,
        }

    def forward(self, before: Tensor | None, after: Tensor | None) -> Tensor:
        """The statistic, (N,)."""
        assert before is not None
        assert after is not None
        return STATISTICS[self.statistic](before, after)

    def fit(
        self,
        scores: Tensor,
        *,
        quantile: float = 0.995,
        classifier: str,
        purifier: str,
        split: str,
        images: dict[str, Any] | None = None,
    ) -> ThresholdDetector:
        """A copy whose threshold is a quantile of the scores of clean images.

        ``fit_threshold`` of ``unperturb.thresholds`` computes the scores too.

        Args:
            scores: Scores of clean images (N,).
            quantile: Share of clean images that stay unflagged, between 0 and 1.
            classifier: Fingerprint of the classifier the scores come from.
            purifier: Fingerprint of the purifier.
            split: The data and split they come from.
            images: More facts of these images, JSON-able, for the record.

        Raises:
            ConfigError: The quantile is out of range, or there are no finite scores.
        """
        if not 0 < quantile < 1:
            raise ConfigError(f"The quantile is {quantile}", expected="between 0 and 1")
        if not len(scores) or not bool(torch.isfinite(scores).all()):
            raise ConfigError(
                f"{len(scores)} scores, of which {int(torch.isfinite(scores).sum())} are finite",
                expected="finite scores of at least one clean image",
            )
        return ThresholdDetector(
            statistic=self.statistic,
            threshold=float(torch.quantile(scores.double(), quantile)),
            action=self.action,
            fitted_on={
                "classifier": classifier,
                "purifier": purifier,
                "split": split,
                "quantile": quantile,
                **({} if images is None else {"images": images}),
            },
        )

    def check_fitted(self, classifier: str, purifier: str) -> None:
        """Refuse a threshold that was fitted on another classifier or purifier.

        Raises:
            ThresholdError: It was.
        """
        for part, found in (("classifier", classifier), ("purifier", purifier)):
            fitted = (self.fitted_on or {}).get(part, found)
            if fitted != found:
                raise ThresholdError(
                    f"The threshold was fitted on another {part} ({fitted[:12]})",
                    expected=f"the {part} {found[:12]}",
                    fix="fit the threshold again on clean training images",
                )


DETECTORS: dict[str, type[Detector]] = {ThresholdDetector.name: ThresholdDetector}
"""Detectors by name."""
