"""What purifiers of several steps promise alike: cost, modes, saving, and how they are broken."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.classifiers import as_classifier, load_classifier, new_classifier
from unperturb.data import load_images
from unperturb.decisions import Decision
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.purifiers import CWStep, PGDStep, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
BOTH = [PGDStep(radius=0.05, steps=STEPS), CWStep(steps=STEPS, lr=0.02)]
NAMES = [purifier.name for purifier in BOTH]
UNROLLED = {"pgd-step": "smoothed-sign", "cw-step": "exact"}


class Difference(Decision):
    """Reads the logits before and after."""

    name = "difference"
    reads = frozenset({"before", "after"})

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        assert before is not None
        assert after is not None
        return before - after


@dataclass(eq=False)
class Held:
    """A tensor that a graph holds."""

    tensor: Tensor


class Passes(nn.Module):
    """Counts forward passes, and backward passes by way of their output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.forwards = self.backwards = 0
        self.train(module.training)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        self.forwards += 1
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1

    def take(self) -> tuple[int, int]:
        """Counts since the last time."""
        found = self.forwards, self.backwards
        self.forwards = self.backwards = 0
        return found


@pytest.mark.parametrize("purifier", BOTH, ids=NAMES)
@pytest.mark.parametrize("decision", [None, Difference()], ids=["after", "both"])
def test_cost_in_passes(
    conv: Any, pixels: Any, purifier: Purifier, decision: Decision | None
) -> None:
    """K forwards and backwards for the steps, one forward more; "before" is the first of them."""
    net = Passes(conv(smooth=True))
    classifier = as_classifier(net, num_classes=5, input_shape=(3, 8, 8))
    defense = Defense(classifier, purifier=purifier, decision=decision)
    images = pixels(3)
    net.take()
    defense.predict(images)
    assert net.take() == (STEPS + 1, STEPS)
    for rule in purifier.backwards:
        leaf = images.clone().requires_grad_()
        scores = defense.terms(leaf, backward=rule).scores
        assert net.take() == (STEPS + 1, STEPS), rule
        torch.autograd.grad(scores[:, 0].sum(), leaf)
        forwards, backwards = net.take()
        assert forwards == (STEPS if rule == UNROLLED[purifier.name] else 0), rule
        assert (backwards > 2) == (rule == UNROLLED[purifier.name]), rule


@pytest.mark.parametrize("kind", [PGDStep, CWStep], ids=NAMES)
def test_a_step_keeps_its_state_and_no_activations(
    conv: Any, pixels: Any, kind: type[PGDStep | CWStep]
) -> None:
    net, images = nn.Sequential(nn.Upsample(scale_factor=6), conv(smooth=True)), pixels(2)

    def held(steps: int) -> float:
        """What the graph of a defended answer holds, in images."""
        alive: weakref.WeakSet[Held] = weakref.WeakSet()

        def note(tensor: Tensor) -> Held:
            found = Held(tensor)
            alive.add(found)
            return found

        leaf = images.clone().requires_grad_()
        defense = Defense(net, purifier=kind(steps=steps))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda found: found.tensor):
            terms = defense.terms(leaf, backward=UNROLLED[kind.name])
        assert terms.scores.requires_grad
        return sum(found.tensor.numel() for found in alive) / images.numel()

    assert held(2) > 100, "the activations of one forward pass are not seen"
    assert 0 < (held(6) - held(2)) / 4 < 12


@pytest.mark.parametrize("purifier", BOTH, ids=NAMES)
def test_no_gradient_of_a_parameter_is_computed(conv: Any, pixels: Any, purifier: Purifier) -> None:
    net, asked = conv(smooth=True), []
    for parameter in net.parameters():
        parameter.register_hook(asked.append)
    defense = Defense(net, purifier=purifier)
    for rule in purifier.backwards:
        leaf = pixels(2).requires_grad_()
        torch.autograd.grad(defense.terms(leaf, backward=rule).scores.sum(), leaf)
    assert not asked


@pytest.mark.parametrize("purifier", BOTH, ids=NAMES)
def test_unrolling_leaves_the_answer_and_the_module(
    conv: Any, pixels: Any, untouched: Any, purifier: Purifier
) -> None:
    net, images = conv(), pixels(5)
    defense = Defense(net, purifier=purifier)
    with torch.no_grad():
        plain = defense(images)
    with untouched(net):
        leaf = images.clone().requires_grad_()
        scores = defense.terms(leaf, backward=UNROLLED[purifier.name]).scores
        torch.autograd.grad(scores[:, 0].sum(), leaf)
        with torch.inference_mode():
            inside = defense(images.clone())
    assert torch.equal(scores.detach(), plain)
    assert torch.equal(inside, plain)


@pytest.mark.parametrize("purifier", BOTH, ids=NAMES)
def test_the_logits_before_keep_their_gradient(conv: Any, pixels: Any, purifier: Purifier) -> None:
    net, images = conv(smooth=True).double(), pixels(3).double()
    for rule in purifier.backwards:
        parts = []
        for decision in (Difference(), None):
            leaf = images.clone().requires_grad_()
            defense = Defense(net, purifier=purifier, decision=decision)
            scores = defense.terms(leaf, backward=rule).scores
            parts.append(torch.autograd.grad(scores[:, 0].sum(), leaf)[0])
        leaf = images.clone().requires_grad_()
        (before,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
        torch.testing.assert_close(parts[0], before - parts[1], msg=rule)


@pytest.mark.parametrize("purifier", BOTH, ids=NAMES)
def test_saved_and_loaded(tmp_path: Path, pixels: Any, purifier: Purifier) -> None:
    defense = Defense(new_classifier("small-cnn", in_channels=1, seed=0), purifier=purifier)
    defense.save_pretrained(tmp_path / "kept")
    images = pixels(3, 1)
    again = Defense.from_pretrained(tmp_path / "kept")
    assert again.purifier.describe() == purifier.describe()
    assert again.fingerprint() == defense.fingerprint()
    assert torch.equal(again.predict(images).scores, defense.predict(images).scores)


def right(target: nn.Module, images: Tensor, labels: Tensor) -> int:
    """How many answers are right."""
    with torch.no_grad():
        return int((target(images).argmax(1) == labels).sum())


def keys_of(images: Tensor) -> Keys:
    """Random numbers of a batch."""
    return Keys.of(0, [str(i) for i in range(len(images))])


@pytest.mark.parametrize(
    "purifier",
    [
        PGDStep(radius=0.08, steps=4, step_size=0.5),
        CWStep(constant=0.1, steps=5, lr=0.03),
    ],
    ids=NAMES,
)
def test_an_attacker_who_knows_it_leaves_nothing(
    digits: Any, digits_net: nn.Module, purifier: Purifier
) -> None:
    images, labels = digits[0][1200:1248], digits[1][1200:1248]
    keys, threat = keys_of(images), Linf(0.2)
    blind = make_attack("pgd-20").run(
        Surface(digits_net), images, labels, threat=threat, keys=keys, stop="fixed"
    )
    defense = Defense(digits_net, purifier=purifier)
    assert right(defense, images, labels) >= 24
    assert right(digits_net, blind.images, labels) <= 3
    assert right(defense, blind.images, labels) >= 8, "the purifier helps against nobody"
    for rule in purifier.adaptive:
        found = make_attack("pgd-10").run(
            Surface(defense, backward=rule), images, labels, threat=threat, keys=keys
        )
        assert int((~found.success).sum()) <= 1, rule


@pytest.mark.realdata
def test_on_a_net_in_robust_overfitting(assets: Path) -> None:
    """Three PGD steps answer most oblivious PGD examples, and no adaptive one."""
    folder = ROOT / "zoo" / "cifar10-resnet20-fgsm"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("zoo/cifar10-resnet20-fgsm has not been trained")
    net = load_classifier(str(folder))
    data = load_images(str(assets / "data" / "cifar10"), split="test", limit=16)
    images, labels = data.images(), data.labels
    keys, threat = keys_of(images), Linf(8 / 255)
    blind = make_attack("pgd-10").run(
        Surface(net), images, labels, threat=threat, keys=keys, stop="fixed"
    )
    defense = tpap(net, step="pgd", steps=3, step_size=0.5)
    assert right(defense, blind.images, labels) >= 8
    found = make_attack("pgd-10").run(
        Surface(defense, backward="identity"), blind.images, labels, threat=threat, keys=keys
    )
    assert int((~found.success).sum()) <= 1
