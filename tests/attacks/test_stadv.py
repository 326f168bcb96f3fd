"""StAdv: the warp against two other implementations, closed forms on ramps, bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.attacks.base import Attacked
from unperturb.attacks.losses import margin
from unperturb.attacks.stadv import StAdv, make_stadv, roughness, sample, warp
from unperturb.attacks.surface import Surface
from unperturb.errors import AttackError, ConfigError, SpecError
from unperturb.randomness import Keys
from unperturb.threat import Linf


def flows(count: int, height: int, width: int, size: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    shape = (count, 2, height, width)
    return size * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)


def by_scipy(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """One image (C, H, W) bent by interpolation on numbered pixels."""
    ndimage = pytest.importorskip("scipy.ndimage")
    _, height, width = image.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    places = [rows + flow[1] * height / 2, columns + flow[0] * width / 2]
    return np.stack(
        [ndimage.map_coordinates(plane, places, order=1, mode="nearest") for plane in image]
    )


def attack(
    net: nn.Module, images: Tensor, labels: Tensor, stop: str = "fixed", seed: int = 0, **kw: Any
) -> Attacked:
    keys = Keys.of(seed, [f"image-{i}" for i in range(len(images))])
    made = StAdv(**{"name": "stadv", "steps": 10, **kw})
    return made.run(Surface(net), images, labels, threat=Linf(8 / 255), keys=keys, stop=stop)


# --- the warp ---------------------------------------------------------------------------


def test_no_flow_gives_the_image_back_to_the_last_bit(pixels: Any) -> None:
    images = pixels(3, side=7)
    assert torch.equal(warp(images, torch.zeros(3, 2, 7, 7)), images)


@pytest.mark.parametrize("size", [0.05, 0.7, 3.0])
def test_warp_is_that_of_scipy_and_of_grid_sample(pixels: Any, size: float) -> None:
    images = pixels(3).double()[..., :6]
    flow = flows(3, 8, 6, size)
    bent = warp(images, flow)
    for image, one, mine in zip(images, flow, bent, strict=True):
        np.testing.assert_allclose(mine, by_scipy(image.numpy(), one.numpy()), atol=1e-12)
    theta = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64).expand(3, 2, 3)
    grid = F.affine_grid(theta, [3, 3, 8, 6], align_corners=False) + flow.permute(0, 2, 3, 1)
    sampled = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(bent, sampled, rtol=0, atol=1e-12)


def test_derivatives_are_those_of_differentiation(pixels: Any) -> None:
    images = pixels(2).double()
    flow = flows(2, 8, 8, 0.05)
    # Where no place leaves the image: beyond its edge they differ on purpose.
    flow[:, 0, :, 0], flow[:, 0, :, -1] = 0.01, -0.01
    flow[:, 1, 0], flow[:, 1, -1] = 0.01, -0.01
    flow.requires_grad_()
    (wanted,) = torch.autograd.grad(warp(images, flow).sum(), flow)
    _, by_x, by_y = sample(images, flow.detach())
    torch.testing.assert_close(torch.stack((by_x.sum(1), by_y.sum(1)), 1), wanted)


def test_a_flow_of_another_shape_is_refused(pixels: Any) -> None:
    with pytest.raises(AttackError, match=r"\(2, 2, 4, 4\)"):
        warp(pixels(2), torch.zeros(2, 2, 4, 4))


def test_roughness_of_one_pixel_that_flows_alone() -> None:
    flow = torch.zeros(1, 2, 8, 8)
    flow[0, 0, 3, 3] = 0.5  # two pixels of eight
    # It has four neighbors, and each pair counts twice.
    torch.testing.assert_close(roughness(flow), torch.tensor([16.0]))


# --- the attack -------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_optimum_on_a_ramp(linear: Any, axis: int) -> None:
    """On a ramp a flow of ``f`` changes a pixel by slope * f * size / 2, whatever its place."""
    side, limit = 8, 0.1
    net = linear(side=side).double()
    weight = net[1].weight.data.view(2, side, side)
    inner = torch.zeros(side, side, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    weight[:, ~inner] = 0.0
    slope = 0.1
    ramp = 0.1 + slope * torch.arange(side, dtype=torch.float64).expand(side, side)
    images = (ramp if axis == 0 else ramp.T)[None, None].repeat(2, 1, 1, 1)
    labels = torch.tensor([0, 1])
    found = attack(net, images, labels, flow=limit, steps=30)
    gain = slope * limit * side / 2 * (weight[1] - weight[0]).abs().sum()
    rise = margin(net(found.images), labels) - margin(net(images), labels)
    torch.testing.assert_close(rise, gain.expand(2))


def test_result_is_the_warp_of_its_flow_and_within_the_bound(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True), pixels(6)
    labels = net(images).argmax(1)
    for stop in ("fixed", "first-success"):
        found = attack(net, images, labels, stop=stop)
        assert found.detail is not None
        assert found.measure is not None
        assert torch.equal(warp(images, found.detail), found.images)
        assert torch.equal(found.detail.flatten(1).abs().amax(1), found.measure)
        # Compared in float64: the float32 nearest to 0.05 is above it.
        assert float(found.measure.double().max()) <= 0.05
        assert float(found.images.min()) >= float(images.min())
        assert float(found.images.max()) <= float(images.max())
    assert bool((found.measure > 0).all())


def test_images_that_are_wrong_already_are_not_bent(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True), pixels(6)
    labels = net(images).argmax(1)
    labels[:3] = (labels[:3] + 1) % 5
    found = attack(net, images, labels, stop="first-success")
    assert torch.equal(found.images[:3], images[:3])
    assert found.measure is not None
    assert found.measure[:3].tolist() == [0.0, 0.0, 0.0]
    fixed = attack(net, images, labels, stop="fixed")
    assert bool((fixed.images[:3] != images[:3]).flatten(1).any(1).all())


def test_equal_keys_give_equal_images_and_mates_do_not_matter(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True).double(), pixels(5).double()
    labels = net(images).argmax(1)
    first = attack(net, images, labels)
    assert torch.equal(first.images, attack(net, images, labels).images)
    other = attack(net, images, labels, seed=1, steps=1)
    assert not torch.equal(attack(net, images, labels, steps=1).images, other.images)
    alone = attack(net, images[:1], labels[:1])
    torch.testing.assert_close(alone.images, first.images[:1])


def test_without_a_random_start_one_step_is_the_sign_of_the_slope(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True).double(), pixels(2).double()
    labels = net(images).argmax(1)
    found = attack(net, images, labels, steps=1, random_start=False, step_size=0.5)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(net(leaf), labels).sum(), leaf)
    _, by_x, by_y = sample(images, torch.zeros(2, 2, 8, 8, dtype=torch.float64))
    slope = torch.stack(((gradient * by_x).sum(1), (gradient * by_y).sum(1)), 1)
    assert found.detail is not None
    torch.testing.assert_close(found.detail, 0.025 * slope.sign())


def test_tau_gives_smoother_flows(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True), pixels(4)
    labels = net(images).argmax(1)
    rough, smooth = (attack(net, images, labels, tau=tau, steps=20).detail for tau in (0.0, 1.0))
    assert rough is not None
    assert smooth is not None
    assert bool((roughness(smooth) < 0.8 * roughness(rough)).all())


@pytest.mark.parametrize(
    ("kw", "error"),
    [
        ({"flow": 0.0}, ConfigError),
        ({"step_size": -1.0}, ConfigError),
        ({"steps": 0}, ConfigError),
        ({"tau": float("nan")}, ConfigError),
        ({"loss": "l7"}, SpecError),
    ],
)
def test_wrong_settings_are_refused(kw: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        StAdv(name="stadv", **kw)


@pytest.mark.realdata
def test_standard_resnet_falls(assets: Path) -> None:
    from unperturb import load_classifier, load_images

    net = load_classifier(f"cifar-resnet20@{assets}/models/cifar10-resnet20.safetensors")
    data = load_images(f"{assets}/data/cifar10", split="test", limit=60)
    images, keys = data.images(), Keys.of(0, data.ids)
    found = make_stadv(20).run(
        Surface(net), images, data.labels, threat=Linf(8 / 255), keys=keys, stop="first-success"
    )
    assert float(found.success.float().mean()) > 0.95
    assert found.detail is not None
    for clean, bent, flow in zip(images, found.images, found.detail, strict=True):
        wanted = by_scipy(clean.double().numpy(), flow.double().numpy())
        np.testing.assert_allclose(bent, wanted, atol=1e-6)
        assert np.abs(flow.double().numpy()).max() <= 0.05
