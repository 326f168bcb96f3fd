"""Whether supporting classes carry the correction: lower them and correct again (S. 5.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unperturb.audit.statistics import accuracy, rate
from unperturb.checks import check_labels
from unperturb.correction.corrector import Corrector, check_logits
from unperturb.errors import ConfigError
from unperturb.explain.products import check_batch, corrected_logits, network_of
from unperturb.explain.supporting import Supporting
from unperturb.networks.corrector import CorrectionNetwork
from unperturb.randomness import Keys

__all__ = ["Causal", "Lowered", "causal_check"]


@dataclass(frozen=True, eq=False)
class Lowered:
    """Answers of the corrector once some classes' logits were lowered.

    Attributes:
        classes: The classes.
        answers: Its answers (N,).
        spared: Its answers where each image's own true class is left as it was (N,).
    """

    classes: tuple[int, ...]
    answers: Tensor
    spared: Tensor


@dataclass(frozen=True, eq=False)
class Causal:
    """What lowering the supporting classes does, and what lowering random ones does.

    Attributes:
        labels: True classes i (N,).
        adversarial: The classifier's answers j (N,).
        before: The corrector's answers on untouched logits (N,).
        real: After lowering the supporting classes.
        controls: After lowering as many random classes, once for each draw.
        settings: Lowered by how much, seed.
    """

    labels: Tensor
    adversarial: Tensor
    before: Tensor
    real: Lowered
    controls: tuple[Lowered, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Shares with Wilson's 95 % intervals, JSON-able.

        ``before`` and, for each of the two ways of lowering, ``after`` (accuracy of the corrected
        answers), ``returned`` (the share, among images that were fooled and corrected, whose
        answer is j again), ``controls`` (accuracies of the draws: all, mean, min, max) and where
        the real one lies among them: ``rank`` 1 is the lowest accuracy of all, and ``p`` the
        share, ``(1 + draws at or below) / (1 + draws)``.

        ``lowered`` lowers the classes in every image; ``spared`` leaves each image's own true
        class as it was, for lowering that may explain a collapse by itself. ``unrelated`` are the
        images whose i and j are both no supporting class.
        """
        inside = torch.tensor(self.real.classes)
        fooled = self.adversarial != self.labels
        own = torch.isin(self.labels, inside)
        unrelated = ~own & ~torch.isin(self.adversarial, inside)
        return {
            **self.settings,
            "n": len(self.labels),
            "classes": list(self.real.classes),
            "fooled": int(fooled.sum()),
            "true_class_lowered": int(own.sum()),
            "before": self._right(self.before),
            "lowered": self._figures(
                self.real.answers, [control.answers for control in self.controls]
            ),
            "spared": self._figures(
                self.real.spared, [control.spared for control in self.controls]
            ),
            "unrelated": {
                "before": self._right(self.before, unrelated),
                "after": self._right(self.real.answers, unrelated),
            },
        }

    def _right(self, answers: Tensor, among: Tensor | None = None) -> dict[str, Any] | None:
        right = answers == self.labels
        return accuracy((right if among is None else right[among]).numpy())

    def _figures(self, answers: Tensor, controls: list[Tensor]) -> dict[str, Any]:
        corrected = (self.adversarial != self.labels) & (self.before == self.labels)
        returned = (answers == self.adversarial)[corrected]
        real = int((answers == self.labels).sum())
        drawn = [int((control == self.labels).sum()) for control in controls]
        n = len(self.labels)
        return {
            "after": self._right(answers),
            "returned": rate(returned.numpy()),
            "controls": {
                "accuracies": [count / n for count in drawn],
                "mean": sum(drawn) / n / len(drawn),
                "min": min(drawn) / n,
                "max": max(drawn) / n,
            },
            "rank": 1 + sum(count < real for count in drawn),
            "p": (1 + sum(count <= real for count in drawn)) / (1 + len(drawn)),
        }


def causal_check(
    corrector: Corrector | CorrectionNetwork,
    logits: Tensor,
    labels: Tensor,
    classes: Supporting | Sequence[int],
    *,
    lower: float = 20.0,
    controls: int = 20,
    seed: int = 0,
    batch_size: int = 1024,
) -> Causal:
    """Lower the supporting classes' logits and correct again (Li et al. 2019, Section 5.2).

    The paper lowers them by 20 and finds that "it is almost for sure that logits correction fails
    dramatically and, very likely, the classification result remains to be j". Lowering *any*
    classes by 20 moves logits far from all that the corrector has seen, and lowering an image's
    own true class removes the very evidence for it. So the same is done to as many random classes
    (drawn from all K, supporting ones among them), and everything once more with each image's own
    true class left as it was; the paper does neither.

    Args:
        corrector: The corrector or its network.
        logits: Adversarial logits z* (N, K).
        labels: True classes (N,).
        classes: The supporting classes, or what `supporting_classes` found.
        lower: By how much, above 0.
        controls: Draws of as many random classes.
        seed: Names the random numbers.
        batch_size: Images at a time.

    Raises:
        InputError: Logits or labels are not what the contract says.
        ConfigError: No class or an unknown one, or a number out of range.

    Example:
        >>> net = CorrectionNetwork(num_classes=12, width=32)
        >>> logits = torch.eye(12) * 9
        >>> found = causal_check(net, logits, torch.arange(12), [0, 1], controls=5).to_dict()
        >>> len(found["lowered"]["controls"]["accuracies"])
        5
    """
    network = network_of(corrector)
    count = network.num_classes
    check_logits(logits, count)
    check_labels(labels, count=len(logits), num_classes=count)
    check_batch(batch_size)
    chosen = classes.classes() if isinstance(classes, Supporting) else tuple(classes)
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= k < count for k in chosen):
        raise ConfigError(
            f"The classes to lower are {list(chosen)}",
            expected=f"one or several different ones from 0 to {count - 1}",
        )
    if not 0 < lower < math.inf:
        raise ConfigError(f"lower is {lower}", expected="above 0, such as the paper's 20")
    if controls < 1:
        raise ConfigError(f"controls is {controls}", expected="at least 1 draw of random classes")
    logits, labels = logits.detach(), labels.long().to(logits.device)

    def lowered(which: tuple[int, ...]) -> Lowered:
        answers = _answers(network, logits, which, lower, batch_size=batch_size)
        spared, own = answers.clone(), torch.isin(labels.cpu(), torch.tensor(which))
        if bool(own.any()):
            # The other images' classes are lowered just as before.
            rows = own.to(logits.device)
            spared[own] = _answers(
                network, logits[rows], which, lower, spare=labels[rows], batch_size=batch_size
            )
        return Lowered(which, answers, spared)

    keys = Keys.of(seed, [str(draw) for draw in range(controls)], domain="explain/controls")
    random = keys.uniform("classes", (count,)).argsort(1)[:, : len(chosen)]
    return Causal(
        labels=labels.cpu(),
        adversarial=logits.argmax(1).cpu(),
        before=_answers(network, logits, (), lower, batch_size=batch_size),
        real=lowered(tuple(int(k) for k in chosen)),
        controls=tuple(lowered(tuple(sorted(row))) for row in random.tolist()),
        settings={"lower": float(lower), "draws": controls, "seed": seed},
    )


def _answers(
    network: CorrectionNetwork,
    logits: Tensor,
    classes: tuple[int, ...],
    lower: float,
    *,
    spare: Tensor | None = None,
    batch_size: int,
) -> Tensor:
    """Answers after lowering classes, but for class ``spare[n]`` of row n."""
    like = next(network.parameters())
    found = []
    for start in range(0, len(logits), batch_size):
        own = logits[start : start + batch_size].to(like.device, like.dtype)
        changed = own.clone()
        changed[:, list(classes)] -= lower
        if spare is not None:
            kept = spare[start : start + batch_size, None].to(like.device)
            changed.scatter_(1, kept, own.gather(1, kept))
        found.append(corrected_logits(network, changed).argmax(1).cpu())
    return torch.cat(found)
