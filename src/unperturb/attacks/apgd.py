"""Auto-PGD: a first-order attack without a step size to choose (Croce and Hein 2020).

Per image, from a random point of the ball, with step ``eta = 2 eps`` at first (Algorithm 1)::

    z       = P(x_k + eta * ascent(grad f(x_k)))
    x_{k+1} = P(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1})),   a = 0.75, and 1 at the first step

with ``P`` the projection on the ball and on [0, 1]. At the checkpoints ``w_j = ceil(p_j steps)``,
``p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)`` (section 3.3), the step is
halved and the image goes back to the best point so far where either

1. fewer than ``rho = 0.75`` of the steps since the last checkpoint raised ``f``, or
2. the step was not halved at the last checkpoint and the best ``f`` has not risen since.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import Batch, Objective
from unperturb.attacks.draws import pieces
from unperturb.attacks.engine import start_point
from unperturb.attacks.losses import LOSSES, resolve_loss
from unperturb.defense import Terms
from unperturb.errors import unknown_name

__all__ = ["APGD", "TARGETED", "checkpoints", "make_apgd_ce", "make_apgd_dlr", "make_apgd_t"]

_MOMENTUM, _RHO = 0.75, 0.75


def targeted_cross_entropy(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``-CE(z, t)``, (N,)."""
    return scores.log_softmax(1).gather(1, targets[:, None]).squeeze(1)


def targeted_margin(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``z_t - z_y``, (N,): above zero only where the answer is wrong."""
    pair = scores.gather(1, torch.stack((targets, labels), 1))
    return pair[:, 0] - pair[:, 1]


def targeted_dlr(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce and Hein 2020, eq. 7).

    ``-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2)``, pi the descending order of the scores.

    Args:
        scores: (N, K), K >= 4.
        labels: True labels (N,).
        targets: Classes to be reached (N,).

    Returns:
        (N,).

    Example:
        >>> one = torch.tensor([[4.0, 3.0, 2.0, 0.0]])
        >>> targeted_dlr(one, torch.tensor([0]), torch.tensor([2])).item()
        -0.6666666865348816
    """
    top = scores.topk(4, dim=1).values
    scale = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12
    return targeted_margin(scores, labels, targets) / scale


Targeted = Callable[[Tensor, Tensor, Tensor], Tensor]

TARGETED: dict[str, Targeted] = {
    "ce": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}
"""Losses of a targeted attack by name: ``(scores, labels, targets)`` to (N,), to be raised."""


def checkpoints(steps: int) -> list[int]:
    """The steps ``w_1 < w_2 < ... <= steps`` after which the step size is reconsidered.

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    before, share, found = 0.0, 0.22, []
    while share <= 1 + 1e-9:
        found.append(math.ceil(share * steps - 1e-9))
        before, share = share, share + max(share - before - 0.03, 0.06)
    return sorted(set(found))


@dataclass
class _State:
    """What a run holds of each image that is still in it, row by row.

    Nothing is changed in place, so tensors may be shared.
    """

    rows: Tensor  # rows of the batch
    origin: Tensor
    point: Tensor
    before: Tensor  # the point one step ago
    gradient: Tensor  # at the point
    value: Tensor  # at the point
    best: Tensor  # the point of the greatest value so far
    best_gradient: Tensor
    best_value: Tensor
    step_size: Tensor  # (n, 1, 1, 1)
    rises: Tensor  # steps since the last checkpoint that raised the value
    halved: Tensor  # at the last checkpoint
    checked: Tensor  # best_value at the last checkpoint

    def keep(self, stay: Tensor, layout: torch.memory_format) -> None:
        """Drop the images that leave."""
        rows = stay.nonzero().flatten()
        for field in fields(self):
            kept = getattr(self, field.name)[rows]
            if kept.ndim == 4:
                # Indexing loses the layout, and mixed layouts make every step slow.
                kept = kept.contiguous(memory_format=layout)
            setattr(self, field.name, kept)

    def note(self, gradient: Tensor, value: Tensor) -> None:
        """Take in what was found at the point."""
        self.rises = self.rises + (value > self.value)
        self.gradient, self.value = gradient, value
        better = value > self.best_value
        column = better.view(-1, 1, 1, 1)
        self.best = torch.where(column, self.point, self.best)
        self.best_gradient = torch.where(column, gradient, self.best_gradient)
        self.best_value = torch.where(better, value, self.best_value)

    def reconsider(self, span: int) -> None:
        """At a checkpoint: halve steps and go back to the best points where progress is small."""
        stuck = ~self.halved & (self.best_value <= self.checked)
        self.halved = (self.rises < _RHO * span) | stuck
        self.checked, self.rises = self.best_value, torch.zeros_like(self.rises)
        column = self.halved.view(-1, 1, 1, 1)
        self.step_size = torch.where(column, self.step_size / 2, self.step_size)
        self.point = torch.where(column, self.best, self.point)
        self.gradient = torch.where(column, self.best_gradient, self.gradient)
        self.value = torch.where(self.halved, self.best_value, self.value)

    def move(self, batch: Batch, project: Callable[[Tensor], Tensor], *, first: bool) -> None:
        """One step of Algorithm 1, lines 6 and 7."""
        ahead = project(self.point + self.step_size * batch.threat.ascent(self.gradient))
        if not first:
            ahead = self.point + _MOMENTUM * (ahead - self.point)
            ahead = project(ahead + (1 - _MOMENTUM) * (self.point - self.before))
        self.before, self.point = self.point, ahead.contiguous(memory_format=batch.layout)


@dataclass(frozen=True, kw_only=True)
class APGD(BaseAttack):
    """Auto-PGD, untargeted or against the likeliest other classes in turn.

    ``fixed``: all steps are run, and the result is the point of the greatest loss. Of several runs
    (restarts, targets) it is one that meets the goal, else that of the greatest margin.
    ``first-success``: an image leaves at the first point that meets the goal, whatever the target
    was; later targets and restarts run on those that are left.

    Deviations from the paper and its authors' code: the loss of a random target is its mean over
    the draws, where the code takes the last draw's, and an image is broken where most draws are
    (the code: any one); the checkpoints and their first condition are the paper's, where the code
    counts in whole steps and also halves at exactly ``rho``; random starts are uniform in the ball,
    where the code puts them on its surface.

    Attributes:
        steps: Steps of a run; it evaluates one gradient more.
        loss: ``ce``, ``margin`` or ``dlr``; below four classes ``dlr`` is ``margin``.
        targets: 0 for an untargeted attack; else how many of the other classes are aimed at, the
            likeliest on the clean image first, as far as there are so many.
        restarts: Runs from independent random points of the ball, for each target.

    Raises:
        ConfigError: A number is out of range.
        SpecError: The loss is unknown.

    Example:
        >>> attack = make_apgd_t(100)
        >>> attack.targets, attack.gradients
        (9, 909)
    """

    steps: int = 100
    loss: str = "ce"
    targets: int = 0
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("steps", "restarts")
        if self.targets != 0 or isinstance(self.targets, bool):
            self._whole("targets")
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)

    @property
    def gradients(self) -> int:
        """Gradients an image costs at most: one more than its steps in each run."""
        return max(1, self.targets) * self.restarts * (self.steps + 1)

    def perturb(self, batch: Batch) -> None:
        """Run for every target and from every start, over the images that are left."""
        number = 0
        for objective in self._objectives(batch):
            for _ in range(self.restarts):
                rows = batch.left() if batch.early else torch.arange(len(batch)).to(batch.labels)
                if not len(rows):
                    return
                self._run_once(batch, objective, rows, number)
                number += 1

    def _objectives(self, batch: Batch) -> Iterator[Objective]:
        """What is raised in one run after the other."""
        if not self.targets:
            yield batch.loss(self.loss)
            return
        ranked = _rank_others(batch)
        for column in range(min(self.targets, ranked.shape[1])):
            yield _aim(batch, self.loss, ranked[:, column])

    def _run_once(self, batch: Batch, objective: Objective, rows: Tensor, number: int) -> None:
        """One run from one start."""
        start = start_point(batch, number)[rows].contiguous(memory_format=batch.layout)
        origin = batch.origin[rows].contiguous(memory_format=batch.layout)
        project, state = batch.threat.projector(origin), None
        ends, last = checkpoints(self.steps), 0
        for step in range(self.steps + 1):
            rows, point = (rows, start) if state is None else (state.rows, state.point)
            draw = number * (self.steps + 1) + step
            gradient, value, wrong = _evaluate(batch, objective, rows, point, draw)
            if state is None:
                state = _begin(rows, origin, point, gradient, value, 2 * batch.threat.eps)
            else:
                state.note(gradient, value)
            if batch.early and bool(wrong.any()):
                batch.leave(state.rows[wrong], state.point[wrong])
                if bool(wrong.all()):
                    return
                state.keep(~wrong, batch.layout)
                project = batch.threat.projector(state.origin)
            if step in ends:
                state.reconsider(step - last)
                last = step
            if step < self.steps:
                state.move(batch, project, first=step == 0)
        assert state is not None
        if max(1, self.targets) * self.restarts == 1:
            batch.best[state.rows] = state.best
        else:
            batch.offer(state.rows, state.best, draw=number)


def _evaluate(
    batch: Batch, objective: Objective, rows: Tensor, point: Tensor, draw: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient, value and whether the goal is met for good, at the points of these rows."""
    # Finely: those who stay, stay for hundreds of steps, and padding costs as much as an image.
    index, count = batch.compact(rows, sizes=64), len(rows)
    if len(index) > count:
        point = torch.cat((point, point[:1].expand(len(index) - count, -1, -1, -1)))
    found = batch.gradient(point, index, draw, objective)
    # A loss that is not a number is no progress; where scores are none, the verdict has seen it.
    value = found.value[:count].nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    gradient = found.gradient[:count].contiguous(memory_format=batch.layout)
    return gradient, value, found.through[:count]


def _begin(
    rows: Tensor, origin: Tensor, point: Tensor, gradient: Tensor, value: Tensor, step_size: float
) -> _State:
    """A run at its start, which is its best point so far."""
    return _State(
        rows=rows,
        origin=origin,
        point=point,
        before=point,
        gradient=gradient,
        value=value,
        best=point,
        best_gradient=gradient,
        best_value=value,
        step_size=torch.full_like(point[:, :1, :1, :1], step_size),
        rises=torch.zeros_like(rows),
        # The second condition asks nothing at the first checkpoint.
        halved=torch.ones_like(rows, dtype=torch.bool),
        checked=value,
    )


def _rank_others(batch: Batch) -> Tensor:
    """Classes but the true one by their clean scores, the likeliest first, (N, K - 1)."""
    surface, draws = batch.surface, batch.draws
    keys = batch.domain("targets")
    with torch.no_grad():
        if draws == 1:
            scores = surface.attacked(surface.terms(batch.origin, keys))
        else:
            copies, keys = batch.origin.repeat_interleave(draws, 0), keys.copies(draws)
            parts = [
                surface.attacked(surface.terms(copies[piece], keys[piece]))
                for piece in pieces(len(copies), copies.shape[1:], draws, device=copies.device)
            ]
            scores = torch.cat(parts).view(len(batch), draws, -1).mean(1)
    batch.queries += draws
    true = torch.nn.functional.one_hot(batch.labels, scores.shape[1]).bool()
    # The true class last, behind scores that are not numbers, and then cut off.
    ranked = scores.nan_to_num().masked_fill(true, -math.inf).argsort(1, descending=True)
    return ranked[:, :-1]


def _aim(batch: Batch, loss: str, targets: Tensor) -> Objective:
    """The objective of a run against one class for each image of the batch, (N,)."""
    surface = batch.surface

    def value(terms: Terms, labels: Tensor, index: Tensor) -> Tensor:
        scores = surface.attacked(terms)
        raised = TARGETED[resolve_loss(loss, scores.shape[1])]
        return surface.constrained(raised(scores, labels, targets[index]), terms)

    return value


def make_apgd_ce(steps: int | None) -> APGD:
    """``apgd-ce``: untargeted, cross-entropy, 100 steps."""
    count = 100 if steps is None else steps
    return APGD(name=f"apgd-ce-{count}", steps=count)


def make_apgd_dlr(steps: int | None) -> APGD:
    """``apgd-dlr``: untargeted, difference of logits ratio, 100 steps."""
    count = 100 if steps is None else steps
    return APGD(name=f"apgd-dlr-{count}", steps=count, loss="dlr")


def make_apgd_t(steps: int | None) -> APGD:
    """``apgd-t``: targeted difference of logits ratio, nine targets, 100 steps for each."""
    count = 100 if steps is None else steps
    return APGD(name=f"apgd-t-{count}", steps=count, loss="dlr", targets=9)
