"""TI-DIM: its resizing, its kernel, the loop by hand, and verdicts on the image itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.running import keys_of
from unperturb.attacks.base import Attacked
from unperturb.attacks.diversity import DiverseInputs, gaussian_kernel, make_ti_dim, resize_and_pad
from unperturb.attacks.registry import make_attack
from unperturb.attacks.surface import Surface
from unperturb.errors import UnperturbError
from unperturb.randomness import Keys
from unperturb.threat import L2, Linf, Threat


def attack(
    net: nn.Module, images: Tensor, labels: Tensor, threat: Threat, stop: str = "fixed",
    keys: Keys | None = None, **settings: Any,
) -> Attacked:  # fmt: skip
    given = {"name": "own", "steps": 6, "step_size": 0.2, "momentum": 1.0, **settings}
    return DiverseInputs(**given).run(
        Surface(net), images, labels, threat=threat, keys=keys or keys_of(images), stop=stop
    )


# --- the resizing -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 6)])
def test_resizing_is_that_of_torch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, *shape, generator=generator).double()
    high, wide = torch.tensor([8, 5, 1, 7, 3]), torch.tensor([6, 3, 1, 4, 5])
    down, right = torch.tensor([0, 3, 4, 1, 2]), torch.tensor([0, 1, 5, 2, 1])
    found = resize_and_pad(images, (high, wide), (down, right))
    for i in range(5):
        h, w, top, left = (int(t[i]) for t in (high, wide, down, right))
        small = F.interpolate(images[i : i + 1], (h, w), mode="bilinear", align_corners=False)
        padding = (left, shape[2] - w - left, top, shape[1] - h - top)
        torch.testing.assert_close(found[i : i + 1], F.pad(small, padding), rtol=0, atol=1e-6)


def test_an_image_of_its_own_size_comes_back_as_it_is(pixels: Any) -> None:
    images, zero = pixels(3), torch.zeros(3, dtype=torch.int64)
    side = torch.full((3,), 8)
    assert torch.equal(resize_and_pad(images, (side, side), (zero, zero)), images)


def test_sizes_places_and_probability(pixels: Any) -> None:
    made = make_ti_dim(None)
    images = torch.ones(600, 1, 32, 32)
    seen = made._diversify(images, Keys.of(0, torch.arange(600)))[:, 0]
    high, wide = (seen.amax(2) > 0.5).sum(1), (seen.amax(1) > 0.5).sum(1)
    assert torch.equal(high, wide), "square images stay square"
    resized = high < 32
    assert 0.65 < resized.float().mean().item() < 0.75
    assert high[resized].unique().tolist() == [28, 29, 30, 31]
    # Every place is taken, and rows and columns are independent.
    tops, lefts = seen.amax(2).argmax(1), seen.amax(1).argmax(1)
    assert tops.max().item() == lefts.max().item() == 4
    assert not torch.equal(tops, lefts)
    again = made._diversify(images, Keys.of(0, torch.arange(600)))[:, 0]
    assert torch.equal(seen, again)
    other = made._diversify(images, Keys.of(0, torch.arange(600)).draw(1))[:, 0]
    assert not torch.equal(seen, other), "every step draws anew"


# --- the kernel -------------------------------------------------------------------------


def test_the_kernel_by_hand() -> None:
    """Three pixels from -3 to 3 standard deviations: exp(-4.5), 1, exp(-4.5)."""
    line = torch.tensor([0.011108996538242306, 1.0, 0.011108996538242306]).double()
    wanted = line[:, None] * line / line.sum() ** 2
    torch.testing.assert_close(gaussian_kernel(3), wanted)
    assert gaussian_kernel(15).sum().item() == pytest.approx(1)


def test_smoothing_spreads_one_pixel_into_the_kernel() -> None:
    point = torch.zeros(1, 2, 9, 9)
    point[0, 1, 4, 4] = 2.0
    found = make_attack("ti-dim?kernel=5").smooth(point)  # type: ignore[attr-defined]
    torch.testing.assert_close(found[0, 1, 2:7, 2:7], 2 * gaussian_kernel(5).float())
    assert found[0, 0].abs().max().item() == 0
    assert found.sum().item() == pytest.approx(2)


# --- the loop ---------------------------------------------------------------------------


def test_without_diversity_and_kernel_it_is_mim(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(6)
    surface, labels, keys = Surface(net), torch.arange(6) % 5, keys_of(images)
    plain = make_attack("ti-dim?kernel=1&probability=0")
    mim = make_attack("mim")
    for stop in ("fixed", "first-success"):
        found, wanted = (
            a.run(surface, images, labels, threat=Linf(0.02), keys=keys, stop=stop)
            for a in (plain, mim)
        )
        assert torch.equal(found.images, wanted.images)
        assert torch.equal(found.queries, wanted.queries)


def test_the_loop_by_hand(conv: Any, pixels: Any) -> None:
    net, images, eps = conv().double(), pixels(6).double(), 0.05
    labels, made = torch.arange(6) % 5, make_attack("ti-dim-6?probability=0.5&kernel=3")
    assert isinstance(made, DiverseInputs)
    kernel = gaussian_kernel(3).expand(3, 1, 3, 3)
    x, velocity = images, torch.zeros_like(images)
    for step in range(6):
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(net(made._diversify(x, keys_of(x).draw(step))), labels)
        (g,) = torch.autograd.grad(loss, x)
        g = F.conv2d(g, kernel, padding=1, groups=3)
        velocity = velocity + g / g.abs().sum((1, 2, 3), keepdim=True)
        x = (x.detach() + eps / 6 * velocity.sign()).clamp(images - eps, images + eps).clamp(0, 1)
    found = made.run(
        Surface(net), images, labels, threat=Linf(eps), keys=keys_of(images), stop="fixed"
    )
    torch.testing.assert_close(found.images, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.3)], ids=["linf", "l2"])
def test_alone_and_in_a_batch(conv: Any, pixels: Any, threat: Threat) -> None:
    net, images = conv().double(), pixels(4).double()
    labels, keys = torch.arange(4), keys_of(images)
    whole = attack(net, images, labels, threat)
    assert torch.equal(whole.images, attack(net, images, labels, threat).images)
    assert bool(threat.contains(whole.images, images).all())
    for i in range(4):
        row = slice(i, i + 1)
        alone = attack(net, images[row], labels[row], threat, keys=keys[row])
        torch.testing.assert_close(alone.images, whole.images[row], rtol=0, atol=1e-9)


class Framed(nn.Module):
    """Wrong about every image with a black edge, and never about another."""

    def forward(self, images: Tensor) -> Tensor:
        edges = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
        least = torch.stack([edge.amax((1, 2)) for edge in edges]).amin(0)
        return torch.stack((least - 0.1, 0.1 - least), 1)


def test_an_image_leaves_only_when_it_is_broken_itself(pixels: Any) -> None:
    images, labels = pixels(5), torch.zeros(5, dtype=torch.int64)
    net = Framed().eval()
    found = attack(net, images, labels, Linf(0.01), "first-success", probability=1.0)
    assert not bool(found.success.any())
    # One pass on the clean image, a gradient and a verdict a step, and the last check.
    assert found.queries.tolist() == [1 + 2 * 6 + 1] * 5


def test_first_success_breaks_what_the_points_of_the_run_break(conv: Any, pixels: Any) -> None:
    net, images = conv().double(), pixels(24).double()
    labels = net(images).argmax(1)
    fixed = attack(net, images, labels, Linf(0.006))
    first = attack(net, images, labels, Linf(0.006), "first-success")
    assert bool(first.success[fixed.success].all())
    assert 0 < int(first.success.sum()) < 24
    stay = ~first.success
    torch.testing.assert_close(first.images[stay], fixed.images[stay], rtol=0, atol=1e-9)


# --- wrong settings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("ti-dim-0", "steps of attack 'ti-dim-0' is 0"),
        ("ti-dim?probability=1.5", "probability of attack .* is 1.5"),
        ("ti-dim?probability=-0.1", "probability of attack .* is -0.1"),
        ("ti-dim?smallest=1", "smallest of attack .* is 1.0"),
        ("ti-dim?smallest=0", "smallest of attack .* is 0"),
        ("ti-dim?kernel=4", "kernel of attack .* is 4"),
        ("ti-dim?kernel=0", "kernel of attack .* is 0"),
    ],
)
def test_wrong_settings(spec: str, problem: str) -> None:
    with pytest.raises(UnperturbError, match=problem):
        make_attack(spec)
