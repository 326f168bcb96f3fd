"""Steps of a purifier through the classifier's input gradient, and the derivative of such steps.

A purifier ``s_{k+1} = move(s_k, grad loss(f(at(s_k))))`` of K steps is differentiated in reverse.
Autograd alone would keep the graphs of K forward and K backward passes; here each step keeps
its state only, and its graph is built again when its derivative is asked for (checkpointing by
hand: PyTorch's own needs ``backward()``, which writes into the parameters' ``.grad``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unperturb.context import Context
from unperturb.gradients import InputGradients

__all__ = ["State", "advance", "answers", "input_gradient", "replayed"]

State = tuple[Tensor, ...]


def _inputs_only() -> AbstractContextManager[object]:
    return nullcontext() if torch.compiler.is_compiling() else InputGradients()


def answers(logits: Tensor) -> Tensor:
    """``argmax z`` of logits (N, K), (N,), which losses under autograd may use.

    Under ``torch.inference_mode`` a plain ``argmax`` could not be saved for backward.
    """
    with torch.inference_mode(False):
        return logits.argmax(1)


def input_gradient(
    ctx: Context,
    point: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits and the input gradient of a loss on them at any point, in one forward pass.

    Works under ``torch.no_grad`` and ``torch.inference_mode``, and touches no parameter's
    gradient.

    Args:
        ctx: The call, which owns the way to the classifier.
        point: Images (N, C, H, W).
        loss: Logits (N, K) to one number for each image (N,).
        differentiable: Keep the gradient's own graph, back to ``point``.

    Returns:
        Logits (N, K), without graph, and the gradient, of the point's shape.
    """
    with torch.inference_mode(False), torch.enable_grad(), _inputs_only():
        if not differentiable:
            plain = point.detach()
            # Inference tensors cannot be saved for backward, so they are copied; others share.
            point = (plain.clone() if plain.is_inference() else plain).requires_grad_()
        logits = ctx.classify(point)
        (gradient,) = torch.autograd.grad(loss(logits).sum(), point, create_graph=differentiable)
    return logits.detach(), gradient


def advance(
    ctx: Context,
    state: State,
    *,
    at: Callable[..., Tensor],
    loss: Callable[[Tensor], Tensor],
    move: Callable[..., State],
    known: tuple[Tensor, Tensor] | None = None,
    unroll: bool = False,
) -> tuple[Tensor, State]:
    """One step ``move(*state, gradient of the loss at at(*state))``.

    Args:
        ctx: The call.
        state: What the step starts from, tensors of one batch.
        at: The state to the images (N, C, H, W) that the classifier reads.
        loss: Logits (N, K) to one number for each image (N,).
        move: State and gradient to the next state; differentiable in all of them.
        known: Logits and gradient at ``at(*state)``, where they are known already.
        unroll: Give the next state a derivative that goes through the gradient too. Its value
            is the same to the last bit; the step's graph is built in the backward pass and freed
            there. Only first derivatives, and of images only, not of parameters.

    Returns:
        Logits (N, K) at ``at(*state)``, without graph, and the next state.
    """
    logits, gradient = input_gradient(ctx, at(*state), loss) if known is None else known
    if not unroll:
        return logits, move(*state, gradient)
    with torch.no_grad():
        values = move(*state, gradient)

    def again(*leaves: Tensor) -> State:
        _, slope = input_gradient(ctx, at(*leaves), loss, differentiable=True)
        return move(*leaves, slope)

    return logits, replayed(again, values, state)


def replayed(again: Callable[..., State], values: State, state: State) -> State:
    """Known values with the derivative of ``again`` at a state, which is kept in their place.

    Args:
        again: The state to the values: it is called in the backward pass, and its graph freed.
        values: What it gives, known already.
        state: Tensors that the values depend on.
    """
    return _Unrolled.apply(again, values, *state)  # type: ignore[no-untyped-call,no-any-return]


class _Unrolled(torch.autograd.Function):
    """Known values whose derivative is that of ``again`` at the state."""

    @staticmethod
    def forward(fn: Any, again: Callable[..., State], values: State, *state: Tensor) -> State:
        fn.again = again
        fn.save_for_backward(*state)
        return values

    @staticmethod
    @once_differentiable
    def backward(fn: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad(), _inputs_only():
            leaves = [tensor.detach().requires_grad_() for tensor in fn.saved_tensors]
            found = torch.autograd.grad(fn.again(*leaves), leaves, along, allow_unused=True)
        return (None, None, *found)
