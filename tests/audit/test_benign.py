"""Changes that no attacker makes: their size, their range, and whose numbers they are."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unperturb.audit.benign import BENIGN, benign
from unperturb.errors import SpecError
from unperturb.randomness import Keys
from unperturb.threat import L2, Linf

THREATS = [Linf(8 / 255), L2(0.5)]
NOISE = [name for name in BENIGN if "noise" in name]


def keys(count: int = 6, seed: int = 0) -> Keys:
    return Keys.of(seed, [f"i{n}" for n in range(count)])


@pytest.fixture
def clean(pixels: Callable[..., Tensor]) -> Tensor:
    """Six color images, two of them at the ends of the range."""
    images = pixels(6, 3, 16)
    images[0], images[1] = 0.0, 1.0
    return images


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
@pytest.mark.parametrize("name", BENIGN)
def test_shape_range_and_keys(name: str, threat: Any, clean: Tensor) -> None:
    before = clean.clone()
    found = benign(name, clean, keys(), threat)
    assert torch.equal(clean, before)
    assert (found.shape, found.dtype) == (clean.shape, clean.dtype)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(found, benign(name, clean, keys(), threat))
    alone = torch.cat([benign(name, clean[n : n + 1], keys()[n : n + 1], threat) for n in range(6)])
    assert torch.equal(alone, found), "an image depends on its batch mates"
    other = benign(name, clean, keys(seed=1), threat)
    assert torch.equal(found, other) is (name == "jpeg-75")


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
def test_uniform_noise_fills_the_ball_and_no_more(threat: Any) -> None:
    grey = torch.full((400, 1, 6, 6), 0.5)
    found = benign("uniform-noise", grey, keys(400), threat)
    assert bool(threat.contains(found, grey).all())
    if threat.norm == "linf":
        moved = (found - grey) / threat.eps
        # A uniform number on [-1, 1] has mean 0, variance 1/3.
        assert float(moved.mean()) == pytest.approx(0, abs=0.02)
        assert float(moved.var()) == pytest.approx(1 / 3, abs=0.01)
        assert float(moved.abs().max()) > 0.999
    else:
        radius = threat.distance(found, grey) / threat.eps
        # The radius of a uniform point of a ball in d dimensions has mean d/(d+1).
        assert float(radius.mean()) == pytest.approx(36 / 37, abs=0.005)


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
def test_gaussian_noise_has_half_the_size(threat: Any) -> None:
    grey = torch.full((400, 1, 6, 6), 0.5)
    moved = benign("gaussian-noise", grey, keys(400), threat) - grey
    sigma = threat.eps / 2 if threat.norm == "linf" else threat.eps / 12
    assert float(moved.std()) == pytest.approx(sigma, rel=0.02)
    assert float(moved.mean()) == pytest.approx(0, abs=sigma * 0.03)
    if threat.norm == "l2":
        length = float(threat.distance(moved, 0 * moved).mean())
        assert length == pytest.approx(threat.eps / 2, rel=0.03)


def test_noises_differ_from_each_other() -> None:
    grey = torch.full((2, 1, 6, 6), 0.5)
    one, two = (benign(name, grey, keys(2), Linf(0.1)) - grey for name in NOISE)
    correlation = float(torch.corrcoef(torch.stack((one.flatten(), two.flatten())))[0, 1])
    assert abs(correlation) < 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_writes_and_reads(channels: int, pixels: Any) -> None:
    clean = pixels(3, channels, 16)
    found = benign("jpeg-75", clean, keys(3), Linf(0.1))
    for before, after in zip(clean, found, strict=True):
        eight = (before * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        stream = io.BytesIO()
        Image.fromarray(eight.squeeze()).save(stream, "jpeg", quality=75)
        with Image.open(stream) as picture:
            read = np.asarray(picture).reshape(16, 16, channels)
        assert torch.equal((after * 255).round().permute(1, 2, 0), torch.tensor(read).float())
    assert not torch.equal(found, clean)


def test_jpeg_of_a_flat_image_is_that_image() -> None:
    flat = torch.full((2, 3, 16, 16), 51 / 255)
    torch.testing.assert_close(benign("jpeg-75", flat, keys(2), Linf(0.1)), flat)


def test_jpeg_of_channels_that_are_no_color() -> None:
    stack = torch.rand(1, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    found = benign("jpeg-75", stack, keys(1), Linf(0.1))
    for channel in range(5):
        alone = benign("jpeg-75", stack[:, channel : channel + 1], keys(1), Linf(0.1))
        assert torch.equal(found[:, channel : channel + 1], alone)


def test_an_unknown_change() -> None:
    with pytest.raises(SpecError, match=r"Unknown benign change 'jpeg'.*did you mean 'jpeg-75'"):
        benign("jpeg", torch.zeros(1, 1, 2, 2), keys(1), Linf(0.1))
