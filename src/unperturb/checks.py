"""Checks of what a caller hands in, each with a message that names the fix."""

from __future__ import annotations

import torch
from torch import Tensor

from unperturb.errors import ConfigError, DataError, InputError

__all__ = ["check_device", "check_enough", "check_images", "check_labels"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_device(device: torch.device | str) -> None:
    """Check that numbers can be put on ``device``.

    Args:
        device: Its name, such as ``cpu`` or ``cuda:1``.

    Raises:
        ConfigError: There is no such device, or it holds no numbers.

    Example:
        >>> check_device("cpu")
    """
    try:
        # A device without memory of its own, such as "meta", takes no numbers.
        torch.empty(1, device=device).fill_(0).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"The device {str(device)!r} cannot be used: {str(error).splitlines()[0]}",
            expected="cpu, or a CUDA device that torch sees",
            fix='--device cpu, or device="cpu" in Python',
        ) from None


def check_enough(images: int, *, holdout: int, batch_size: int) -> int:
    """Check that what is not held out fills a batch.

    Args:
        images: How many there are.
        holdout: How many of them, at the end, are never trained on.
        batch_size: Images in a step.

    Returns:
        How many are trained on.

    Raises:
        DataError: They are fewer than a batch.

    Example:
        >>> check_enough(100, holdout=20, batch_size=32)
        80
    """
    count = images - holdout
    if count < batch_size:
        raise DataError(
            f"{images} training images less {holdout} held out leave {max(count, 0)}",
            expected=f"at least one batch of {batch_size}",
            fix="lower holdout or batch_size, or give more images",
        )
    return count


def check_images(images: Tensor, *, channels: int | None = None) -> None:
    """Check that ``images`` are float tensors (N, C, H, W) in [0, 1].

    Args:
        images: What the caller handed in.
        channels: Number of channels the classifier reads; None accepts any.

    Raises:
        InputError: Wrong type, dtype, rank, channels or range, NaN or infinite pixels, or no image.

    Example:
        >>> check_images(torch.zeros(2, 3, 8, 8))
        >>> check_images(torch.full((1, 3, 8, 8), 255.0))
        Traceback (most recent call last):
        ...
        unperturb.errors.InputError: Images have pixels from 255 to 255. Expected: pixels in \
[0, 1]. Fix: divide by 255: images / 255.
    """
    if not isinstance(images, Tensor):
        raise InputError(
            f"Images are a {type(images).__name__}",
            expected="a float torch tensor (N, C, H, W) with pixels in [0, 1]",
            fix="convert them with torch.as_tensor(...)",
        )
    if images.ndim != 4:
        fix = "add a batch dimension: images.unsqueeze(0)" if images.ndim == 3 else ""
        raise InputError(
            f"Images have rank {images.ndim} and shape {tuple(images.shape)}",
            expected="rank 4: (N, C, H, W)",
            fix=fix,
        )
    if not images.is_floating_point():
        eight = images.dtype == torch.uint8
        raise InputError(
            f"Images have dtype {str(images.dtype).removeprefix('torch.')}",
            expected="a floating dtype with pixels in [0, 1]",
            fix="images.float() / 255" if eight else "convert them to float pixels in [0, 1]",
        )
    if images.numel() == 0:
        raise InputError(
            f"There is no image: the shape is {tuple(images.shape)}",
            expected="at least one image",
            fix="pass a batch that is not empty",
        )
    found = images.shape[1]
    if channels is not None and found != channels:
        last = images.shape[3] == channels and found != channels
        if last:
            fix = "the channels stand last: images.permute(0, 3, 1, 2)"
        elif found == 1 and channels == 3:
            fix = "repeat the grey channel: images.expand(-1, 3, -1, -1)"
        else:
            fix = "use a classifier for such images, or convert them"
        raise InputError(
            f"Images have {found} channel{'s' if found != 1 else ''}",
            expected=f"{channels} channel{'s' if channels != 1 else ''}",
            fix=fix,
        )
    low, high = torch.aminmax(images.detach())
    least, most = float(low), float(high)
    # NaN and infinities propagate through aminmax, so one pass finds all three faults.
    if not (least >= 0.0 and most <= 1.0):
        bad = ~torch.isfinite(images.detach()).flatten(1).all(1)
        if bool(bad.any()):
            raise InputError(
                f"{int(bad.sum())} of {len(images)} images hold NaN or infinite pixels "
                f"(the first is image {int(bad.nonzero()[0, 0])})",
                expected="finite pixels in [0, 1]",
                fix="remove those images, or repair what produced them",
            )
        byte_like = most > 2.0 and least >= 0.0 and most <= 255.0
        raise InputError(
            f"Images have pixels from {least:.8g} to {most:.8g}",
            expected="pixels in [0, 1]",
            fix="divide by 255: images / 255"
            if byte_like
            else "undo the normalization (it belongs to the classifier), or clip",
        )


def check_labels(labels: Tensor, *, count: int, num_classes: int) -> None:
    """Check that ``labels`` are integers (N,) in 0 .. K - 1, one for each image.

    Args:
        labels: What the caller handed in.
        count: Number of images N.
        num_classes: Number of classes K.

    Raises:
        InputError: Wrong type, dtype, shape or range.

    Example:
        >>> check_labels(torch.tensor([0, 9]), count=2, num_classes=10)
        >>> check_labels(torch.tensor([0, 10]), count=2, num_classes=10)
        Traceback (most recent call last):
        ...
        unperturb.errors.InputError: 1 of 2 labels lie outside the classes: the first is 10, \
at position 1. Expected: labels from 0 to 9. Fix: check the data set's label order, or map it \
with a label map.
    """
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        dtype = str(getattr(labels, "dtype", "")).removeprefix("torch.")
        what = f"of dtype {dtype}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise InputError(
            f"Labels are {what}", expected="an integer tensor (N,)", fix="labels.long()"
        )
    if labels.shape != (count,):
        raise InputError(
            f"Labels have shape {tuple(labels.shape)}",
            expected=f"({count},): one label for each image",
            fix="pass class indices, not one-hot rows" if labels.ndim == 2 else "",
        )
    bad = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise InputError(
            f"{len(bad)} of {count} labels lie outside the classes: "
            f"the first is {int(labels[first])}, at position {first}",
            expected=f"labels from 0 to {num_classes - 1}",
            fix="check the data set's label order, or map it with a label map",
        )
