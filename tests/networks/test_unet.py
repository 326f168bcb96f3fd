"""The denoising U-Net: shapes, settings, what it says before it is trained."""

from __future__ import annotations

import json

import pytest
import torch

from unperturb.errors import ConfigError
from unperturb.networks.unet import DenoisingUNet


@pytest.mark.parametrize(("side", "depth"), [(8, 1), (32, 2), (28, 3), (13, 2)])
def test_the_noise_has_the_images_shape(side: int, depth: int) -> None:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    unet = DenoisingUNet(width=4, depth=depth)
    assert unet(images).shape == images.shape
    assert not bool(unet(images).any()), "an untrained one takes nothing away"


def test_lateral_connections_and_scales() -> None:
    unet = DenoisingUNet(width=4, depth=3, convolutions=1)
    reads = [block[0].in_channels for block in (*unet.down, *unet.up)]  # type: ignore[index,operator]
    assert reads == [3, 4, 8, 16, 16 + 16, 16 + 8, 8 + 4]


def test_settings_build_it_again_with_equal_first_weights() -> None:
    one = DenoisingUNet(width=4, in_channels=1)
    two = DenoisingUNet(**json.loads(json.dumps(one.config())))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = DenoisingUNet(**one.config(), seed=1)
    assert not torch.equal(one.down[0][0].weight, other.down[0][0].weight)  # type: ignore[index,arg-type]


@pytest.mark.parametrize(
    ("name", "value"), [("width", 0), ("depth", 6), ("convolutions", 2.0), ("in_channels", True)]
)
def test_wrong_settings(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} of the denoiser is {value}.*a whole number"):
        DenoisingUNet(**{name: value})
