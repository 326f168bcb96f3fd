"""Square Attack: closed forms, its sampling, random targets, and parity with its authors' code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks.base import Attacked
from unperturb.attacks.losses import margin
from unperturb.attacks.outside import fenced
from unperturb.attacks.square import MILESTONES, Square, hill, pattern, share
from unperturb.attacks.surface import Surface
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.errors import ConfigError
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import L2, Linf, Threat


def run(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    stop: str = "fixed",
    ids: list[str] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Attacked:
    ids = [f"image-{i}" for i in range(len(images))] if ids is None else ids
    attack = Square(**{"name": "square", "steps": 200, **settings})
    return attack.run(
        Surface(net), images, labels, threat=threat, keys=Keys.of(seed, ids), stop=stop
    )


def test_the_share_of_a_window_falls_as_the_authors_say() -> None:
    halvings = [math.log2(0.8 / share(step, 10_000, 0.8)) for step in range(10_000)]
    changes = [step for step in range(1, 10_000) if halvings[step] != halvings[step - 1]]
    assert changes == [milestone + 1 for milestone in MILESTONES]
    assert halvings[-1] == len(MILESTONES)
    # A tenth of the queries runs through the same schedule.
    assert [share(step, 1000, 0.5) for step in range(1000)] == [
        share(10 * step, 10_000, 0.5) for step in range(1000)
    ]


def test_the_pattern_is_a_hill_beside_a_valley() -> None:
    # Sums of 1, 1/4 and 1/9 from the rim to the middle, by hand.
    rim, inner, middle = 1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1
    wanted = torch.full((5, 5), rim, dtype=torch.float64)
    wanted[1:4, 1:4] = inner
    wanted[2, 2] = middle
    torch.testing.assert_close(hill(5, 5), wanted)
    for side in (1, 2, 3, 4, 5, 9):
        found = pattern(side)
        assert found.shape == (side, side)
        assert float(found.norm()) == pytest.approx(1)
        half = side // 2
        assert bool((found[:, :half] > 0).all())
        assert bool((found[:, half:] < 0).all())


def test_linf_ends_in_the_corner_of_a_linear_model(linear: Any, pixels: Any) -> None:
    """Single pixels at the last steps: every one of 16 ends where the margin is greatest."""
    net, images, eps = linear().double(), pixels(12, 1, 4).double(), 0.05
    labels = net(images).argmax(1)
    found = run(net, images, labels, Linf(eps), steps=500)
    weight = net[1].weight
    ascent = (weight[1 - labels] - weight[labels]).sign().view_as(images)
    torch.testing.assert_close(found.images, images + eps * ascent, rtol=0, atol=1e-12)
    # The same by first success: exactly the images whose margin the ball can turn.
    early = run(net, images, labels, Linf(eps), stop="first-success", steps=500)
    reach = eps * (weight[1] - weight[0]).abs().sum()
    breakable = -margin(net(images), labels) < reach
    assert torch.equal(early.success, breakable)
    assert 0 < int(breakable.sum()) < len(images), "choose an eps that breaks some"
    assert bool((early.queries[breakable] < found.queries[breakable]).all())


def test_l2_keeps_all_of_its_energy(linear: Any, pixels: Any) -> None:
    net, images, eps = linear(channels=3, side=8), pixels(12), 0.5
    labels = net(images).argmax(1)
    found = run(net, images, labels, L2(eps), steps=400)
    # Far from 0 and 1 nothing is clipped, so each step leaves a perturbation of norm eps.
    distance = L2(eps).distance(found.images, images)
    torch.testing.assert_close(distance, torch.full_like(distance, eps), rtol=2e-6, atol=0)
    weight = net[1].weight
    best = eps * (weight[1] - weight[0]).norm()
    gain = margin(net(found.images), labels) - margin(net(images), labels)
    # Windows of three pixels and more cannot follow weights that are independent noise.
    assert bool((gain > 0.3 * best).all())
    assert bool((gain <= 1.0001 * best).all())


@pytest.mark.parametrize("threat", [Linf(0.2), L2(1.5)], ids=["linf", "l2"])
def test_ball_and_range_where_pixels_are_clipped(conv: Any, threat: Threat) -> None:
    images = torch.rand(6, 3, 10, 7, generator=torch.Generator().manual_seed(6)).round()
    found = run(conv(), images, torch.arange(6) % 5, threat, steps=80)
    assert bool(threat.contains(found.images, images).all())
    assert bool((threat.distance(found.images, images) > 0).all())


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.4)], ids=["linf", "l2"])
def test_an_image_does_not_depend_on_its_batch_mates(
    conv: Any, pixels: Any, threat: Threat
) -> None:
    net, images = conv().double(), pixels(9).double()
    labels = net(images).argmax(1)
    for stop in ("fixed", "first-success"):
        whole = run(net, images, labels, threat, stop)
        for i in (0, 5):
            part = slice(i, i + 1)
            alone = run(net, images[part], labels[part], threat, stop, [f"image-{i}"])
            torch.testing.assert_close(alone.images, whole.images[part], rtol=0, atol=1e-12)
    assert not torch.equal(whole.images, run(net, images, labels, threat, seed=1).images)


def test_it_needs_no_gradient_and_counts_its_queries(conv: Any, counted: Any, pixels: Any) -> None:
    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                return net((images * 255).round() / 255)  # type: ignore[no-any-return]

    net = counted(conv())
    images = pixels(5)
    labels = net(images).argmax(1)
    net.calls.clear()
    found = run(Rounded().eval(), images, labels, Linf(0.03), steps=30)
    assert not torch.equal(found.images, images)
    assert found.queries.tolist() == [31] * 5
    # One image tells the number of classes.
    assert net.calls == [1, *[5] * 31]


def test_more_queries_help_and_the_best_point_is_kept(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(16)
    labels = net(images).argmax(1)
    values = [
        margin(net(run(net, images, labels, Linf(0.01), steps=steps).images), labels).detach()
        for steps in (1, 40, 300)
    ]
    assert bool((values[1] >= values[0]).all()), "a step that is no better was kept"
    assert float((values[2] - values[1]).median()) > 0


# --- random targets ---------------------------------------------------------------------


class Flips(Purifier):
    """Mirrors the brightness of an image now and then: a linear model then errs."""

    name = "flips"
    stochastic = True

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        flip = ctx.uniform("flips", (1, 1, 1)) < self.rate
        return Purified(torch.where(flip, 1 - images, images), None)


@pytest.mark.parametrize("draws", [1, 5])
def test_one_lucky_draw_breaks_nothing(linear: Any, pixels: Any, draws: int) -> None:
    """A tenth of all answers is wrong by chance; only images the ball can turn may leave."""
    net, images, eps = linear(), pixels(16, 1, 4), 0.05
    labels = net(images).argmax(1)
    defense = Defense(net, purifier=Flips(0.1))
    found = run(defense, images, labels, Linf(eps), "first-success", steps=150, draws=draws)
    weight = net[1].weight
    breakable = -margin(net(images), labels) < eps * (weight[1] - weight[0]).abs().sum()
    assert 0 < int(breakable.sum()) < len(images)
    turned = net(found.images).argmax(1) != labels
    assert not bool((turned & ~breakable).any())
    # The start, then present and proposal at each step, two verdicts at the ends, and votes.
    spent = draws * (1 + 2 * 149 + 2)
    assert bool((found.queries[~breakable] >= spent - draws).all()), "an image left by luck"
    assert float(turned[breakable].float().mean()) > 0.7


def test_random_targets_are_attacked_repeatably(conv: Any, pixels: Any) -> None:
    net, images, labels = conv(), pixels(4), torch.arange(4)
    defense = Defense(net, purifier=Flips(0.3))
    runs = [
        run(defense, images, labels, Linf(0.05), steps=20, draws=2, seed=s).images
        for s in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# --- against the authors' own code ------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.16), ("l2", 1.0)])
def test_it_breaks_no_fewer_images_than_the_authors_code(
    digits: tuple[Tensor, Tensor], digits_net: nn.Module, norm: str, eps: float
) -> None:
    from pyautoattack.square import SquareAttack

    images, labels = digits[0][1200:1400], digits[1][1200:1400]
    threat = {"linf": Linf, "l2": L2}[norm](eps)
    with fenced(0):
        theirs = SquareAttack(
            digits_net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, n_queries=300, seed=0,
            device="cpu",
        ).perturb(images, labels)  # fmt: skip
    with torch.no_grad():
        wanted = digits_net(theirs).argmax(1) != labels
    found = run(digits_net, images, labels, threat, "first-success", steps=301).success
    assert 0.2 < float(wanted.float().mean()) < 0.8
    # Both search at random, so a few images on the brink differ. Windows of each image's own, at
    # every place that there is, find more than the batch's one window of theirs.
    assert int((wanted & ~found).sum()) <= 8
    assert int(found.sum()) >= int(wanted.sum())


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"p_init": 0.0}, {"p_init": 1.5}, {"steps": 0}):
        with pytest.raises(ConfigError, match="Expected: "):
            Square(**{"name": "square", **wrong})  # type: ignore[arg-type]
