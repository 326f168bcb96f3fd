"""Cheaper input gradients: in eval mode a batch norm's backward is one multiplication.

``y = (x - mean) / sqrt(var + eps) * weight + bias`` with constant statistics has the input
gradient ``g * weight / sqrt(var + eps)``. PyTorch's CPU kernel also sums the gradients of weight
and bias, two more passes over every activation, even where nobody asks for them. An attack and a
gradient-stepping purifier never ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

__all__ = ["InputGradients", "input_gradients"]


def input_gradients(module: nn.Module) -> AbstractContextManager[object]:
    """``InputGradients`` where a module has batch norms, else nothing: the mode has its price.

    Args:
        module: What the gradient is taken through.

    Example:
        >>> isinstance(input_gradients(nn.Linear(2, 2)), InputGradients)
        False
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    norms = any(isinstance(part, _BatchNorm) for part in module.modules())
    return InputGradients() if norms else nullcontext()


class InputGradients(TorchFunctionMode):
    """While this is entered, batch norms in eval mode give a gradient to their input only.

    Forward values are PyTorch's own to the last bit; gradients are equal up to rounding, of any
    order. No module is touched, so it holds for every network. It must enclose the forward pass
    *and* the call of ``torch.autograd.grad``, which must ask for gradients of inputs only: those
    of a batch norm's weight and bias are not there. Like every mode it counts for the calling
    thread. Only CPU tensors are concerned; compiled code goes its own way.

    Example:
        >>> norm = torch.nn.BatchNorm2d(3).eval()
        >>> images = torch.rand(2, 3, 4, 4, requires_grad=True)
        >>> with InputGradients():
        ...     (gradient,) = torch.autograd.grad(norm(images).sum(), images)
        >>> bool((gradient - (1 + 1e-5) ** -0.5).abs().max() < 1e-6)
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and not torch.compiler.is_compiling():
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm``, with the cheap backward where it applies."""
    constant = not training and running_mean is not None and running_var is not None
    # On CUDA backward passes run in threads of their own, where a checkpointed network would be
    # recomputed outside of the mode and not match itself.
    if constant and input.requires_grad and torch.is_grad_enabled() and input.is_cpu:
        return _Constant.apply(  # type: ignore[no-any-return,no-untyped-call]
            input, running_mean, running_var, weight, bias, eps
        )
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


class _Constant(torch.autograd.Function):
    """A batch norm whose statistics, weight and bias are constants."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        return F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, _, var, weight, _, eps = inputs
        # The square root of a half-precision variance would lose digits that PyTorch keeps.
        scale = (var.detach().to(torch.promote_types(var.dtype, torch.float32)) + eps).rsqrt()
        if weight is not None:
            scale = scale * weight.detach()
        scale = scale.view(1, -1, *[1] * (input.ndim - 2))
        ctx.save_for_backward(scale)
        ctx.save_for_forward(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return (gradient * scale).to(gradient.dtype), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (scale,) = ctx.saved_tensors
        along: Tensor = (tangent * scale).to(tangent.dtype)
        return along
