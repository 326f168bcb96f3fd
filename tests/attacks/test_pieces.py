"""Averages over draws in bounded pieces: few copies in one graph, and the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks import Surface, batch, make_attack
from unperturb.attacks.base import Attacked
from unperturb.attacks.batch import Batch, pieces
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf

COUNT, DRAWS = 7, 6


class Noisy(Purifier):
    """Noise in front of the classifier."""

    name = "noisy"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        reading = images + 0.1 * ctx.noise("noisy", images.shape[1:])
        return Purified(reading, reading)


def attack(net: nn.Module, images: Tensor, spec: str, **options: Any) -> Attacked:
    made = make_attack(spec, draws=DRAWS)
    keys = Keys.of(0, [str(i) for i in range(len(images))])
    labels = torch.arange(len(images)) % 5
    surface = Surface(Defense(net, purifier=Noisy()))
    return made.run(surface, images, labels, threat=Linf(0.1), keys=keys, stop="fixed", **options)


@pytest.mark.parametrize("copies", [1, 4, 15, 20])
@pytest.mark.parametrize(
    "spec", ["pgd-3", "apgd-t-4?targets=2", "deepfool-3", "logit-matching", "square-5"]
)
def test_pieces_change_nothing_but_memory(
    spec: str, copies: int, conv: Any, pixels: Any, counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In double precision, so that rounding never turns a sign.
    net, images = counted(conv(smooth=True).double()), pixels(COUNT).double()
    whole = attack(net, images, spec)
    assert max(net.calls) >= COUNT * DRAWS
    monkeypatch.setattr(batch, "COPIES", copies)
    net.calls.clear()
    found = attack(net, images, spec)
    # The last look at the result is at one draw of each image, and the draws of one image's verdict
    # (33 of DeepFool's), which have no graph, stay together.
    assert max(net.calls) <= max(copies, COUNT, 33)
    torch.testing.assert_close(found.images, whole.images)
    assert torch.equal(found.success, whole.success)
    assert torch.equal(found.queries, whole.queries)
    assert torch.equal(found.zero_gradients, whole.zero_gradients)
    assert found.gradients is not None
    assert whole.gradients is not None
    assert torch.equal(found.gradients, whole.gradients)


@pytest.mark.parametrize("copies", [4, 640])
def test_a_gradient_is_the_mean_over_the_draws(
    copies: int, conv: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one pass after the other, each with the keys of its draw."""
    monkeypatch.setattr(batch, "COPIES", copies)
    net, images = conv(smooth=True).double(), pixels(COUNT).double()
    labels, defense = torch.arange(COUNT) % 5, Defense(net, purifier=Noisy())
    keys = Keys.of(3, [str(i) for i in range(COUNT)])
    made = Batch(Surface(defense), images, labels, threat=Linf(0.1), keys=keys, draws=DRAWS)
    step = made.gradient(images, torch.arange(COUNT), 2, made.loss("ce"))
    gradients, values, wrong = [], [], []
    for draw in range(DRAWS):
        leaf = images.clone().requires_grad_()
        scores = defense(leaf, keys=keys.draw(2 * DRAWS + draw))
        loss = nn.functional.cross_entropy(scores, labels, reduction="none")
        gradients.append(torch.autograd.grad(loss.sum(), leaf)[0])
        values.append(loss.detach())
        wrong.append(scores.argmax(1) != labels)
    torch.testing.assert_close(step.gradient, torch.stack(gradients).mean(0))
    torch.testing.assert_close(step.value, torch.stack(values).mean(0))
    assert torch.equal(step.wrong, torch.stack(wrong).double().mean(0) > 0.5)
    assert made.queries.tolist() == [DRAWS] * COUNT


def test_pieces_cover_every_row_once() -> None:
    for count, draws in ((1, 1), (128, 1), (128, 20), (3, 1000), (33, 20)):
        rows = torch.cat([torch.arange(count)[part] for part in pieces(count, draws)])
        assert torch.equal(rows, torch.arange(count))
    assert pieces(2000, 1) == [slice(0, 2000)]
