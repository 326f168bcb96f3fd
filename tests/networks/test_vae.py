"""The VAE: shapes, levels, ranges, refusals."""

from __future__ import annotations

import json

import pytest
import torch

from small_vae import tiny
from unperturb.errors import ConfigError, InputError
from unperturb.networks.vae import VAE


def some(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("shape", "downsample", "latent"),
    [
        ((3, 32, 32), 2, (8, 8, 8)),
        ((3, 64, 64), 2, (8, 16, 16)),
        ((3, 64, 64), 4, (8, 4, 4)),
        ((1, 8, 8), 1, (8, 4, 4)),
        ((1, 28, 28), 2, (8, 7, 7)),
        ((3, 16, 48), 3, (8, 2, 6)),
    ],
)
def test_shapes_of_codes_images_and_levels(
    shape: tuple[int, int, int], downsample: int, latent: tuple[int, int, int]
) -> None:
    vae = VAE(image_shape=shape, downsample=downsample, width=4).eval()
    images = some(2, *shape)
    mean, log_variance = vae.encode(images)
    assert tuple(mean.shape[1:]) == tuple(log_variance.shape[1:]) == vae.latent_shape == latent
    whole = vae.decode(mean)
    assert whole.shape == images.shape
    assert torch.equal(vae(images), whole)
    for level in range(downsample + 1):
        features = vae.decode(mean, level)
        assert tuple(features.shape[1:]) == vae.feature_shape(level)
        assert torch.equal(vae.finish(features, level), whole)
    assert vae.feature_shape(None) == shape


def test_the_default_is_the_one_that_is_documented() -> None:
    vae = VAE()
    assert sum(p.numel() for p in vae.parameters()) == 57_107
    assert vae.config() == {
        "image_shape": [3, 32, 32],
        "width": 16,
        "downsample": 2,
        "latent_channels": 8,
        "pixel_range": [0.0, 1.0],
    }


def test_settings_build_it_again_with_equal_first_weights() -> None:
    one = tiny()
    two = VAE(**json.loads(json.dumps(one.config())))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = VAE(**one.config(), seed=1)
    assert not torch.equal(one.decoder[0].weight, other.decoder[0].weight)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0), (2.0, 3.0)])
def test_pixels_stay_in_the_range_and_use_it(ends: tuple[float, float]) -> None:
    vae = tiny(sharp=300.0, pixel_range=ends)
    found = vae.decode(6 * some(50, *vae.latent_shape) - 3)
    low, high = ends
    assert float(found.min()) >= low
    assert float(found.max()) <= high
    assert float(found.max() - found.min()) > 0.9 * (high - low)


def test_the_encoder_reads_a_range_as_it_would_the_other() -> None:
    images = some(3, 3, 8, 8)
    plain, wide = tiny(), tiny(pixel_range=(-1.0, 1.0))
    torch.testing.assert_close(wide.encode(2 * images - 1)[0], plain.encode(images)[0])


def test_variances_are_bounded() -> None:
    vae = tiny()
    with torch.no_grad():
        vae.encoder[-1].weight.mul_(1e4)
    found = vae.encode(some(9, 3, 8, 8))[1]
    assert float(found.min()) == -10.0
    assert float(found.max()) == 5.0


def test_images_of_another_shape_or_dtype() -> None:
    vae = tiny()
    vae.check(some(1, 3, 8, 8))
    with pytest.raises(InputError, match="Images are 3x8x9 .*3x8x8, which the VAE was made for"):
        vae.check(some(1, 3, 8, 9))
    with pytest.raises(InputError, match="Images are 1x8x8"):
        vae.check(some(1, 1, 8, 8))
    with pytest.raises(InputError, match="float64.*float32, as the weights of the VAE"):
        vae.check(some(1, 3, 8, 8).double())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width of the VAE is 0"),
        ({"downsample": 2.0}, "downsample of the VAE is 2.0"),
        ({"latent_channels": True}, "latent_channels of the VAE is True"),
        ({"image_shape": (3, 30, 32)}, "30x32.*multiples of 4"),
        ({"image_shape": (3, 24, 24), "downsample": 4}, "24x24.*multiples of 16.*lower downsample"),
        ({"image_shape": (32, 32)}, r"image_shape of the VAE is \(32, 32\)"),
        ({"pixel_range": (1.0, 0.0)}, r"pixel_range of the VAE is \(1.0, 0.0\)"),
    ],
)
def test_wrong_settings(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VAE(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [-1, 2, 1.0, True])
def test_levels_that_are_not_there(level: int) -> None:
    with pytest.raises(ConfigError, match=f"The level of the decoder is {level}.*to 1"):
        tiny().feature_shape(level)
