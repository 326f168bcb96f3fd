"""Changes that no attacker makes: what a defense does to images that need none."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unperturb.errors import unknown_name
from unperturb.randomness import Keys
from unperturb.threat import Threat

__all__ = ["BENIGN", "JPEG_QUALITY", "benign"]

JPEG_QUALITY = 75


def _uniform(images: Tensor, keys: Keys, threat: Threat) -> Tensor:
    shape, device = images.shape[1:], images.device
    uniform = keys.uniform("uniform-noise", shape, device=device)
    normal = None
    if threat.norm == "l2":
        normal = keys.normal("uniform-noise/direction", shape, device=device)
    return threat.project(images + threat.start(uniform, normal).to(images.dtype), images)


def _gaussian(images: Tensor, keys: Keys, threat: Threat) -> Tensor:
    shape = images.shape[1:]
    sigma = threat.eps / 2
    if threat.norm == "l2":
        # The whole perturbation, not each pixel, is then about eps/2 long.
        sigma /= math.sqrt(math.prod(shape))
    noise = keys.normal("gaussian-noise", shape, device=images.device)
    return (images + sigma * noise.to(images.dtype)).clamp(0.0, 1.0)


def _jpeg(images: Tensor, keys: Keys, threat: Threat) -> Tensor:
    eight = (images.detach().cpu() * 255).round().to(torch.uint8).numpy()
    found = np.stack([_compressed(image) for image in eight])
    return torch.from_numpy(found).to(images).div_(255.0)


def _compressed(pixels: np.ndarray) -> np.ndarray:
    """One image (C, H, W) uint8 through JPEG; channels that are no color, each as grey."""
    from PIL import Image

    if pixels.shape[0] == 3:
        planes = [Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))]
    else:
        planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in pixels]
    read = []
    for plane in planes:
        stream = io.BytesIO()
        plane.save(stream, format="JPEG", quality=JPEG_QUALITY)
        with Image.open(stream) as picture:
            read.append(np.asarray(picture))
    return read[0].transpose(2, 0, 1) if pixels.shape[0] == 3 else np.stack(read)


_CHANGES: dict[str, Callable[[Tensor, Keys, Threat], Tensor]] = {
    "uniform-noise": _uniform,
    "gaussian-noise": _gaussian,
    "jpeg-75": _jpeg,
}

BENIGN = tuple(_CHANGES)
"""Benign changes by name.

- ``uniform-noise``: a uniform point of the threat's ball, so that it may do what an attack may.
- ``gaussian-noise``: ``x + sigma n``; sigma is eps/2 a pixel under Linf, and eps/(2 sqrt(CHW))
  under L2, so that the perturbation is about eps/2 long. Not cut to the ball.
- ``jpeg-75``: Pillow's JPEG at quality 75 (color at half resolution) of the image rounded to 8
  bits. The bytes may differ between versions of libjpeg.
"""


def benign(name: str, images: Tensor, keys: Keys, threat: Threat) -> Tensor:
    """Images after a change that no attacker makes.

    Args:
        name: ``uniform-noise``, ``gaussian-noise`` or ``jpeg-75``.
        images: Clean images (N, C, H, W) in [0, 1].
        keys: Names the random numbers of each image; ``jpeg-75`` has none.
        threat: Gives the size of the noise.

    Returns:
        Images of the same shape, dtype and device, in [0, 1].

    Raises:
        SpecError: The name is unknown.

    Example:
        >>> from unperturb.threat import Linf
        >>> clean = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> noisy = benign("uniform-noise", clean, Keys.of(0, ["a", "b"]), Linf(8 / 255))
        >>> bool(Linf(8 / 255).contains(noisy, clean).all())
        True
    """
    if name not in BENIGN:
        raise unknown_name("benign change", name, BENIGN)
    with torch.no_grad():
        return _CHANGES[name](images, keys, threat)
