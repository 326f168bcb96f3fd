"""A surface for attacks of other libraries, and a fence around what they change globally.

Other libraries know modules from images to scores. ``SurfaceModule`` is one, with the surface's
backward rule, whatever they do to it: no gradient of a parameter is touched (FAB and others call
``backward``, which would write into the classifier's), no mode is changed, and random numbers are
keyed by seed and number of the call.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unperturb.attacks.surface import Surface
from unperturb.errors import AttackError
from unperturb.gradients import input_gradients
from unperturb.randomness import Keys

__all__ = ["SurfaceModule", "fenced"]


class SurfaceModule(nn.Module):
    """The attacked scores of a surface as a module (N, C, H, W) -> (N, K).

    Values are those the goal ``wrong`` is judged by; the gradient is that of the surface's
    backward rule (``undefended``: the defense's values with the bare classifier's gradient). Each
    call of a random target meets fresh draws, named by the seed, the place in the batch and the
    number of the call: repeatable for the same sequence of calls, and not independent of batch
    mates, because an outside attack does not say which images it shows.

    Args:
        surface: What is attacked; its goal must be ``wrong``, which is all that scores can say.
        seed: Names the random numbers.
        draws: Draws whose scores are averaged in each call (an EOT wrapper); only where the
            target is random.
        layout: Memory layout in which the target is shown the images.

    Attributes:
        seen: Forward passes of the target so far, an image and draw each.

    Raises:
        AttackError: The goal needs more than scores.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> module = SurfaceModule(Surface(net))
        >>> module(torch.rand(2, 3, 2, 2)).shape, module.seen
        (torch.Size([2, 3]), 2)
    """

    def __init__(
        self,
        surface: Surface,
        *,
        seed: int = 0,
        draws: int = 1,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        if surface.goal != "wrong":
            raise AttackError(
                f"Attacks of other libraries cannot pursue the goal {surface.goal!r}",
                expected="the goal 'wrong': scores alone say nothing of flags and branches",
                fix="use an attack of our own for it, such as apgd-ce",
            )
        self.surface, self.seed, self.layout = surface, seed, layout
        self.draws = draws if surface.stochastic else 1
        self.calls = self.seen = 0
        super().train(False)

    def train(self, mode: bool = True) -> SurfaceModule:
        """The target is attacked in eval mode, whatever is asked for."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, K), the mean over the draws."""
        keys = None
        if self.surface.stochastic:
            places = torch.arange(len(images), device=images.device)
            keys = Keys.of(self.seed, places, domain="outside").draw(self.calls)
            keys = keys.copies(self.draws)
        self.calls += 1
        self.seen += len(images) * self.draws
        if torch.is_grad_enabled() and images.requires_grad:
            scores: Tensor = _InputOnly.apply(images, self, keys)  # type: ignore[no-untyped-call]
            return scores
        with torch.no_grad():
            return self._scores(images, keys)

    def _scores(self, images: Tensor, keys: Keys | None) -> Tensor:
        if self.draws > 1:
            images = images.repeat_interleave(self.draws, 0)
        terms = self.surface.terms(images.contiguous(memory_format=self.layout), keys)
        scores = self.surface.attacked(terms)
        if terms.bare is not None:
            # The value of the one with the gradient of the other.
            scores = scores + (terms.scores - scores).detach()
        if self.draws > 1:
            scores = scores.view(-1, self.draws, scores.shape[1]).mean(1)
        return scores


class _InputOnly(torch.autograd.Function):
    """Scores whose ``backward`` ends at the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, module: SurfaceModule, keys: Keys | None) -> Tensor:
        ctx.target = module.surface.target
        with torch.enable_grad(), input_gradients(ctx.target):
            ctx.leaf = images.detach().requires_grad_()
            ctx.scores = module._scores(ctx.leaf, keys)
        found: Tensor = ctx.scores.detach().clone()
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        with torch.enable_grad(), input_gradients(ctx.target):
            # FAB's untargeted form goes back once for each class.
            (found,) = torch.autograd.grad(ctx.scores, ctx.leaf, gradient, retain_graph=True)
        # Other libraries call view() on it.
        return found.contiguous(), None, None


@contextmanager
def fenced(seed: int, *loggers: str) -> Iterator[None]:
    """Let a library draw from global generators, warn, log and trace, and put everything back.

    Global generators of torch (every device that is in use), NumPy and Python are seeded inside.
    A CUDA device that nobody has used yet has no state to keep: a library that seeds it
    nevertheless leaves that seed for its first use.

    Args:
        seed: Seed of all generators; torch keeps 32 bits of it on the CPU.
        loggers: Names of loggers to silence.

    Example:
        >>> before = torch.get_rng_state()
        >>> with fenced(1):
        ...     one = torch.rand(1)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    seed %= 2**32
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy, trace = random.getstate(), np.random.get_state(), sys.gettrace()  # noqa: NPY002
    silent = [logging.getLogger(name) for name in loggers]
    disabled = [log.disabled for log in silent]
    try:
        with (
            torch.random.fork_rng(devices=devices),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(seed)
            random.setstate(random.Random(seed).getstate())
            np.random.set_state(np.random.RandomState(seed).get_state())  # noqa: NPY002
            for log in silent:
                log.disabled = True
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for log, was in zip(silent, disabled, strict=True):
            log.disabled = was
        sys.settrace(trace)
