"""FWA: the oracles against a linear program, mass and range, the ball by exact transport."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks.base import Attacked
from unperturb.attacks.losses import margin
from unperturb.attacks.surface import Surface
from unperturb.attacks.wasserstein import METHODS, FasterWasserstein, make_fwa
from unperturb.attacks.wasserstein_oracles import maximize, project
from unperturb.attacks.wasserstein_transport import Window, fit, moved
from unperturb.errors import ConfigError, SpecError
from unperturb.randomness import Keys
from unperturb.threat import Linf


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heaps(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Exact transport distance of two heaps (H, W) of equal mass, over all places of the image."""
    optimize, sparse = pytest.importorskip("scipy.optimize"), pytest.importorskip("scipy.sparse")
    places = np.argwhere(np.ones_like(one)).astype(np.float64)
    cost = np.linalg.norm(places[:, None] - places[None], axis=2)
    size = len(places)
    identity, ones = sparse.identity(size), np.ones((1, size))
    constraints = sparse.vstack([sparse.kron(identity, ones), sparse.kron(ones, identity)])
    # Rounded to float32, masses differ by some 1e-9; the program would have no solution.
    target = other.ravel() * (one.sum() / other.sum())
    found = optimize.linprog(
        cost.ravel(), A_eq=constraints, b_eq=np.concatenate([one.ravel(), target]), method="highs"
    )
    assert found.status == 0
    return float(found.fun)


def optimum(
    worth: Tensor, images: Tensor, budget: float, size: int, full: Tensor | None = None
) -> float:
    """Greatest value of a linear objective over the ball of one image, by a linear program."""
    optimize = pytest.importorskip("scipy.optimize")
    channels, height, width = images.shape
    half = size // 2
    gains, costs, rows = [], [], []
    for row, (c, i, j) in enumerate(np.ndindex(channels, height, width)):
        for di in range(-half, half + 1):
            for dj in range(-half, half + 1):
                a, b = i + di, j + dj
                if not (0 <= a < height and 0 <= b < width):
                    continue
                if full is not None and full[c, a, b] and (di, dj) != (0, 0):
                    continue
                gains.append(float(worth[c, a, b]))
                costs.append(float(np.hypot(di, dj)))
                rows.append(row)
    masses = np.zeros((images.numel(), len(gains)))
    masses[rows, np.arange(len(gains))] = 1.0
    found = optimize.linprog(
        -np.array(gains),
        A_ub=np.array(costs)[None],
        b_ub=[budget],
        A_eq=masses,
        b_eq=images.flatten().numpy(),
        method="highs",
    )
    assert found.status == 0
    return -float(found.fun)


def attack(
    net: nn.Module, images: Tensor, labels: Tensor, stop: str = "fixed", **kw: Any
) -> Attacked:
    keys = Keys.of(0, [f"image-{i}" for i in range(len(images))])
    made = FasterWasserstein(**{"name": "fwa", "steps": 10, **kw})
    return made.run(Surface(net), images, labels, threat=Linf(8 / 255), keys=keys, stop=stop)


def extreme(count: int = 4) -> Tensor:
    """Small images with many pixels at 0 and at 1."""
    generator = torch.Generator().manual_seed(7)
    return (torch.rand(count, 3, 8, 8, generator=generator) * 1.6 - 0.3).clamp(0, 1)


# --- transport --------------------------------------------------------------------------


def test_scatter_is_the_adjoint_of_gather() -> None:
    window, values, flows = Window(5), noise(2, 3, 6, 7), noise(2, 3, 25, 42, seed=1)
    left = (window.gather(values) * flows).sum()
    torch.testing.assert_close(left, (values * window.scatter(flows, (6, 7))).sum())


def test_mass_that_is_sent_right_costs_its_distance() -> None:
    window, image = Window(5), torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    image[0, 0, 2, 1] = 0.8
    flows = torch.zeros(1, 1, 25, 25, dtype=torch.float64)
    flows[0, 0, 2 * 5 + 4, 2 * 5 + 1] = 0.3  # two to the right
    flows[0, 0, 3 * 5 + 3, 2 * 5 + 1] = 0.2  # one right, one down
    found = moved(image, flows, window)
    assert found[0, 0, 2, 1].item() == pytest.approx(0.3)
    assert found[0, 0, 2, 3].item() == pytest.approx(0.3)
    assert found[0, 0, 3, 2].item() == pytest.approx(0.2)
    assert window.cost(flows).item() == pytest.approx(0.3 * 2 + 0.2 * 2**0.5)
    assert distance(image[0, 0].numpy(), found[0, 0].numpy()) == pytest.approx(
        window.cost(flows).item()
    )


def test_what_does_not_fit_is_taken_back_and_what_fits_is_not_touched() -> None:
    window, images = Window(3), extreme(3).double()
    images[2] = 1.0  # nothing fits anywhere
    masses = images.clone()
    flows = window.gather(torch.ones_like(images)) * 0.2 * heaps(3, 3, 9, 64)
    flows[:, :, window.center] = 0.0
    images[0], flows[0] = 0.3, flows[0] * 0.1
    found = fit(images, flows, window)
    assert torch.equal(found[0], flows[0])
    assert bool((found <= flows).all())
    assert bool((found >= 0).all())
    left = moved(images, found, window)
    assert float(left.min()) >= -1e-12
    assert float(left.max()) <= 1 + 1e-12
    assert float(moved(masses, flows, window).max()) > 1.1, (
        "a case that fits by itself shows little"
    )
    torch.testing.assert_close(left.sum((1, 2, 3)), images.sum((1, 2, 3)))
    # The image that is full everywhere stays full everywhere.
    torch.testing.assert_close(left[2], images[2])


# --- oracles ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("share", [0.002, 0.05, 0.7, 50.0])
def test_maximize_reaches_the_optimum_of_a_linear_program(size: int, share: float) -> None:
    window, images, worth = Window(size), heaps(3, 2, 5, 4), noise(3, 2, 5, 4)
    images[0, 0, :2] = 0.0
    full = heaps(3, 2, 5, 4, seed=5) > 0.7
    budget = share * images.sum((1, 2, 3))
    for blocked in (None, full):
        flows = maximize(worth, images, budget, window, blocked)
        assert bool((flows >= 0).all())
        assert bool((flows.sum(2) <= images.flatten(2) + 1e-12).all())
        assert bool((window.cost(flows) <= budget * (1 + 1e-12)).all())
        reached = (moved(images, flows, window) * worth).sum((1, 2, 3))
        wanted = [
            optimum(w, x, float(b), size, None if blocked is None else blocked[i])
            for i, (w, x, b) in enumerate(zip(worth, images, budget, strict=True))
        ]
        torch.testing.assert_close(reached, torch.tensor(wanted, dtype=torch.float64))


def plans(images: Tensor, window: Window, scale: float) -> Tensor:
    """What stays, moved a random way; nothing leads out of the image."""
    plan = scale * noise(*images.shape[:2], window.size**2, images[0, 0].numel(), seed=3)
    plan[:, :, window.center] += images.flatten(2)
    inside = window.gather(torch.ones_like(images)) > 0
    return plan.masked_fill(~inside, float("-inf"))


@pytest.mark.parametrize("scale", [0.02, 0.5])
@pytest.mark.parametrize("share", [0.005, 0.3, 50.0])
def test_project_is_the_nearest_plan(share: float, scale: float) -> None:
    """``P`` is the projection of ``v`` where no plan of the set gains by ``v - P(v)``."""
    window, images = Window(3), heaps(3, 2, 4, 3)
    images[0, 1, 0] = 0.0
    budget = share * images.sum((1, 2, 3))
    plan = plans(images, window, scale)
    found = project(plan, images, budget, window)
    assert bool((found >= 0).all())
    assert bool((found[plan == float("-inf")] == 0).all())
    torch.testing.assert_close(found.sum(2), images.flatten(2))
    assert bool((window.cost(found) <= budget * (1 + 1e-12)).all())
    optimize = pytest.importorskip("scipy.optimize")
    for i in range(len(images)):
        inside = (plan[i] > float("-inf")).flatten()
        apart = (plan[i] - found[i]).flatten()[inside].numpy()
        row = torch.arange(24).view(2, 1, 12).expand(2, 9, 12).flatten()[inside].numpy()
        masses = (row[None] == np.arange(24)[:, None]).astype(np.float64)
        costs = window.costs.view(1, 9, 1).expand(2, 9, 12).flatten()[inside].numpy()
        best = optimize.linprog(
            -apart, A_ub=costs[None], b_ub=[float(budget[i])], A_eq=masses,
            b_eq=images[i].flatten().numpy(), method="highs",
        )  # fmt: skip
        own = float(apart @ found[i].flatten()[inside].numpy())
        assert -best.fun - own <= 1e-5 * max(1.0, abs(own))


def test_a_plan_of_the_set_is_its_own_projection() -> None:
    window, images = Window(5), heaps(2, 3, 6, 6)
    budget = 0.1 * images.sum((1, 2, 3))
    flows = maximize(noise(2, 3, 6, 6), images, 0.5 * budget, window)
    flows[:, :, window.center] = images.flatten(2) - flows.sum(2)
    inside = window.gather(torch.ones_like(images)) > 0
    found = project(flows.masked_fill(~inside, float("-inf")), images, budget, window)
    torch.testing.assert_close(found, flows)


# --- the attack -------------------------------------------------------------------------


def test_one_step_on_a_linear_model_is_the_optimum(linear: Any, pixels: Any) -> None:
    net, images = linear(side=6).double(), pixels(3, 1, 6).double()
    labels = torch.tensor([0, 1, 0])
    # Mid-grey pixels and a small ball: nothing can overflow.
    found = attack(net, images, labels, steps=1, eps=0.002)
    rise = (margin(net(found.images), labels) - margin(net(images), labels)).detach()
    weight = (net[1].weight[1] - net[1].weight[0]).detach().view(1, 6, 6)
    budget = 0.002 * (1 - 1e-5) * images.sum((1, 2, 3))
    for i, sign in enumerate((1, -1, 1)):
        wanted = optimum(sign * weight, images[i], float(budget[i]), 5)
        wanted -= float((sign * weight * images[i]).sum())
        assert float(rise[i]) == pytest.approx(wanted, rel=1e-6)


def test_projection_reaches_that_optimum_too(linear: Any, pixels: Any) -> None:
    net, images = linear(side=6).double(), pixels(3, 1, 6).double()
    labels = torch.tensor([0, 1, 0])
    kw: dict[str, Any] = {"eps": 0.002}
    best = attack(net, images, labels, steps=1, **kw)
    found = attack(net, images, labels, steps=40, method="dual-projection", step_size=0.5, **kw)
    reached, wanted = (margin(net(r.images), labels) for r in (found, best))
    start = margin(net(images), labels)
    assert bool(((reached - start) > 0.999 * (wanted - start)).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", ["fixed", "first-success"])
def test_ball_range_and_mass_by_exact_transport(conv: Any, method: str, stop: str) -> None:
    net, images = conv(smooth=True), extreme()
    labels = net(images).argmax(1).detach()
    found = attack(net, images, labels, stop, method=method, eps=0.02)
    assert float(found.images.min()) >= 0.0
    assert float(found.images.max()) <= 1.0
    assert bool((found.images != images).flatten(1).any(1).all())
    assert found.measure is not None
    assert float(found.measure.max()) <= 0.02
    for clean, image, measure in zip(images, found.images, found.measure, strict=True):
        one, other = clean.double().numpy(), image.double().numpy()
        assert other.sum() == pytest.approx(one.sum(), rel=1e-7)
        exact = sum(distance(a, b) for a, b in zip(one, other, strict=True)) / one.sum()
        assert exact <= float(measure) * (1 + 1e-5)
        assert exact <= 0.02
        # A bound that is far from the truth would hold of anything.
        assert exact > 0.5 * float(measure)


@pytest.mark.parametrize("method", METHODS)
def test_margin_rises_and_the_detail_leaves_the_image(conv: Any, pixels: Any, method: str) -> None:
    net, images = conv(smooth=True), pixels(4)
    labels = net(images).argmax(1)
    found = attack(net, images, labels, method=method)
    assert bool((margin(net(found.images), labels) > margin(net(images), labels)).all())
    assert found.detail is not None
    again = moved(images.double(), found.detail, Window(5))
    torch.testing.assert_close(found.images.double(), again, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_equal_images_again_and_mates_do_not_matter(conv: Any, method: str) -> None:
    net, images = conv(smooth=True).double(), extreme().double()
    labels = net(images).argmax(1)
    first = attack(net, images, labels, method=method)
    assert torch.equal(first.images, attack(net, images, labels, method=method).images)
    alone = attack(net, images[:1], labels[:1], method=method)
    torch.testing.assert_close(alone.images, first.images[:1])


def test_what_was_taken_back_is_spent_again(conv: Any) -> None:
    net, images = conv(smooth=True), extreme()
    labels = net(images).argmax(1)
    found = attack(net, images, labels, steps=40, eps=0.05)
    assert found.measure is not None
    # With the oracle held to the ball itself, up to three tenths of the budget are lost here.
    assert bool((found.measure > 0.95 * 0.05).all())


def test_a_black_image_stays_black(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True), pixels(3)
    images[1] = 0.0
    found = attack(net, images, net(images).argmax(1))
    assert torch.equal(found.images[1], images[1])
    assert found.measure is not None
    assert found.measure[1] == 0.0
    assert bool(torch.isfinite(found.images).all())


def test_images_that_are_wrong_already_keep_their_mass_in_place(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True), pixels(4)
    labels = (net(images).argmax(1) + 1) % 5
    found = attack(net, images, labels, stop="first-success")
    assert torch.equal(found.images, images)
    assert found.measure is not None
    assert not bool(found.measure.any())


@pytest.mark.parametrize(
    ("kw", "error"),
    [
        ({"eps": 0.0}, ConfigError),
        ({"window": 4}, ConfigError),
        ({"window": 1}, ConfigError),
        ({"step_size": 0.0}, ConfigError),
        ({"steps": 0}, ConfigError),
        ({"method": "sinkhorn"}, SpecError),
        ({"loss": "l7"}, SpecError),
    ],
)
def test_wrong_settings_are_refused(kw: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        FasterWasserstein(name="fwa", **kw)


@pytest.mark.realdata
def test_standard_resnet_falls(assets: Path) -> None:
    from unperturb import load_classifier, load_images

    net = load_classifier(f"cifar-resnet20@{assets}/models/cifar10-resnet20.safetensors")
    data = load_images(f"{assets}/data/cifar10", split="test", limit=60)
    keys = Keys.of(0, data.ids)
    found = make_fwa(None).run(
        Surface(net), data.images(), data.labels, threat=Linf(8 / 255), keys=keys
    )
    assert float(found.success.float().mean()) > 0.95
    assert found.measure is not None
    assert float(found.measure.max()) <= 0.005
