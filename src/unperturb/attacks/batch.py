"""One batch under attack: what every method needs of it, so that a method is its mathematics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unperturb.attacks.draws import pieces
from unperturb.attacks.losses import resolve_loss
from unperturb.attacks.surface import Judged, Surface
from unperturb.defense import Terms
from unperturb.gradients import input_gradients
from unperturb.randomness import Keys
from unperturb.threat import Threat

__all__ = ["VOTES", "Batch", "Objective", "Step", "View", "through"]

Objective = Callable[[Terms, Tensor, Tensor], Tensor]
"""``(terms, labels, index)`` to what the attacker raises, (N,): rows may be EOT copies, and
``index`` says which image of the batch each row is."""

View = Callable[[Tensor, Keys], Tensor]
"""``(images, keys)`` to the differentiable images that are shown in their place, of equal shape."""


VOTES = 9
"""An image of a random target leaves an attack when at least so many draws, and every one of them,
meet the goal. A plain majority would stop attacks at the boundary, where fresh draws undo them."""


class Step(NamedTuple):
    """A gradient of some images, each (n, ...)."""

    gradient: Tensor  # (n, C, H, W): mean over the draws, 0 where it was not finite
    value: Tensor  # (n,): the objective, mean over the draws
    wrong: Tensor  # (n,) bool: the goal is met at this point, for most draws
    through: Tensor  # (n,) bool: it is met so clearly that the image may leave; see ``VOTES``


class Batch:
    """One batch under attack.

    Attributes:
        origin: Clean images (N, C, H, W).
        labels: True labels (N,).
        best: The result so far; the clean image until something better is found.
        broken: Images that met the goal and are done, (N,) bool.
        queries: Forward passes spent on each image.
        zero: Steps whose gradient was exactly zero.
        nan: Steps whose gradient was not finite.
        gradients: Gradient evaluations, of which these are counts.
        measure: Size of the result in the attack's own measure, where it sets one.
        detail: What the result was made by, where the attack says so (a flow, a transport).
        draws: Draws of each evaluation; 1 where the target is not random.
        early: Whether an image leaves at its first success.
    """

    def __init__(
        self,
        surface: Surface,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        keys: Keys,
        draws: int = 1,
        early: bool = True,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.surface, self.threat, self.early, self.layout = surface, threat, early, layout
        self.origin = images.contiguous(memory_format=layout)
        self.labels = labels.to(images.device, torch.int64)
        self.keys = keys.to(images.device)
        self.draws = draws if surface.stochastic else 1
        count = len(images)
        zeros = torch.zeros(count, dtype=torch.int64, device=images.device)
        self.best = self.origin.clone()
        self.best_value = torch.full((count,), float("-inf"), device=images.device)
        self.broken = torch.zeros(count, dtype=torch.bool, device=images.device)
        # Most draws met the goal on what was kept, if not clearly enough for it to leave.
        self._met = self.broken.clone()
        self.queries, self.zero, self.nan = zeros.clone(), zeros.clone(), zeros.clone()
        self.gradients = zeros.clone()
        self.measure: Tensor | None = None
        self.detail: Tensor | None = None
        # Random numbers of one evaluation: another draw each time.
        self._evaluations = 0

    def __len__(self) -> int:
        return len(self.origin)

    def domain(self, purpose: str) -> Keys:
        """Keys for a purpose of their own (``start``, ``check`` ...)."""
        return self.keys.within(f"{self.keys.domain}/{purpose}")

    def left(self) -> Tensor:
        """Rows that are not broken yet, (n,) int64."""
        return (~self.broken).nonzero().flatten()

    def compact(self, rows: Tensor, sizes: int = 8) -> Tensor:
        """The rows, padded with the first of them to one of some fixed batch sizes.

        Shapes stay functions of the plan; what is computed of the padding is cut off again by
        ``[: len(rows)]``.
        """
        full = len(self.origin)
        grain = max(1, full // sizes)
        size = min(full, -(-len(rows) // grain) * grain)
        return torch.cat((rows, rows[:1].expand(size - len(rows))))

    def leave_unperturbed(self) -> None:
        """Let go of images that meet the goal as they are."""
        index = torch.arange(len(self), device=self.origin.device)
        self.broken = through(
            self.judge(self.origin, index, keys=self.domain("clean"), votes=VOTES)
        )

    def loss(self, name: str) -> Objective:
        """The surface's objective with a loss by name."""

        def value(terms: Terms, labels: Tensor, index: Tensor) -> Tensor:
            known = resolve_loss(name, terms.scores.shape[1])
            return self.surface.objective(terms, labels, known)

        return value

    def gradient(
        self,
        point: Tensor,
        index: Tensor,
        draw: int,
        objective: Objective,
        *,
        view: View | None = None,
    ) -> Step:
        """Mean gradient of the objective over the draws, and whether the goal is met.

        Many draws are evaluated in pieces (``draws.pieces``): a row keeps its graph while its
        piece is done, and no longer.

        Args:
            point: Images (n, C, H, W), one for each entry of ``index``.
            index: Rows of the batch they belong to (repeats are padding).
            draw: Number of the evaluation: it names the random numbers of a random target.
            objective: What is raised.
            view: What the target is shown in place of the images; values and verdicts are then
                those of what it is shown.
        """
        labels, draws, rows = self.labels[index], self.draws, index
        drawn = self.surface.stochastic or view is not None
        keys = self.keys[index].draw(draw) if drawn else None
        if draws > 1:
            assert keys is not None
            keys = keys.copies(draws)
            point, labels = point.repeat_interleave(draws, 0), labels.repeat_interleave(draws, 0)
            rows = index.repeat_interleave(draws, 0)
        parts = [
            self._slope(
                point[piece], labels[piece], rows[piece], keys and keys[piece], objective, view
            )
            for piece in pieces(len(point), point.shape[1:], draws, device=point.device)
        ]
        gradient, value, wrong = (
            found[0] if len(found) == 1 else torch.cat(found) for found in zip(*parts, strict=True)
        )
        sure = wrong & (not self.surface.stochastic)
        if draws > 1:
            gradient = gradient.view(-1, draws, *gradient.shape[1:]).mean(1)
            votes = wrong.view(-1, draws)
            wrong, sure = votes.float().mean(1) > 0.5, votes.all(1) & (draws >= VOTES)
            value = value.view(-1, draws).mean(1)
        # Not flattened: that would copy a channels_last batch.
        size = gradient.abs().amax((1, 2, 3))
        finite = torch.isfinite(size)
        if not bool(finite.all()):
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        # Padding repeats the first row, so counts are written, not added, for each distinct row.
        self.queries[index] = self.queries[index] + draws
        self.count_gradients(index, size == 0, ~finite)
        return Step(gradient, value, wrong, sure)

    def _slope(
        self,
        point: Tensor,
        labels: Tensor,
        rows: Tensor,
        keys: Keys | None,
        objective: Objective,
        view: View | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, value and success of rows that are one draw each."""
        with torch.enable_grad(), input_gradients(self.surface.target):
            # Repeated rows have lost their layout.
            leaf = point.detach().contiguous(memory_format=self.layout).requires_grad_()
            shown = leaf if view is None or keys is None else view(leaf, keys)
            terms = self.surface.terms(shown, keys if self.surface.stochastic else None)
            value = objective(terms, labels, rows)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return gradient, value.detach(), self.surface.success(terms, labels).detach()

    def count_gradients(self, index: Tensor, zero: Tensor, nan: Tensor) -> None:
        """Count one gradient evaluation of each of these images.

        Args:
            index: Rows of the batch (repeats are padding).
            zero: Where the whole gradient was exactly zero.
            nan: Where it was not finite.
        """
        self.gradients[index] = self.gradients[index] + 1
        self.zero[index] = self.zero[index] + zero.to(torch.int64)
        self.nan[index] = self.nan[index] + nan.to(torch.int64)

    def judge(
        self,
        point: Tensor,
        index: Tensor,
        *,
        draw: int = 0,
        keys: Keys | None = None,
        votes: int = 1,
    ) -> Judged:
        """Verdict on images without gradients: by most draws, margins and slack averaged.

        Args:
            point: Images (n, C, H, W), one for each entry of ``index``.
            index: Rows of the batch they belong to (repeats are padding).
            draw: Number of the evaluation.
            keys: Keys of the whole batch to use in place of the attack's own.
            votes: Least number of draws; used only where the target is random.
        """
        named = (self.keys if keys is None else keys)[index].draw(draw)
        labels = self.labels[index]
        draws = max(self.draws, votes) if self.surface.stochastic else 1
        self.queries[index] = self.queries[index] + draws
        if draws == 1:
            found = self.surface.judge(point.contiguous(memory_format=self.layout), labels, named)
            one = torch.zeros_like(found.margins) if self.surface.stochastic else None
            return found._replace(share=one)
        found = self._judged(point, labels, named, draws)
        shape = (-1, draws)
        share = found.success.view(shape).float().mean(1)
        if draws < VOTES:
            share = share.clamp(max=0.999)  # too few to be sure
        return Judged(
            share > 0.5,
            found.predictions.view(shape).mode(1).values,
            found.margins.view(shape).mean(1),
            found.flagged.view(shape).float().mean(1) > 0.5,
            None if found.slack is None else found.slack.view(shape).mean(1),
            share,
        )

    def _judged(self, point: Tensor, labels: Tensor, keys: Keys, draws: int) -> Judged:
        """Verdicts on every draw of images, one row each."""
        copies, labels = point.repeat_interleave(draws, 0), labels.repeat_interleave(draws, 0)
        keys = keys.copies(draws)
        parts = [
            self.surface.judge(
                copies[piece].contiguous(memory_format=self.layout), labels[piece], keys[piece]
            )
            for piece in pieces(len(copies), copies.shape[1:], draws, device=copies.device)
        ]
        if len(parts) == 1:
            return parts[0]
        joined = [
            None if found[0] is None else torch.cat(found) for found in zip(*parts, strict=True)
        ]
        return Judged(*joined)  # type: ignore[arg-type]

    def leave(self, rows: Tensor, images: Tensor) -> None:
        """These rows met the goal with these images, and are done."""
        self.best[rows] = images
        self.broken[rows] = True

    def offer(
        self,
        rows: Tensor,
        images: Tensor,
        *,
        draw: int,
        purpose: str = "finish",
        votes: int = VOTES,
    ) -> None:
        """Judge the end of a run: keep what is broken, else what has the greatest margin.

        Where the target is random, what most draws get wrong is broken, and of two such images the
        one of the greater margin is kept; only what all draws get wrong leaves (``through``).

        Args:
            rows: Rows of the batch (without padding).
            images: Their images (n, C, H, W).
            draw: Number of the run: it names the random numbers.
            purpose: Names them, too.
            votes: Least number of draws; used only where the target is random.
        """
        if not len(rows):
            return
        index = self.compact(rows)
        padded = torch.cat((images, images[:1].expand(len(index) - len(rows), -1, -1, -1)))
        judged = self.judge(padded, index, draw=draw, keys=self.domain(purpose), votes=votes)
        success = judged.success[: len(rows)]
        value = judged.margins[: len(rows)].to(self.best_value.dtype)
        known = self._met[rows] | self.broken[rows]
        better = (success & ~known) | ((success == known) & (value > self.best_value[rows]))
        chosen = rows[better]
        self.best[chosen] = images[better]
        self.best_value[chosen] = value[better]
        self._met[chosen] = success[better]
        self.broken[rows[through(judged)[: len(rows)]]] = True


def through(judged: Judged) -> Tensor:
    """Which images meet the goal so clearly that they may leave, (n,) bool; see ``VOTES``."""
    return judged.success if judged.share is None else judged.share == 1.0
