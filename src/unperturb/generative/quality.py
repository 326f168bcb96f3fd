"""How well a VAE gives images back: squared error and PSNR."""

from __future__ import annotations

import torch
from torch import Tensor

from unperturb.data import ImageSet
from unperturb.networks.vae import VAE

__all__ = ["psnr", "reconstruction"]


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image (N,): ``-10 log10(mean squared error)``.

    Args:
        images: (N, C, H, W) with pixels in [0, 1].
        others: Of the same shape.

    Example:
        >>> round(float(psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1))), 4)
        20.0
    """
    error = (images - others).square().flatten(1).mean(1)
    return -10.0 * torch.log10(error.clamp(min=1e-12))


@torch.no_grad()
def reconstruction(
    vae: VAE, data: ImageSet, *, batch_size: int = 250, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Plain encode-decode of a data set.

    Args:
        vae: In eval mode.
        data: The images.
        batch_size: Images at a time.
        device: Where the VAE is.

    Returns:
        ``mse``, the mean squared error a pixel, and ``psnr``, the mean over images of their PSNR in
        dB.
    """
    ratios, errors = 0.0, 0.0
    for start in range(0, len(data), batch_size):
        images = data.images(slice(start, start + batch_size)).to(device)
        found = vae(images)
        ratios += float(psnr(images, found).sum())
        errors += float((images - found).square().flatten(1).mean(1).sum())
    return {"mse": errors / len(data), "psnr": ratios / len(data)}
