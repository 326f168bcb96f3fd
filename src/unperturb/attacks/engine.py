"""The first-order attack engine: FGSM, BIM, PGD and MIM are settings of this one loop.

``x <- P(x + step * ascent(g))`` with ``g`` the input gradient of a loss (with momentum: its
decayed sum), ``P`` the projection on the ball and on [0, 1], and for random defenses the mean of
the *loss gradients* over several draws (expectation over transformation, Athalye et al. 2018).

Two stopping rules, never mixed up:

- ``fixed``: all steps are run and the last image is the result. The papers' rule; the only one
  whose images may be shown to another model.
- ``first-success``: an image leaves as soon as it meets the goal, and the batch shrinks to one
  of a few fixed sizes; one that meets it unperturbed leaves at once, as it is. For the worst
  case against the attacked module itself.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unperturb.attacks.base import STOPPING, Attacked
from unperturb.attacks.losses import LOSSES, resolve_loss
from unperturb.attacks.surface import Surface
from unperturb.checks import check_images, check_labels
from unperturb.errors import AttackError, ConfigError, unknown_name
from unperturb.gradients import input_gradients
from unperturb.randomness import Keys
from unperturb.threat import Threat

__all__ = ["FirstOrder"]


_MOST = 100_000


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """A first-order attack; frozen, so that it can be hashed into every record.

    Attributes:
        name: Its name in the records.
        steps: Gradient steps.
        step_size: Step as a fraction of eps.
        momentum: Decay ``mu`` of the accumulated gradient (MIM, Dong et al. 2018); 0 for none.
            With momentum each gradient is first divided by its L1 norm.
        random_start: Begin at a random point of the ball.
        restarts: Runs from independent starts.
        loss: ``ce``, ``margin`` or ``dlr`` (below four classes ``dlr`` is ``margin``).
        draws: Draws averaged in each gradient (EOT); used only where the target is random.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> attack = FirstOrder(name="fgsm", steps=1, step_size=1.0)
        >>> attack.draws
        1
    """

    name: str
    steps: int
    step_size: float
    momentum: float = 0.0
    random_start: bool = False
    restarts: int = 1
    loss: str = "ce"
    draws: int = 1

    def __post_init__(self) -> None:
        for field in ("steps", "restarts", "draws"):
            value = getattr(self, field)
            if not isinstance(value, int) or not 1 <= value <= _MOST:
                raise ConfigError(
                    f"{field} of attack {self.name!r} is {value!r}",
                    expected=f"a whole number, at least 1 and at most {_MOST:,}",
                )
        if not 0 <= self.momentum < math.inf:
            raise ConfigError(
                f"momentum of attack {self.name!r} is {self.momentum}", expected="0 or more"
            )
        if not 0 < self.step_size < math.inf:
            raise ConfigError(
                f"step_size of attack {self.name!r} is {self.step_size}",
                expected="above 0, as a fraction of eps",
            )
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        if self.restarts > 1 and not self.random_start:
            raise ConfigError(
                f"Attack {self.name!r} has {self.restarts} restarts and no random start",
                expected="random_start=True, or one restart",
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary of all settings."""
        return asdict(self)

    @property
    def gradients(self) -> int:
        """Gradients an image costs at most when nothing stops early and nothing is random."""
        return self.steps * self.restarts

    def run(
        self,
        surface: Surface,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        keys: Keys,
        stop: str = "first-success",
    ) -> Attacked:
        """Attack a batch.

        Args:
            surface: What is attacked, by which gradient, for which goal.
            images: Clean images (N, C, H, W) in [0, 1].
            labels: True labels (N,).
            threat: Norm and size.
            keys: Names the random numbers of every image.
            stop: ``fixed`` or ``first-success``.

        Returns:
            Images, success and counts. The gradient of no parameter is touched.

        Raises:
            SpecError: The stopping rule is unknown.
            InputError: Images or labels are not what the contract says.
            AttackError: The keys are not as many as the images.
        """
        if stop not in STOPPING:
            raise unknown_name("stopping rule", stop, STOPPING)
        check_images(images)
        if len(keys) != len(images):
            raise AttackError(
                f"The keys name {len(keys)} images, and there are {len(images)}",
                expected="one key for each image",
                fix="Keys.of(seed, ids) with as many ids as images",
            )
        classes = surface.count_classes(images[:1], keys[:1])
        check_labels(labels, count=len(images), num_classes=classes)
        with torch.inference_mode(False):
            try:
                return self._run(surface, images, labels, threat, keys, stop, torch.channels_last)
            except RuntimeError as error:
                if "view size is not compatible" not in str(error):
                    raise
            # A net that views its features as rows reads no other layout than PyTorch's first;
            # its very first forward pass has said so, so no work is lost.
            plain = torch.contiguous_format
            return self._run(surface, images, labels, threat, keys, stop, plain)

    def _run(
        self,
        surface: Surface,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        keys: Keys,
        stop: str,
        layout: torch.memory_format,
    ) -> Attacked:
        run = _Batch(self, surface, images.clone(), labels.clone(), threat, keys, stop, layout)
        if stop == "first-success":
            run.leave_unperturbed()
        for restart in range(self.restarts):
            run.restart(restart)
        return run.result()


class _Batch:
    """One batch under attack."""

    def __init__(
        self,
        attack: FirstOrder,
        surface: Surface,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        keys: Keys,
        stop: str,
        layout: torch.memory_format,
    ) -> None:
        self.attack, self.surface, self.threat, self.stop = attack, surface, threat, stop
        self.layout = layout
        self.origin = images.contiguous(memory_format=layout)
        self.labels = labels.to(images.device, torch.int64)
        self.keys = keys.to(images.device)
        self.draws = attack.draws if surface.stochastic else 1
        count = len(images)
        zeros = torch.zeros(count, dtype=torch.int64, device=images.device)
        self.best = self.origin.clone()
        self.best_value = torch.full((count,), float("-inf"), device=images.device)
        self.broken = torch.zeros(count, dtype=torch.bool, device=images.device)
        self.queries, self.zero, self.nan = zeros.clone(), zeros.clone(), zeros.clone()
        self.loss = attack.loss

    def leave_unperturbed(self) -> None:
        """Let go of images that meet the goal as they are (for most draws)."""
        count = len(self.origin)
        keys = self.keys.within(self.keys.domain + "/clean").copies(self.draws)
        images = self.origin.repeat_interleave(self.draws, 0)
        labels = self.labels.repeat_interleave(self.draws, 0)
        success = self.surface.judge(images, labels, keys).success
        self.broken = success.view(count, self.draws).float().mean(1) > 0.5
        self.queries += self.draws

    def restart(self, number: int) -> None:
        """One run from one start, over the images that are not broken yet."""
        rows = (~self.broken).nonzero().flatten()
        if not len(rows):
            return
        attack, threat = self.attack, self.threat
        point = self.origin.clone()
        if attack.random_start:
            point = self._random_start(number)
        velocity = torch.zeros_like(point) if attack.momentum else None
        early = self.stop == "first-success"
        project = threat.projector(self.origin)
        for step in range(attack.steps):
            rows, index = self._compact(rows)
            some = point if len(rows) == len(point) else point[index]
            gradient, wrong = self._gradient(some, index, number * attack.steps + step)
            fresh = slice(0, len(rows))
            if early and bool(wrong[fresh].any()):
                # The forward pass that gave the gradient also shows who is through.
                self._leave(rows, point, wrong[fresh])
                keep = ~wrong[fresh]
                rows, gradient = rows[keep], gradient[fresh][keep]
                if not len(rows):
                    return
            else:
                gradient = gradient[fresh]
            whole = len(rows) == len(point)
            if velocity is not None:
                size = gradient.flatten(1).abs().sum(1).clamp_(min=1e-38).view(-1, 1, 1, 1)
                past = velocity if whole else velocity[rows]
                gradient = past.mul_(attack.momentum).add_(gradient / size)
                if not whole:
                    velocity[rows] = gradient
            step_taken = (attack.step_size * threat.eps) * threat.ascent(gradient)
            if whole:
                # While nobody has left, four copies of the batch are saved at each step.
                point = project(point + step_taken).contiguous(memory_format=self.layout)
            else:
                point[rows] = threat.project(point[rows] + step_taken, self.origin[rows])
        self._finish(rows, point, number)

    def _random_start(self, number: int) -> Tensor:
        keys = self.keys.draw(number)
        shape, device = self.origin.shape[1:], self.origin.device
        uniform = keys.uniform("start", shape, device=device)
        normal = (
            keys.normal("direction", shape, device=device) if self.threat.norm == "l2" else None
        )
        start = self.origin + self.threat.start(uniform, normal).to(self.origin.dtype)
        return self.threat.project(start, self.origin).contiguous(memory_format=self.layout)

    def _compact(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows still under attack, and the same padded to one of eight fixed batch sizes."""
        full = len(self.origin)
        grain = max(1, full // 8)
        size = min(full, -(-len(rows) // grain) * grain)
        padding = rows[:1].expand(size - len(rows))
        return rows, torch.cat((rows, padding))

    def _gradient(self, point: Tensor, index: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Mean loss gradient over the draws, and whether the goal is met (by most draws)."""
        labels, draws = self.labels[index], self.draws
        keys = self.keys[index].draw(draw) if self.surface.stochastic else None
        if draws > 1:
            assert keys is not None
            keys = keys.copies(draws)
            point, labels = point.repeat_interleave(draws, 0), labels.repeat_interleave(draws, 0)
        with torch.enable_grad(), input_gradients(self.surface.target):
            # Repeated rows have lost their layout.
            leaf = point.detach().contiguous(memory_format=self.layout).requires_grad_()
            terms = self.surface.terms(leaf, keys)
            name = resolve_loss(self.loss, terms.scores.shape[1])
            value = self.surface.objective(terms, labels, name)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        wrong = self.surface.success(terms, labels).detach()
        if draws > 1:
            gradient = gradient.view(-1, draws, *gradient.shape[1:]).mean(1)
            wrong = wrong.view(-1, draws).float().mean(1) > 0.5
        # Not flattened: that would copy a channels_last batch.
        size = gradient.abs().amax((1, 2, 3))
        finite = torch.isfinite(size)
        if not bool(finite.all()):
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        # Padding repeats the first row, so counts are written, not added, for each distinct row.
        for counter, hit in ((self.queries, None), (self.zero, size == 0), (self.nan, ~finite)):
            step = draws if hit is None else hit.to(torch.int64)
            counter[index] = counter[index] + step
        return gradient, wrong

    def _leave(self, rows: Tensor, point: Tensor, wrong: Tensor) -> None:
        out = rows[wrong]
        self.best[out] = point[out]
        self.broken[out] = True

    def _finish(self, rows: Tensor, point: Tensor, number: int) -> None:
        """Judge the last images: keep what is broken, else what has the greatest margin."""
        if self.attack.restarts == 1:
            self.best[rows] = point[rows]
            return
        _, index = self._compact(rows)
        keys = self.keys[index].within(self.keys.domain + "/finish").draw(number)
        judged = self.surface.judge(point[index], self.labels[index], keys)
        self.queries[index] = self.queries[index] + 1
        success = judged.success[: len(rows)]
        value = judged.margins[: len(rows)].to(self.best_value.dtype)
        better = success | (value > self.best_value[rows])
        chosen = rows[better]
        self.best[chosen] = point[chosen]
        self.best_value[chosen] = value[better]
        self.broken[rows[success]] = True

    def result(self) -> Attacked:
        keys = self.keys.within(self.keys.domain + "/check")
        judged = self.surface.judge(self.best, self.labels, keys)
        inside = self.threat.contains(self.best, self.origin)
        assert bool(inside.all()), "the projection left the ball"
        return Attacked(self.best, judged, self.queries + 1, self.zero, self.nan)
