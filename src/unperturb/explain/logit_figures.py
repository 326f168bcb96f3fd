"""Figures of logit changes: shares with their intervals, the three cases, the detector's curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unperturb.audit.statistics import accuracy, auroc, rate

if TYPE_CHECKING:
    from unperturb.explain.logit_change import LogitChange

__all__ = ["CASES", "cases_of", "change_figures", "roc"]

CASES = {
    "true down, adversarial up": (False, True),
    "both down": (False, False),
    "both up": (True, True),
    "true up, adversarial down": (True, False),
}
"""The three cases of successful attacks in ALU's preliminaries, and the one it rules out: whether
the true and the adversarial class's logits rise. No change counts as no rise."""


def change_figures(found: LogitChange) -> dict[str, Any]:
    """All figures of ``LogitChange``, JSON-able; a share of no image is None.

    ``successful`` are attacks that turn the logits before purification from right to wrong. Of
    them: ``drops_most``, in how many the true class's logit falls most of all from the clean to the
    attacked image (the paper's 99.69 %); ``rises_most``, in how many it rises most from the
    attacked to the purified one, which is what ALU's decision reads; ``cases``; and the mean
    absolute changes of the true, of the adversarial and of all other classes (footnote 1 and
    Appendix E).

    ``wrong_unflagged`` is the share of wrong answers that carry no flag; ``false_positives`` the
    share of clean images above the threshold, of ``found.further`` where that is given, and so are
    the negatives of AUROC and ROC; ``effort`` the gradients until the first success; ``right`` a
    digit for each image, 1 where the answer is right, for comparisons image by image.
    """
    labels, clean, attacked = found.labels, found.clean, found.attacked
    accuracies = {
        name: {
            "before": accuracy((part.before.argmax(1) == labels).numpy()),
            "after": accuracy((part.after.argmax(1) == labels).numpy()),
            "difference": accuracy((part.change.argmax(1) == labels).numpy()),
            "answer": accuracy((part.answers == labels).numpy()),
            "flagged": rate(part.flagged.numpy()),
            "wrong_unflagged": rate(((part.answers != labels) & ~part.flagged).numpy()),
        }
        for name, part in (("clean", clean), ("attacked", attacked))
    }
    # The false-positive rate and the curve are of the larger set of clean images.
    negatives = clean.scores if found.further is None else found.further
    threshold = found.threshold
    return {
        **accuracies,
        "false_positives": None if threshold is None else rate((negatives > threshold).numpy()),
        "effort": _effort(found),
        "right": {
            name: "".join("01"[int(one)] for one in part.answers == labels)
            for name, part in (("clean", clean), ("attacked", attacked))
        },
        "successful": _successful(found),
        "failed": _unturned(found, found.failed),
        "flagged_though_right": _flagged_though_right(found),
        "auroc": auroc(negatives.double().numpy(), attacked.scores.double().numpy()),
        "auroc_successful": _auroc(found, found.successful),
        "roc": roc(negatives, attacked.scores),
    }


def _effort(found: LogitChange) -> dict[str, Any] | None:
    """Gradients until the first success, over the images that were right when clean."""
    if found.turned is None or found.spent is None:
        return None
    able = found.able
    spent = found.spent[able & found.turned].double()
    return {
        "turned": rate(found.turned[able].numpy()),
        "median": float(spent.median()) if len(spent) else None,
        "mean": _mean(spent),
    }


def _successful(found: LogitChange) -> dict[str, Any]:
    chosen = found.successful
    labels = found.labels[chosen]
    before, now = found.clean.before[chosen], found.attacked.before[chosen]
    moved, back = now - before, found.attacked.change[chosen]
    adversarial = now.argmax(1)
    others = torch.ones_like(now, dtype=torch.bool)
    others[torch.arange(len(now)), labels] = False
    others[torch.arange(len(now)), adversarial] = False
    return {
        "n": int(chosen.sum()),
        "drops_most": rate((moved.argmin(1) == labels).numpy()),
        "drops": rate((_of(moved, labels) < 0).numpy()),
        "rises_most": rate((back.argmax(1) == labels).numpy()),
        "flagged": rate(found.attacked.flagged[chosen].numpy()),
        "right": rate((found.attacked.answers[chosen] == labels).numpy()),
        "cases": {name: rate(chosen.numpy()) for name, chosen in cases_of(found).items()},
        "changes": {
            "true": _mean(_of(moved, labels)),
            "adversarial": _mean(_of(moved, adversarial)),
            "others": _mean(moved[others]),
            "others_absolute": _mean(moved[others].abs()),
            "true_absolute": _mean(_of(moved, labels).abs()),
        },
    }


def cases_of(found: LogitChange) -> dict[str, Tensor]:
    """Which successful attacks belong to each of ``CASES``, (M,) bool."""
    chosen = found.successful
    labels = found.labels[chosen]
    now = found.attacked.before[chosen]
    moved = now - found.clean.before[chosen]
    true, adversarial = _of(moved, labels) > 0, _of(moved, now.argmax(1)) > 0
    return {
        name: (true == rises) & (adversarial == other) for name, (rises, other) in CASES.items()
    }


def _unturned(found: LogitChange, chosen: Tensor) -> dict[str, Any]:
    """What becomes of attacks that failed: the principle has nothing to say of them."""
    labels = found.labels[chosen]
    part = found.attacked
    flagged = part.flagged[chosen]
    return {
        "n": int(chosen.sum()),
        "flagged": rate(flagged.numpy()),
        "right": rate((part.answers[chosen] == labels).numpy()),
        "right_where_flagged": rate((part.answers[chosen] == labels)[flagged].numpy()),
        "right_after": rate((part.after[chosen].argmax(1) == labels).numpy()),
        "right_by_difference": rate((part.change[chosen].argmax(1) == labels).numpy()),
    }


def _flagged_though_right(found: LogitChange) -> dict[str, Any]:
    """Flagged images whose logits before were right: what the decision makes of them."""
    told = {}
    for name, part in (("clean", found.clean), ("attacked", found.attacked)):
        chosen = part.flagged & (part.before.argmax(1) == found.labels)
        told[name] = {
            "n": int(chosen.sum()),
            "share_of_flagged": rate((part.before.argmax(1) == found.labels)[part.flagged].numpy()),
            "right": rate((part.answers == found.labels)[chosen].numpy()),
        }
    return told


def _auroc(found: LogitChange, chosen: Tensor) -> float | None:
    if not bool(chosen.any()):
        return None
    attacked = found.attacked.scores[chosen]
    negatives = found.clean.scores if found.further is None else found.further
    return auroc(negatives.double().numpy(), attacked.double().numpy())


def roc(clean: Tensor, attacked: Tensor, points: int = 41) -> list[list[float]]:
    """``[false-positive rate, detection rate]`` at thresholds that are quantiles of clean scores.

    Args:
        clean: Detector scores of clean images (N,).
        attacked: Of attacked images (M,).
        points: How many.

    Example:
        >>> roc(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]), points=3)
        [[1.0, 1.0], [0.5, 1.0], [0.0, 1.0]]
    """
    clean = clean.double()
    levels = torch.quantile(clean, torch.linspace(0, 1, points - 1, dtype=torch.float64))
    cuts = [float("-inf"), *levels.tolist()]
    return [
        [float((clean > cut).double().mean()), float((attacked.double() > cut).double().mean())]
        for cut in cuts
    ]


def _of(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None]).squeeze(1)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if values.numel() else None
