"""All that is said of how a corrector corrects one set of logits, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unperturb.correction.corrector import Corrector
from unperturb.explain.causal import Causal, causal_check
from unperturb.explain.instances import instance_shares
from unperturb.explain.supporting import Supporting, supporting_classes
from unperturb.networks.corrector import CorrectionNetwork

__all__ = ["Explained", "explain_correction"]


@dataclass(frozen=True, eq=False)
class Explained:
    """How a corrector corrects a set of logits.

    Attributes:
        supporting: The classes it goes by.
        causal: What becomes of its answers once their logits are lowered.
        instances: Shares of single images' lists (`instance_shares`).
    """

    supporting: Supporting
    causal: Causal
    instances: dict[str, Any]

    def to_dict(self, classes: Sequence[str] = ()) -> dict[str, Any]:
        """All numbers, JSON-able.

        Args:
            classes: Names of the classes.
        """
        return {
            "supporting": self.supporting.to_dict(classes),
            "causal": self.causal.to_dict(),
            "instances": self.instances,
        }


def explain_correction(
    corrector: Corrector | CorrectionNetwork,
    logits: Tensor,
    labels: Tensor,
    *,
    top: int | None = None,
    only: str = "all",
    lower: float = 20.0,
    controls: int = 20,
    focus: int | None = None,
    seed: int = 0,
    batch_size: int = 512,
) -> Explained:
    """Find the supporting classes, lower them, and look at single images' lists.

    The classes come from the images that ``only`` names; lowering them is tried on all images.

    Args:
        corrector: The corrector or its network.
        logits: Adversarial logits (N, K).
        labels: True classes (N,).
        top: As in `supporting_classes`.
        only: As in `supporting_classes`.
        lower: As in `causal_check`.
        controls: As in `causal_check`.
        focus: As in `instance_shares`.
        seed: Names the random numbers.
        batch_size: Images at a time.

    Raises:
        InputError: Logits or labels are not what the contract says, or no image has such classes.
        SpecError: Another ``only``.
        ConfigError: A number is out of range.
    """
    found = supporting_classes(corrector, logits, labels, top=top, only=only, batch_size=batch_size)
    shares = instance_shares(found, focus=focus)
    causal = causal_check(
        corrector, logits, labels, found, lower=lower, controls=controls, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    return Explained(found, causal, shares)
