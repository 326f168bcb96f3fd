"""HopSkipJump by Foolbox: closed forms, labels only, batch mates, starts, random targets."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks.base import Attacked
from unperturb.attacks.hopskipjump import HopSkipJump
from unperturb.attacks.losses import margin
from unperturb.attacks.outside import fenced
from unperturb.attacks.surface import Surface
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import ConfigError, MissingExtraError
from unperturb.purifiers import Identity, Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import L2, Linf, Threat

THREATS = {"linf": Linf(0.1), "l2": L2(0.5)}
each_norm = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)


def run(
    target: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    ids: list[str] | None = None,
    goal: str = "wrong",
    **settings: Any,
) -> Attacked:
    ids = [f"image-{i}" for i in range(len(images))] if ids is None else ids
    attack = HopSkipJump(**{"name": "hsj", "steps": 6, "evaluations": 40, **settings})
    return attack.run(
        Surface(target, goal=goal), images, labels, threat=threat, keys=Keys.of(0, ids)
    )


@each_norm
def test_it_comes_near_to_the_boundary_of_a_linear_model(
    linear: Any, pixels: Any, threat: Threat
) -> None:
    net, images = linear(), pixels(8, 1, 4)
    labels = net(images).argmax(1)
    found = run(net, images, labels, threat, steps=12, evaluations=60)
    weight = (net[1].weight[1] - net[1].weight[0]).detach()
    size = weight.abs().sum() if threat.norm == "linf" else weight.norm()
    nearest = (-margin(net(images), labels) / size).detach()
    ratio = threat.distance(found.images, images) / nearest
    assert bool(found.success.all())
    assert bool((ratio > 0.999).all())
    assert float(ratio.median()) < 1.1
    assert float(ratio.max()) < 1.5


@each_norm
def test_labels_are_all_it_sees(conv: Any, pixels: Any, threat: Threat) -> None:
    class Answers(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(net(images).argmax(1), 5).float()

    net, images = conv(), pixels(4)
    labels = net(images).argmax(1)
    wanted = run(net, images, labels, threat)
    found = run(Answers().eval(), images, labels, threat)
    assert bool(wanted.success.all())
    assert torch.equal(found.images, wanted.images)


@each_norm
def test_an_image_does_not_depend_on_its_batch_mates(
    conv: Any, pixels: Any, threat: Threat
) -> None:
    net, images = conv().double(), pixels(6).double()
    labels = net(images).argmax(1)
    labels[2] = (labels[2] + 1) % 5  # one that is wrong already
    whole = run(net, images, labels, threat, evaluations=20)
    assert torch.equal(whole.images[2], images[2])
    for i in (0, 5):
        part = slice(i, i + 1)
        alone = run(net, images[part], labels[part], threat, [f"image-{i}"], evaluations=20)
        torch.testing.assert_close(alone.images, whole.images[part], rtol=0, atol=1e-9)


def test_a_batch_ends_no_farther_than_images_alone_with_foolbox(conv: Any, pixels: Any) -> None:
    """Foolbox's step under L2 shrinks with the batch; alone each image has its full step."""
    import foolbox

    net, images = conv(), pixels(12)
    labels = net(images).argmax(1)
    found = run(net, images, labels, L2(0.5))
    distances = []
    with fenced(0):
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        theirs = foolbox.attacks.HopSkipJumpAttack(steps=6, initial_gradient_eval_steps=40)
        for i in range(len(images)):
            goal = foolbox.criteria.Misclassification(labels[i : i + 1])
            start = _start(net, labels[i])
            alone = theirs.run(model, images[i : i + 1], goal, starting_points=start)
            distances.append((alone - images[i : i + 1]).norm().detach())
    ratio = L2(0.5).distance(found.images, images) / torch.stack(distances)
    assert float(ratio.median()) < 1.15


def _start(net: nn.Module, label: Tensor) -> Tensor:
    """A random picture of another class."""
    generator = torch.Generator().manual_seed(0)
    for block in (8, 4, 2, 1) * 50:
        small = torch.rand(1, 3, 8 // block, 8 // block, generator=generator)
        picture = small.repeat_interleave(block, 2).repeat_interleave(block, 3)
        if int(net(picture).argmax(1)) != int(label):
            return picture
    raise AssertionError("no start")


def test_an_image_that_foolbox_cannot_go_on_with_leaves_the_others_be(
    conv: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fenced(0):
        from foolbox.attacks import HopSkipJumpAttack
    net, images = conv().double(), pixels(4).double()
    labels = net(images).argmax(1)
    wanted = run(net, images, labels, L2(0.5))
    theirs = HopSkipJumpAttack._binary_search
    bad = images[1:2]

    def search(self: Any, met: Any, originals: Any, perturbed: Any) -> Any:
        if bool((originals.raw == bad).flatten(1).all(1).any()):
            raise AssertionError
        return theirs(self, met, originals, perturbed)

    monkeypatch.setattr(HopSkipJumpAttack, "_binary_search", search)
    found = run(net, images, labels, L2(0.5))
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(found.images[others], wanted.images[others], rtol=0, atol=1e-9)
    # The start met the goal, and is the nearest that was seen.
    assert bool(found.success.all())
    assert float((found.images[1] - images[1]).norm()) > float(
        (wanted.images[1] - images[1]).norm()
    )


def test_an_image_without_a_start_stays_as_it_is(pixels: Any) -> None:
    class Always(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).expand(len(images), 3)

    images = pixels(3)
    # The last is wrong as it is: the attack is over before it begins.
    found = run(Always().eval(), images, torch.tensor([0, 0, 1]), Linf(0.1), starts=7)
    assert torch.equal(found.images, images)
    assert found.success.tolist() == [False, False, True]
    # The clean image, seven starts, the check.
    assert found.queries.tolist() == [9, 9, 2]


def test_the_goal_is_that_of_the_surface(conv: Any, pixels: Any) -> None:
    """A wrong answer that is flagged is no success where flags reject."""
    net, images = conv(), pixels(6)
    labels = net(images).argmax(1)

    class Darker(Purifier):
        name = "darker"

        def forward(self, images: Tensor, *, ctx: Context) -> Purified:
            return Purified(images * 0.9, None)

    detector = ThresholdDetector(threshold=0.05, action="reject")
    defense = Defense(net, purifier=Darker(), detector=detector)
    found = run(defense, images, labels, L2(0.5), goal="wrong-unflagged")
    answer = defense.predict(found.images)
    assert bool(found.success.any())
    assert torch.equal(found.success, (answer.labels != labels) & ~answer.flagged)


class Noisy(Purifier):
    """Noise that matters near a boundary."""

    name = "noisy"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images + 0.05 * ctx.noise("noisy", images.shape[1:]), None)


def test_random_targets_are_decided_by_majority_and_repeatably(linear: Any, pixels: Any) -> None:
    net, images = linear(), pixels(6, 1, 4)
    labels = net(images).argmax(1)
    defense = Defense(net, purifier=Noisy())
    runs = [
        run(defense, images, labels, L2(0.5), draws=9, evaluations=20, steps=3) for _ in range(2)
    ]
    assert torch.equal(runs[0].images, runs[1].images)
    weight = (net[1].weight[1] - net[1].weight[0]).detach()
    nearest = (-margin(net(images), labels) / weight.norm()).detach()
    # The majority of noisy answers turns about where the answer without noise does.
    distance = L2(0.5).distance(runs[0].images, images)
    assert float((distance - nearest).abs().max()) < 0.15
    plain = run(Defense(net, purifier=Identity()), images, labels, L2(0.5), evaluations=20)
    assert not torch.equal(plain.images, runs[0].images)


def test_a_missing_library_is_named(
    conv: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(MissingExtraError, match="HopSkipJump needs the package 'foolbox'"):
        run(conv(), pixels(1), torch.tensor([0]), L2(0.5))


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"gamma": 0.0}, {"evaluations": 0}, {"starts": -1}):
        with pytest.raises(ConfigError, match="Expected: "):
            HopSkipJump(**{"name": "hsj", **wrong})  # type: ignore[arg-type]
