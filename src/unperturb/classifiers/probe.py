"""Trying a classifier once: what comes out of it, and how many classes it has."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.errors import InputError, SpecError

__all__ = ["channels_of", "check_output", "probe_classes", "run_quietly"]


def run_quietly(classifier: nn.Module, images: Tensor) -> Any:
    """A forward pass without gradients that leaves global random state as it was."""
    found = {p.device for p in classifier.parameters()} | {b.device for b in classifier.buffers()}
    devices = sorted((device for device in found if device.type == "cuda"), key=str)
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        return classifier(images)


def probe_classes(
    classifier: nn.Module, shape: tuple[int | None, int | None, int | None], grey: Tensor
) -> int:
    """The number of logits, from two images of one grey value at the sizes that are usual.

    Args:
        classifier: Images in [0, 1] to logits.
        shape: (C, H, W) where they are known.
        grey: The grey value, a scalar on the device and of the dtype to use.

    Raises:
        SpecError: It reads none of the sizes tried.
        InputError: What comes out is not (N, K), or not finite.
    """
    failures = []
    for size in _sizes(classifier, shape):
        try:
            out = run_quietly(classifier, grey.expand(2, *size).contiguous())
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            failures.append(f"{size[0]}x{size[1]}x{size[2]}: {reason}")
            continue
        classes = out.shape[1] if isinstance(out, Tensor) and out.ndim == 2 else 2
        check_output(out, 2, classes)
        return int(classes)
    raise SpecError(
        f"The number of classes cannot be found by trying the classifier ({failures[0]})",
        expected="num_classes, or an input_shape that it reads",
        fix="as_classifier(module, num_classes=K, input_shape=(C, H, W))",
    )


def _sizes(
    classifier: nn.Module, shape: tuple[int | None, int | None, int | None]
) -> list[tuple[int, int, int]]:
    """Image sizes (C, H, W) worth trying, the likeliest first."""
    sides: list[int] = []
    first = next((m for m in classifier.modules() if isinstance(m, (nn.Linear, nn.Conv2d))), None)
    colors = [shape[0]] if shape[0] else [3, 1]
    if isinstance(first, nn.Linear):
        roots = [(c, math.isqrt(first.in_features // c)) for c in colors]
        sides = [side for c, side in roots if side and c * side * side == first.in_features]
    sides += [32, 224, 28, 64, 8]
    found = [(c, shape[1] or side, shape[2] or side) for c in colors for side in sides]
    return list(dict.fromkeys(found))


def check_output(out: Any, count: int, num_classes: int) -> None:
    """Check that ``out`` is a finite float tensor (N, K).

    Raises:
        InputError: It is not.
    """
    if not isinstance(out, Tensor) or not out.is_floating_point():
        what = str(out.dtype) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"The classifier returns a {what}",
            expected="a float tensor of logits (N, K)",
            fix="wrap it in a module that returns the logits only, such as output.logits",
        )
    if out.shape != (count, num_classes):
        raise InputError(
            f"The classifier returns the shape {tuple(out.shape)} for {count} images",
            expected=f"logits (N, K) = ({count}, {num_classes})",
            fix="return one row of logits per image, and give the right num_classes",
        )
    if not bool(torch.isfinite(out).all()):
        raise InputError(
            "The classifier returns NaN or infinite logits",
            expected="finite logits",
            fix="check its weights and its normalization",
        )


def channels_of(module: nn.Module) -> int | None:
    """Channels that the first convolution reads; None if there is none."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
    return None
