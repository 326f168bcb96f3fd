"""The attack engine: closed forms on linear models, hand-written loops, stopping, restarts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.running import Noisy, keys_of
from attacks.running import first_order as attack
from unperturb.attacks.base import Attacked
from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.losses import LOSSES, margin
from unperturb.attacks.surface import Surface
from unperturb.defense import Defense
from unperturb.errors import SpecError
from unperturb.presets import tpap
from unperturb.threat import L2, Linf, Threat


def trajectory(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int = 10,
    step_size: float = 0.25,
    start: Tensor | None = None,
    momentum: float = 0.0,
) -> Iterator[Tensor]:
    """Linf PGD and MIM as anybody would write them; every point, the start included."""
    x = images if start is None else (images + start).clamp(images - eps, images + eps).clamp(0, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    velocity = torch.zeros_like(x)
    yield x
    for _ in range(steps):
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(net(x), labels, reduction="sum")
        (g,) = torch.autograd.grad(loss, x)
        if momentum:
            velocity = momentum * velocity + g / g.abs().sum((1, 2, 3), keepdim=True)
            g = velocity
        x = x.detach() + step_size * eps * g.sign()
        x = torch.max(torch.min(x, images + eps), images - eps).clamp(0, 1)
        yield x


def start_of(images: Tensor, eps: float, number: int = 0) -> Tensor:
    uniform = keys_of(images).draw(number).uniform("start", images.shape[1:])
    return (2 * uniform - 1) * eps


# --- closed forms on linear models ------------------------------------------------------

ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {"steps": 1, "step_size": 1.0},
    "bim": {"steps": 8},
    "pgd": {"steps": 16, "random_start": True},
    "mim": {"steps": 10, "step_size": 0.1, "momentum": 1.0},
}


# All but ``both-up``, which is not there to move the margin, have one optimum on two classes.
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "both-up"])
@pytest.mark.parametrize("name", ATTACKS)
def test_linf_optimum(linear: Any, pixels: Any, name: str, loss: str) -> None:
    """The margin of a linear two-class model moves by exactly eps * ||w_1 - w_0||_1."""
    net, images, eps = linear().double(), pixels(24, 1, 4).double(), 0.05
    labels = torch.arange(24) % 2
    found = attack(net, images, labels, Linf(eps), loss=loss, **ATTACKS[name])
    weight = net[1].weight.detach()
    gain = eps * (weight[1] - weight[0]).abs().sum()
    before, after = margin(net(images), labels), margin(net(found.images), labels)
    torch.testing.assert_close(after - before, gain.expand(24).double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["fgsm", "bim", "mim"])
def test_l2_optimum(linear: Any, pixels: Any, name: str) -> None:
    net, images, eps = linear().double(), pixels(24, 1, 4).double(), 0.2
    labels = torch.arange(24) % 2
    found = attack(net, images, labels, L2(eps), **ATTACKS[name])
    weight = net[1].weight.detach()
    gain = eps * (weight[1] - weight[0]).norm()
    change = margin(net(found.images), labels) - margin(net(images), labels)
    torch.testing.assert_close(change, gain.expand(24).double(), rtol=1e-5, atol=1e-7)


def test_l2_optimum_from_a_random_start(linear: Any, pixels: Any) -> None:
    net, images, eps = linear().double(), pixels(24, 1, 4).double(), 0.2
    labels = torch.arange(24) % 2
    found = attack(net, images, labels, L2(eps), steps=80, random_start=True)
    weight = net[1].weight.detach()
    gain = eps * (weight[1] - weight[0]).norm()
    change = margin(net(found.images), labels) - margin(net(images), labels)
    torch.testing.assert_close(change, gain.expand(24).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stop", ["fixed", "first-success"])
@pytest.mark.parametrize(("kind", "order"), [(Linf, 1), (L2, 2)])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_success_exactly_beyond_the_distance(
    linear: Any, pixels: Any, kind: type[Threat], order: int, stop: str, name: str
) -> None:
    """Distance to the boundary: margin / dual norm of the weights."""
    net, images = linear().double(), pixels(60, 1, 4, seed=4).double()
    labels = net(images).argmax(1)
    weight = net[1].weight.detach()
    distance = -margin(net(images), labels) / torch.linalg.vector_norm(weight[1] - weight[0], order)
    eps = distance.median().item() + 1e-9
    # A random start costs PGD the last thousandth of the ball.
    safe = (distance / eps - 1).abs() > (1e-3 if name == "pgd" else 0.0)
    options = {**ATTACKS[name], **({"steps": 100} if name == "pgd" else {})}
    found = attack(net, images, labels, kind(eps), stop, **options)
    assert torch.equal(found.success[safe], (distance < eps)[safe])
    assert 20 < int(found.success.sum()) < 40


def test_clipping_binds_at_the_edge(linear: Any) -> None:
    """At black and white pixels only the free direction counts."""
    net = linear().double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 2, (12, 1, 4, 4), generator=generator).double()
    labels = torch.arange(12) % 2
    found = attack(net, images, labels, Linf(0.1), steps=1, step_size=1.0)
    weight = net[1].weight.detach()
    slope = (weight[1 - labels] - weight[labels]).view(-1, 1, 4, 4)
    free = ((slope > 0) & (images == 0)) | ((slope < 0) & (images == 1))
    gain = 0.1 * (slope.abs() * free).sum((1, 2, 3))
    change = margin(net(found.images), labels) - margin(net(images), labels)
    torch.testing.assert_close(change, gain)


# --- hand-written loops -----------------------------------------------------------------


@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_equals_a_hand_written_loop_bit_for_bit(
    conv: Any, pixels: Any, random_start: bool
) -> None:
    net, images = conv(), pixels(12)
    labels, eps = torch.arange(12) % 5, 0.06
    found = attack(net, images, labels, Linf(eps), random_start=random_start)
    start = start_of(images, eps) if random_start else None
    *_, wanted = trajectory(net, images, labels, eps, start=start)
    assert torch.equal(found.images, wanted)
    assert torch.equal(found.success, net(wanted).argmax(1) != labels)


@pytest.mark.parametrize("momentum", [1.0, 0.5])
def test_mim_equals_a_hand_written_loop(conv: Any, pixels: Any, momentum: float) -> None:
    net, images = conv().double(), pixels(12).double()
    labels, eps = torch.arange(12) % 5, 0.06
    found = attack(net, images, labels, Linf(eps), step_size=0.1, momentum=momentum)
    *_, wanted = trajectory(net, images, labels, eps, step_size=0.1, momentum=momentum)
    torch.testing.assert_close(found.images, wanted, rtol=0, atol=1e-12)
    *_, without = trajectory(net, images, labels, eps, step_size=0.1)
    assert not torch.equal(found.images, without)


def test_momentum_of_the_images_that_stay(conv: Any, pixels: Any) -> None:
    """Images that leave must not shift the velocities of those that stay."""
    net, images = conv().double(), pixels(16).double()
    labels, eps = net(images).argmax(1), 0.006
    settings = {"steps": 12, "step_size": 0.1, "momentum": 1.0}
    fixed = attack(net, images, labels, Linf(eps), "fixed", **settings)
    first = attack(net, images, labels, Linf(eps), "first-success", **settings)
    stay = ~first.success
    assert 0 < int(stay.sum()) < 16
    torch.testing.assert_close(first.images[stay], fixed.images[stay], rtol=0, atol=1e-12)


# --- two stopping rules -----------------------------------------------------------------


@pytest.mark.parametrize("random_start", [False, True])
def test_first_success_is_the_first_broken_point(
    conv: Any, pixels: Any, random_start: bool
) -> None:
    net, images = conv().double(), pixels(40).double()
    clean = net(images).argmax(1)
    labels = clean.clone()
    labels[:5] = (labels[:5] + 1) % 5  # five that are wrong from the start
    eps = 0.008
    start = start_of(images, eps).double() if random_start else None
    points = torch.stack(list(trajectory(net, images, labels, eps, start=start)))
    wrong = torch.stack([net(p).argmax(1) != labels for p in points])
    ever, when = wrong.any(0), wrong.int().argmax(0)
    when[~ever] = len(points) - 1
    assert 5 < int(ever.sum()) < 40
    assert len(set(when.tolist())) > 3

    first = attack(net, images, labels, Linf(eps), "first-success", random_start=random_start)
    ever[:5] = True
    broken_at = points[when, torch.arange(40)]
    broken_at[:5] = images[:5]  # nothing needs to be done to them
    assert torch.equal(first.success, ever)
    torch.testing.assert_close(first.images, broken_at, rtol=0, atol=1e-12)
    # One pass on the clean image, one for each gradient up to the one that shows the success,
    # and one to re-check.
    passes = torch.where(ever & (when < 10), when + 3, 12)
    passes[clean != labels] = 2
    assert torch.equal(first.queries, passes)

    fixed = attack(net, images, labels, Linf(eps), "fixed", random_start=random_start)
    torch.testing.assert_close(fixed.images, points[-1], rtol=0, atol=1e-12)
    assert torch.equal(fixed.success, wrong[-1])
    assert fixed.queries.tolist() == [11] * 40
    # The stopped image is the weaker perturbation, never the weaker verdict.
    assert bool((first.success | ~fixed.success).all())
    gone = ever & (when < 10)
    with torch.no_grad():
        further = margin(net(fixed.images), labels) - margin(net(first.images), labels)
    assert further[gone].mean().item() > 0


def test_unknown_stopping_rule(conv: Any, pixels: Any) -> None:
    with pytest.raises(SpecError, match="Unknown stopping rule 'first_success'.*'first-success'"):
        attack(conv(), pixels(2), torch.zeros(2).long(), Linf(0.1), "first_success")


# --- restarts ---------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["fixed", "first-success"])
def test_restarts_keep_the_first_success_or_the_greatest_margin(
    conv: Any, pixels: Any, stop: str
) -> None:
    net, images = conv().double(), pixels(40).double()
    labels, eps = net(images).argmax(1), 0.006
    lasts, values, wins = [], [], []
    for number in range(3):
        start = start_of(images, eps, number).double()
        points = list(trajectory(net, images, labels, eps, steps=3, start=start))
        judged = torch.stack([margin(net(p), labels) for p in points])
        lasts.append(points[-1])
        values.append(judged[-1])
        wins.append((judged > 0).any(0) if stop == "first-success" else judged[-1] > 0)
    found = attack(net, images, labels, Linf(eps), stop, steps=3, random_start=True, restarts=3)
    ever = torch.stack(wins).any(0)
    assert torch.equal(found.success, ever)
    assert 0 < int(wins[0].sum()) < int(ever.sum()) < 40
    best = torch.stack(values).argmax(0)
    wanted = torch.stack(lasts)[best, torch.arange(40)]
    torch.testing.assert_close(found.images[~ever], wanted[~ever], rtol=0, atol=1e-12)
    assert len(set(best[~ever].tolist())) == 3


# --- batch mates ------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["fixed", "first-success"])
@pytest.mark.parametrize("threat", [Linf(0.005), L2(0.05)], ids=["linf", "l2"])
@pytest.mark.parametrize("kind", ["net", "tpap", "random"])
def test_batch_mates_do_not_matter(
    conv: Any, pixels: Any, kind: str, threat: Threat, stop: str
) -> None:
    net, images = conv().double(), pixels(20).double()
    small = tpap(net, radius=0.002)
    target = {"net": net, "tpap": small, "random": Defense(net, purifier=Noisy())}[kind]
    labels = (small if kind == "tpap" else net)(images).argmax(1)
    keys = keys_of(images)
    options: dict[str, Any] = {"steps": 6, "random_start": True, "restarts": 2, "draws": 2}

    def run(rows: Tensor) -> Attacked:
        return attack(target, images[rows], labels[rows], threat, stop, keys[rows], **options)

    together = run(torch.arange(20))
    assert 0 < int(together.success.sum()) < 20
    for rows in (torch.randperm(20, generator=torch.Generator().manual_seed(0)), torch.tensor([7])):
        found = run(rows)
        torch.testing.assert_close(found.images, together.images[rows], rtol=0, atol=1e-9)
        assert torch.equal(found.success, together.success[rows])
        assert torch.equal(found.queries, together.queries[rows])


# --- both logits raised -----------------------------------------------------------------


class Ridge(nn.Module):
    """z_0 = 10 x and z_1 = 10 x + 2 - 10 |x - 0.5|: wrong for class 0 where |x - 0.5| < 0.2."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[:, 0]
        true = 10 * x
        return torch.stack((true, true + 2.0 - 10 * (x - 0.5).abs()), 1)


def test_with_both_up_more_steps_never_lose_an_image() -> None:
    # Raising both logits draws every run through the interval and out again on the other side.
    images = torch.tensor([0.05, 0.1, 0.2, 0.25]).view(-1, 1, 1, 1)
    labels, fooled = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)
    for steps in range(1, 12):
        pgd = FirstOrder(name="pgd", steps=steps, step_size=0.1, loss="both-up")
        found = pgd.run(
            Surface(Ridge()), images, labels, threat=Linf(0.9), keys=keys_of(images), stop="fixed"
        )
        assert not bool((fooled & ~found.success).any()), steps
        assert found.gradients is not None
        assert found.gradients.tolist() == [steps + 1] * 4
        fooled = found.success
    assert bool(fooled.all())
    # Of the points that fool, the one with the greatest loss min(margin, 1) + z_0: beyond the
    # peak, where z_0 is higher, and below the end of the interval.
    assert bool(((found.images > 0.5) & (found.images < 0.7)).all())
