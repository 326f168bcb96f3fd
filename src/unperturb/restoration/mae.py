"""Pre-training of the masked autoencoder: draw the clean image from visible, noisy patches."""

from __future__ import annotations

import torch
from torch import Tensor

from unperturb.networks.masked_autoencoder import MaskedAutoencoder
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, restore
from unperturb.randomness import Keys
from unperturb.restoration.config import MAEConfig
from unperturb.restoration.loop import Work, make_adam, set_gradients
from unperturb.restoration.losses import mse

__all__ = ["MAEWork"]


class MAEWork(Work):
    """One step: noise and mask, one pass, the mean squared error of all pixels.

    Args:
        network: The autoencoder, trained in place.
        transform: What is drawn.
        config: The settings.
    """

    def __init__(
        self, network: MaskedAutoencoder, transform: RandomTransform, config: MAEConfig
    ) -> None:
        network.train().requires_grad_(True)
        super().__init__({"network": network}, {"network": make_adam(network, config)})
        self.network, self.transform, self.config = network, transform.single(), config

    def losses(self, images: Tensor, labels: Tensor, keys: Keys) -> dict[str, Tensor]:
        """The mean squared error."""
        half = self.config.precision == "bfloat16"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            made = restore(self.network, images, self.transform, KeyedDraws(keys, images)).images
        found = mse(made.float(), images)
        set_gradients(found, self.network)
        return {"mse": found}
