"""The answer is that of a network which corrects the classifier's logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unperturb.correction.corrector import Corrector, check_pair
from unperturb.decisions.base import Decision
from unperturb.errors import ConfigError, unknown_name
from unperturb.networks.corrector import CorrectionNetwork

__all__ = ["LogitCorrection"]

_READS = ("after", "before")


class LogitCorrection(Decision):
    """``g(z)``: logits corrected by a network of two layers (Li et al. 2019, Section 4.2).

    Li, Xie, Zhang, Zhang, Wang and Tian. *Defending adversarial attacks by correcting logits.*
    arXiv:1906.10973, 2019. Made from a fitted corrector with `of`; from settings alone its weights
    are those of an untrained network, into which saved ones are then loaded.

    ``g`` is differentiable, and its gradient is that of an attacker who knows the defense. Nothing
    but the gradient to its input is ever taken.

    That the correction changed the label is a free sign of an attack: see ``Prediction.changed``.

    Args:
        num_classes: K.
        width: Hidden units.
        depth: Linear layers.
        dropout: Share of hidden units that was dropped in training; it does nothing here.
        reads: Correct the logits ``after`` purification, or those ``before`` (the bare
            classifier's). Without a purifier they are the same.
        fitted_on: Fingerprint of the classifier it was fitted on; ``""`` if unknown.
        any_classifier: Serve another classifier all the same (transfer between networks).

    Raises:
        SpecError: ``reads`` is neither.
        ConfigError: A value is out of range.

    Example:
        >>> import torch
        >>> decision = LogitCorrection.of(Corrector(CorrectionNetwork(num_classes=3, width=8)))
        >>> decision(None, torch.eye(3), torch.zeros(3, dtype=torch.bool)).shape
        torch.Size([3, 3])
    """

    name = "logit-correction"
    attacks = ("logit-matching",)

    def __init__(
        self,
        *,
        num_classes: int = 10,
        width: int = 10_000,
        depth: int = 2,
        dropout: float = 0.5,
        reads: str = "after",
        fitted_on: str = "",
        any_classifier: bool = False,
    ) -> None:
        super().__init__()
        if reads not in _READS:
            raise unknown_name("kind of logits", str(reads), _READS)
        if not isinstance(any_classifier, bool):
            raise ConfigError(
                f"any_classifier of logit-correction is {any_classifier!r}",
                expected="true or false",
            )
        self.network = CorrectionNetwork(
            num_classes=num_classes, width=width, depth=depth, dropout=dropout
        )
        self.network.eval().requires_grad_(False)
        self.reads = frozenset({reads})
        self.fitted_on, self.any_classifier = str(fitted_on), any_classifier
        self.train(False)

    @classmethod
    def of(
        cls, corrector: Corrector, *, reads: str = "after", any_classifier: bool = False
    ) -> LogitCorrection:
        """The decision of a fitted corrector, with weights of its own.

        Args:
            corrector: The corrector.
            reads: ``after`` or ``before``.
            any_classifier: Serve another classifier than the one it was fitted on.
        """
        decision = cls(
            **corrector.network.config(),  # type: ignore[arg-type]
            reads=reads,
            fitted_on=corrector.classifier,
            any_classifier=any_classifier,
        )
        like = next(corrector.network.parameters())
        decision.to(like.device, like.dtype)
        decision.network.load_state_dict(corrector.network.state_dict())
        return decision

    def config(self) -> dict[str, Any]:
        """The network's settings, which logits it reads, and what it was fitted on."""
        return {
            **self.network.config(),
            "reads": next(iter(self.reads)),
            "fitted_on": self.fitted_on,
            "any_classifier": self.any_classifier,
        }

    def train(self, mode: bool = True) -> LogitCorrection:
        """A decision is always in eval mode, whatever is asked for: dropout is for training."""
        super().train(False)
        return self

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        """Corrected logits (N, K)."""
        logits = after if "after" in self.reads else before
        assert logits is not None
        # A classifier under autocast gives half precision.
        return self.network(logits.to(next(self.network.parameters()).dtype))  # type: ignore[no-any-return]

    def check_fitted(self, classifier: str, num_classes: int) -> None:
        """Refuse a classifier other than the one it was fitted on.

        Raises:
            WeightsError: Another number of classes; or another classifier, unless
                ``any_classifier`` allows it.
        """
        check_pair(
            self.fitted_on,
            self.network.num_classes,
            classifier,
            num_classes,
            any_classifier=self.any_classifier,
        )
