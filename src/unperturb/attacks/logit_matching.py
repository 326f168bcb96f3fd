"""Logit matching: images whose logits look like a clean image of another class.

Against defenses that read more of the logits than their greatest entry (detectors of logit
changes, logit correction): pushing the answer over the boundary leaves logits that no clean image
has, and they see it. This attack lowers ``||f(x) - c||^2 / K`` to a template ``c`` instead, after
the attack of Tramer, Carlini, Brendel and Madry (2020), "On Adaptive Attacks to Adversarial
Example Defenses", on defenses of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unperturb.attacks.batch import Batch, Objective
from unperturb.attacks.draws import pieces
from unperturb.attacks.engine import FirstOrder
from unperturb.defense import Terms

__all__ = ["LogitMatching", "exchange", "make_logit_matching"]


def exchange(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits in which the true class and the greatest other class have changed places.

    Where the answer is wrong already they stay as they are: they belong to another class.

    Args:
        logits: (N, K), K >= 2.
        labels: True labels (N,).

    Returns:
        (N, K).

    Example:
        >>> exchange(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
        [[2.0, 1.0, 3.0]]
    """
    true = labels[:, None]
    other = logits.scatter(1, true, float("-inf")).argmax(1, keepdim=True)
    high, low = logits.gather(1, true), logits.gather(1, other)
    high, low = torch.maximum(high, low), torch.minimum(high, low)
    return logits.scatter(1, true, low).scatter(1, other, high)


@dataclass(frozen=True, kw_only=True)
class LogitMatching(FirstOrder):
    """Raises ``-mean_k (z_k(x) - c_k)^2``, ``c`` the image's own clean logits with two exchanged.

    The logits are those that the decision reads; of a bare module its scores, of the undefended
    gradient the bare classifier's. Of a random target the template is the mean over the draws.

    Deviation from the paper: the template is not another image's logits but the image's own, with
    the values of the true class and the greatest other class exchanged: the least change that
    makes them another class's, and independent of the images it is attacked with. For goals of
    the detector the penalty of the other attacks stands beside the distance.

    Example:
        >>> make_logit_matching(None).steps
        40
    """

    losses: ClassVar[tuple[str, ...]] = ("matching",)

    loss: str = "matching"

    def objective(self, batch: Batch) -> Objective:
        """Minus the mean squared distance to the image's template."""
        template = _templates(batch)
        surface = batch.surface

        def value(terms: Terms, labels: Tensor, index: Tensor) -> Tensor:
            distance = (_logits(terms) - template[index]).square().mean(1)
            return surface.constrained(-distance, terms)

        return value


def _logits(terms: Terms) -> Tensor:
    """What is matched, (N, K)."""
    if terms.bare is not None:
        return terms.bare
    return terms.scores if terms.logits is None else terms.logits


def _templates(batch: Batch) -> Tensor:
    """Where the logits of each image of the batch shall go, (N, K)."""
    draws, keys, images = batch.draws, batch.domain("template"), batch.origin
    if draws > 1:
        keys, images = keys.copies(draws), images.repeat_interleave(draws, 0)
    parts = []
    for piece in pieces(len(images), images.shape[1:], draws, device=images.device):
        with torch.enable_grad():
            # Only images that ask for a gradient are shown the undefended classifier's logits.
            leaf = images[piece].contiguous(memory_format=batch.layout).detach().requires_grad_()
            parts.append(_logits(batch.surface.terms(leaf, keys[piece])).detach())
    logits = torch.cat(parts)
    if draws > 1:
        logits = logits.view(-1, draws, logits.shape[1]).mean(1)
    batch.queries += draws
    return exchange(logits, batch.labels)


def make_logit_matching(steps: int | None) -> LogitMatching:
    """``logit-matching``: 40 steps of eps/10 from a random start."""
    count = 40 if steps is None else steps
    return LogitMatching(
        name=f"logit-matching-{count}", steps=count, step_size=0.1, random_start=True
    )
