"""A trained denoiser in front of the classifier (Liao et al. 2018): ALU's toy purifier."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.classifiers import Classifier
from unperturb.context import Context
from unperturb.errors import ConfigError
from unperturb.networks.unet import DenoisingUNet
from unperturb.purifiers.base import Purified, Purifier
from unperturb.purifiers.settings import check_flag

__all__ = ["UNetDenoiser"]


class UNetDenoiser(Purifier):
    """``x_pur = clip(x - U(x), 0, 1)`` with a denoising U-Net ``U``.

    The purifier of ALU's toy experiment (Table 1 and Appendix C), after Liao et al. 2018: the U-Net
    is trained on the PGD-20 noise of a standard network (``unperturb fit denoiser``).

    One forward pass, plainly differentiable. Backward rules: ``exact`` (with clipping, pixels that
    it holds at 0 or 1 pass no gradient) and ``identity`` (BPDA).

    Deviation: Liao et al. do not say that denoised images are clipped; ``clip=False`` leaves them.

    Args:
        unet: The U-Net, which is copied and frozen; or its keyword arguments, for one without
            trained weights (which loading a saved defense fills in); None for the default shape.
        clip: Clip the purified image to [0, 1].

    Raises:
        ConfigError: A setting is out of range.

    Example:
        >>> UNetDenoiser(unet=DenoisingUNet(width=8)).describe()["unet"]["width"]
        8
    """

    name = "unet-denoiser"

    def __init__(
        self, *, unet: DenoisingUNet | Mapping[str, Any] | None = None, clip: bool = True
    ) -> None:
        super().__init__()
        with torch.inference_mode(False):
            built = unet if isinstance(unet, DenoisingUNet) else DenoisingUNet(**(unet or {}))
            self.unet = copy.deepcopy(built).eval().requires_grad_(False)
        self.clip = check_flag("clip", clip)

    def config(self) -> dict[str, Any]:
        """Shape of the U-Net and clipping; its weights are saved beside them."""
        return {"unet": self.unet.config(), "clip": self.clip}

    def train(self, mode: bool = True) -> UNetDenoiser:
        """Do nothing: the U-Net stays in eval mode."""
        return self

    def check_classifier(self, classifier: nn.Module) -> None:
        """Refuse a classifier of images of other channels.

        Raises:
            ConfigError: It reads another number of channels than the U-Net.
        """
        assert isinstance(classifier, Classifier)
        if classifier.input_shape[0] not in (None, self.unet.in_channels):
            raise ConfigError(
                f"The denoiser is for images of {self.unet.in_channels} channels, and the "
                f"classifier reads {classifier.input_shape[0]}",
                expected="a denoiser of the images that the classifier reads",
                fix="train one on them: unperturb fit denoiser",
            )

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        """Take the predicted noise away from each image."""
        reading = images - self.unet(images)
        if self.clip:
            reading = reading.clamp(0.0, 1.0)
        return Purified(reading, reading)
