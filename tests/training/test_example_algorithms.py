"""Examples to train on, each against its paper's algorithm written out image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.hand_written import COUNT, EPS, STEPS, answers, draw, into_ball, slope, uniform
from unperturb.training.examples import (
    cw_examples,
    fgsm_direction,
    fgsm_examples,
    friendly_examples,
    kl_examples,
    pgd_examples,
    pgd_survivals,
    stadv_examples,
)

# -- FGSM of several sizes ----------------------------------------------------------------------


def test_one_direction_serves_every_size(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    direction = fgsm_direction(net, images, labels)
    assert set(direction.unique().tolist()) == {-1.0, 1.0}
    for eps in (0.01, 0.2, 0.7):
        expected = (images + eps * direction).clamp(0, 1)
        assert torch.equal(fgsm_examples(net, images, labels, eps), expected)
    for image, label, found in zip(images, labels, direction, strict=True):
        gradient = slope(net, image[None], lambda z, y=label: F.cross_entropy(z, y[None]))
        assert torch.equal(found, gradient[0].sign())


# -- friendly adversarial training --------------------------------------------------------------


def friendly_by_hand(
    net: nn.Module, image: Tensor, start: Tensor, label: Tensor, tau: int, steps: int
) -> tuple[Tensor, int]:
    """Zhang et al. 2020, Algorithm 1, for one image; and the number of steps it took."""
    point, taken = into_ball(start, image), 0
    while taken < steps:
        if int(answers(net, point[None])) != int(label):
            if tau == 0:
                break
            tau -= 1
        gradient = slope(net, point[None], lambda z: F.cross_entropy(z, label[None]))[0]
        point = into_ball(point + STEPS["step_size"] * EPS * gradient.sign(), image)
        taken += 1
    return point, taken


@pytest.mark.parametrize("tau", [0, 1, 2])
def test_friendly_examples_are_the_algorithm(
    net: nn.Module, images: Tensor, labels: Tensor, tau: int
) -> None:
    settings = {"steps": 5, "step_size": STEPS["step_size"]}
    found = friendly_examples(
        net, images, labels, EPS, **settings, tau=tau, generator=draw()
    )  # fmt: skip
    starts = images + uniform(tuple(images.shape), EPS)
    counts = []
    for i in range(len(images)):
        point, taken = friendly_by_hand(net, images[i], starts[i], labels[i], tau, 5)
        counts.append(taken)
        torch.testing.assert_close(found[i], point, rtol=0, atol=1e-6)
    assert {tau, 5} < set(counts), "some stop at once, some never, and some in between"


def test_at_tau_zero_what_is_wrong_stays_and_what_is_never_wrong_is_pgd(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    settings: dict[str, Any] = {"steps": 4, "step_size": 0.25}
    found = friendly_examples(
        net, images, labels, EPS, **settings, tau=0, generator=draw()
    )  # fmt: skip
    starts = into_ball(images + uniform(tuple(images.shape), EPS), images)
    wrong = answers(net, starts) != labels
    assert torch.equal(found[wrong], starts[wrong])
    pgd, survived = pgd_survivals(net, images, labels, EPS, **settings, generator=draw())
    never = survived == 4
    torch.testing.assert_close(found[never], pgd[never], rtol=0, atol=1e-6)
    assert 0 < int(wrong.sum()) < COUNT
    assert 0 < int(never.sum()) < COUNT
    others = ~wrong & ~never
    assert bool(others.any())
    assert bool((answers(net, found[others]) != labels[others]).all()), "just past the boundary"


def test_friendly_examples_with_patience_are_pgd(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    found = friendly_examples(net, images, labels, EPS, **STEPS, tau=3, generator=draw())
    pgd = pgd_examples(net, images, labels, EPS, **STEPS, generator=draw())
    torch.testing.assert_close(found, pgd, rtol=0, atol=1e-6)


def test_images_that_are_done_cost_no_more_passes(
    net: nn.Module, images: Tensor, counted: Any
) -> None:
    wrong = (answers(net, images) + 1) % 5
    counter = counted(net)
    # Within so small a ball all stay wrong.
    friendly_examples(
        counter, images, wrong, 1e-6, steps=5, step_size=0.25, tau=1, generator=draw()
    )  # fmt: skip
    assert counter.calls == [COUNT, COUNT], "one step, and one look at where it led"


# -- geometry-aware training --------------------------------------------------------------------


def test_survivals_are_counted_by_hand(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    settings: dict[str, Any] = {"steps": 5, "step_size": 0.25}
    found, kappa = pgd_survivals(net, images, labels, EPS, **settings, generator=draw())
    assert torch.equal(found, pgd_examples(net, images, labels, EPS, **settings, generator=draw()))
    starts = images + uniform(tuple(images.shape), EPS)
    for i in range(len(images)):
        point, survived = into_ball(starts[i], images[i])[None], 0
        for _ in range(5):
            survived += int(answers(net, point)) == int(labels[i])
            gradient = slope(net, point, lambda z, y=labels[i]: F.cross_entropy(z, y[None]))
            point = into_ball(point + 0.25 * EPS * gradient.sign(), images[i])
        assert float(kappa[i]) == survived
    assert len(kappa.unique()) > 3, "near the boundary, far from it, and beyond"
    assert float(kappa.max()) == 5
    assert float(kappa.min()) == 0


# -- the divergence of TRADES -------------------------------------------------------------------


def test_kl_examples_are_the_algorithm(net: nn.Module, images: Tensor) -> None:
    found = kl_examples(net, images, EPS, **STEPS, generator=draw())
    noise = torch.from_numpy(draw().standard_normal(tuple(images.shape), dtype=np.float32))
    with torch.no_grad():
        clean = net(images).softmax(1)

    def divergence(logits: Tensor) -> Tensor:
        return (clean * (clean.log() - logits.softmax(1).log())).sum()

    point = into_ball(images + 0.001 * noise, images)
    for _ in range(3):
        move = STEPS["step_size"] * EPS * slope(net, point, divergence).sign()
        point = into_ball(point + move, images)
    close = ((found - point).abs() < 1e-6).float().mean()
    assert float(close) > 0.999, "a gradient at zero may round to either side"


def test_kl_examples_climb_the_divergence(net: nn.Module, images: Tensor) -> None:
    def divergence(points: Tensor) -> Tensor:
        with torch.no_grad():
            p, q = net(images).softmax(1), net(points).softmax(1)
        return (p * (p / q).log()).sum(1)

    few = kl_examples(net, images, EPS, steps=1, step_size=0.25, generator=draw())
    many = kl_examples(net, images, EPS, steps=8, step_size=0.25, generator=draw())
    corner = images + EPS * uniform(tuple(images.shape), 1.0).sign()
    assert bool((divergence(many) > divergence(few)).all())
    assert bool((divergence(many) > divergence(corner)).all())


# -- Carlini and Wagner -------------------------------------------------------------------------


def cw_by_hand(
    net: nn.Module, image: Tensor, label: int, *, steps: int, weight: float, rate: float
) -> tuple[Tensor, list[Tensor], list[bool]]:
    """Autograd through tanh and ``torch.optim.Adam``; the result, the iterates, which are wrong."""
    w = torch.atanh(2 * image - 1).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=rate)
    iterates, wrong = [], []
    for _ in range(steps + 1):
        point = (torch.tanh(w) + 1) / 2
        logits = net(point[None])[0]
        iterates.append(point.detach().clone())
        wrong.append(int(logits.argmax()) != label)
        rival = torch.cat((logits[:label], logits[label + 1 :])).max()
        loss = ((point - image) ** 2).sum() + weight * torch.relu(logits[label] - rival)
        optimizer.zero_grad()
        (w.grad,) = torch.autograd.grad(loss, w)
        optimizer.step()
    best = [(float(((p - image) ** 2).sum()), i) for i, p in enumerate(iterates) if wrong[i]]
    return iterates[min(best)[1] if best else -1], iterates, wrong


@pytest.mark.parametrize(("steps", "weight", "rate"), [(8, 1.0, 0.05), (8, 0.05, 0.02)])
def test_cw_examples_are_an_independent_implementations(
    net: nn.Module, images: Tensor, labels: Tensor, steps: int, weight: float, rate: float
) -> None:
    found = cw_examples(net, images, labels, steps=steps, confidence=weight, rate=rate)
    outcomes = set()
    for i in range(len(images)):
        expected, _, wrong = cw_by_hand(
            net, images[i], int(labels[i]), steps=steps, weight=weight, rate=rate
        )
        torch.testing.assert_close(found[i], expected, rtol=0, atol=2e-4)
        outcomes.add("at once" if wrong[0] else "later" if any(wrong) else "never")
    assert outcomes >= {"at once", "later" if weight == 1.0 else "never"}


def test_cw_examples_are_the_nearest_wrong_iterate_or_else_the_last(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    found = cw_examples(net, images, labels, steps=30, rate=0.05)
    already = answers(net, images) != labels
    torch.testing.assert_close(found[already], images[already], rtol=0, atol=1e-5)
    assert bool((answers(net, found) != labels).all())
    # A weight of nearly nothing crosses no boundary: the last iterate, next to the image.
    still = cw_examples(net, images, labels, steps=3, confidence=1e-12, rate=1e-4)
    assert torch.equal(answers(net, still), answers(net, images))
    # Longer runs can only find nearer ones.
    longer = cw_examples(net, images, labels, steps=60, rate=0.05)
    apart = [(x - images).square().flatten(1).sum(1) for x in (found, longer)]
    assert bool((apart[1] <= apart[0] + 1e-6).all())


def test_cw_examples_begin_in_black_and_white_too(net: nn.Module, labels: Tensor) -> None:
    images = torch.zeros(COUNT, 3, 8, 8)
    images[::2] = 1.0
    found = cw_examples(net, images, labels, steps=4)
    assert bool(torch.isfinite(found).all())
    assert float((found - images).abs().max()) < 0.05


# -- bent images --------------------------------------------------------------------------------


def bend(images: Tensor, field: Tensor) -> Tensor:
    """``grid_sample`` along a flow (N, 2, H, W) in its units."""
    height, width = images.shape[2:]
    x = (2 * torch.arange(width) + 1) / width - 1
    y = (2 * torch.arange(height) + 1) / height - 1
    grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
    return F.grid_sample(
        images, grid + field.permute(0, 2, 3, 1), align_corners=False, padding_mode="border"
    )


def test_stadv_examples_are_steps_of_autograd_through_grid_sample(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    # In a black frame flows play no part, and beyond an edge derivatives are a convention.
    images = images.clone()
    images[:, :, [0, 1, -2, -1]] = 0.0
    images[..., [0, 1, -2, -1]] = 0.0
    flow = 0.15
    found = stadv_examples(
        net, images, labels, flow=flow, steps=4, step_size=0.3, generator=draw()
    )  # fmt: skip
    field = uniform((COUNT, 2, 8, 8), flow)
    first = bend(images, field)
    for _ in range(4):
        leaf = field.clone().requires_grad_()
        loss = F.cross_entropy(net(bend(images, leaf)), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        field = (field + 0.3 * flow * gradient.sign()).clamp(-flow, flow)
    expected = bend(images, field)
    close = ((found - expected).abs() < 1e-5).float().mean()
    assert float(close) > 0.999, "a derivative at zero may round to either side"
    losses = [
        F.cross_entropy(net(x), labels, reduction="none").detach() for x in (first, found)
    ]  # fmt: skip
    assert bool((losses[1] > losses[0]).all())


def test_stadv_examples_move_no_further_than_the_flow(
    linear: Callable[..., nn.Module],
) -> None:
    # Of a ramp that rises by 1/8 a pixel, and 8/2 pixels a unit of flow, values tell the flow.
    ramp = ((torch.arange(8) + 0.5) / 8).expand(COUNT, 1, 8, 8)
    found = stadv_examples(
        linear(side=8), ramp, torch.arange(COUNT) % 2,
        flow=0.1, steps=6, step_size=0.5, generator=draw(),
    )  # fmt: skip
    shift = (found - ramp)[..., 1:-1] / (4 / 8)
    assert float(shift.abs().max()) <= 0.1 + 1e-5
    # Six half steps reach the bound from anywhere.
    torch.testing.assert_close(shift.abs(), torch.full_like(shift, 0.1), rtol=0, atol=1e-5)


def test_stadv_examples_of_a_plain_image_are_that_image(net: nn.Module, labels: Tensor) -> None:
    plain = torch.full((COUNT, 3, 8, 8), 0.4)
    found = stadv_examples(
        net, plain, labels, flow=0.2, steps=2, step_size=0.5, generator=draw()
    )  # fmt: skip
    torch.testing.assert_close(found, plain)
