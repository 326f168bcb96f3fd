"""A network that sees images through a VAE: the classifier of unified and asymmetric ALU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.networks.vae import VAE

__all__ = ["ThroughVAE"]


class ThroughVAE(nn.Module):
    """``f(D(E(x)))``, or ``f`` on an inner layer of the decoder in the place of images.

    *Unified* ALU trains a classifier on a VAE's outputs, so that blurred images are what it knows.
    The *asymmetric* variant lets it read a level of the decoder instead: what it reads has not the
    image's shape, so that nobody can paste its gradient onto the image.

    ``forward`` takes images all the way: encoder, decoder, network, nothing drawn (the code is the
    encoder's mean). It is an ordinary classifier of images. ``read`` begins behind the VAE: that is
    where ALU hands over what it has found by optimizing the code. The weights of the VAE are
    frozen, whatever is asked for, and it computes in its own precision under autocast too.

    Args:
        num_classes: Number of logits K.
        in_channels: Channels of the images.
        net: Registered name of the network ``f``.
        net_options: More keyword arguments of ``f``.
        vae: Keyword arguments of the ``VAE``; None for its defaults.
        level: Level of the decoder that ``f`` reads; None for images.
        mean: Normalization between the VAE and ``f``, a value for each channel; None for none.
        std: As ``mean``.

    Raises:
        ValueError: The VAE is for another number of channels, or only one of mean and std is given.

    Example:
        >>> net = ThroughVAE(net="small-cnn", level=0)
        >>> net(torch.rand(2, 3, 32, 32)).shape, net.read(torch.rand(2, 32, 8, 8)).shape
        (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        net: str = "cifar-resnet20",
        net_options: Mapping[str, Any] | None = None,
        vae: Mapping[str, Any] | None = None,
        level: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        from unperturb.networks.registry import build_network

        super().__init__()
        self.vae = VAE(**(vae or {"image_shape": (in_channels, 32, 32)}))
        if self.vae.image_shape[0] != in_channels:
            raise ValueError(f"the VAE reads {self.vae.image_shape[0]} channels, not {in_channels}")
        if (mean is None) != (std is None):
            raise ValueError("mean and std: both or neither")
        self.level = level
        channels = self.vae.feature_shape(level)[0]
        self.net = build_network(
            net, num_classes=num_classes, in_channels=channels, **(net_options or {})
        )
        self._normalizes = mean is not None
        shift, scale = torch.tensor([mean or [0.0], std or [1.0]]).view(2, 1, -1, 1, 1)
        self.register_buffer("_mean", shift, persistent=False)
        self.register_buffer("_std", scale, persistent=False)
        self.requires_grad_(True).train()

    def view(self, images: Tensor) -> Tensor:
        """What the network reads of images (N, C, H, W) in [0, 1], with the encoder's own code."""
        with torch.autocast(images.device.type, enabled=False):
            return self.vae.decode(self.vae.encode(images)[0], self.level)

    def _prepare(self, reading: Tensor) -> Tensor:
        return (reading - self._mean) / self._std if self._normalizes else reading

    def read(self, reading: Tensor) -> Tensor:
        """Logits (N, K) of decoded images, or of features of the level."""
        return self.net(self._prepare(reading))  # type: ignore[no-any-return]

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features: what the network's last layer reads."""
        return self.net.features(self._prepare(self.view(images)))  # type: ignore[operator,no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.view(images))

    def requires_grad_(self, requires_grad: bool = True) -> ThroughVAE:
        """For the network alone: the VAE stays frozen."""
        super().requires_grad_(requires_grad)
        self.vae.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> ThroughVAE:
        """For the network alone: the VAE stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        return self
