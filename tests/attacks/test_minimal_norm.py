"""DeepFool, C&W L2 and DDN: closed forms on linear models, Foolbox's results, properties."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.running import keys_of
from unperturb.attacks.base import Attacked
from unperturb.attacks.carlini_wagner import CarliniWagner
from unperturb.attacks.ddn import DDN
from unperturb.attacks.deepfool import DeepFool
from unperturb.attacks.minimal import MinimalNorm
from unperturb.attacks.registry import make_attack
from unperturb.attacks.surface import Surface
from unperturb.classifiers import load_classifier
from unperturb.context import Context
from unperturb.data import load_images
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import ConfigError, SpecError
from unperturb.purifiers import FGSMStep, Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import L2, Linf, Threat

ATTACKS: dict[str, MinimalNorm] = {
    "deepfool": DeepFool(name="deepfool"),
    "cw-l2": CarliniWagner(name="cw", steps=60, search=2),
    "ddn": DDN(name="ddn"),
}
EVERY = pytest.mark.parametrize("name", ATTACKS)


def run(
    attack: MinimalNorm,
    target: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: Threat | None = None,
    keys: Keys | None = None,
    goal: str = "wrong",
) -> Attacked:
    surface = Surface(target, goal=goal)
    keys = keys_of(images) if keys is None else keys
    return attack.run(surface, images, labels, threat=threat or L2(0.5), keys=keys)


def moved(found: Attacked, images: Tensor, order: float = 2) -> Tensor:
    return torch.linalg.vector_norm((found.images - images).flatten(1), ord=order, dim=1)


def answers(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net(images).argmax(1)


def faces_of(net: nn.Module, images: Tensor, labels: Tensor, order: float = 2) -> Tensor:
    """Distances (N, K) to the faces of a linear model's region in closed form; infinite for y."""
    weight = net[1].weight.detach()  # type: ignore[index]
    scores = net(images).detach()
    gaps = scores.gather(1, labels[:, None]) - scores
    sizes = torch.linalg.vector_norm(weight[labels][:, None] - weight[None], ord=order, dim=2)
    return (gaps / sizes).scatter(1, labels[:, None], float("inf"))


@pytest.fixture
def plane(linear: Any, pixels: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of five classes, images far from the edges of [0, 1], and its answers.

    The scores are large and the distances 0.1 and more: DDN's cross-entropy points at the nearest
    class only where that one alone matters, and its norm falls from 1 by 5 % a step.
    """
    net, images = linear(classes=5, channels=3, side=6, scale=10.0).double(), pixels(900).double()
    images = images[:, :, :6, :6]
    labels = answers(net, images)
    faces = faces_of(net, images, labels).sort(1).values
    # Between faces that are about equally near, a gradient of all classes may choose either.
    far = (faces[:, 0] > 0.1) & (faces[:, 1] > 1.3 * faces[:, 0])
    assert int(far.sum()) >= 12
    return net, images[far][:12], labels[far][:12]


# --- closed forms ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "least", "most"),
    [
        (DeepFool(name="deepfool", overshoot=0.02), 1.02, 1.0201),
        (DeepFool(name="deepfool-refined", refine=12), 1.0, 1.0005),
        (CarliniWagner(name="cw"), 1.0, 1.01),
        (DDN(name="ddn"), 1.0, 1.01),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_l2_distance_of_a_linear_model(
    plane: Any, attack: MinimalNorm, least: float, most: float
) -> None:
    net, images, labels = plane
    found = run(attack, net, images, labels)
    assert bool(found.success.all())
    ratio = moved(found, images) / faces_of(net, images, labels).amin(1)
    assert float(ratio.min()) >= least - 1e-9
    assert float(ratio.max()) <= most


def test_linf_distance_of_a_linear_model(plane: Any) -> None:
    net, images, labels = plane
    found = run(DeepFool(name="d", overshoot=0.01), net, images, labels, threat=Linf(0.03))
    assert bool(found.success.all())
    ratio = moved(found, images, torch.inf) / faces_of(net, images, labels, 1).amin(1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.01), rtol=2e-3, atol=0)


def test_deepfool_of_few_classes_goes_to_the_nearest_of_those(linear: Any, pixels: Any) -> None:
    """With two classes there is one face: that of the runner-up, which need not be nearest."""
    net, images = linear(classes=5, channels=3, side=6).double(), pixels(12, 3, 6).double()
    labels = answers(net, images)
    scores, weight = net(images).detach(), net[1].weight.detach()
    second = scores.topk(2, dim=1).indices[:, 1]
    gap = scores.amax(1) - scores.gather(1, second[:, None])[:, 0]
    expected = gap / (weight[labels] - weight[second]).norm(dim=1)
    assert not torch.allclose(expected, faces_of(net, images, labels).amin(1), rtol=1e-3)
    found = run(DeepFool(name="d", classes=2), net, images, labels)
    # Another class may be reached on the way to the runner-up, never after it.
    assert bool((moved(found, images) <= 1.0201 * expected).all())
    one = found.success & (answers(net, found.images) == second)
    assert int(one.sum()) > 3
    torch.testing.assert_close(moved(found, images)[one], 1.02 * expected[one], rtol=1e-4, atol=0)


def test_deepfool_has_the_form_it_is_told(plane: Any) -> None:
    net, images, labels = plane
    free = run(DeepFool(name="d"), net, images, labels, threat=L2(0.5))
    told = run(DeepFool(name="d", form="l2"), net, images, labels, threat=Linf(0.03))
    assert torch.equal(free.images, told.images)


def test_cw_confidence_is_a_margin_that_is_met(plane: Any) -> None:
    net, images, labels = plane
    attack = CarliniWagner(name="cw", confidence=0.5)
    found = run(attack, net, images, labels)
    assert bool((found.judged.margins >= 0.5).all())
    assert float(found.judged.margins.median()) < 0.51


@pytest.mark.parametrize(("edge", "sum_there"), [(0.0, 0.4), (1.0, 3.6)])
def test_cw_pixels_at_the_edges_are_not_frozen(linear: Any, edge: float, sum_there: float) -> None:
    """Only four pixels at exactly 0 or 1 matter, and all must move by 0.1."""
    net = linear(classes=2, channels=1, side=4).double()
    images = torch.full((1, 1, 4, 4), 0.5).double()
    images[0, 0, 0] = edge
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1, :4] = 1.0
        net[1].bias.copy_(torch.tensor([sum_there, 0.0]))
    found = run(CarliniWagner(name="cw"), net, images, torch.tensor([int(edge)]))
    assert bool(found.success.all())
    torch.testing.assert_close(float(moved(found, images)), 0.2, rtol=0.01, atol=0)


def test_cw_goes_on_where_a_run_failed(linear: Any) -> None:
    """Further than the falling steps of one run reach: 60 steps of 0.01 / 2 are 0.3."""
    net = linear(classes=2, channels=1, side=4).double()
    images = torch.full((1, 1, 4, 4), 0.2).double()
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[1] = 1.0
        net[1].bias.copy_(torch.tensor([16 * 0.55, 0.0]))
    found = run(
        CarliniWagner(name="cw", steps=60, search=6, lr=0.01), net, images, torch.tensor([0])
    )
    torch.testing.assert_close(float(moved(found, images)), 4 * 0.35, rtol=0.01, atol=0)
    one = run(CarliniWagner(name="cw", steps=60, search=1, lr=0.01), net, images, torch.tensor([0]))
    assert not bool(one.success)


# --- an independent implementation -------------------------------------------------------


def by_foolbox(name: str, net: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """Images of Foolbox's attack; those that it does not break come back as they were."""
    foolbox = pytest.importorskip("foolbox")
    # Its DDN draws from the global generator.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, name)(**options)
        images, _, success = attack(model, images, labels, epsilons=None)
    assert bool(success.all()), "these images are chosen so that it breaks all"
    return images


@pytest.fixture
def some_digits(digits: Any, digits_net: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    """Digits that a small trained net answers rightly."""
    images, labels = digits[0][1200:1216], digits[1][1200:1216]
    right = answers(digits_net, images) == labels
    return digits_net, images[right], labels[right]


@pytest.mark.parametrize(("kind", "order"), [("L2", 2), ("Linf", torch.inf)])
def test_deepfool_is_foolboxs(some_digits: Any, kind: str, order: float) -> None:
    net, images, labels = some_digits
    theirs = by_foolbox(f"{kind}DeepFoolAttack", net, images, labels, steps=50)
    threat = L2(0.5) if kind == "L2" else Linf(0.03)
    found = run(DeepFool(name="d"), net, images, labels, threat=threat)
    assert bool(found.success.all())
    distance = torch.linalg.vector_norm((theirs - images).flatten(1), ord=order, dim=1)
    ratio = moved(found, images, order) / distance
    # Foolbox adds 1e-4 to each step and so is a little further away.
    assert float((ratio - 1).abs().median()) < 2e-3
    assert float(ratio.median()) <= 1.0


def test_ddn_is_foolboxs(some_digits: Any) -> None:
    net, images, labels = some_digits
    theirs = by_foolbox("DDNAttack", net, images, labels, steps=100)
    found = run(DDN(name="ddn", refine=0), net, images, labels)
    distance = (theirs - images).flatten(1).norm(dim=1)
    ratio = moved(found, images) / distance
    # One step in which rounding decides whether the goal is met leads to other norms.
    assert float((ratio - 1).abs().quantile(0.8)) < 1e-3
    assert float((ratio - 1).abs().max()) < 0.05


@pytest.mark.parametrize("name", ["cw-l2", "ddn"])
def test_as_near_as_foolbox_with_ten_times_the_steps(some_digits: Any, name: str) -> None:
    net, images, labels = some_digits
    options: dict[str, dict[str, Any]] = {
        "cw-l2": {"steps": 300, "binary_search_steps": 2, "initial_const": 1.0},
        "ddn": {"steps": 600},
    }
    library = {"cw-l2": "L2CarliniWagnerAttack", "ddn": "DDNAttack"}[name]
    theirs = by_foolbox(library, net, images, labels, **options[name])
    attack = replace(ATTACKS[name], steps=options[name]["steps"] // 10)
    found = run(attack, net, images, labels)
    assert bool(found.success.all())
    ratio = moved(found, images).median() / (theirs - images).flatten(1).norm(dim=1).median()
    assert float(ratio) <= 1.03


# --- properties --------------------------------------------------------------------------


@EVERY
def test_an_image_does_not_depend_on_its_batch_mates(name: str, conv: Any, pixels: Any) -> None:
    """Neither on easy ones nor on one that nothing breaks; C&W must not stop on a batch's loss."""
    net, images = conv(scale=0.5).double(), pixels(6).double()
    labels = answers(net, images)
    labels[5] = (labels[5] + 1) % 5  # wrong as it is
    attack = ATTACKS[name]
    whole = run(attack, net, images, labels)
    for row in (0, 3, 5):
        one = slice(row, row + 1)
        alone = run(attack, net, images[one], labels[one], keys=keys_of(images)[one])
        torch.testing.assert_close(alone.images, whole.images[one], rtol=0, atol=1e-6)
        assert torch.equal(alone.success, whole.success[one])


@EVERY
def test_hopeless_images_are_left_clean_and_harm_nobody(name: str, linear: Any) -> None:
    """The model's bias decides for one class; in the box nothing comes near the other."""
    net = linear(classes=2, channels=1, side=4).double()
    images = torch.full((3, 1, 4, 4), 0.5).double()
    labels = answers(net, images)
    with torch.no_grad():
        net[1].bias[labels[0]] += 100.0
    found = run(ATTACKS[name], net, images, labels)
    assert not bool(found.success.any())
    assert torch.equal(found.images, images)
    assert not bool(found.nan_gradients.any())


@EVERY
def test_images_wrong_as_they_are_are_returned_at_once(
    name: str, conv: Any, pixels: Any, counted: Any
) -> None:
    net, images = counted(conv()), pixels(4)
    labels = (answers(net.module, images) + 1) % 5
    found = run(ATTACKS[name], net, images, labels)
    assert bool(found.success.all())
    assert torch.equal(found.images, images)
    # One image to count the classes, and twice the batch: the clean and the last verdict.
    assert net.calls == [1, 4, 4]
    assert found.queries.tolist() == [2] * 4


@EVERY
def test_every_forward_pass_is_counted(name: str, conv: Any, pixels: Any, counted: Any) -> None:
    net, images = counted(conv()), pixels(1)
    found = run(ATTACKS[name], net, images, answers(net.module, images))
    assert sum(net.calls) - 1 == int(found.queries)
    limit = ATTACKS[name].gradients + ATTACKS[name].refine + 12
    assert int(found.queries) <= limit


@EVERY
def test_refinement_brings_images_nearer(name: str, conv: Any, pixels: Any) -> None:
    net, images = conv(), pixels(8)
    labels = answers(net, images)
    rough = run(replace(ATTACKS[name], refine=0), net, images, labels)
    fine = run(replace(ATTACKS[name], refine=12), net, images, labels)
    assert bool(fine.success[rough.success].all())
    assert bool((moved(fine, images) <= moved(rough, images) * (1 + 1e-6)).all())
    assert bool((moved(fine, images) < moved(rough, images)).any())


class Steps(nn.Module):
    """Quantized input: the gradient is zero everywhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images * 16).round() / 16)  # type: ignore[no-any-return]


@EVERY
def test_zero_gradients_are_counted_and_survived(name: str, conv: Any, pixels: Any) -> None:
    net, images = Steps(conv()).eval(), pixels(4)
    found = run(ATTACKS[name], net, images, answers(net, images))
    assert bool((found.zero_gradients > 0).all())
    assert bool(torch.isfinite(found.images).all())
    if name == "ddn":
        # Random directions of growing length break something at last.
        assert bool(found.success.any())


class Noisy(Purifier):
    """Adds noise."""

    name = "noisy"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        noisy = images + 0.01 * ctx.noise("noisy", images.shape[1:])
        return Purified(noisy, noisy)


@EVERY
def test_random_defenses_are_broken_on_fresh_draws(name: str, conv: Any, pixels: Any) -> None:
    """The result is confirmed on other draws than those it was found on, and judged on others."""
    defense, images, draws = Defense(conv(), purifier=Noisy()), pixels(12), range(1000, 1030)

    def drawn(shown: Tensor) -> Tensor:
        keys = keys_of(images)
        return torch.stack([defense.predict(shown, keys=keys.draw(d)).labels for d in draws])

    labels = drawn(images).mode(0).values
    attack = replace(ATTACKS[name], draws=4, steps=60)
    found = run(attack, defense, images, labels)
    broken = (drawn(found.images) != labels).float().mean(0)
    assert float(broken.min()) > 0.3
    assert float(broken.median()) >= 0.5
    again = run(attack, defense, images, labels)
    assert torch.equal(again.images, found.images)


@EVERY
def test_a_rejecting_detector_is_passed(name: str, conv: Any, pixels: Any) -> None:
    """The goal is a wrong answer that is not flagged."""
    net, images = conv(smooth=True), pixels(12)
    detector = ThresholdDetector(statistic="signed-change", threshold=0.02, action="reject")
    defense = Defense(net, purifier=FGSMStep(radius=4 / 255), detector=detector)
    labels = defense.predict(images).labels
    found = run(ATTACKS[name], defense, images, labels, goal="wrong-unflagged")
    assert bool(found.success.any())
    shown = defense.predict(found.images)
    assert torch.equal(found.success, (shown.labels != labels) & ~shown.flagged)


# --- settings ----------------------------------------------------------------------------


def test_names_carry_steps_and_options() -> None:
    paper = make_attack("cw-l2-25?search=4&constant=10&lr=0.01&confidence=0&anneal=false&refine=0")
    assert isinstance(paper, CarliniWagner)
    assert (paper.steps, paper.search, paper.constant, paper.refine) == (25, 4, 10.0, 0)
    assert not paper.anneal
    assert paper.gradients == 100
    fool = make_attack("deepfool-100?form=l2")
    assert isinstance(fool, DeepFool)
    assert (fool.steps, fool.classes, fool.overshoot, fool.form) == (100, 10, 0.02, "l2")
    assert fool.gradients == 900
    assert make_attack("ddn").gradients == 100


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (DeepFool, {"classes": 1}),
        (DeepFool, {"overshoot": -0.1}),
        (DeepFool, {"steps": 0}),
        (DDN, {"gamma": 1.0}),
        (DDN, {"gamma": 0.0}),
        (DDN, {"start": 0.0}),
        (DDN, {"refine": 2.5}),
        (DDN, {"refine": -1}),
        (CarliniWagner, {"search": 0}),
        (CarliniWagner, {"lr": -0.01}),
        (CarliniWagner, {"constant": -1.0}),
        (CarliniWagner, {"confidence": float("nan")}),
    ],
)
def test_wrong_settings_are_refused(kind: type[MinimalNorm], wrong: dict[str, Any]) -> None:
    (field,) = wrong
    with pytest.raises(ConfigError, match=f"{field} of attack 'own'"):
        kind(name="own", **wrong)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(SpecError, match="l1"):
        DeepFool(name="own", form="l1")


# --- real images -------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.skipif("UNPERTURB_ASSETS" not in os.environ, reason="UNPERTURB_ASSETS is not set")
@pytest.mark.parametrize("name", ["deepfool", "ddn"])
def test_a_robust_net_as_near_as_foolbox(assets: Path, name: str) -> None:
    weights = assets / "models" / "cifar10-robust-cnn-wide.safetensors"
    net = load_classifier(f"cifar-robust-cnn-wide@{weights}")
    data = load_images(str(assets / "data" / "cifar10"), split="test", limit=32)
    right = answers(net, data.images()) == data.labels
    images, labels = data.images()[right], data.labels[right]
    library = {"deepfool": "L2DeepFoolAttack", "ddn": "DDNAttack"}[name]
    theirs = by_foolbox(library, net, images, labels, steps=500)
    found = run(ATTACKS[name], net, images, labels)
    assert bool(found.success.all())
    ratio = moved(found, images).median() / (theirs - images).flatten(1).norm(dim=1).median()
    assert float(ratio) <= 1.03
