"""The pipeline's contract, proved with small stages of every kind it must carry."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from small_stages import Branching, Encoder, Halves, NeverRun, Noisy, OnLogits
from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.surface import Surface
from unperturb.classifiers import as_classifier
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import InputError, ThresholdError
from unperturb.presets import tpap
from unperturb.purifiers import FGSMStep, Identity
from unperturb.randomness import Keys
from unperturb.threat import Linf

# --- forward passes ---------------------------------------------------------------------


def test_forward_counts(conv: Any, counted: Any, pixels: Any) -> None:
    net, images = counted(conv()), pixels(4)
    cases: list[tuple[Defense, int]] = [
        (tpap(net), 2),
        (Defense(net), 1),
        (Defense(net, purifier=Identity(), decision=Branching(), detector=_open()), 1),
        (Defense(net, purifier=FGSMStep(), decision=Branching(), detector=_open()), 2),
        (Defense(net, decision=OnLogits()), 1),
        (Defense(net, purifier=NeverRun(), decision=OnLogits()), 1),
        (Defense(net, purifier=Halves(), decision=OnLogits()), 1),
        (Defense(net, purifier=Halves(), decision=Branching()), 2),
    ]
    for defense, count in cases:
        net.calls.clear()
        defense(images)
        assert net.calls == [4] * count, defense
        for backward in set(defense.backwards) - {"smoothed-sign"}:
            net.calls.clear()
            defense.terms(images.clone().requires_grad_(), backward=backward)
            assert net.calls == [4] * count, (defense, backward)


def _open() -> ThresholdDetector:
    return ThresholdDetector(threshold=1e9)


def test_before_and_grad_shares_the_pass_and_leaves_no_grad(
    conv: Any, counted: Any, pixels: Any, untouched: Any
) -> None:
    net = counted(conv())
    images = pixels(3).requires_grad_()
    ctx = Context(net, images)
    with untouched(net):
        logits, gradient = ctx.before_and_grad(lambda z: z[:, 0])
    assert ctx.before() is logits
    assert net.calls == [3]
    assert images.grad is None
    assert all(p.grad is None for p in net.parameters())
    x = images.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    torch.testing.assert_close(gradient, wanted)
    assert not gradient.requires_grad


# --- one of every kind ------------------------------------------------------------------


def test_asymmetric_defense(linear: Any, untouched: Any, pixels: Any) -> None:
    head = linear(classes=3, channels=6, side=1, scale=1.0)
    classifier = as_classifier(head, num_classes=3, input_shape=(3, 8, 8))
    encoder = Encoder()
    defense = Defense(classifier, purifier=encoder)
    images = pixels(12)
    found = defense.predict(images, batch_size=5)
    assert found.purified is None
    wanted = head(images.flatten(1) @ encoder.weight.T)
    torch.testing.assert_close(found.scores, wanted)
    with untouched(defense):
        attacked = FirstOrder(name="pgd", steps=5, step_size=0.25).run(
            Surface(defense),
            images,
            found.labels,
            threat=Linf(0.3),
            keys=Keys.of(0, [str(i) for i in range(12)]),
        )
    assert bool(attacked.success.all())
    assert torch.equal(defense(attacked.images).argmax(1) != found.labels, attacked.success)


def test_decision_on_logits_never_purifies(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(4)
    defense = Defense(net, purifier=NeverRun(), decision=OnLogits())
    torch.testing.assert_close(defense(images), net(images).flip(1))
    with pytest.raises(AssertionError, match="nothing reads"):
        defense.predict(images)  # shows the purified images, so it must run the purifier


def test_random_defense(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(6)
    defense = Defense(net, purifier=Noisy())
    assert defense.stochastic
    assert not torch.equal(defense(images), defense(images))
    ids = [f"i{i}" for i in range(6)]
    keys = Keys.of(4, ids)
    scores = defense(images, keys=keys)
    assert torch.equal(scores, defense(images, keys=keys))
    assert not torch.equal(scores, defense(images, keys=keys.draw(1)))
    order = torch.tensor([5, 0, 3])
    torch.testing.assert_close(defense(images[order], keys=keys[order]), scores[order])
    for size in (1, 4, 256):
        torch.testing.assert_close(
            defense.predict(images, keys=keys, batch_size=size).scores, scores
        )
    torch.testing.assert_close(scores, net(images + 0.1 * keys.normal("noisy", (3, 8, 8))))


def test_branching_defense(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(10)
    plain = Defense(net, purifier=Halves(), decision=Branching())
    before, after = net(images / 4), net(images / 2)
    torch.testing.assert_close(plain(images), after)
    score = (after - before).abs().sum(1)
    detector = ThresholdDetector(threshold=score.median().item())
    defense = Defense(net, purifier=Halves(), detector=detector, decision=Branching())
    found = defense.predict(images)
    assert 0 < int(found.flagged.sum()) < 10
    wanted = torch.where((score > score.median())[:, None], before - after, after)
    torch.testing.assert_close(found.scores, wanted)
    assert not defense.rejects
    terms = defense.terms(images)
    assert set(terms.branches) == {"difference", "after"}
    torch.testing.assert_close(terms.slack, score.median() - score)


def test_detector_of_another_classifier_is_refused(conv: Any) -> None:
    net, other = conv(seed=0), conv(seed=1)
    own = Defense(net, purifier=FGSMStep())
    fitted = ThresholdDetector().fit(
        torch.ones(3),
        classifier=own.classifier.fingerprint(),
        purifier=own.purifier.fingerprint(),
        split="train",
    )
    Defense(net, purifier=FGSMStep(), detector=fitted)
    with pytest.raises(ThresholdError, match="another classifier"):
        Defense(other, purifier=FGSMStep(), detector=fitted)
    with pytest.raises(ThresholdError, match="another purifier"):
        Defense(net, purifier=FGSMStep(radius=0.1), detector=fitted)


# --- modes, input, description ----------------------------------------------------------


def test_train_keeps_eval(conv: Any) -> None:
    defense = tpap(conv())
    assert defense.train() is defense
    assert not any(part.training for part in defense.modules())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_net_in_training_mode(conv: Any, pixels: Any, untouched: Any, when: str) -> None:
    net, images = conv(), pixels(8)
    wanted = tpap(net)(images)
    if when == "before":
        net.train()
    defense = tpap(net)
    if when == "after":
        net.train()
    with untouched(net):
        torch.testing.assert_close(defense(images), wanted)
        torch.testing.assert_close(defense.predict(images).scores, wanted)
    assert net.training


@pytest.mark.parametrize("call", ["forward", "predict", "terms"])
def test_wrong_images_are_refused(conv: Any, pixels: Any, call: str) -> None:
    defense = tpap(conv())
    ask: Callable[[Tensor], Any] = getattr(defense, call)
    with pytest.raises(InputError, match="images / 255"):
        ask(pixels(2) * 255)
    with pytest.raises(InputError, match="1 channel.*expand"):
        ask(pixels(2, 1))
    with pytest.raises(InputError, match="unsqueeze"):
        ask(pixels(2)[0])


def test_description_and_fingerprint(conv: Any) -> None:
    defense = tpap(conv())
    described = json.loads(json.dumps(defense.describe()))
    assert described["purifier"] == {"name": "fgsm-step", "radius": 8 / 255, "clip": True}
    assert described["detector"] is None
    assert described["stochastic"] is False
    same, others = (
        tpap(conv()),
        [
            tpap(conv(), radius=0.1),
            tpap(conv(seed=1)),
            Defense(conv()),
            Defense(conv(), purifier=FGSMStep(), decision=Branching()),
            Defense(conv(), purifier=FGSMStep(), detector=_open()),
        ],
    )
    prints = [d.fingerprint() for d in (defense, same, *others)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 1 + len(others)


def test_images_are_not_written_to(conv: Any, pixels: Any) -> None:
    images = pixels(4)
    kept = images.clone()
    for defense in (tpap(conv()), Defense(conv(), purifier=Noisy())):
        defense(images)
        defense.predict(images)
        defense.terms(images, backward="identity")
    assert torch.equal(images, kept)
    assert not images.requires_grad


def test_device_stays(conv: Any, pixels: Any) -> None:
    found = tpap(conv()).predict(pixels(2))
    assert found.scores.device == found.labels.device == torch.device("cpu")
    assert not found.scores.requires_grad
