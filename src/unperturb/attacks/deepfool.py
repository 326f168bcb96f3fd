"""DeepFool (Moosavi-Dezfooli et al. 2016), L2 and Linf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from unperturb.attacks.batch import Batch
from unperturb.attacks.draws import pieces
from unperturb.attacks.losses import margin
from unperturb.attacks.minimal import MinimalNorm, Nearest
from unperturb.defense import Terms
from unperturb.errors import ConfigError, unknown_name
from unperturb.gradients import input_gradients
from unperturb.threat import NORMS, Threat

__all__ = ["DeepFool", "make_deepfool"]

# Added to each step's length: where two scores are exactly equal the step would be zero.
_LEAST = 1e-6
_FOLLOW = "threat"


class _Face(NamedTuple):
    """The nearest face of the linearized region of the true class, one for each image."""

    normal: Tensor  # (n, C, H, W): w_k = gradient of f_k - f_y
    distance: Tensor  # (n,): |f_k - f_y| / ||w_k||, infinite where every gradient is zero
    size: Tensor  # (n,): the norm of w_k: L2, or L1 under Linf
    wrong: Tensor  # (n,) bool: the goal is met here, for most draws
    finite: Tensor  # (n,) bool: every gradient was finite


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimalNorm):
    """DeepFool: step to the nearest face of the linearized decision region, until it is crossed.

    With ``f`` the scores, ``y`` the true class, ``w_k = grad f_k - grad f_y`` and
    ``f'_k = f_k - f_y``, at each iterate (Moosavi-Dezfooli et al. 2016, eqs. 8 and 9; algorithm 2;
    for Linf their section on other norms)::

        l = argmin_k |f'_k| / ||w_k||_q                 (q = 2; q = 1 under Linf)
        r = |f'_l| / ||w_l||_2^2 w_l                    (L2)
        r = |f'_l| / ||w_l||_1 sign(w_l)                (Linf)

    The iterate is ``x + (1 + overshoot) sum(r)``, clipped to [0, 1]. An image leaves at the first
    iterate that meets the goal, so its result depends on no other image of the batch.

    Moosavi-Dezfooli, Fawzi and Frossard. *DeepFool: a simple and accurate method to fool deep
    neural networks.* CVPR 2016.

    Deviations: as in the authors' code, the overshoot is part of every iterate and not added once
    at the end, and only the ``classes`` likeliest classes of the clean image are faces; iterates
    are clipped to [0, 1]; 1e-6 is added to the length of each step; ``y`` is the true class (which
    is the answer of every image that is attacked at all). Behind a detector that rejects,
    ``f'_k`` also holds the slack that a flagged image lacks. For random defenses ``f'_k`` and
    ``w_k`` are means over ``draws``.

    Attributes:
        steps: Steps at most.
        classes: How many of the likeliest classes are looked at, the true one among them.
        overshoot: By how much the sum of the steps is lengthened.
        form: ``l2`` or ``linf``; ``threat`` takes the form of the threat model's norm.
        refine: Rounds of bisection between the result and the clean image; the paper has none.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> DeepFool(name="deepfool-50").gradients
        450
    """

    seeded: ClassVar[bool] = False

    steps: int = 50
    classes: int = 10
    overshoot: float = 0.02
    form: str = _FOLLOW

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", "classes")
        self._positive("overshoot", zero=True)
        if self.classes < 2:
            raise ConfigError(
                f"classes of attack {self.name!r} is {self.classes}",
                expected="at least 2: the true class and one other",
            )
        if self.form not in (_FOLLOW, *NORMS):
            raise unknown_name(f"form of attack {self.name!r}", self.form, [_FOLLOW, *NORMS])

    @property
    def gradients(self) -> int:
        """One for each class but the true one, at each step."""
        return self.steps * (self.classes - 1)

    def measured(self, threat: Threat) -> str:
        """The form's norm."""
        return threat.norm if self.form == _FOLLOW else self.form

    def approach(self, batch: Batch, nearest: Nearest) -> None:
        """Step until every image is through, or the steps are spent."""
        others, norm = self._others(batch), self.measured(batch.threat)
        total = torch.zeros_like(batch.origin)
        point = batch.origin.clone()
        rows = batch.left()
        for number in range(self.steps):
            index = batch.compact(rows)
            face = _nearest_face(batch, point[index], index, others[index], number, norm)
            wrong = face.wrong[: len(rows)]
            nearest.offer(rows, point[rows], wrong)
            total[rows] += _step(face, norm)[: len(rows)]
            rows = rows[~wrong]
            if not len(rows):
                return
            moved = batch.origin[rows] + (1.0 + self.overshoot) * total[rows]
            point[rows] = moved.clamp_(0.0, 1.0)
        index = batch.compact(rows)
        judged = batch.judge(point[index], index, draw=self.steps)
        nearest.offer(rows, point[rows], judged.success[: len(rows)])

    def _others(self, batch: Batch) -> Tensor:
        """The likeliest classes of the clean images without the true one, (N, classes - 1)."""
        keys = batch.keys if batch.surface.stochastic else None
        with torch.no_grad():
            scores = batch.surface.attacked(batch.surface.terms(batch.origin, keys))
        batch.queries += 1
        scores = scores.scatter(1, batch.labels[:, None], float("-inf"))
        return scores.topk(min(self.classes, scores.shape[1]) - 1, dim=1).indices


def make_deepfool(steps: int | None) -> DeepFool:
    """The family ``deepfool``: ``deepfool-50`` by default."""
    count = 50 if steps is None else steps
    return DeepFool(name=f"deepfool-{count}", steps=count)


def _step(face: _Face, norm: str) -> Tensor:
    """From the iterate to the face; nothing where no gradient shows the way."""
    length = torch.where(torch.isfinite(face.distance), face.distance + _LEAST, 0.0)
    length = length.view(-1, 1, 1, 1)
    if norm == "linf":
        return length * face.normal.sign()
    return length * face.normal / face.size.clamp(min=1e-30).view(-1, 1, 1, 1)


def _values(batch: Batch, terms: Terms, labels: Tensor, others: Tensor) -> Tensor:
    """``f_k - f_y`` for the other classes, (n, K - 1), and what a flagged image lacks."""
    scores = batch.surface.attacked(terms)
    values = scores.gather(1, others) - scores.gather(1, labels[:, None])
    if terms.slack is None:
        return values
    lacking = batch.surface.objective(terms, labels, "margin") - margin(scores, labels)
    return values + lacking[:, None]


def _nearest_face(
    batch: Batch, point: Tensor, index: Tensor, others: Tensor, draw: int, norm: str
) -> _Face:
    """The nearest face of every image; many draws are evaluated in pieces, an image in one."""
    shape = (batch.draws, *point.shape[1:])
    parts = [
        _faces(batch, point[piece], index[piece], others[piece], draw, norm)
        for piece in pieces(len(point), shape, batch.draws, device=point.device)
    ]
    face = parts[0]
    if len(parts) > 1:
        face = _Face(*(torch.cat(found) for found in zip(*parts, strict=True)))
    batch.queries[index] = batch.queries[index] + batch.draws
    batch.count_gradients(index, torch.isinf(face.distance), ~face.finite)
    return face


def _faces(
    batch: Batch, point: Tensor, index: Tensor, others: Tensor, draw: int, norm: str
) -> _Face:
    """One forward pass, and one backward pass for each other class; only the nearest is kept."""
    draws, surface = batch.draws, batch.surface
    keys = batch.keys[index].draw(draw) if surface.stochastic else None
    keys = keys.copies(draws) if keys is not None else None
    labels = batch.labels[index].repeat_interleave(draws, 0)
    others = others.repeat_interleave(draws, 0)
    count, shape = len(index), point.shape[1:]
    best = torch.full((count,), float("inf"), dtype=point.dtype, device=point.device)
    normal, size = torch.zeros_like(point), torch.zeros_like(best)
    finite = torch.ones(count, dtype=torch.bool, device=point.device)
    with torch.enable_grad(), input_gradients(surface.target):
        rows = point.repeat_interleave(draws, 0).detach()
        leaf = rows.contiguous(memory_format=batch.layout).requires_grad_()
        terms = surface.terms(leaf, keys)
        values = _values(batch, terms, labels, others)
        for k in range(values.shape[1]):
            more = k + 1 < values.shape[1]
            (gradient,) = torch.autograd.grad(values[:, k].sum(), leaf, retain_graph=more)
            gradient = gradient.view(count, draws, *shape).mean(1)
            finite &= torch.isfinite(gradient.abs().amax((1, 2, 3)))
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            value = values[:, k].detach().view(count, draws).mean(1).to(point.dtype)
            order = 1 if norm == "linf" else 2
            length = torch.linalg.vector_norm(gradient.flatten(1), ord=order, dim=1)
            # A zero gradient shows no face, whatever the scores are.
            distance = torch.where(length > 0, value.abs() / length, float("inf"))
            nearer = distance < best
            best, size = torch.where(nearer, distance, best), torch.where(nearer, length, size)
            normal = torch.where(nearer.view(-1, 1, 1, 1), gradient, normal)
    success = surface.success(terms, labels).detach()
    wrong = success.view(count, draws).to(torch.float32).mean(1) > 0.5
    return _Face(normal, best, size, wrong, finite)
