"""Operations by closed forms and by the paper's own table; nothing of the user's is changed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb import tpap
from unperturb.classifiers import Classifier, as_classifier, new_classifier
from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.flops import count_flops
from unperturb.training import OBJECTIVES, TrainConfig
from unperturb.training import cost as module
from unperturb.training.cost import measure_costs, training_step

STEPS = 4
CONFIG = TrainConfig(batch_size=6, attack_steps=STEPS)
# In forward passes of one linear layer, whose step needs no gradient to the images: 1 for each
# forward pass, 1 for each gradient to the images, 1 for each gradient to the weights.
LINEAR = {
    "standard": 2,
    "fgsm": 2 + 2,
    "fgsm-trades": 2 + 4,
    "fgsm-mart": 2 + 4,
    "pgd": 2 * STEPS + 2,
    "trades": 1 + 2 * STEPS + 4,
    "mart": 2 * STEPS + 4,
    "gairat": 2 * STEPS + 2,
    # Its last iterate is judged, too, by a pass that takes the gradient with it.
    "cw": 2 * (STEPS + 1) + 2,
    "stadv": 2 * STEPS + 2,
}


def quietly(build: Callable[[], nn.Module]) -> nn.Module:
    """Initial weights without a draw from the global generator."""
    with torch.random.fork_rng(devices=[]):
        return build()


def dense(classes: int = 4) -> Classifier:
    net = quietly(
        lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, classes))
    )
    return as_classifier(net, num_classes=classes, input_shape=(3, 8, 8))


# -- the counter --------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kind", "places"), [(nn.Conv2d, 4 * 4), (nn.ConvTranspose2d, 8 * 8)], ids=["to", "from"]
)
def test_a_convolution_costs_two_operations_for_each_weight_and_place(
    kind: Callable[..., Any], places: int, groups: int
) -> None:
    layer: Any = quietly(lambda: kind(4, 6, 3, stride=2, padding=1, groups=groups, bias=False))
    images = torch.zeros(5, 4, 8, 8)
    forward = 2 * layer.weight.numel() * places * len(images)
    assert count_flops(lambda: layer(images)) == forward
    assert count_flops(lambda: layer(images).sum().backward()) == 2 * forward

    def both() -> None:
        layer(images.requires_grad_()).sum().backward()

    assert count_flops(both) == 3 * forward


def test_a_gradient_to_the_images_alone_leaves_those_of_the_weights_out() -> None:
    net = quietly(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    )
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    forward = count_flops(lambda: net(images))
    assert forward == 2 * 2 * (3 * 4 * 9 * 36 + 4 * 36 * 2)

    def gradient() -> None:
        point = images.clone().requires_grad_()
        torch.autograd.grad(net(point).sum(), point)

    assert count_flops(gradient) == 2 * forward


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_counts_without_gradients_and_leaves_no_hook(mode: Callable[[], Any]) -> None:
    layer = quietly(lambda: nn.Linear(7, 5))
    with mode():
        assert count_flops(lambda: layer(torch.zeros(3, 7))) == 2 * 3 * 7 * 5
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


# -- answers and training steps -----------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_costs_what_its_definition_says(objective: str) -> None:
    net = dense()
    forward = 2 * 3 * 8 * 8 * 4
    table = measure_costs(net, defense=tpap(net), objectives=[objective], config=CONFIG, repeats=0)
    assert table["plain answer"].flops == forward
    assert table["gradient to the image"].flops == 2 * forward
    assert table["defended answer"].flops == 3 * forward
    found = table[f"training step, {objective}"]
    assert found.seconds is None
    assert found.forwards == found.flops / forward
    if objective == "fat":
        # An image that is wrong takes few more steps, so that it depends on the images.
        assert 2 + 2 <= found.forwards <= LINEAR["pgd"]
    else:
        assert found.forwards == LINEAR[objective]


def test_a_clean_pass_is_one_forward_more() -> None:
    cost = [
        measure_costs(
            dense(),
            objectives=["fgsm"],
            config=TrainConfig(objective="fgsm", clean_pass=clean),
            repeats=0,
        )["training step, fgsm"].forwards
        for clean in (False, True)
    ]
    assert cost == [4, 5]


def test_figures_of_an_epoch_are_those_of_all_its_images() -> None:
    table = measure_costs(
        dense(), objectives=["standard"], repeats=0, train_images=300, test_images=20
    )
    forward = 2 * 3 * 8 * 8 * 4
    assert table["plain answer"].flops_per_epoch == 20 * forward
    assert table["training step, standard"].flops_per_epoch == 300 * 2 * forward
    assert table["plain answer"].seconds_per_epoch is None


def test_the_least_time_after_the_warm_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first of four turns warms up, and reads the clock as all do.
    lengths = [0.5, 7.0, 3.0, 5.0]
    ticks = [tick for length in lengths for tick in (0.0, length)]
    clock = iter(ticks * 3)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    table = measure_costs(
        dense(), objectives=["standard"], config=CONFIG, train_images=600, test_images=60
    )
    assert [row.seconds for row in table.rows] == [3.0 / 6] * 3
    assert [row.seconds_per_epoch for row in table.rows] == [30.0, 300.0, 300.0]
    assert table.facts["repeats"] == 3
    assert table.facts["batch_size"] == 6


def test_nothing_of_the_classifier_changes(conv: Any, untouched: Any) -> None:
    # Dropout draws from the global generator, which the fixture for all tests watches.
    net = nn.Sequential(conv(), nn.Dropout(0.5)).train()
    classifier = as_classifier(net, num_classes=5, input_shape=(3, 8, 8))
    with untouched(net):
        measure_costs(
            classifier, defense=tpap(classifier), objectives=list(OBJECTIVES),
            config=TrainConfig(batch_size=4, attack_steps=2), repeats=1,
        )  # fmt: skip


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_step_updates_its_copy(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch, conv: Any
) -> None:
    seen: list[nn.Module] = []
    formats: list[bool] = []
    states: list[Tensor] = []
    real = OBJECTIVES["fgsm"]

    def watched(step: Any) -> Tensor:
        seen.append(step.network)
        weight = next(step.network.parameters())
        formats.extend(not t.is_contiguous() for t in (step.images, weight))
        states.append(next(step.network.parameters()).detach().clone())
        return real(step)

    monkeypatch.setitem(OBJECTIVES, "fgsm", watched)
    classifier = as_classifier(conv(), num_classes=5, input_shape=(3, 8, 8))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = TrainConfig(objective="fgsm")
    run = training_step(classifier, settings, images, channels_last=channels_last)
    run(images, torch.tensor([0, 1, 2, 3]))
    assert not torch.equal(states[0], next(seen[0].parameters()))
    assert torch.equal(states[0], next(classifier.module.parameters()))
    assert seen[0].training
    assert formats == [channels_last] * 2


# -- the paper ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet18() -> Classifier:
    return new_classifier("cifar-resnet18")


def test_table_5_is_the_arithmetic_of_gradients_with_those_of_the_weights(
    resnet18: Classifier,
) -> None:
    """Tang et al. 2024, Table 5: 11.17 M parameters; 11.1, 44.4, 333 and 1831.5 TFLOPs."""
    net = resnet18.module
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 11.17
    images, label = torch.full((1, 3, 32, 32), 0.5), torch.tensor([0])

    def attacked() -> None:
        point = images.clone().requires_grad_()
        F.cross_entropy(resnet18(point), label).backward()

    def updated() -> None:
        F.cross_entropy(resnet18(images), label).backward()

    net.requires_grad_(True)
    with torch.no_grad():
        forward = count_flops(lambda: resnet18(images))
    wasteful, update = count_flops(attacked), count_flops(updated)
    net.zero_grad(set_to_none=True)
    net.requires_grad_(False)
    assert wasteful == 3 * forward
    test, train = 10_000 / 1e12, 50_000 / 1e12
    assert round(test * forward, 1) == 11.1
    assert round(test * (wasteful + forward), 1) == 44.4
    assert train * (wasteful + update) == pytest.approx(333, rel=2e-3)
    assert train * (10 * wasteful + update) == pytest.approx(1831.5, rel=2e-3)


def test_ours_spares_the_gradients_of_weights_that_nobody_asks_for(resnet18: Classifier) -> None:
    table = measure_costs(resnet18, defense=tpap(resnet18), objectives=["fgsm"], repeats=0)
    assert round(table["plain answer"].flops_per_epoch / 1e12, 1) == 11.1
    assert round(table["defended answer"].flops_per_epoch / 1e12, 1) == 33.3
    step = table["training step, fgsm"]
    assert step.forwards == pytest.approx(5, abs=4e-3)
    assert step.flops_per_epoch / 1e12 == pytest.approx(333 * 5 / 6, rel=2e-3)
    assert table.facts["parameters"] == 11_173_962


# -- wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"objectives": ["fgms"]}, SpecError, "Unknown objective 'fgms'.*did you mean 'fgsm'"),
        ({"train_images": 0}, ConfigError, "train_images is 0.*at least 1"),
        ({"test_images": -1}, ConfigError, "test_images is -1.*at least 1"),
        ({"repeats": -1}, ConfigError, "repeats is -1.*at least 0"),
        ({"image_size": (9, 8)}, InputError, "Images are 9x8.*8x8"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        measure_costs(dense(), **options)


class AnswersOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.layer = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no training here")
        return self.layer(images.flatten(1))  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_trained_can_be_counted() -> None:
    net = as_classifier(AnswersOnly().eval(), num_classes=3, input_shape=(3, 2, 2))
    with pytest.raises(InputError, match="training step, standard, fails: no training here"):
        measure_costs(net, repeats=0)
    assert measure_costs(net, objectives=[], repeats=0)["plain answer"].flops == 2 * 12 * 3
