"""TPAP answers as a hand-written one, in every mode, and leaves the network alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from small_stages import by_hand
from unperturb.defense import Defense
from unperturb.errors import SpecError
from unperturb.presets import tpap


def same_logits(one: Tensor, two: Tensor) -> None:
    """With and without a graph some processors take different kernels: the last bits may differ."""
    torch.testing.assert_close(one.detach(), two.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", [True, False])
def test_tpap_equals_a_hand_written_one(conv: Any, clip: bool) -> None:
    net = conv()
    images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    purified = by_hand(net, images, 0.1, clip=clip)
    defense = tpap(net, radius=0.1, clip=clip)
    found = defense.predict(images)
    assert found.purified is not None
    assert torch.equal(found.purified, purified)
    assert bool(((purified < 0) | (purified > 1)).any()) is not clip
    same_logits(found.scores, net(purified).detach())
    same_logits(defense(images), net(purified))
    assert torch.equal(found.labels, found.scores.argmax(1))
    assert not found.flagged.any()
    assert found.detector_score is None
    assert found.before is None
    assert torch.equal(found.after, found.scores)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_tpap_under_every_grad_mode(conv: Any, pixels: Any, mode: Any, untouched: Any) -> None:
    net, outside = conv(), pixels(6)
    wanted = net(by_hand(net, outside, 8 / 255))
    defense = tpap(net)
    with untouched(net), mode():
        inside = outside.clone()
        same_logits(defense(inside), wanted)
        same_logits(defense(outside), wanted)
        same_logits(defense.predict(inside).scores, wanted)
        # Built inside, too.
        same_logits(tpap(net)(inside), wanted)


def test_a_net_made_under_inference_mode_is_refused(conv: Any) -> None:
    with torch.inference_mode():
        copied = copy.deepcopy(conv())
        with pytest.raises(SpecError, match="made under torch.inference_mode"):
            tpap(copied)
    with pytest.raises(SpecError, match="outside of"):
        Defense(copied)


def test_tpap_moves_away_from_the_own_prediction(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True), pixels(30)
    predicted = net(images).argmax(1)
    after = tpap(net, radius=2 / 255)(images)
    before = F.cross_entropy(net(images), predicted, reduction="none")
    assert bool((F.cross_entropy(after, predicted, reduction="none") > before).all())


def test_a_gradient_set_by_the_user_stays(conv: Any, pixels: Any, untouched: Any) -> None:
    net = conv()
    net(pixels(2)).sum().backward()
    frozen = net[0].weight.requires_grad_(False)
    with untouched(net):
        tpap(net)(pixels(4))
        tpap(net).predict(pixels(4))
    assert not frozen.requires_grad
