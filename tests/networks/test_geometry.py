"""Resize and crop, against PIL and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unperturb.errors import ConfigError
from unperturb.networks import Geometry


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 56), (12, 10)])
def test_resize_agrees_with_pillow(mode: str, size: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    # Away from 0 and 255: Pillow also clamps between its two passes.
    pixels = np.random.default_rng(0).integers(80, 176, (24, 30, 3), dtype=np.uint8)
    resample = {"bilinear": image.Resampling.BILINEAR, "bicubic": image.Resampling.BICUBIC}[mode]
    theirs = np.asarray(image.fromarray(pixels).resize(size[::-1], resample))
    ours = Geometry(size, interpolation=mode).apply(
        torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    )
    gap = ours[0].permute(1, 2, 0).numpy() * 255 - theirs
    # Bytes are rounded after each pass; the second, with weights of sum 1.3, adds to the first.
    assert np.abs(gap).max() <= 1.2


def test_bicubic_stays_in_range() -> None:
    edges = torch.zeros(1, 1, 8, 8)
    edges[..., 4:] = 1.0
    out = Geometry(19, interpolation="bicubic").apply(edges)
    assert out.min() >= 0
    assert out.max() <= 1


def test_crop_is_central() -> None:
    x = torch.arange(36.0).view(1, 1, 6, 6)
    assert torch.equal(Geometry(crop=(2, 4)).apply(x), x[..., 2:4, 1:5])


def test_short_side_and_aspect() -> None:
    assert Geometry(227).size(300, 232) == (293, 227)
    assert Geometry((5, 9)).size(300, 232) == (5, 9)
    assert Geometry().size(3, 4) == (3, 4)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_identity_is_the_same_tensor() -> None:
    x = uniform(1, 3, 8, 8)
    assert Geometry(8, (8, 8)).apply(x) is x


def test_twice_differentiable() -> None:
    x = uniform(1, 1, 9, 9).double().requires_grad_()
    geometry = Geometry(6, (5, 5))
    with torch.random.fork_rng(devices=[]):
        assert torch.autograd.gradcheck(geometry.apply, x)
        assert torch.autograd.gradgradcheck(geometry.apply, x)


@pytest.mark.parametrize(
    "geometry",
    [Geometry(), Geometry(7), Geometry((3, 4), (2, 2), "bicubic"), Geometry(crop=(1, 2))],
)
def test_round_trip(geometry: Geometry) -> None:
    import json

    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


def test_errors() -> None:
    with pytest.raises(
        ConfigError, match=r"interpolation is 'lanczos'.*bilinear, bicubic, nearest"
    ):
        Geometry(interpolation="lanczos")
    with pytest.raises(ConfigError, match=r"crop \(9, 9\) is larger than .*\(8, 8\)"):
        Geometry(8, (9, 9))
    with pytest.raises(ConfigError, match=r"geometry's resize is \(0, 0\)"):
        Geometry(0)
    with pytest.raises(ConfigError, match="Images of 4x4 cannot be cropped to 5x5"):
        Geometry(crop=(5, 5)).apply(uniform(1, 1, 4, 4))
