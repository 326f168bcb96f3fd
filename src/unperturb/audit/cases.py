"""Example images of a report: what an attacker sent, what the defense made of it, what was said."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Case", "CaseView"]


@dataclass(frozen=True, eq=False)
class CaseView:
    """One image as it was sent to both classifiers, and both answers.

    Attributes:
        title: What it is, such as ``clean`` or ``adaptive pgd-20 (identity)``.
        image: What was sent, (C, H, W) in [0, 1].
        purified: What the defended classifier read, (C, H, W); None where there is no such image.
        baseline_logits: The undefended classifier's logits on ``image``, K of them.
        target_scores: The audited target's scores on ``image``, K of them.
        baseline_prediction: The undefended classifier's answer, 0 to K - 1.
        target_prediction: The audited target's answer, 0 to K - 1.
    """

    title: str
    image: Tensor
    purified: Tensor | None
    baseline_logits: list[float]
    target_scores: list[float]
    baseline_prediction: int
    target_prediction: int


@dataclass(frozen=True, eq=False)
class Case:
    """One image of the audited set, clean and under attack.

    Attributes:
        image_id: Its id in the records.
        label: True label, 0 to K - 1.
        label_name: Its name.
        clean: The unperturbed image, (C, H, W) in [0, 1].
        views: The clean image first, then one for each attacker that was run.
    """

    image_id: str
    label: int
    label_name: str
    clean: Tensor
    views: list[CaseView]
