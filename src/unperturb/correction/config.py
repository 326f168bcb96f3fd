"""The settings of fitting a corrector: frozen, checked, and written beside its weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from unperturb.correction.losses import LOSSES
from unperturb.errors import ConfigError, unknown_name

__all__ = ["TARGETS", "CorrectionConfig"]

_KEEP = ("best", "last")
TARGETS = ("label", "answer")
_WHOLE = {
    "width": (1, 1_000_000),
    "depth": (1, 100),
    "batch_size": (1, 10_000_000),
    "epochs": (1, 1_000_000),
    "patience": (0, 1_000_000),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """Everything that decides what a fit computes; the defaults are the paper's.

    Attributes:
        width: Hidden units D of each hidden layer.
        depth: Linear layers; the paper's network has 2, and its ablation 1.
        dropout: Share of the hidden units that is dropped in training, in [0, 1).
        clean_share: Probability p with which a sample takes its clean logits; otherwise it takes
            those of one of the attacks.
        loss: ``ce`` (cross-entropy with the true label, as in the paper), ``label-smoothing`` or
            ``margin``.
        lr: Learning rate of Adam.
        weight_decay: Weight decay in the loss, as the paper's Adam has it: ``weight_decay * w`` is
            added to the gradient. (That of AdamW is another one.)
        batch_size: Rows in a step.
        epochs: Passes over the training rows.
        attacks: Attacks of the bank to learn from, by name; empty for all of them.
        holdout: Share of the bank's rows that is never trained on: the last ones in a random
            order of ``seed``. By these the epoch is chosen.
        patience: Stop after so many epochs without a better one; 0 never does.
        target: What is learnt: the true ``label``, as in the paper; or the classifier's own
            ``answer`` on the clean image, where labels are missing or too few (then accuracies on
            held-out rows are shares of such answers that are recovered).
        tied: Whether classes share their weights (see ``TiedStep``): for banks with few rows of
            each class. Two layers, without dropout.
        shrinkage: Where they do: what is added to the covariance of the logits before it is
            inverted, as a multiple of its mean eigenvalue.
        keep: Which epoch: the ``best`` one by ``p * clean accuracy + (1 - p) * mean adversarial
            accuracy`` on the held-out rows, or the ``last``.
        seed: Seed of first weights, held-out rows, order, choice of logits and dropout.

    Raises:
        ConfigError: A value is out of its range, or settings contradict each other.
        SpecError: A loss, a target or a word for ``keep`` is unknown.

    Example:
        >>> CorrectionConfig(epochs=3).to_dict()["clean_share"]
        0.3
    """

    width: int = 10_000
    depth: int = 2
    dropout: float = 0.5
    clean_share: float = 0.3
    loss: str = "ce"
    lr: float = 5e-5
    weight_decay: float = 1e-4
    batch_size: int = 256
    epochs: int = 50
    attacks: tuple[str, ...] = ()
    holdout: float = 0.1
    patience: int = 0
    keep: str = "best"
    target: str = "label"
    tied: bool = False
    shrinkage: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("keep", _KEEP), ("target", TARGETS)):
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        for name, (least, most) in _WHOLE.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least <= value <= most:
                raise ConfigError(
                    f"{name} is {value!r}", expected=f"a whole number from {least} to {most}"
                )
        self._number("dropout", "at least 0 and below 1", lambda x: 0 <= x < 1)
        self._number("clean_share", "a share from 0 to 1, such as 0.3", lambda x: 0 <= x <= 1)
        self._number("holdout", "a share of the rows, at least 0 and below 1", lambda x: 0 <= x < 1)
        self._number("lr", "above 0, such as 5e-5", lambda x: 0 < x < math.inf)
        self._number("weight_decay", "0 or more", lambda x: 0 <= x < math.inf)
        self._number("shrinkage", "0 or more, such as 0.1", lambda x: 0 <= x < math.inf)
        if not isinstance(self.tied, bool):
            raise ConfigError(f"tied is {self.tied!r}", expected="True or False")
        if self.tied and (self.depth != 2 or self.dropout):
            raise ConfigError(
                f"Classes share their weights, with depth {self.depth} and dropout "
                f"{self.dropout:g}",
                expected="two layers without dropout: what is trained is a few dozen numbers",
                fix="set depth to 2 and dropout to 0, or leave tied out",
            )
        if isinstance(self.attacks, str) or not all(isinstance(a, str) for a in self.attacks):
            raise ConfigError(
                f"attacks is {self.attacks!r}", expected="names of attacks of the bank, as a tuple"
            )
        object.__setattr__(self, "attacks", tuple(self.attacks))
        if not self.holdout and (self.keep == "best" or self.patience):
            chosen = "keep is 'best'" if self.keep == "best" else f"patience is {self.patience}"
            raise ConfigError(
                f"{chosen}, and holdout is 0: there are no held-out rows to choose an epoch by",
                expected="held-out rows, or keep 'last' without patience",
                fix="set holdout to 0.1, say, or keep to 'last' and patience to 0",
            )

    def _number(self, name: str, expected: str, right: Any) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not right(value):
            raise ConfigError(f"{name} is {value!r}", expected=expected)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary; ``from_dict`` reads it back."""
        return {**asdict(self), "attacks": list(self.attacks)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CorrectionConfig:
        """Read back what ``to_dict`` wrote, refusing unknown keys.

        Raises:
            SpecError: A key is unknown.
            ConfigError: A value is out of its range.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("setting of a corrector", name, known)
        attacks = values.get("attacks", ())
        listed = tuple(attacks) if isinstance(attacks, list) else attacks
        return cls(**{**values, "attacks": listed})
