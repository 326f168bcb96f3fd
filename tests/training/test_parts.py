"""The parts of training: settings, schedules, augmentation, objectives, the monitor's figures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.attacks import Surface, make_attack
from unperturb.data import ImageSet, load_images
from unperturb.errors import ConfigError, SpecError
from unperturb.presets import tpap
from unperturb.randomness import Keys
from unperturb.threat import Linf
from unperturb.training import (
    OBJECTIVES,
    TrainConfig,
    fgsm_examples,
    make_monitor,
    measure,
    pgd_examples,
)
from unperturb.training.augment import augment, epoch_generator
from unperturb.training.examples import evaluating
from unperturb.training.monitor import depth, purified
from unperturb.training.objectives import Step

GENERATOR = np.random.default_rng(0)

# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs is 0.*at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"monitor_images": 0}, "monitor_images is 0"),
        ({"holdout": -1}, "holdout is -1.*0 or more"),
        ({"lr": 0.0}, "lr is 0.0.*above 0"),
        ({"lr": float("nan")}, "lr is nan.*above 0"),
        ({"eps": 8.0}, "eps is 8.*at most 1.*eps 8/255"),
        ({"monitor_eps": 0.0}, "monitor_eps is 0"),
        ({"objective": "fgms"}, "Unknown objective 'fgms'.*did you mean 'fgsm'"),
        ({"schedule": "onecycle"}, "Unknown schedule 'onecycle'.*did you mean 'one-cycle'"),
        ({"augment": "crop"}, "Unknown augment 'crop'"),
        ({"keep": "lest"}, "Unknown keep 'lest'.*did you mean 'last'"),
        ({"precision": "half"}, "Unknown precision 'half'"),
    ],
)
def test_settings_out_of_range(change: dict[str, object], words: str) -> None:
    with pytest.raises((ConfigError, SpecError), match=words):
        TrainConfig(**change)  # type: ignore[arg-type]


def test_settings_round_trip() -> None:
    config = TrainConfig(objective="fgsm", milestones=(0.3, 0.6), eps=10 / 255, seed=4)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict().keys() == {f.name for f in dataclasses.fields(TrainConfig)}
    with pytest.raises(SpecError, match="Unknown training setting 'learning_rate'"):
        TrainConfig.from_dict({"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (1, 0.02), (5, 0.1), (10, 0.2), (20, 0.15), (30, 0.1), (49, 0.005), (50, 0.0)],
)
def test_one_cycle_by_hand(step: int, rate: float) -> None:
    # 50 steps: up to 0.2 in 10, then down by 0.005 a step.
    config = TrainConfig(schedule="one-cycle", lr=0.2)
    assert config.rate(step, 50) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.4), (49, 0.4), (50, 0.04), (74, 0.04), (75, 0.004), (99, 0.004)]
)
def test_multistep_by_hand(step: int, rate: float) -> None:
    assert TrainConfig(lr=0.4).rate(step, 100) == pytest.approx(rate, rel=1e-12)


# -- augmentation -------------------------------------------------------------------------------


def test_crop_flip_is_the_naive_loop() -> None:
    images = torch.arange(6 * 2 * 5 * 7, dtype=torch.float32).view(6, 2, 5, 7)
    found = augment(images, "crop-flip", epoch_generator(3, 1))
    draw = epoch_generator(3, 1)
    flips = draw.random(6) < 0.5
    tops = draw.integers(0, 9, 6)
    lefts = draw.integers(0, 9, 6)
    assert 0 < flips.sum() < 6
    for n in range(6):
        for c in range(2):
            for y in range(5):
                for x in range(7):
                    column = 6 - x if flips[n] else x
                    row, at = y + tops[n] - 4, column + lefts[n] - 4
                    inside = 0 <= row < 5 and 0 <= at < 7
                    assert found[n, c, y, x] == (images[n, c, row, at] if inside else 0)


def test_flip_and_none() -> None:
    images = torch.rand(16, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    found = augment(images, "flip", epoch_generator(0, 0))
    flips = epoch_generator(0, 0).random(16) < 0.5
    for image, new, flipped in zip(images, found, flips, strict=True):
        assert torch.equal(new, image.flip(2) if flipped else image)
    assert augment(images, "none", epoch_generator(0, 0)) is images


def test_every_crop_and_both_flips_occur() -> None:
    generator = epoch_generator(0, 0)
    marker = torch.zeros(4000, 1, 9, 9)
    marker[:, :, 4, 4] = 1
    found = augment(marker, "crop-flip", generator).flatten(1).argmax(1)
    counts = np.bincount(found.numpy(), minlength=81)
    assert counts.min() > 20, "each of the 81 places is met about 49 times"
    assert counts.max() < 90


def test_epochs_and_seeds_draw_apart() -> None:
    drawn = {
        (seed, epoch): epoch_generator(seed, epoch).random(4).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(values) for values in drawn.values()}) == 4
    assert epoch_generator(1, 1).random(4).tolist() == drawn[(1, 1)]


# -- objectives ---------------------------------------------------------------------------------


def test_fgsm_examples_are_the_closed_form_on_a_linear_model() -> None:
    # d CE / d x = W^T (softmax(Wx + b) - onehot(y)).
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, generator=generator, dtype=torch.float64)
    layer = nn.utils.skip_init(nn.Linear, 8, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    images = torch.rand(20, 2, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (20,), generator=generator)
    found = fgsm_examples(nn.Sequential(nn.Flatten(), layer), images, labels, 0.1)
    for image, label, new in zip(images, labels, found, strict=True):
        x = image.flatten()
        p = torch.softmax(weight @ x + bias, 0)
        p[label] -= 1
        expected = (x + 0.1 * torch.sign(weight.T @ p)).clamp(0, 1).view(2, 2, 2)
        torch.testing.assert_close(new, expected, rtol=0, atol=1e-12)
    assert not found.requires_grad
    assert all(p.grad is None for p in layer.parameters())


def test_evaluating_puts_every_flag_back(conv: Callable[..., nn.Module]) -> None:
    net = conv()
    net.train()
    net[1].eval()
    before = [module.training for module in net.modules()]
    assert len(set(before)) == 2
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == before

    def fail() -> None:
        with evaluating(net):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [module.training for module in net.modules()] == before


def test_examples_are_made_in_eval_mode(
    conv: Callable[..., nn.Module], pixels: Callable[..., Tensor]
) -> None:
    net, images, labels = conv(), pixels(6), torch.arange(6) % 5
    expected = fgsm_examples(net, images, labels, 0.05)
    net.train()
    statistics = net[1].running_mean.clone()
    assert torch.equal(fgsm_examples(net, images, labels, 0.05), expected)
    assert torch.equal(net[1].running_mean, statistics)
    assert net[1].training


def test_the_losses_are_cross_entropies(
    conv: Callable[..., nn.Module], pixels: Callable[..., Tensor]
) -> None:
    net, images, labels = conv(), pixels(6), torch.arange(6) % 5
    adversarial = fgsm_examples(net, images, labels, 0.05)
    settings = TrainConfig(eps=0.05, attack_steps=3)

    def draw() -> np.random.Generator:
        return np.random.default_rng(0)

    found = {
        name: OBJECTIVES[name](
            Step(network=net, attacked=net, images=images, labels=labels, settings=settings,
                 generator=draw())
        )
        for name in ("standard", "fgsm", "pgd")
    }  # fmt: skip
    torch.testing.assert_close(found["standard"], F.cross_entropy(net(images), labels))
    torch.testing.assert_close(found["fgsm"], F.cross_entropy(net(adversarial), labels))
    assert found["fgsm"] > found["standard"]
    steps = pgd_examples(net, images, labels, 0.05, steps=3, step_size=0.25, generator=draw())
    torch.testing.assert_close(found["pgd"], F.cross_entropy(net(steps), labels))


def test_pgd_examples_are_madrys(
    conv: Callable[..., nn.Module], pixels: Callable[..., Tensor], untouched: Any
) -> None:
    net, images, labels = conv(), pixels(6), torch.arange(6) % 5
    settings = {"steps": 4, "step_size": 0.25}
    with untouched(net):
        found = pgd_examples(
            net, images, labels, 0.05, **settings, generator=np.random.default_rng(3)
        )  # fmt: skip
    assert bool(Linf(0.05).contains(found, images).all())
    # By hand, with the same start.
    uniform = np.random.default_rng(3).random(tuple(images.shape), dtype=np.float32)
    point = images + (2 * torch.from_numpy(uniform) - 1) * 0.05
    point = point.clamp(images - 0.05, images + 0.05).clamp(0, 1)
    for _ in range(4):
        leaf = point.clone().requires_grad_()
        F.cross_entropy(net.eval()(leaf), labels, reduction="sum").backward()
        assert leaf.grad is not None
        point = (point + 0.0125 * leaf.grad.sign()).clamp(images - 0.05, images + 0.05)
        point = point.clamp(0, 1)
    torch.testing.assert_close(found, point)
    net.zero_grad(set_to_none=True)
    other = pgd_examples(
        net, images, labels, 0.05, **settings, generator=np.random.default_rng(4)
    )  # fmt: skip
    assert not torch.equal(other, found)


def test_the_clean_pass_enters_the_statistics_and_nothing_else(
    conv: Callable[..., nn.Module], pixels: Callable[..., Tensor]
) -> None:
    images, labels = pixels(6), torch.arange(6) % 5
    found = {}
    for clean_pass in (False, True):
        net = conv().train()
        settings = TrainConfig(eps=0.05, clean_pass=clean_pass)
        step = Step(
            network=net, attacked=net, images=images, labels=labels, settings=settings,
            generator=GENERATOR,
        )  # fmt: skip
        loss = OBJECTIVES["fgsm"](step)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        found[clean_pass] = (loss.detach(), gradients, net[1].running_mean.clone())
    one, two = found[False], found[True]
    assert torch.equal(one[0], two[0]), "the batch is normalized by itself in train mode"
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))
    assert not torch.equal(one[2], two[2])
    # By hand: the running mean moves towards the clean batch, and then towards the adversarial.
    net = conv()
    start = net[1].running_mean.clone()
    adversarial = fgsm_examples(net, images, labels, 0.05)
    with torch.no_grad():
        means = [net[0](batch).mean((0, 2, 3)) for batch in (images, adversarial)]
    torch.testing.assert_close(one[2], 0.9 * start + 0.1 * means[1])
    torch.testing.assert_close(two[2], 0.9 * (0.9 * start + 0.1 * means[0]) + 0.1 * means[1])


# -- the monitor --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return load_images("digits", split="test").take(slice(0, 60))


class Pixels(nn.Module):
    """A linear net without parameters to be changed: class means of the images it is shown."""

    def __init__(self, data: ImageSet) -> None:
        super().__init__()
        images = data.images().flatten(1)
        means = torch.stack([images[data.labels == c].mean(0) for c in range(10)])
        self.register_buffer("weight", 2 * means)
        self.register_buffer("bias", -means.square().sum(1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weight, self.bias)  # type: ignore[arg-type]


def test_measured_accuracies_are_those_of_the_attacks(data: ImageSet) -> None:
    net = Pixels(data)
    found = measure(net, data, train_eps=0.05, other_eps=0.1, seed=3, batch_size=25)
    images, labels = data.images(), data.labels
    assert found["clean"] == pytest.approx((net(images).argmax(1) == labels).float().mean().item())
    fgsm = fgsm_examples(net, images, labels, 0.05)
    assert found["fgsm"] == pytest.approx((net(fgsm).argmax(1) == labels).float().mean().item())
    pgd = make_attack("pgd-20").run(
        Surface(net), images, labels, threat=Linf(0.1), stop="fixed",
        keys=Keys.of(3, data.ids, domain="monitor"),
    )  # fmt: skip
    assert found["pgd"] == pytest.approx((~pgd.success).float().mean().item())
    assert found["pgd"] < found["fgsm"] < found["clean"]
    assert measure(net, data, train_eps=0.05, other_eps=0.1, seed=3) == found
    assert measure(net, data, train_eps=0.05, other_eps=0.1, seed=3, attacks=()).keys() == {"clean"}


@pytest.mark.parametrize(
    ("fgsm", "pgd", "reached"),
    [(0.91, 0.09, True), (0.90, 0.09, False), (0.91, 0.10, False), (1.0, 0.0, True),
     (0.5, 0.0, False), (0.99, 0.8, False)],
)  # fmt: skip
def test_the_state_is_a_matter_of_two_thresholds_on_training_images(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch, fgsm: float, pgd: float, reached: bool
) -> None:
    from unperturb.training import monitor as module

    config = TrainConfig(objective="fgsm", holdout=20, monitor_images=15)
    seen: list[tuple[str, ...]] = []

    def figures(network: nn.Module, part: ImageSet, **rest: object) -> dict[str, float]:
        seen.append(part.ids)
        # Held-out figures are told and decide nothing.
        low = {"clean": 0.1, "fgsm": 0.0, "pgd": 1.0}
        assert rest["purify"] == config.monitor_eps
        return {"clean": 1.0, "fgsm": fgsm, "pgd": pgd} if len(seen) == 1 else low

    monkeypatch.setattr(module, "measure", figures)
    record = make_monitor(data, config)(nn.Identity())
    assert record["robust_overfitting"] is reached
    assert depth(record) == pytest.approx(fgsm - pgd)
    assert seen == [data.ids[:15], data.ids[40:55]], "trained on, and held out"
    assert record.keys() == {
        *(f"{part}_{what}" for part in ("train", "heldout") for what in ("clean", "fgsm", "pgd")),
        "robust_overfitting",
    }


def test_standard_training_is_never_in_the_state(data: ImageSet) -> None:
    record = make_monitor(data, TrainConfig(holdout=0))(Pixels(data))
    assert record.keys() == {"train_clean", "robust_overfitting"}
    assert record["robust_overfitting"] is False


def test_purified_answers_are_those_of_tpap(data: ImageSet) -> None:
    net = Pixels(data)
    found = measure(net, data, train_eps=0.05, other_eps=0.1, seed=3, purify=0.07)
    images, labels = data.images(), data.labels
    defense = tpap(net, radius=0.07)

    def accuracy(points: Tensor) -> float:
        return float((defense(points).argmax(1) == labels).float().mean())

    pgd = make_attack("pgd-20").run(
        Surface(net), images, labels, threat=Linf(0.1), stop="fixed",
        keys=Keys.of(3, data.ids, domain="monitor"),
    )  # fmt: skip
    assert found["tpap_clean"] == pytest.approx(accuracy(images))
    assert found["tpap_pgd"] == pytest.approx(accuracy(pgd.images))
    assert found["tpap_clean"] != found["clean"], "a linear net has no way to resist the step"


def test_the_epoch_that_purifies_best_is_the_one_whose_worse_figure_is_greatest() -> None:
    records = [
        {"heldout_tpap_clean": 0.9, "heldout_tpap_pgd": 0.5},
        {"heldout_tpap_clean": 0.7, "heldout_tpap_pgd": 0.8},
        {"heldout_tpap_clean": 0.6, "heldout_tpap_pgd": 0.9},
    ]
    assert [purified(record) for record in records] == [0.5, 0.7, 0.6]
