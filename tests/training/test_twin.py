"""The folded twin: the network's own answers and gradients, sooner, and the network untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.twins import close, in_eval, photos, quietly, used
from unperturb.classifiers import new_classifier
from unperturb.data import load_images
from unperturb.networks import build_network
from unperturb.training import TrainConfig, fgsm_examples, train
from unperturb.training import loop as loop_module
from unperturb.training.run import _Network
from unperturb.training.twin import Twin, make_twin

# -- networks that have a twin ------------------------------------------------------------------


def _plain(*, bias: bool = True, affine: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8, affine=affine), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, bias=bias, groups=4), nn.BatchNorm2d(12, affine=affine),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


# Each with the number of its convolutions that one batch norm alone reads.
FOLDED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small-cnn": (lambda: build_network("small-cnn", in_channels=3), 3),
    "cifar-resnet20": (lambda: build_network("cifar-resnet20"), 19),
    "cifar-wrn-10-2": (lambda: build_network("cifar-wrn-10-2"), 4),
    "cifar-wrn-10-1, dropout": (lambda: build_network("cifar-wrn-10-1", dropout=0.3), 3),
    "with biases": (lambda: quietly(_plain), 2),
    "without biases": (lambda: quietly(lambda: _plain(bias=False)), 2),
    "norms without scales": (lambda: quietly(lambda: _plain(affine=False)), 2),
    "neither": (lambda: quietly(lambda: _plain(bias=False, affine=False)), 2),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_twin_answers_as_the_network_in_eval_mode(name: str, untouched: Any) -> None:
    build, folds = FOLDED[name]
    net, images = used(build()).train(), photos()
    with untouched(net):
        twin = make_twin(net, images[:2])
        assert twin is not None
        found = twin(images).detach()
        twin.refresh()
        assert torch.equal(twin(images), found)
    close(found, in_eval(net, images))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    left = sum(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    assert norms - left == folds
    assert not any(p.requires_grad for p in twin.parameters())
    ours = {p.data_ptr() for p in net.parameters()}
    assert not ours & {p.data_ptr() for p in twin.parameters()}, "nothing is shared"


@pytest.mark.parametrize("name", FOLDED)
def test_input_gradients_of_a_twin_are_the_networks(name: str) -> None:
    net, images = used(FOLDED[name][0]()).double().eval(), photos().double()
    labels = torch.arange(6) % 5
    twin = make_twin(net, images[:2])
    assert twin is not None
    gradients = []
    for module in (twin, net):
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(module(leaf), labels), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    assert bool((gradients[1].flatten(1).abs().amax(1) > 0).all())
    for eps in (0.01, 0.1):
        examples = [fgsm_examples(module, images, labels, eps) for module in (twin, net)]
        assert torch.equal(*examples)


@pytest.mark.parametrize("name", ["small-cnn", "cifar-wrn-10-2", "neither"])
def test_a_twin_follows_the_network_through_training(name: str) -> None:
    net, images = FOLDED[name][0]().train(), photos()
    labels = torch.arange(6) % 5
    twin = make_twin(net, images[:2])
    assert twin is not None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    before = twin(images)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    assert torch.equal(twin(images), before), "until it is told to"
    twin.refresh()
    close(twin(images), in_eval(net, images))
    with pytest.raises(AssertionError, match="off by"):
        close(before, in_eval(net, images), size=1e-2)


def test_every_network_of_ours_with_foldable_norms_has_a_twin_in_training() -> None:
    for name, folds in (("cifar-resnet18", 20), ("cifar-vgg16", 13), ("cifar-resnet20", 19)):
        classifier = new_classifier(name)
        network = _Network(classifier)
        twin = make_twin(network, photos(1, side=32))
        assert twin is not None, name
        norms = [sum(isinstance(m, nn.BatchNorm2d) for m in x.modules()) for x in (network, twin)]
        assert norms == [folds, 0], name
    assert make_twin(_Network(new_classifier("cifar-robust-resnet-2b")), photos(1, side=32)) is None


def test_the_normalization_in_front_is_kept() -> None:
    classifier = new_classifier(
        "small-cnn", in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)
    )
    used(classifier.module)
    network, images = _Network(classifier), photos()
    twin = make_twin(network, images[:2])
    assert twin is not None
    close(twin(images), classifier(images))


def test_a_twin_stays_in_eval_mode() -> None:
    net = used(FOLDED["small-cnn"][0]())
    twin = make_twin(net, photos(2))
    assert twin is not None
    expected = twin(photos())
    assert twin.train() is twin
    kinds = {type(m) for m in twin.copy.modules() if m.training}
    assert kinds <= {nn.Identity}
    assert torch.equal(twin(photos()), expected)
    twin.eval()
    assert net.training, "and leaves the network's mode alone"


def test_a_twin_is_made_in_any_mode_and_draws_nothing() -> None:
    # conftest fails what draws from global generators; the dropout must not be heard.
    net, images = used(build_network("cifar-wrn-10-1", dropout=0.5)), photos()
    twins = [make_twin(net.train(mode), images[:2]) for mode in (True, False)]
    assert twins[0] is not None
    assert twins[1] is not None
    assert torch.equal(twins[0](images), twins[1](images))
    assert not net.training


def test_a_twin_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Twin, "forward", lambda self, images: self.copy(images) + 0.1)
    assert make_twin(FOLDED["small-cnn"][0](), photos(2)) is None


# -- training with it ---------------------------------------------------------------------------


def config(objective: str, **changes: Any) -> TrainConfig:
    found: dict[str, Any] = {
        "objective": objective, "eps": 0.1, "epochs": 1, "batch_size": 32, "lr": 0.02,
        "holdout": 0, "attack_steps": 2, "attack_step_size": 0.5,
    }  # fmt: skip
    return TrainConfig(**{**found, **changes})


@pytest.mark.parametrize("objective", ["fgsm", "pgd", "trades"])
def test_a_run_with_a_twin_is_the_run_without(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_images("digits", split="train").take(slice(0, 160))
    ends, twins = [], []

    def spy(network: nn.Module, images: Tensor) -> Twin | None:
        twins.append(make_twin(network, images))
        return twins[-1]

    start = build_network("small-cnn", seed=1)
    for replacement in (spy, lambda network, images: None):
        monkeypatch.setattr(loop_module, "make_twin", replacement)
        net = copy.deepcopy(start)
        found = train(net, data, config(objective), show=False)
        ends.append(({k: v.double() for k, v in found.state.items()}, found.epochs[0]["loss"]))
    assert twins[0] is not None
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-3)
    first = start.state_dict()
    moved, apart = (
        sum(float((one[k] - two[k]).square().sum()) for k in one if "num" not in k) ** 0.5
        for one, two in (((ends[1][0]), first), (ends[0][0], ends[1][0]))
    )
    # The sign of a gradient that is nearly nothing may round to either side.
    assert moved > 0.1
    assert apart < 0.02 * moved


def test_standard_training_makes_no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_images("digits", split="train").take(slice(0, 64))

    def never(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(loop_module, "make_twin", never)
    train(build_network("small-cnn"), data, config("standard"), show=False)


def test_attacks_see_the_weights_of_their_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_images("digits", split="train").take(slice(0, 96))
    net = build_network("small-cnn", seed=1)
    calls = []
    original = loop_module.OBJECTIVES["fgsm"]

    def spy(step: Any) -> Tensor:
        with torch.no_grad():
            close(step.attacked(step.images), in_eval(step.network, step.images))
        assert step.attacked is not step.network
        calls.append(step.attacked)
        return original(step)

    monkeypatch.setitem(loop_module.OBJECTIVES, "fgsm", spy)
    train(net, data, config("fgsm", lr=0.1), show=False)
    assert len(calls) == 3
    assert len({id(call) for call in calls}) == 1
