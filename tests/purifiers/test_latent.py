"""Latent optimization: steps, derivatives, cost, refusals."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small_vae import tiny
from unperturb.classifiers import as_classifier, new_classifier
from unperturb.context import Context
from unperturb.decisions import Decision
from unperturb.defense import Defense
from unperturb.errors import ConfigError, InputError
from unperturb.networks.vae import VAE
from unperturb.purifiers import LatentOptimization
from unperturb.randomness import Keys

KEYS = Keys.of(5, ["a", "b", "c", "d", "e", "f"])
RULES = ("exact", "unrolled", "encoder-decoder", "identity")


class Both(Decision):
    """Reads the logits before and after."""

    name = "both"
    reads = frozenset({"before", "after"})

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        assert before is not None
        assert after is not None
        return after - before


def purifier(**options: Any) -> LatentOptimization:
    """A small one whose steps matter."""
    vae = options.pop("vae", None) or tiny(sharp=3.0)
    return LatentOptimization(vae=vae, **{"steps": 4, "lr": 0.1, **options})


# The steps


def test_more_steps_reconstruct_better(pixels: Any) -> None:
    vae, images = tiny(sharp=3.0), pixels(6)
    errors = []
    for steps in (0, 5, 50):
        reading = purifier(vae=vae, steps=steps)(images, ctx=Context(nn.Identity(), images)).reading
        errors.append((reading - images).square().flatten(1).sum(1))
    assert torch.equal(errors[0], (vae(images) - images).square().flatten(1).sum(1))
    assert bool((errors[1] < errors[0]).all())
    assert bool((errors[2] < errors[1]).all())


# Derivatives


def slopes(defense: Defense, images: Tensor, along: Tensor, rule: str) -> Tensor:
    """Directional derivative (N,) of a loss by one backward rule."""
    leaf = images.clone().requires_grad_()
    scores = defense.terms(leaf, keys=KEYS[: len(images)], backward=rule).scores
    (gradient,) = torch.autograd.grad(loss_of(scores).sum(), leaf)
    return (gradient * along).flatten(1).sum(1)


def loss_of(scores: Tensor) -> Tensor:
    return F.cross_entropy(scores, torch.arange(len(scores)) % 5, reduction="none")


@pytest.mark.parametrize("optimizer", ["gd", "adam", "lbfgs"])
@pytest.mark.parametrize("start", ["encoder", "random"])
@pytest.mark.parametrize(("steps", "tolerance"), [(1, 0.0), (6, 0.0), (12, 0.05)])
def test_unrolled_agrees_with_finite_differences(
    conv: Any, pixels: Any, optimizer: str, start: str, steps: int, tolerance: float
) -> None:
    net, images = conv(smooth=True).double(), pixels(6).double()
    stage = purifier(
        vae=tiny(sharp=3.0), steps=steps, lr=0.03, optimizer=optimizer, start=start,
        tolerance=tolerance,
    )  # fmt: skip
    defense = Defense(net, purifier=stage, decision=Both()).double()
    along = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).double()
    h = 1e-6
    with torch.no_grad():
        up, down = (loss_of(defense(images + s * along, keys=KEYS)) for s in (h, -h))
    expected = (up - down) / (2 * h)
    assert float(expected.abs().min()) > 1e-5
    for rule in ("unrolled", "exact"):
        found = slopes(defense, images, along, rule)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    for rule in ("encoder-decoder", "identity"):
        assert not torch.allclose(slopes(defense, images, along, rule), expected, rtol=0.01)


@pytest.mark.parametrize("start", ["encoder", "random"])
def test_encoder_decoder_has_the_derivative_of_no_steps(
    linear: Any, pixels: Any, start: str
) -> None:
    """With a linear classifier the logits' own slope is the same at both readings."""
    net = as_classifier(linear(classes=5, channels=3, side=8), input_shape=(3, 8, 8))
    images = pixels(6)
    vae = tiny(sharp=3.0)
    many = Defense(net, purifier=purifier(vae=vae, start=start))
    none = Defense(many.classifier, purifier=purifier(vae=vae, steps=0))
    found = []
    for defense, rule in ((many, "encoder-decoder"), (none, "unrolled"), (none, "encoder-decoder")):
        leaf = images.clone().requires_grad_()
        scores = defense.terms(leaf, keys=KEYS, backward=rule).scores
        found.append(torch.autograd.grad(scores[:, 1].sum(), leaf)[0])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[1], found[2])
    assert bool((found[0].flatten(1).abs().amax(1) > 0).all())


@pytest.mark.parametrize("rule", RULES)
def test_the_logits_before_keep_their_gradient(conv: Any, pixels: Any, rule: str) -> None:
    net, images = conv(smooth=True).double(), pixels(3).double()
    parts = []
    for decision in (Both(), None):
        leaf = images.clone().requires_grad_()
        defense = Defense(net, purifier=purifier(), decision=decision).double()
        scores = defense.terms(leaf, backward=rule).scores
        parts.append(torch.autograd.grad(scores[:, 0].sum(), leaf)[0])
    leaf = images.clone().requires_grad_()
    (before,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(parts[0], parts[1] - before)


# Cost


class Passes:
    """Counts passes through a decoder, and backward passes by way of its output."""

    def __init__(self, vae: VAE) -> None:
        self.inner: Callable[..., Tensor] = vae.decode
        self.forwards = self.backwards = 0
        vae.decode = self  # type: ignore[method-assign,assignment]

    def __call__(self, codes: Tensor, level: int | None = None) -> Tensor:
        found = self.inner(codes, level)
        self.forwards += 1
        if found.requires_grad:
            found.register_hook(self._count)
        return found

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1

    def take(self) -> tuple[int, int]:
        """Counts since the last time."""
        found = self.forwards, self.backwards
        self.forwards = self.backwards = 0
        return found


@pytest.mark.parametrize("optimizer", ["gd", "adam", "lbfgs"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_one_decoder_backward_a_step(conv: Any, pixels: Any, optimizer: str, steps: int) -> None:
    stage = purifier(steps=steps, optimizer=optimizer)
    passes = Passes(stage.vae)
    defense = Defense(conv(), purifier=stage)
    defense.predict(pixels(3))
    assert passes.take() == (steps + 1, steps)
    # For each attacker's rule: what a forward pass costs, and then the backward pass.
    for rule, more, (forwards, backwards) in (
        ("unrolled", 0, (steps, 2 * steps + 1)),
        ("encoder-decoder", 1, (0, 1)),
        ("identity", 0, (0, 0)),
    ):
        leaf = pixels(3).requires_grad_()
        scores = defense.terms(leaf, backward=rule).scores
        assert passes.take() == (steps + 1 + more, steps), rule
        torch.autograd.grad(scores[:, 0].sum(), leaf)
        found = passes.take()
        assert found[0] == forwards, rule
        assert found[1] >= backwards, rule
        assert (found[1] > 1) == (rule == "unrolled" and steps > 0), rule


@dataclass(eq=False)
class Held:
    """A tensor that a graph holds."""

    tensor: Tensor


def held(defense: Defense, images: Tensor, rule: str) -> float:
    """What the graph of a defended answer holds, in images."""
    alive: weakref.WeakSet[Held] = weakref.WeakSet()

    def note(tensor: Tensor) -> Held:
        found = Held(tensor)
        alive.add(found)
        return found

    leaf = images.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda found: found.tensor):
        terms = defense.terms(leaf, backward=rule)
    assert terms.scores.requires_grad
    return sum(found.tensor.numel() for found in alive) / images.numel()


def test_memory_does_not_grow_by_activations(conv: Any, pixels: Any) -> None:
    vae, net, images = tiny(width=16), conv(smooth=True), pixels(4)
    most = {}
    for rule in ("unrolled", "encoder-decoder", "identity"):
        few, many = (
            held(Defense(net, purifier=purifier(vae=vae, steps=n)), images, rule) for n in (2, 12)
        )
        most[rule] = (many - few) / 10
    assert most["encoder-decoder"] == most["identity"] == 0, "no graph is kept between steps"
    # A step keeps the image (which all steps share) and thirteen codes, each a sixth of an image;
    # one layer's activations would be more than five images.
    assert most["unrolled"] < 3.5


def test_no_gradient_of_a_parameter_is_computed(conv: Any, pixels: Any, untouched: Any) -> None:
    net, vae = conv(smooth=True), tiny().requires_grad_(True)
    asked: list[Tensor] = []
    for parameter in (*net.parameters(), *vae.parameters()):
        parameter.register_hook(asked.append)
    with untouched(net), untouched(vae):
        defense = Defense(net, purifier=purifier(vae=vae))
        for rule in RULES:
            leaf = pixels(2).requires_grad_()
            torch.autograd.grad(defense.terms(leaf, backward=rule).scores.sum(), leaf)
    assert not asked
    assert not any(p.requires_grad for p in defense.purifier.parameters())


def test_values_do_not_depend_on_the_rule_or_the_mode(conv: Any, pixels: Any) -> None:
    defense = Defense(conv(), purifier=purifier(start="random"))
    images = pixels(5)
    with torch.no_grad():
        plain = defense(images, keys=KEYS[:5])
    with torch.inference_mode():
        inside = defense(images.clone(), keys=KEYS[:5])
    assert torch.equal(inside, plain)
    for rule in RULES:
        leaf = images.clone().requires_grad_()
        scores = defense.terms(leaf, keys=KEYS[:5], backward=rule).scores
        assert torch.equal(scores.detach(), plain), rule


# What an attacker is offered


def test_backward_rules_and_those_an_audit_tries() -> None:
    assert purifier().backwards == RULES
    assert purifier(steps=10).adaptive == ("unrolled", "encoder-decoder", "identity")
    assert purifier(steps=11).adaptive == ("encoder-decoder", "identity")
    assert purifier(steps=0).adaptive == ("encoder-decoder", "identity")
    asymmetric = purifier(level=0)
    assert asymmetric.backwards == ("exact", "unrolled", "encoder-decoder")
    assert asymmetric.adaptive == ("unrolled", "encoder-decoder")
    assert LatentOptimization.backwards == RULES


def test_only_a_random_start_draws(conv: Any, pixels: Any) -> None:
    images = pixels(4)
    for start, same in (("encoder", True), ("random", False)):
        defense = Defense(conv(), purifier=purifier(start=start))
        assert defense.stochastic is not same
        one, two = (defense(images, keys=Keys.of(s, list("abcd"))) for s in (0, 1))
        assert torch.equal(one, two) is same
    first = KEYS[:4].normal("latent", (2, 4, 4))
    reading = purifier(start="random", steps=0)
    found = reading(images, ctx=Context(nn.Identity(), images, keys=KEYS[:4])).reading
    torch.testing.assert_close(found, reading.vae.decode(first))


# References


def test_before_may_be_the_reconstruction(conv: Any, pixels: Any) -> None:
    net, images, vae = conv(), pixels(4), tiny(sharp=3.0)
    for optimized in (0, 3):
        defense = Defense(
            net, purifier=purifier(vae=vae, steps=optimized, reference=True), decision=Both()
        )
        found = defense.predict(images)
        assert found.before is not None
        assert found.after is not None
        torch.testing.assert_close(found.before, net(vae(images)).detach())
        assert torch.equal(found.before, found.after) is (optimized == 0)
    with pytest.raises(ConfigError, match="reference is set for a unified classifier"):
        purifier(unified=True, reference=True)


# Saving and refusing


def test_saved_with_its_weights(tmp_path: Path, pixels: Any) -> None:
    vae = tiny(channels=1, sharp=3.0)
    defense = Defense(
        new_classifier("small-cnn", in_channels=1), purifier=purifier(vae=vae, tolerance=0.01)
    )
    defense.save_pretrained(tmp_path / "kept")
    again = Defense.from_pretrained(tmp_path / "kept")
    assert again.fingerprint() == defense.fingerprint()
    images = pixels(3, 1)
    assert torch.equal(again.predict(images).scores, defense.predict(images).scores)
    plain = Defense(again.classifier, purifier=purifier(vae=tiny(channels=1), tolerance=0.01))
    assert plain.purifier.describe() == defense.purifier.describe()
    assert plain.fingerprint() != defense.fingerprint(), "weights count"


def test_a_vae_of_another_size_or_range_is_refused(conv: Any, pixels: Any) -> None:
    with pytest.raises(ConfigError, match="pixels from -1 to 1.*pixels in .0, 1."):
        purifier(vae=tiny(pixel_range=(-1.0, 1.0)))
    net = as_classifier(conv(), num_classes=5, input_shape=(3, 16, 16))
    words = "The VAE is for images of 3x8x8, and the classifier reads 3x16x16"
    with pytest.raises(ConfigError, match=words):
        Defense(net, purifier=purifier())
    with pytest.raises(ConfigError, match="for images of 1x8x8, and the classifier reads 3xany"):
        Defense(conv(), purifier=purifier(vae=tiny(channels=1)))
    with pytest.raises(InputError, match="Images are 3x16x16.*3x8x8, which the VAE was made for"):
        Defense(conv(), purifier=purifier()).predict(pixels(2, 3, 16))
    with pytest.raises(InputError, match="float64.*float32, as the weights of the VAE"):
        Defense(conv().double(), purifier=purifier())(pixels(2).double())


def test_codes_that_are_not_finite_stop_with_step_and_rate(conv: Any, pixels: Any) -> None:
    # Codes begin at 0, where the decoder is steep enough to throw them out of all numbers.
    vae = tiny(sharp=3.0)
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
        vae.decoder[0].weight.mul_(1e36)
    defense = Defense(conv(), purifier=purifier(vae=vae, steps=5, lr=1e6, optimizer="gd"))
    words = r"not finite after step 1 at the learning rate 1e\+06 \(gd\).*lower lr: 0.1 suits lbfgs"
    for rule in ("unrolled", "encoder-decoder"):
        with pytest.raises(ConfigError, match=words):
            defense.terms(pixels(3).requires_grad_(), backward=rule)
    with pytest.raises(ConfigError, match=words):
        defense.predict(pixels(3))


def test_half_precision(conv: Any, pixels: Any) -> None:
    defense = Defense(conv().bfloat16(), purifier=purifier()).bfloat16()
    assert defense.predict(pixels(3).bfloat16()).scores.dtype == torch.bfloat16
