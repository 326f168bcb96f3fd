"""What an attack may evaluate of the thing it attacks, and what counts as its success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unperturb.attacks.losses import LOSSES
from unperturb.classifiers import Classifier, eval_view
from unperturb.defense import Defense, Terms
from unperturb.errors import AttackError, unknown_name
from unperturb.randomness import Keys

__all__ = ["GOALS", "Judged", "Surface"]

GOALS = ("wrong", "wrong-unflagged")
UNDEFENDED = "undefended"


class Judged(NamedTuple):
    """Verdict on a batch of images, each (N,)."""

    success: Tensor  # bool: the goal is met
    predictions: Tensor  # int64; -1 where the scores hold NaN
    margins: Tensor  # float: the goal's margin objective; for "wrong" max_{j != y} s_j - s_y
    flagged: Tensor  # bool
    slack: Tensor | None = None  # float: threshold less detector score; None without a detector
    share: Tensor | None = None  # float: share of the draws that meet the goal; None for one draw


@dataclass(frozen=True)
class Surface:
    """The differentiable face of a classifier or defense that an attacker sees.

    Averaging over draws is the attack engine's work; this evaluates one draw for each row.

    Attributes:
        target: A ``Defense``, or any module from images to scores, which is attacked in eval mode.
        backward: Gradient taken through the purifier: ``exact``, ``identity`` or one of the
            purifier's own rules; or ``undefended``: that of the bare classifier, while success is
            judged on the whole defense. A bare module has only ``exact``.
        goal: ``wrong``, ``wrong-unflagged`` (for detectors that reject), or ``branch:NAME``: a
            wrong answer by way of one branch of the decision.

    Raises:
        AttackError: The rule or the goal does not exist on this target.
    """

    target: nn.Module
    backward: str = "exact"
    goal: str = "wrong"

    def __post_init__(self) -> None:
        if not isinstance(self.target, Defense):
            # A module in training mode would change its statistics under attack.
            object.__setattr__(self, "target", eval_view(self.target))
        rules = (
            (*self.target.backwards, UNDEFENDED) if isinstance(self.target, Defense) else ("exact",)
        )
        if self.backward not in rules:
            raise unknown_name("backward rule for this target", self.backward, rules)
        if self.goal.startswith("branch:"):
            if not isinstance(self.target, Defense):
                raise AttackError(
                    f"The goal {self.goal!r} needs a decision with branches",
                    expected="a Defense",
                    fix="use the goal 'wrong'",
                )
        elif self.goal not in GOALS:
            raise unknown_name("goal", self.goal, [*GOALS, "branch:NAME"])
        if self.goal == "wrong-unflagged" and not (
            isinstance(self.target, Defense) and self.target.rejects
        ):
            raise AttackError(
                "The goal 'wrong-unflagged' needs a detector whose flag rejects",
                expected="a Defense with a detector of action 'reject'",
                fix="use the goal 'wrong'",
            )

    @property
    def stochastic(self) -> bool:
        """Whether two calls on one image may answer differently."""
        return isinstance(self.target, Defense) and self.target.stochastic

    @torch.no_grad()
    def count_classes(self, image: Tensor, keys: Keys) -> int:
        """Number of classes K; of a bare module only a forward pass on one image tells it."""
        if isinstance(self.target, Defense | Classifier):
            return self.target.num_classes
        return self.terms(image, keys).scores.shape[1]

    def terms(self, images: Tensor, keys: Keys | None) -> Terms:
        """Scores, branches, slack and logits, differentiable by the surface's rule."""
        if not isinstance(self.target, Defense):
            scores = self.target(images)
            return Terms(scores, {}, None, scores)
        if self.backward != UNDEFENDED or not images.requires_grad:
            rule = "exact" if self.backward == UNDEFENDED else self.backward
            return self.target.terms(images, keys=keys, backward=rule)
        with torch.no_grad():
            judged = self.target.terms(images.detach(), keys=keys, backward="exact")
        # The defense's values, to the last bit, with the bare classifier's gradient: what the
        # attacker raises and what he is judged by differ here, and only here.
        return judged._replace(bare=self.target.classifier(images))

    @property
    def _branch(self) -> str | None:
        return self.goal.removeprefix("branch:") if self.goal.startswith("branch:") else None

    def attacked(self, terms: Terms) -> Tensor:
        """The scores (N, K) that the attacker raises the loss of."""
        if terms.bare is not None:
            return terms.bare
        if self._branch is None:
            return terms.scores
        if self._branch not in terms.branches:
            raise unknown_name("branch of the decision", self._branch, terms.branches)
        return terms.branches[self._branch]

    def objective(self, terms: Terms, labels: Tensor, loss: str) -> Tensor:
        """What the attacker raises, (N,).

        For ``wrong-unflagged`` flagged images also lower the detector's score:
        ``loss + min(slack, 0)``; for ``branch:NAME`` the loss is that branch's, and the slack is
        driven to where the decision takes that branch.
        """
        return self.constrained(LOSSES[loss](self.attacked(terms), labels), terms)

    def constrained(self, value: Tensor, terms: Terms) -> Tensor:
        """A loss (N,) with what the goal asks of the detector beside it; see ``objective``."""
        if terms.slack is None or terms.bare is not None:
            return value
        flagged = self._wants_flag()
        if flagged is None:
            return value
        return value + (-terms.slack if flagged else terms.slack).clamp(max=0.0)

    def _wants_flag(self) -> bool | None:
        """Whether the goal needs the image flagged, unflagged, or does not care (None)."""
        if self.goal == "wrong-unflagged":
            return False
        if self._branch is not None and isinstance(self.target, Defense):
            return self.target.decision.routes.get(self._branch)
        return None

    def success(self, terms: Terms, labels: Tensor) -> Tensor:
        """Whether the goal is met, (N,) bool; NaN scores count as a wrong answer.

        Attacking a branch is a means: the goal is that the whole defense answers wrongly.
        """
        wrong = (terms.scores.argmax(1) != labels) | terms.scores.isnan().any(1)
        if self.goal == "wrong-unflagged":
            assert terms.slack is not None
            # As the detector has it: a score that is not a number flags nothing.
            wrong &= ~(terms.slack < 0)
        return wrong

    @torch.no_grad()
    def judge(self, images: Tensor, labels: Tensor, keys: Keys | None) -> Judged:
        """Fresh forward pass: is the goal met, what is answered, by which margin."""
        terms = self.terms(images, keys)
        flagged = (
            torch.zeros_like(labels, dtype=torch.bool) if terms.slack is None else terms.slack < 0
        )
        return Judged(
            self.success(terms, labels),
            # An answer that is not a number is no answer, and never right.
            terms.scores.argmax(1).masked_fill(terms.scores.isnan().any(1), -1),
            self.objective(terms, labels, "margin"),
            flagged,
            terms.slack,
        )
