"""Small VAEs for tests, untrained and trained on digits."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from unperturb.data import ImageSet, load_images
from unperturb.generative import VAEConfig, train_vae
from unperturb.networks.vae import VAE


def tiny(*, channels: int = 3, side: int = 8, sharp: float = 1.0, **options: object) -> VAE:
    """A VAE for images of 8x8 whose decoder's outputs differ from grey."""
    vae = VAE(
        image_shape=(channels, side, side),
        **{"width": 4, "downsample": 1, "latent_channels": 2, **options},  # type: ignore[arg-type]
    )
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(sharp)
    return vae.eval().requires_grad_(False)


def digit_set(count: int = 600) -> ImageSet:
    """The first digits of the training split."""
    return load_images("digits", split="train").take(slice(0, count))


@cache
def _digits_state() -> dict[str, Tensor]:
    vae = tiny(channels=1, width=8, latent_channels=4)
    config = VAEConfig(
        epochs=8, batch_size=32, lr=5e-3, milestones=(0.7,), augment="none", holdout=100
    )
    train_vae(vae, digit_set(), config, show=False)
    return {name: value.clone() for name, value in vae.state_dict().items()}


def digits_vae() -> VAE:
    """A VAE trained on digits for a second or two: about 19 dB."""
    vae = tiny(channels=1, width=8, latent_channels=4)
    vae.load_state_dict(_digits_state())
    return vae
