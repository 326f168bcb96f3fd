"""The pipeline's contract, proved with small stages of every kind it must carry."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.surface import Surface
from unperturb.classifiers import as_classifier
from unperturb.context import Context
from unperturb.decisions import Decision
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import InputError, ThresholdError
from unperturb.presets import tpap
from unperturb.purifiers import FGSMStep, Identity, Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf


class Encoder(Purifier):
    """The classifier reads features; there is no purified image."""

    name = "encoder"
    backwards = ("exact",)
    adaptive = ("exact",)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.weight = nn.Parameter(torch.randn(6, 3 * 64, generator=generator) * 0.1)

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images.flatten(1) @ self.weight.T, None)


class NeverRun(Purifier):
    """Fails when it is asked."""

    name = "never-run"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        raise AssertionError("nothing reads what this purifier would return")


class Noisy(Purifier):
    """Adds noise."""

    name = "noisy"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        noisy = images + 0.1 * ctx.noise("noisy", images.shape[1:])
        return Purified(noisy, noisy)


class Asking(Purifier):
    """Asks for the logits before, and moves by the answer."""

    name = "asking"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        moved = images + 0.01 * ctx.before().argmax(1).view(-1, 1, 1, 1)
        return Purified(moved, moved)


class Halves(Purifier):
    """Reads half the pixels' brightness; its "before" is another reading."""

    name = "halves"
    references = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images / 2, images / 2, images / 4)


class OnLogits(Decision):
    """Reads the logits before only."""

    name = "on-logits"
    reads = frozenset({"before"})

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        assert after is None
        assert before is not None
        return before.flip(1)


class Branching(Decision):
    """The logits' change where flagged, else the logits after."""

    name = "branching"
    reads = frozenset({"before", "after"})

    def branches(self, before: Tensor | None, after: Tensor | None) -> dict[str, Tensor]:
        assert before is not None
        assert after is not None
        return {"difference": before - after, "after": after}

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        both = self.branches(before, after)
        return torch.where(flagged[:, None], both["difference"], both["after"])


def by_hand(net: nn.Module, images: Tensor, radius: float, *, clip: bool = True) -> Tensor:
    """TPAP in eight lines."""
    with torch.inference_mode(False), torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        logits = net(x)
        loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        purified = x + radius * gradient.sign()
        return (purified.clamp(0, 1) if clip else purified).detach()


# --- TPAP -------------------------------------------------------------------------------


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
    assert torch.equal(found.scores, net(purified).detach())
    assert torch.equal(defense(images), net(purified))
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
        assert torch.equal(defense(inside), wanted)
        assert torch.equal(defense(outside), wanted)
        assert torch.equal(defense.predict(inside).scores, wanted)
        # Built inside, too.
        assert torch.equal(tpap(net)(inside), wanted)


def test_inference_mode_with_a_net_made_there(conv: Any, pixels: Any) -> None:
    images = pixels(3)
    wanted = tpap(conv())(images)
    with torch.inference_mode():
        copied = copy.deepcopy(conv()).requires_grad_(False)
        torch.testing.assert_close(Defense(copied)(images), conv()(images))
    torch.testing.assert_close(tpap(conv())(images), wanted)


def test_tpap_moves_away_from_the_own_prediction(conv: Any, pixels: Any) -> None:
    net, images = conv(smooth=True), pixels(30)
    predicted = net(images).argmax(1)
    after = tpap(net, radius=2 / 255)(images)
    before = F.cross_entropy(net(images), predicted, reduction="none")
    assert bool((F.cross_entropy(after, predicted, reduction="none") > before).all())


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


def test_a_gradient_set_by_the_user_stays(conv: Any, pixels: Any, untouched: Any) -> None:
    net = conv()
    net(pixels(2)).sum().backward()
    frozen = net[0].weight.requires_grad_(False)
    with untouched(net):
        tpap(net)(pixels(4))
        tpap(net).predict(pixels(4))
    assert not frozen.requires_grad


# --- backward rules ---------------------------------------------------------------------


def _input_gradient(defense: Defense, images: Tensor, backward: str) -> Tensor:
    x = images.clone().requires_grad_()
    scores = defense.terms(x, backward=backward).scores
    (gradient,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmin(1)), x)
    return gradient


def test_exact_and_identity_agree_but_at_clipped_pixels(conv: Any) -> None:
    net = conv().double()
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(10, 3, 8, 8, generator=generator, dtype=torch.float64)
    defense = tpap(net, radius=0.1)
    exact = _input_gradient(defense, images, "exact")
    identity = _input_gradient(defense, images, "identity")
    step = by_hand(net, images, 0.1, clip=False)
    clipped = (step < 0) | (step > 1)
    assert 0.02 < float(clipped.double().mean()) < 0.5
    torch.testing.assert_close(exact[~clipped], identity[~clipped])
    assert not exact[clipped].any()
    assert float((identity[clipped] != 0).double().mean()) > 0.9
    # Without the clipping there is no difference.
    free = tpap(net, radius=0.1, clip=False)
    torch.testing.assert_close(
        _input_gradient(free, images, "exact"), _input_gradient(free, images, "identity")
    )


def test_identity_is_the_gradient_at_the_purified_image(conv: Any, pixels: Any) -> None:
    net, images = conv().double(), pixels(5).double()
    point = by_hand(net, images, 0.1).requires_grad_()
    scores = net(point)
    (wanted,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmin(1)), point)
    torch.testing.assert_close(_input_gradient(tpap(net, radius=0.1), images, "identity"), wanted)


def test_smoothed_sign_against_finite_differences(conv: Any, pixels: Any) -> None:
    """v + radius * H (tanh'(g / s) / s * v), with the Hessian product by differences of g."""
    net, images = conv(smooth=True).double(), pixels(4).double()
    radius = 0.05
    predicted = net(images).argmax(1)

    def loss_gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        value = F.cross_entropy(net(x), predicted, reduction="sum")
        return torch.autograd.grad(value, x)[0]

    g = loss_gradient(images)
    scale = g.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    point = by_hand(net, images, radius).requires_grad_()
    scores = net(point)
    (v,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmin(1)), point)
    w = (1 - torch.tanh(g / scale) ** 2) / scale * v
    h = 1e-5 / float(w.abs().max())
    product = (loss_gradient(images + h * w) - loss_gradient(images - h * w)) / (2 * h)
    defense = tpap(net, radius=radius)
    found = _input_gradient(defense, images, "smoothed-sign")
    torch.testing.assert_close(found, v + radius * product, rtol=1e-4, atol=1e-8)
    exact = _input_gradient(defense, images, "exact")
    assert bool(torch.isfinite(found).all())
    assert float((found - exact).norm() / exact.norm()) > 0.01


def test_smoothed_sign_does_not_change_the_answer(conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(5)
    x = images.clone().requires_grad_()
    torch.testing.assert_close(
        tpap(net).terms(x, backward="smoothed-sign").scores, tpap(net)(images)
    )


def test_smoothed_sign_where_the_gradient_vanishes(linear: Any, pixels: Any) -> None:
    net = linear(scale=0.0)
    defense = tpap(as_classifier(net, num_classes=2))
    assert not _input_gradient(defense, pixels(3, 1, 4), "smoothed-sign").any()


@pytest.mark.parametrize("backward", ["exact", "identity"])
def test_a_purifier_that_asks_first_takes_no_gradient_away(
    conv: Any, pixels: Any, counted: Any, backward: str
) -> None:
    net, images = counted(conv(smooth=True).double()), pixels(4).double()
    defense = Defense(net, purifier=Asking(), decision=Branching())
    x = images.clone().requires_grad_()
    net.calls.clear()
    run = defense.terms(x, backward=backward)
    assert net.calls == [4, 4]
    (found,) = torch.autograd.grad((run.branches["difference"] + run.scores)[:, 0].sum(), x)
    (before,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, before)


@pytest.mark.parametrize("backward", ["exact", "identity", "smoothed-sign"])
def test_the_logits_before_keep_their_gradient(conv: Any, pixels: Any, backward: str) -> None:
    net, images = conv(smooth=True).double(), pixels(4).double()
    defense = Defense(net, purifier=FGSMStep(radius=0.05), decision=Branching())

    x = images.clone().requires_grad_()
    run = defense.terms(x, backward=backward)
    (found,) = torch.autograd.grad(run.branches["difference"][:, 0].sum(), x)
    (after,) = torch.autograd.grad(
        tpap(net, radius=0.05).terms(x, backward=backward).scores[:, 0].sum(), x
    )
    (before,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, before - after)
    assert float(before.abs().max()) > 1e-3


def test_identity_keeps_the_gradient_of_a_reference(linear: Any, pixels: Any) -> None:
    net = linear(side=4).double()
    classifier = as_classifier(net, num_classes=2, input_shape=(1, 4, 4))
    defense = Defense(classifier, purifier=Halves(), decision=OnLogits())
    images = pixels(3, 1, 4).double()
    weight = net[1].weight.detach()[1].view(1, 1, 4, 4)
    for backward, factor in (("exact", 0.25), ("identity", 1.0)):
        x = images.clone().requires_grad_()
        scores = defense.terms(x, backward=backward).scores
        torch.testing.assert_close(scores, net(images / 4).flip(1))
        (found,) = torch.autograd.grad(scores[:, 0].sum(), x)
        torch.testing.assert_close(found, (factor * weight).expand_as(found))


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
