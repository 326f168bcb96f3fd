"""Steps in a VAE's latent space towards a code whose image is the one that came.

``minimize over z  ||D(z) - x||^2`` by K steps of L-BFGS, of Adam or of plain gradient descent, each
image by itself. Functional: a decoder, images and first codes in, codes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unperturb.errors import ConfigError
from unperturb.purifiers.unroll import State, replayed

__all__ = ["OPTIMIZERS", "Descent", "descend"]

OPTIMIZERS = ("gd", "adam", "lbfgs")
_BETAS = (0.9, 0.999)
_FLOOR = 1e-8
# Under the root, whose derivative is infinite at zero: a code without slope must not give NaN.
_ROOT = 1e-30
# Pairs of moves and turns that L-BFGS remembers, and the least curvature along a move that it takes
# for one: where it is less, or negative, a pair is left out.
_MEMORY = 5
_CURVED = 1e-4
# Steps in a row that must bring too little before an image is done.
_PATIENCE = 3
# Active images are padded to this many sizes at most, so that shapes follow from the plan.
_SIZES = 8

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Descent:
    """How codes are optimized.

    Attributes:
        steps: Number of steps K.
        lr: Learning rate, in the units of the codes; of ``lbfgs`` that of steps before which no
            curvature was seen, such as the first, which is one of ``gd``.
        optimizer: ``gd`` (``z <- z - lr * gradient``), ``adam``, or ``lbfgs``: the limited-memory
            quasi-Newton method of Liu and Nocedal (1989), five pairs, full steps without a search
            along the line, so that a step is one pass through the decoder and back.
        tolerance: An image is done once three steps in a row lower its error by less than this
            share of it; 0: every image takes all steps.
    """

    steps: int
    lr: float
    optimizer: str
    tolerance: float = 0.0


def descend(
    decode: Decode, images: Tensor, codes: Tensor, how: Descent, *, unroll: bool = False
) -> Tensor:
    """Optimize codes (N, l, h, w) to reconstruct images (N, C, H, W).

    One pass through the decoder and one back to the codes for each step. No graph is kept from one
    step to the next, unless an attacker asks (``unroll``): then each step keeps its state alone,
    and its graph is built again in the backward pass.

    Images that are done leave the batch, which shrinks to one of eight sizes, padded with the first
    of them. When it is unrolled they stay and take no more steps, with equal values up to rounding;
    that they have left counts as a constant.

    Args:
        decode: Codes to images.
        images: What is to be reconstructed.
        codes: Where to begin.
        how: The steps.
        unroll: Give the codes the exact derivative in images and first codes, through all steps.

    Raises:
        ConfigError: A code is not finite after a step.
    """
    state = _begin(how, codes)
    broken = torch.full((), -1, device=codes.device)
    watch = _Watch(len(codes), how.tolerance, codes.device)
    for number in range(how.steps):
        rows = watch.rows()
        if rows is not None and not len(rows):
            break
        if rows is None:
            _, state = _advance(decode, how, number, images, state, unroll=unroll)
        elif unroll:
            errors, moved = _advance(decode, how, number, images, state, unroll=True)
            keep = watch.stay(torch.arange(len(images), device=rows.device), errors)
            mask = keep.view(-1, 1, 1, 1)
            state = tuple(torch.where(mask, n, o) for n, o in zip(moved, state, strict=True))
        else:
            padded = _pad(rows, len(images))
            some = tuple(part[padded] for part in state)
            errors, moved = _advance(decode, how, number, images[padded], some)
            keep = watch.stay(rows, errors[: len(rows)])
            state = tuple(
                old.index_copy(0, rows[keep], new[: len(rows)][keep])
                for old, new in zip(state, moved, strict=True)
            )
        fell = (broken < 0) & ~torch.isfinite(state[0].detach()).all()
        broken = torch.where(fell, number + 1, broken)
    # Looked at once, at the end: a look at every step would hold up an accelerator.
    if int(broken) >= 0:
        raise ConfigError(
            f"The latent codes are not finite after step {int(broken)} at the learning rate "
            f"{how.lr:g} ({how.optimizer})",
            expected="codes that stay finite",
            fix="lower lr: 0.1 suits lbfgs and gd, 0.05 adam",
        )
    return state[0]


def _pad(rows: Tensor, full: int) -> Tensor:
    grain = max(1, full // _SIZES)
    size = min(full, -(-len(rows) // grain) * grain)
    return torch.cat((rows, rows[:1].expand(size - len(rows))))


class _Watch:
    """Which images are not done yet.

    Args:
        count: Number of images.
        tolerance: See ``Descent``.
        device: Where.
    """

    def __init__(self, count: int, tolerance: float, device: torch.device) -> None:
        self.tolerance = tolerance
        if tolerance:
            self.active = torch.ones(count, dtype=torch.bool, device=device)
            self.error = torch.full((count,), float("inf"), device=device)
            self.poor = torch.zeros(count, dtype=torch.int64, device=device)

    def rows(self) -> Tensor | None:
        """Active rows; None where nobody ever leaves."""
        return self.active.nonzero().flatten() if self.tolerance else None

    def stay(self, rows: Tensor, errors: Tensor) -> Tensor:
        """Take in the squared errors of these rows; which of them take the step, (n,) bool."""
        before = self.error[rows]
        # Not at the first step, before which there is no error.
        little = torch.isfinite(before) & (before - errors <= self.tolerance * before)
        poor = torch.where(little, self.poor[rows] + 1, 0)
        going = self.active[rows] & (poor < _PATIENCE)
        self.error[rows], self.poor[rows], self.active[rows] = errors.to(before), poor, going
        return going


def _advance(
    decode: Decode,
    how: Descent,
    number: int,
    images: Tensor,
    state: State,
    *,
    unroll: bool = False,
) -> tuple[Tensor, State]:
    """Squared errors (N,) before a step, without graph, and the state after it."""
    errors, gradient = _slope(decode, state[0], images)
    if not unroll:
        return errors, _move(how, number, state, gradient)
    with torch.no_grad():
        values = _move(how, number, state, gradient)

    def again(target: Tensor, *leaves: Tensor) -> State:
        _, slope = _slope(decode, leaves[0], target, differentiable=True)
        return _move(how, number, leaves, slope)

    return errors, replayed(again, values, (images, *state))


def _slope(
    decode: Decode, codes: Tensor, images: Tensor, *, differentiable: bool = False
) -> tuple[Tensor, Tensor]:
    """``||D(z) - x||^2`` of each image, without graph, and its gradient in z."""
    with torch.inference_mode(False), torch.enable_grad():
        if not differentiable:
            codes, images = codes.detach(), images.detach()
            # Inference tensors cannot be saved for backward, so they are copied; others share.
            codes = (codes.clone() if codes.is_inference() else codes).requires_grad_()
            images = images.clone() if images.is_inference() else images
        errors = (decode(codes) - images).square().flatten(1).sum(1)
        (gradient,) = torch.autograd.grad(errors.sum(), codes, create_graph=differentiable)
    return errors.detach(), gradient


def _begin(how: Descent, codes: Tensor) -> State:
    """The state before the first step; every part has a row for each image and four dimensions."""
    nothing = torch.zeros_like(codes)
    if how.optimizer == "adam":
        return codes, nothing, nothing
    if how.optimizer == "lbfgs":
        past = nothing.repeat(1, min(_MEMORY, max(1, how.steps - 1)), 1, 1)
        return codes, nothing, nothing, past, past
    return (codes,)


def _move(how: Descent, number: int, state: State, gradient: Tensor) -> State:
    if how.optimizer == "gd":
        return (state[0] - how.lr * gradient,)
    if how.optimizer == "lbfgs":
        return _quasi_newton(how, number, state, gradient)
    codes, mean, square = state
    mean = _BETAS[0] * mean + (1.0 - _BETAS[0]) * gradient
    square = _BETAS[1] * square + (1.0 - _BETAS[1]) * gradient.square()
    past = mean / (1.0 - _BETAS[0] ** (number + 1))
    scale = (square / (1.0 - _BETAS[1] ** (number + 1)) + _ROOT).sqrt() + _FLOOR
    return codes - how.lr * past / scale, mean, square


def _quasi_newton(how: Descent, number: int, state: State, gradient: Tensor) -> State:
    """One step of L-BFGS, each image by itself.

    State: codes, the codes and the gradient before, and the last moves ``s`` of the codes and turns
    ``y`` of the gradient, newest last, their channels side by side. Images that have left the batch
    take no part, so that all have taken the same number of steps.
    """
    codes, last, slope, moves, turns = state
    if not number:
        return codes - how.lr * gradient, codes, gradient, moves, turns
    wide = codes.shape[1]
    moves = torch.cat((moves[:, wide:], codes - last), 1)
    turns = torch.cat((turns[:, wide:], gradient - slope), 1)
    seen = min(number, moves.shape[1] // wide)
    # (N, seen, D): the pairs that there are.
    s, y = (
        part[:, part.shape[1] - seen * wide :].reshape(len(codes), seen, -1)
        for part in (moves, turns)
    )
    along = (s * y).sum(2)
    curved = along > _CURVED * s.square().sum(2)
    inverse = torch.where(curved, 1.0 / torch.where(curved, along, 1.0), 0.0)
    step, shares = gradient.flatten(1), []
    for pair in reversed(range(seen)):
        shares.append(inverse[:, pair, None] * (s[:, pair] * step).sum(1, keepdim=True))
        step = step - shares[-1] * y[:, pair]
    newest = curved[:, -1]
    bend = torch.where(newest, y[:, -1].square().sum(1), 1.0)
    step = torch.where(newest, along[:, -1] / bend, how.lr)[:, None] * step
    for pair, share in zip(range(seen), reversed(shares), strict=True):
        back = inverse[:, pair, None] * (y[:, pair] * step).sum(1, keepdim=True)
        step = step + (share - back) * s[:, pair]
    return codes - step.view_as(codes), codes, gradient, moves, turns
