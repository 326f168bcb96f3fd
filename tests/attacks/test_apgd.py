"""Auto-PGD: Algorithm 1 by hand, closed forms, stopping rules, and what an image costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.running import apgd as attack
from attacks.running import keys_of
from unperturb.attacks.apgd import APGD, _begin, checkpoints
from unperturb.attacks.losses import LOSSES, margin
from unperturb.attacks.registry import make_attack
from unperturb.attacks.surface import Surface
from unperturb.errors import UnperturbError
from unperturb.threat import L2, Linf, Threat

# --- Algorithm 1 ------------------------------------------------------------------------


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [11, 21, 29, 35, 40, 44, 47, 50]
    assert checkpoints(1) == [1]
    assert all(1 <= w <= n for n in range(1, 40) for w in checkpoints(n))


def one_image(
    f: Callable[[Tensor], Tensor], origin: Tensor, start: Tensor, threat: Threat, steps: int
) -> tuple[Tensor, int]:
    """The greatest point of Algorithm 1 for one image (1, C, H, W), and how often it halved."""

    def value_and_gradient(x: Tensor) -> tuple[float, Tensor]:
        x = x.detach().requires_grad_()
        value = f(x)
        return value.item(), torch.autograd.grad(value, x)[0]

    eta, x_old, x = 2 * threat.eps, start, start
    value, g = value_and_gradient(x)
    best, best_value, best_g = x, value, g
    w, rises, checked, was_halved, halvings = 0, 0, value, True, 0
    for k in range(steps):
        z = threat.project(x + eta * threat.ascent(g), origin)
        new = z if k == 0 else threat.project(x + 0.75 * (z - x) + 0.25 * (x - x_old), origin)
        x_old, x, past = x, new, value
        value, g = value_and_gradient(x)
        rises += value > past
        if value > best_value:
            best, best_value, best_g = x, value, g
        if k + 1 in checkpoints(steps):
            slow = rises < 0.75 * (k + 1 - w)
            stuck = not was_halved and best_value == checked
            was_halved, checked = slow or stuck, best_value
            w, rises = k + 1, 0
            if was_halved:
                eta, x, value, g, halvings = eta / 2, best, best_value, best_g, halvings + 1
    return best, halvings


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.4)], ids=["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_a_batch_equals_algorithm_1_image_by_image(
    conv: Any, pixels: Any, threat: Threat, loss: str
) -> None:
    net, images = conv().double(), pixels(6).double()
    labels = net(images).argmax(1)
    found = attack(net, images, labels, threat, loss=loss, steps=40)
    halved = 0
    for i in range(6):
        image, label, keys = images[i : i + 1], labels[i : i + 1], keys_of(images)[i : i + 1]
        uniform = keys.uniform("start", images.shape[1:])
        start = threat.start(uniform, keys.normal("direction", images.shape[1:])).double()

        def f(x: Tensor, label: Tensor = label) -> Tensor:
            return LOSSES[loss](net(x), label).sum()

        wanted, times = one_image(f, image, threat.project(image + start, image), threat, 40)
        torch.testing.assert_close(found.images[i : i + 1], wanted, rtol=0, atol=1e-6)
        halved += times
    assert halved > 6, "the test must exercise the checkpoints"


def test_the_two_conditions_of_a_checkpoint() -> None:
    """Fewer rises than rho of the span, or the best value at rest since an unhalved checkpoint."""
    zeros, count = torch.zeros(4, 1, 2, 2), torch.tensor([16, 17, 22, 22])
    state = _begin(torch.arange(4), zeros, zeros, zeros, torch.zeros(4), 1.0)
    state.rises, state.best, state.best_value = count, zeros + 7, torch.tensor([1.0, 1.0, 1.0, 0.0])
    state.reconsider(22)
    assert state.halved.tolist() == [True, False, False, False]  # 16 < 0.75 * 22 = 16.5 <= 17
    assert state.step_size.flatten().tolist() == [0.5, 1, 1, 1]
    assert state.point[:, 0, 0, 0].tolist() == [7, 0, 0, 0]
    state.rises, state.best_value = torch.full((4,), 19), torch.tensor([1.0, 1.0, 2.0, 0.0])
    state.reconsider(19)
    # The first was halved last time, the third has risen since.
    assert state.halved.tolist() == [False, True, False, True]
    assert state.step_size.flatten().tolist() == [0.5, 0.5, 1, 0.5]


# --- closed forms on linear models ------------------------------------------------------


# All but ``both-up``, which is not there to move the margin, have one optimum on two classes.
@pytest.mark.parametrize(
    "settings", [*({"loss": n} for n in LOSSES if n != "both-up"), {"targets": 1}], ids=str
)
@pytest.mark.parametrize(("kind", "order"), [(Linf, 1), (L2, 2)])
def test_optimum_of_a_linear_model(
    linear: Any, pixels: Any, kind: type[Threat], order: int, settings: dict[str, Any]
) -> None:
    """The margin of two linear classes moves by exactly eps times the dual norm."""
    net, images, eps = linear().double(), pixels(24, 1, 4).double(), 0.05
    labels = torch.arange(24) % 2
    found = attack(net, images, labels, kind(eps), **settings)
    weight = net[1].weight.detach()
    gain = eps * torch.linalg.vector_norm(weight[1] - weight[0], order)
    change = margin(net(found.images), labels) - margin(net(images), labels)
    torch.testing.assert_close(change, gain.expand(24).double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stop", ["fixed", "first-success"])
@pytest.mark.parametrize(("kind", "order"), [(Linf, 1), (L2, 2)])
def test_success_exactly_beyond_the_distance(
    linear: Any, pixels: Any, kind: type[Threat], order: int, stop: str
) -> None:
    net, images = linear().double(), pixels(60, 1, 4, seed=4).double()
    labels = net(images).argmax(1)
    weight = net[1].weight.detach()
    distance = -margin(net(images), labels) / torch.linalg.vector_norm(weight[1] - weight[0], order)
    eps = distance.median().item()
    safe = (distance / eps - 1).abs() > 1e-6
    found = attack(net, images, labels, kind(eps), stop)
    assert torch.equal(found.success[safe], (distance < eps)[safe])
    assert 20 < int(found.success.sum()) < 40


# --- stopping rules and counts ----------------------------------------------------------


def test_what_an_image_costs(conv: Any, pixels: Any, counted: Any) -> None:
    net, images = conv(), pixels(8)
    labels = net(images).argmax(1)
    for settings, runs in (({}, 1), ({"restarts": 2}, 2), ({"targets": 3, "loss": "dlr"}, 3)):
        wrapped = counted(net)
        made = APGD(name="own", steps=5, **settings)
        assert made.gradients == runs * 6
        found = made.run(
            Surface(wrapped), images, labels, threat=Linf(1e-4), keys=keys_of(images), stop="fixed"
        )
        assert not bool(found.success.any())
        # All runs, the choice between them, the ranking of the targets and the last check.
        extra = (runs if runs > 1 else 0) + ("targets" in settings) + 1
        assert found.queries.tolist() == [made.gradients + extra] * 8
        # Beside these, one pass on one image counts the classes.
        assert sum(wrapped.calls) == 8 * (made.gradients + extra) + 1


def test_who_leaves_does_not_change_who_stays(conv: Any, pixels: Any) -> None:
    net, images = conv().double(), pixels(16).double()
    labels, threat = net(images).argmax(1), Linf(0.006)
    fixed = attack(net, images, labels, threat, "fixed")
    first = attack(net, images, labels, threat, "first-success")
    stay = ~first.success
    assert 3 < int(stay.sum()) < 13
    torch.testing.assert_close(first.images[stay], fixed.images[stay], rtol=0, atol=1e-9)
    assert bool((fixed.queries == 32).all())
    assert bool((first.queries[~stay] < fixed.queries[~stay] + 1).all())
    assert bool(first.success[fixed.success].all()), "the best-loss image is a point of the run"


@pytest.mark.parametrize("settings", [{}, {"targets": 2, "loss": "dlr"}], ids=str)
def test_alone_and_in_a_batch(conv: Any, pixels: Any, settings: dict[str, Any]) -> None:
    net, images = conv().double(), pixels(5).double()
    labels, keys = torch.arange(5), keys_of(images)
    settings = {"steps": 12, **settings}
    whole = attack(net, images, labels, L2(0.3), **settings).images
    assert torch.equal(whole, attack(net, images, labels, L2(0.3), **settings).images)
    for i in range(5):
        row = slice(i, i + 1)
        alone = attack(net, images[row], labels[row], L2(0.3), keys=keys[row], **settings)
        torch.testing.assert_close(alone.images, whole[row], rtol=0, atol=1e-9)


def test_of_several_runs_the_fixed_rule_keeps_the_greatest_margin(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(12)
    labels = net(images).argmax(1)
    settings = {"steps": 8, "loss": "dlr"}
    values = [
        margin(net(attack(net, images, labels, Linf(0.02), targets=t, **settings).images), labels)
        for t in (1, 2, 4)
    ]
    assert bool((values[1] >= values[0] - 1e-6).all())
    assert bool((values[2] >= values[1] - 1e-6).all())
    assert bool((values[2] > values[0] + 1e-6).any())


class Seen(nn.Module):
    """Keeps what it is shown."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.points = net, list[Tensor]()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.points.append(images.detach().clone())
        return self.net(images)  # type: ignore[no-any-return]


def test_no_start_is_used_twice(conv: Any, pixels: Any) -> None:
    net, images = Seen(conv()), pixels(3)
    attack(net, images, torch.arange(3), Linf(0.01), steps=1, targets=2, restarts=2, loss="dlr")
    # After the count of classes and the ranking: two gradients and the judgement of each run.
    starts = [net.points[2 + 3 * run] for run in range(4)]
    assert len(net.points) == 2 + 3 * 4 + 1
    assert len({start.sum().item() for start in starts}) == 4
    assert all(bool(Linf(0.01).contains(start, images).all()) for start in starts)


# --- wrong settings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("apgd-ce-0", "steps of attack 'apgd-ce-0' is 0"),
        ("apgd-t?targets=-1", "targets of attack .* is -1"),
        ("apgd-ce?restarts=0", "restarts of attack .* is 0"),
        ("apgd-ce?loss=crossentropy", "loss 'crossentropy'"),
        ("apgd-ce?step_size=0.1", "option of attack .*step_size"),
    ],
)
def test_wrong_settings(spec: str, problem: str) -> None:
    with pytest.raises(UnperturbError, match=problem):
        make_attack(spec)


def test_targets_are_a_number() -> None:
    with pytest.raises(UnperturbError, match="targets of attack 'x' is True"):
        APGD(name="x", targets=True)
