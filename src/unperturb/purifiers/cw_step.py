"""A small C&W attack on the classifier's own prediction: the nearest image it answers otherwise."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unperturb.context import Context
from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.settings import check_number, check_whole
from unperturb.purifiers.unroll import advance, answers

__all__ = ["CWStep"]

# As in the attack cw-l2: the box of the change of variables is this part larger than [0, 1], so
# that a pixel at exactly 0 or 1 lies at a finite w with a slope above zero, and can move.
_STRETCH = 0.1
_BOUND = math.atanh(1.0 / (1.0 + _STRETCH))
_BETAS = (0.9, 0.999)
_FLOOR = 1e-8
# Under the root, whose derivative is infinite at zero: a pixel without slope must not give NaN.
_ROOT = 1e-30


class CWStep(Purifier):
    """K steps of the C&W L2 attack on the own prediction, in place of TPAP's FGSM step.

    With ``y = argmax f(x)``, logits ``z`` and ``x'(w)`` in [0, 1], Adam takes K steps from x on::

        minimize over w   ||x'(w) - x||_2^2 + c max(z_y - max_{j != y} z_j + kappa, 0)

    (Carlini and Wagner 2017, section VI.A, objective function ``f_6`` for an untargeted attack).
    ``x_pur`` is the nearest of ``x_1 ... x_{K-1}`` that is answered otherwise than y by a margin of
    at least kappa, and ``x_K`` where none is. Tang et al. 2024, Table 7 and section 4.4: "we
    replace FGSM attack with CW_2 and PGD attacks".

    By construction it takes an image over the boundary wherever K steps can do so: it is meant
    for a network that was trained on such examples until they fail on clean images, and around
    any other it changes most answers.

    A defended answer costs K forwards and K input-only backwards for K steps (the pre-prediction
    is the first of them) and one forward more. No graph is kept from one step to the next.

    Backward rules: ``exact`` (the derivative of all K steps of Adam, which holds K second
    derivatives of the classifier: three to four times the time of the other. Each step keeps its
    images and Adam's averages only, and its graph is built again in the backward pass; which
    iterate is taken counts as a constant) and ``identity``.

    Deviations, where the paper states nothing but the name ``CW_2``:

    - ``c`` is fixed and the steps are few: a defended answer cannot pay for C&W's search over c.
      c = 1, kappa = 0 and Adam's step 0.01 are the defaults of the implementation in torchattacks,
      one of the two the paper names for its attacks; that one takes 50 steps.
    - Where no iterate is answered otherwise the last one is read; an attack would give the clean
      image back. ``x_K`` is not looked at before it is read: that would cost one more forward.
    - ``x' = ((1 + s) tanh(w) + 1) / 2`` with s = 0.1 and ``w`` kept where x' lies in [0, 1]; C&W
      have s = 0, where pixels at exactly 0 and 1 cannot move.
    - Adam divides by ``sqrt(v + 1e-30) + 1e-8``: without the 1e-30, which changes no figure, a
      pixel of no slope has no derivative.

    The path is bounded by the steps alone: each moves w by about ``lr``, so a mid-grey pixel by
    about ``0.55 lr``. There is no radius.

    Args:
        constant: Weight c of the margin, above 0.
        confidence: Margin kappa, in units of the logits, 0 or more.
        steps: Number of steps K, from 1 to 1,000.
        lr: Adam's step in the units of w, above 0 and at most 10.

    Raises:
        ConfigError: A setting is out of range.

    Example:
        >>> CWStep(steps=20).describe()["constant"]
        1.0
    """

    name = "cw-step"
    backwards = ("exact", "identity")
    adaptive = ("identity", "exact")

    def __init__(
        self,
        *,
        constant: float = 1.0,
        confidence: float = 0.0,
        steps: int = 10,
        lr: float = 0.01,
    ) -> None:
        super().__init__()
        self.constant = check_number("constant", constant, most=1e6)
        self.confidence = check_number("confidence", confidence, most=1e6, zero=True)
        self.steps = check_whole("steps", steps)
        self.lr = check_number("lr", lr, most=10)

    def config(self) -> dict[str, Any]:
        """Constant, confidence, steps and Adam's step."""
        return {
            "constant": self.constant,
            "confidence": self.confidence,
            "steps": self.steps,
            "lr": self.lr,
        }

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Move each image to the nearest one that is answered otherwise."""
        unroll = ctx.backward == "exact" and torch.is_grad_enabled() and images.requires_grad
        first = ctx.before_and_grad(lambda logits: self._hinge(logits, logits.argmax(1)))
        own = answers(first[0])
        # In half precision x'(w) would miss x by more than a step.
        origin = images.to(torch.promote_types(images.dtype, torch.float32))
        hidden = torch.atanh((2.0 * origin - 1.0) / (1.0 + _STRETCH))
        state: tuple[Tensor, ...] = (
            hidden,
            torch.zeros_like(hidden),
            torch.zeros_like(hidden),
            origin,
        )
        nearest, least = origin, torch.full_like(origin[:, 0, 0, 0], math.inf)
        for number in range(self.steps):
            logits, after = advance(
                ctx,
                state,
                at=lambda hidden, *_: _pixels(hidden).to(images.dtype),
                loss=partial(self._hinge, own=own),
                move=partial(self._adam, number),
                known=None if number else first,
                unroll=unroll,
            )
            if number:
                here = _pixels(state[0])
                far = torch.linalg.vector_norm((here - origin).detach(), dim=(1, 2, 3))
                closer = self._met(logits, own) & (far < least)
                nearest = torch.where(closer.view(-1, 1, 1, 1), here, nearest)
                least = torch.where(closer, far, least)
            state = (*after, origin)
        never = torch.isinf(least).view(-1, 1, 1, 1)
        reading = torch.where(never, _pixels(state[0]), nearest).to(images.dtype)
        return Purified(reading, reading)

    def _hinge(self, logits: Tensor, own: Tensor) -> Tensor:
        return (_margin(logits, own) + self.confidence).clamp(min=0.0)

    def _met(self, logits: Tensor, own: Tensor) -> Tensor:
        return (logits.argmax(1) != own) & (_margin(logits, own) <= -self.confidence)

    def _adam(
        self, number: int, hidden: Tensor, mean: Tensor, square: Tensor, origin: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step: w and Adam's two averages, from the hinge's gradient ``g`` in pixels."""
        slope = 2.0 * (_pixels(hidden) - origin) + self.constant * g.to(hidden.dtype)
        slope = slope * ((1.0 + _STRETCH) / 2.0 * (1.0 - torch.tanh(hidden).square()))
        mean = _BETAS[0] * mean + (1.0 - _BETAS[0]) * slope
        square = _BETAS[1] * square + (1.0 - _BETAS[1]) * slope.square()
        past = mean / (1.0 - _BETAS[0] ** (number + 1))
        scale = (square / (1.0 - _BETAS[1] ** (number + 1)) + _ROOT).sqrt() + _FLOOR
        return (hidden - self.lr * past / scale).clamp(-_BOUND, _BOUND), mean, square


def _margin(logits: Tensor, own: Tensor) -> Tensor:
    """``z_own - max_{j != own} z_j``, (N,)."""
    others = logits.scatter(1, own[:, None], -math.inf).amax(1)
    return logits.gather(1, own[:, None]).squeeze(1) - others


def _pixels(hidden: Tensor) -> Tensor:
    """``x'(w)`` in [0, 1]."""
    free = ((1.0 + _STRETCH) * torch.tanh(hidden) + 1.0) / 2.0
    # Rounding alone can leave [0, 1]: that must take no gradient away.
    return free + (free.clamp(0.0, 1.0) - free).detach()
