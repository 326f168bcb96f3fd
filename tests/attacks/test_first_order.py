"""The attack engine: closed forms on linear models, hand-written loops, stopping rules, counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.attacks.base import Attacked
from unperturb.attacks.batch import VOTES
from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.losses import LOSSES, margin
from unperturb.attacks.registry import make_attack
from unperturb.attacks.surface import Surface
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.errors import AttackError, InputError, SpecError
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import L2, Linf, Threat


class Noisy(Purifier):
    """Adds noise, at a scale that matters."""

    name = "noisy"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        noisy = images + 0.2 * ctx.noise("noisy", images.shape[1:])
        return Purified(noisy, noisy)


def keys_of(images: Tensor, seed: int = 0) -> Keys:
    return Keys.of(seed, [f"image-{i}" for i in range(len(images))])


def attack(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    stop: str = "fixed",
    keys: Keys | None = None,
    surface: dict[str, Any] | None = None,
    **settings: Any,
) -> Attacked:
    made = FirstOrder(**{"name": "own", "steps": 10, "step_size": 0.25, **settings})
    return made.run(
        Surface(net, **(surface or {})),
        images,
        labels,
        threat=threat,
        keys=keys or keys_of(images),
        stop=stop,
    )


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


# --- random targets ---------------------------------------------------------------------


def test_eot_is_the_mean_of_the_draws_gradients(conv: Any, pixels: Any) -> None:
    net, images = conv().double(), pixels(6).double()
    labels, draws, eps = torch.arange(6) % 5, 8, 0.05
    keys = keys_of(images)
    found = attack(
        Defense(net, purifier=Noisy()), images, labels, L2(eps),
        keys=keys, steps=1, step_size=1.0, draws=draws,
    )  # fmt: skip
    gradients = []
    for draw in range(draws):
        noise = 0.2 * keys.draw(draw).normal("noisy", (3, 8, 8)).double()
        x = images.clone().requires_grad_()
        loss = F.cross_entropy(net(x + noise), labels, reduction="sum")
        gradients.append(torch.autograd.grad(loss, x)[0])
    mean = torch.stack(gradients).mean(0)
    wanted = images + eps * mean / mean.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(found.images, wanted, rtol=0, atol=1e-9)
    assert found.queries.tolist() == [draws + 1] * 6


def test_every_step_meets_new_draws(conv: Any, pixels: Any) -> None:
    seen: list[list[int]] = []

    class Watch(Noisy):
        def forward(self, images: Tensor, *, ctx: Context) -> Purified:
            assert ctx._keys is not None
            seen.append([*ctx._keys.draws.tolist(), hash(ctx._keys.domain)])
            reading = images + 1e-9 * ctx.noise("noisy", images.shape[1:])
            return Purified(reading, reading)

    images, net = pixels(1), conv()
    attack(
        Defense(net, purifier=Watch()), images, net(images).argmax(1), Linf(1e-6),
        steps=3, draws=2, restarts=2, random_start=True,
    )  # fmt: skip
    names = [(draw, row[-1]) for row in seen for draw in row[:-1]]
    # 3 steps x 2 draws x 2 restarts, a vote after each restart, and one draw at the end.
    assert len(names) == len(set(names)) == 12 + 2 * VOTES + 1


def test_random_targets_are_attacked_repeatably(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(5)
    labels = torch.arange(5)
    defense = Defense(net, purifier=Noisy())
    runs = [
        attack(defense, images, labels, Linf(0.05), keys=keys_of(images, seed), draws=2)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0].images, runs[1].images)
    assert not torch.equal(runs[0].images, runs[2].images)


class Coin(Purifier):
    """Shows the classifier the negative of an image, with a chance."""

    name = "coin"
    stochastic = True

    def __init__(self, *, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        shown = torch.where(ctx.uniform("coin", (1, 1, 1)) < self.chance, 1 - images, images)
        return Purified(shown, shown)


@pytest.mark.parametrize(("chance", "draws"), [(1.0, 4), (1.0, 20), (0.7, 20)])
def test_an_image_of_a_random_target_leaves_by_a_clear_vote(
    conv: Any, pixels: Any, chance: float, draws: int
) -> None:
    """Most draws are wrong from the start; only where all of nine or more are, an image leaves.

    A plain majority stops at the boundary, where the next draws undo the attack.
    """
    net, images = conv(), pixels(24)
    with torch.no_grad():
        labels = net(images).argmax(1)
        keep = net(1 - images).argmax(1) != labels
    count = int(keep.sum())
    assert count >= 2
    defense = Defense(net, purifier=Coin(chance=chance))
    found = attack(
        defense, images[keep], labels[keep], Linf(1e-4), "first-success", steps=3, draws=draws
    )
    # A vote on the unperturbed image, three gradients, and one draw at the end.
    spent = max(draws, VOTES) + (0 if chance == 1 else 3 * draws) + 1
    assert found.queries.tolist() == [spent] * count


def test_draws_cost_nothing_where_nothing_is_random(conv: Any, counted: Any, pixels: Any) -> None:
    net = counted(conv())
    found = attack(net, pixels(3), torch.zeros(3).long(), Linf(0.05), steps=4, draws=16)
    # Four gradients and the check; one image first tells the number of classes.
    assert net.calls == [1, *[3] * 5]
    assert found.queries.tolist() == [5] * 3


# --- zero and NaN gradients -------------------------------------------------------------


class Rounded(nn.Module):
    """Masks its gradient by rounding."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images * 255).round() / 255)  # type: ignore[no-any-return]


class Broken(nn.Module):
    """The gradient of bright images is NaN, and their logits are right."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        bright = images.mean((1, 2, 3)) > 0.5
        trap = torch.where(bright, 0.0 * images.mean((1, 2, 3)), 1.0 + images.mean((1, 2, 3)))
        return logits + 0.0 * trap.sqrt()[:, None]


def test_zero_gradients_are_counted(linear: Any, pixels: Any) -> None:
    net, images = linear(), pixels(5, 1, 4)
    labels = net(images).argmax(1)
    found = attack(Rounded(net), images, labels, Linf(0.1), steps=4)
    assert found.zero_gradients.tolist() == [4] * 5
    assert not found.nan_gradients.any()
    assert torch.equal(found.images, images)
    assert not attack(net, images, labels, Linf(0.1), steps=4).zero_gradients.any()


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2)], ids=["linf", "l2"])
def test_nan_gradients_are_counted_and_do_no_harm(
    linear: Any, threat: Threat, momentum: float
) -> None:
    net = linear()
    images = torch.cat((torch.full((2, 1, 4, 4), 0.3), torch.full((3, 1, 4, 4), 0.8)))
    labels = net(images).argmax(1)
    found = attack(Broken(net), images, labels, threat, steps=3, momentum=momentum)
    assert found.nan_gradients.tolist() == [0, 0, 3, 3, 3]
    assert not found.zero_gradients.any()
    assert bool(torch.isfinite(found.images).all())
    assert torch.equal(found.images[2:], images[2:])
    assert not torch.equal(found.images[:2], images[:2])


def test_nan_scores_are_a_wrong_answer(linear: Any, pixels: Any) -> None:
    class Nan(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2] * float("nan")

    images, labels = pixels(2, 1, 4), torch.tensor([0, 1])
    judged = Surface(Nan().eval()).judge(images, labels, None)
    assert judged.success.tolist() == [True, True]


# --- what is handed back ----------------------------------------------------------------


@pytest.mark.parametrize("stop", ["fixed", "first-success"])
@pytest.mark.parametrize("spec", ["fgsm", "bim-5", "pgd-5?restarts=2", "mim-5", "pgd-5?loss=dlr"])
@pytest.mark.parametrize("threat", [Linf(0.3), L2(2.0)], ids=["linf", "l2"])
def test_ball_range_and_success(conv: Any, threat: Threat, spec: str, stop: str) -> None:
    net = conv()
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    images[:4] = images[:4].round()
    labels = torch.arange(16) % 5
    made = make_attack(spec)
    found = made.run(Surface(net), images, labels, threat=threat, keys=keys_of(images), stop=stop)
    assert float(found.images.min()) >= 0.0
    assert float(found.images.max()) <= 1.0
    assert bool((threat.distance(found.images, images) <= threat.eps * 1.0001).all())
    assert torch.equal(found.success, net(found.images).argmax(1) != labels)
    assert not found.images.requires_grad
    assert found.images.dtype == images.dtype
    assert bool((found.queries <= made.gradients + made.restarts + 2).all())


def test_success_is_rechecked_with_fresh_draws(conv: Any, pixels: Any) -> None:
    """What the steps saw does not count: the last word has a forward pass with its own draws."""
    domains: list[str] = []

    class Watch(Noisy):
        def forward(self, images: Tensor, *, ctx: Context) -> Purified:
            assert ctx._keys is not None
            domains.append(ctx._keys.domain)
            return super().forward(images, ctx=ctx)

    images = pixels(3)
    defense = Defense(conv(), purifier=Watch())
    keys = keys_of(images).within("unit")
    found = attack(defense, images, torch.arange(3), Linf(0.1), keys=keys, steps=2)
    assert domains == ["unit", "unit", "unit/check"]
    answer = defense(found.images, keys=keys.within("unit/check")).argmax(1)
    assert torch.equal(found.success, answer != torch.arange(3))


def _flat(found: Attacked) -> list[Tensor]:
    return [part for part in (found.images, *found.judged, *found[2:]) if part is not None]


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("stop", ["fixed", "first-success"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["net", "tpap", "random"])
def test_grad_mode_around_it(conv: Any, pixels: Any, kind: str, mode: str, stop: str) -> None:
    net = conv()
    target = {"net": net, "tpap": tpap(net), "random": Defense(net, purifier=Noisy())}[kind]
    labels = torch.arange(6) % 5
    settings: dict[str, Any] = {"random_start": True, "restarts": 2, "draws": 2, "steps": 3}
    wanted = attack(target, pixels(6), labels, Linf(0.03), stop, **settings)
    with MODES[mode]():
        images = pixels(6)
        found = attack(target, images, labels.clone(), Linf(0.03), stop, **settings)
        assert torch.equal(images, pixels(6))
    for one, two in zip(_flat(found), _flat(wanted), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["net", "tpap"])
def test_the_users_module_is_untouched(
    conv: Any, pixels: Any, untouched: Any, kind: str, training: bool
) -> None:
    net, images = conv(), pixels(6)
    wanted = attack(net if kind == "net" else tpap(net), images, torch.arange(6) % 5, Linf(0.05))
    net(images).sum().backward()
    net.train(training)
    with untouched(net):
        target = net if kind == "net" else tpap(net)
        for stop in ("fixed", "first-success"):
            found = attack(target, images, torch.arange(6) % 5, Linf(0.05), stop)
        found = attack(target, images, torch.arange(6) % 5, Linf(0.05))
    torch.testing.assert_close(found.images, wanted.images)


def test_frozen_parameters_are_no_obstacle(conv: Any, pixels: Any) -> None:
    net, images, labels = conv(), pixels(4), torch.arange(4)
    wanted = attack(net, images, labels, Linf(0.05))
    found = attack(net.requires_grad_(False), images, labels, Linf(0.05))
    assert torch.equal(found.images, wanted.images)


# --- wrong input ------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("stop", ["fixed", "first-success"])
def test_wrong_input(conv: Any, pixels: Any, wrapped: bool, stop: str) -> None:
    net, images, labels = conv(), pixels(3), torch.arange(3)
    target = Defense(net) if wrapped else net
    with pytest.raises(InputError, match="images / 255"):
        attack(target, images * 255, labels, Linf(0.1), stop)
    with pytest.raises(InputError, match="1 of 3 labels lie outside.*from 0 to 4"):
        attack(target, images, torch.tensor([0, 5, 1]), Linf(0.1), stop)
    with pytest.raises(InputError, match="1 of 3 labels lie outside"):
        attack(target, images, torch.tensor([0, -1, 1]), Linf(0.1), stop)
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        attack(target, images, labels[:2], Linf(0.1), stop)
    with pytest.raises(AttackError, match="keys name 2 images, and there are 3"):
        attack(target, images, labels, Linf(0.1), stop, keys=keys_of(images[:2]))


def test_labels_of_another_integer_type(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(3)
    wanted = attack(net, images, torch.arange(3), Linf(0.1))
    found = attack(net, images, torch.arange(3, dtype=torch.int32), Linf(0.1))
    assert torch.equal(found.images, wanted.images)


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
