"""Floating-point operations of anything that runs, as PyTorch's own counter sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops"]


class _Untracked:
    """In place of the counter's tracker of submodules, which nobody here asks.

    The tracker puts hooks on all modules of the process, and fails on a gradient that is taken
    of the images themselves (a leaf), which is what every attack and TPAP's purifier do.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> _Untracked:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


def _convolution_backward(
    gradient: Sequence[int],
    images: Sequence[int],
    weight: Sequence[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    wanted: Sequence[bool],
    **rest: Any,
) -> int:
    """Each gradient takes the forward pass's operations; PyTorch's own formula forgets groups.

    Args are those of ``aten.convolution_backward``, with shapes in place of tensors.
    """
    places = prod(images[2:] if transposed else gradient[2:])
    return 2 * prod(weight) * places * images[0] * sum(wanted[:2])


_FORMULAS: dict[Any, Any] = {torch.ops.aten.convolution_backward: _convolution_backward}


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of one call, forward and backward passes alike.

    Counted are convolutions, matrix products and attention, by the formulas of
    ``torch.utils.flop_counter``; one multiply-add is **two** operations. Elementwise operations,
    normalization, pooling and resizing are not counted, and neither is an optimizer's step: they
    cost time but few operations. What a backward pass does not compute is not counted: a gradient
    of the images alone leaves out those of the weights. One formula is ours: PyTorch's counts the
    weights' gradient of a convolution in groups once for each group.

    A convolution with ``W`` weights whose output has ``P`` places costs ``2 W P`` for each image,
    its gradient for the images as much again, and its gradient for the weights, too.

    Args:
        run: What is called, once.

    Example:
        >>> import torch
        >>> layer, rows = torch.nn.Linear(8, 5), torch.rand(3, 8)
        >>> count_flops(lambda: layer(rows))
        240
        >>> count_flops(lambda: layer(rows).sum().backward())
        480
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]
    with counter:
        run()
    return counter.get_total_flops()
