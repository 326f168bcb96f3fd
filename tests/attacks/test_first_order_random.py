"""First-order attacks on random targets: fresh draws, clear votes, a last check."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.running import Noisy, keys_of
from attacks.running import first_order as attack
from unperturb.attacks.batch import VOTES
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.purifiers import Purified, Purifier
from unperturb.threat import L2, Linf


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
