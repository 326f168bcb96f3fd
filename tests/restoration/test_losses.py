"""Losses and their gradients against the equations, written out with plain autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration.small import gan_config, mae_config, tune_config
from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.networks.inpainting_gan import PatchDiscriminator
from unperturb.networks.restorers import build_restorer, seeded
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, corrupt
from unperturb.randomness import Keys
from unperturb.restoration.finetune import FineTuneWork, frozen, linf_examples
from unperturb.restoration.gan import GANWork
from unperturb.restoration.losses import adversarial
from unperturb.restoration.mae import MAEWork
from unperturb.restoration.run import plan_finetune, plan_pretrain

Grads = dict[str, Tensor]


def batch(data: ImageSet) -> tuple[Tensor, Tensor, Keys]:
    rows = slice(0, 8)
    return data.images(rows), data.labels[rows], Keys.of(5, data.ids[rows], domain="test")


def gradients(module: nn.Module) -> Grads:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def check(found: Grads, loss: Tensor, module: nn.Module) -> None:
    """The gradients left behind are those of the loss, to the module's own parameters."""
    named = dict(module.named_parameters())
    expected = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
    assert found.keys() == named.keys()
    for name, gradient in zip(named, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(bool((gradient != 0).any()) for gradient in expected)


@pytest.mark.parametrize("form", ["wasserstein", "hinge"])
def test_the_gans_loss_is_the_equation(data: ImageSet, form: str) -> None:
    """``L_df = E[D(x)] - E[D(g(t(x)))] + E|x - g(t(x))|``: D raises it, g lowers it."""
    config = gan_config(form=form, adversarial_weight=0.3, coarse_weight=0.5)
    work = plan_pretrain(data, config).work
    assert isinstance(work, GANWork)
    generator, judge = copy.deepcopy(work.generator), copy.deepcopy(work.discriminator)
    assert judge is not None
    images, labels, keys = batch(data)
    found = work.losses(images, labels, keys)

    noisy, (mask,) = corrupt(images, work.transform, KeyedDraws(keys, images))
    coarse, fine = generator.stages(mask * noisy, mask)
    scores = judge(torch.cat((images, fine)))
    real, made = scores[:8], scores[8:]
    l1 = (images - fine).abs().mean()
    if form == "wasserstein":
        for_judge = -(real.mean() - made.mean())
        torch.testing.assert_close(found["discriminator"], for_judge)
    else:
        for_judge = (1 - real).clamp(min=0).mean() + (1 + made).clamp(min=0).mean()
    whole = l1 + 0.3 * -made.mean() + 0.5 * (images - coarse).abs().mean()
    torch.testing.assert_close(found["l1"], l1)
    torch.testing.assert_close(found["adversarial"], -made.mean())
    check(gradients(work.generator), whole, generator)
    assert work.discriminator is not None
    check(gradients(work.discriminator), for_judge, judge)


def test_a_gan_without_a_discriminator_is_the_l1_error(data: ImageSet) -> None:
    config = gan_config(adversarial_weight=0.0, coarse_weight=0.0, transform="rt1", sigma=None)
    plan = plan_pretrain(data, config)
    assert plan.net.discriminator is None
    images, labels, keys = batch(data)
    found = plan.work.losses(images, labels, keys)
    assert list(found) == ["l1"]
    (mask,) = corrupt(images, plan.net.transform, KeyedDraws(keys, images)).masks
    loss = (plan.net.network(mask * images, mask) - images).abs().mean()
    check(gradients(plan.net.network), loss, plan.net.network)


@pytest.mark.parametrize("name", ["rt1", "rt2", "rt3"])
def test_the_autoencoders_loss_is_the_mean_square(data: ImageSet, name: str) -> None:
    config = mae_config(transform=name, sigma=None if name == "rt1" else 0.1)
    work = plan_pretrain(data, config).work
    assert isinstance(work, MAEWork)
    images, labels, keys = batch(data)
    found = work.losses(images, labels, keys)
    # One pass of rt3 is rt2.
    single = RandomTransform(name="rt1") if name == "rt1" else RandomTransform(sigma=0.1)
    noisy, (mask,) = corrupt(images, single, KeyedDraws(keys, images))
    loss = ((work.network(mask * noisy, mask) - images) ** 2).mean()
    torch.testing.assert_close(found["mse"], loss)
    check(gradients(work.network), loss, work.network)


def fgsm(logits: Any, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Goodfellow et al. 2015, by itself."""
    leaf = images.clone().requires_grad_()
    F.cross_entropy(logits(leaf), labels, reduction="sum").backward()
    assert leaf.grad is not None
    return (images + eps * leaf.grad.sign()).clamp(0, 1)


@pytest.mark.parametrize("kind", ["gan", "mae"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"form": "hinge", "cls_weight": 0.7},
        {"target": "clean"},
        {"examples": "clean"},
        {"against": "whole"},
        {"transform": "rt1", "sigma": None},
        {"transform": "rt3", "passes": 3},
        {"adversarial_weight": 0.0, "cls_weight": 0.0},
    ],
    ids=lambda changes: "-".join(f"{v}" for v in changes.values()) or "paper",
)
def test_fine_tuning_is_equation_9(
    data: ImageSet, classifier: Classifier, kind: str, changes: dict[str, Any], untouched: Any
) -> None:
    start = plan_pretrain(data, gan_config() if kind == "gan" else mae_config()).net
    config = tune_config(**{"adversarial_weight": 0.3, **changes})
    work = plan_finetune(classifier, start, data, config).work
    assert isinstance(work, FineTuneWork)
    g, judge = copy.deepcopy(work.network), copy.deepcopy(work.discriminator)
    images, labels, keys = batch(data)
    with untouched(classifier):
        found = work.losses(images, labels, keys)

    transform = config.make_transform()

    def restored(x: Tensor, named: Keys) -> Tensor:
        noisy, masks = corrupt(x, transform, KeyedDraws(named, images))
        if len(masks) == 1:
            return g(masks[0] * noisy, masks[0])  # type: ignore[no-any-return]
        return torch.stack([(1 - m) * g(m * noisy, m) for m in masks]).sum(0)

    shown = images
    if config.examples == "adversarial":
        alone, attack = classifier, keys.within("test/attack")
        logits = alone if config.against == "classifier" else lambda x: alone(restored(x, attack))
        shown = fgsm(logits, images, labels, 0.1)
        g.zero_grad()
        assert float((shown - images).abs().max()) == pytest.approx(0.1)
    made = restored(shown, keys)
    target = images if config.target == "clean" else shown
    error = made - target
    whole = error.abs().mean() if kind == "gan" else (error**2).mean()
    torch.testing.assert_close(found["l1" if kind == "gan" else "mse"], whole)
    entropy = F.cross_entropy(classifier(made), labels)
    torch.testing.assert_close(found["classifier"], entropy, rtol=1e-4, atol=1e-5)
    whole = whole + config.cls_weight * entropy
    if kind == "mae" or not config.adversarial_weight:
        assert judge is None
        assert work.discriminator is None
    else:
        scores = judge(torch.cat((target, made)))
        for_judge, for_g = adversarial(config.form, scores[:8], scores[8:])
        whole = whole + 0.3 * for_g
        assert work.discriminator is not None
        check(gradients(work.discriminator), for_judge, judge)
    check(gradients(work.network), whole, g)


def test_a_gradient_free_classifier_pass_serves_modules_without_a_twin(
    data: ImageSet, conv: Any
) -> None:
    """A network that cannot be folded is used as it is, with the same result."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv(channels=1, classes=10)

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) if float(images.detach().sum()) > -1e9 else images

    from unperturb.classifiers import as_classifier

    found = []
    for module in (Branching().eval(), conv(channels=1, classes=10)):
        net = as_classifier(module, num_classes=10)
        start = plan_pretrain(data, gan_config()).net
        work = plan_finetune(net, start, data, tune_config()).work
        found.append({n: float(v.detach()) for n, v in work.losses(*batch(data)).items()})
        assert all(p.grad is None for p in module.parameters())
    assert frozen(net, data.images(slice(0, 2))) is not net
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_pgd_examples_against_plain_steps(data: ImageSet, classifier: Classifier) -> None:
    images, labels, _ = batch(data)
    found = linf_examples(classifier, images, labels, eps=0.1, steps=4, step_size=0.4)
    point = images
    for _ in range(4):
        leaf = point.clone().requires_grad_()
        F.cross_entropy(classifier(leaf), labels).backward()
        assert leaf.grad is not None
        point = point + 0.04 * leaf.grad.sign()
        point = torch.min(torch.max(point, images - 0.1), images + 0.1).clamp(0, 1)
    torch.testing.assert_close(found, point)
    one = linf_examples(classifier, images, labels, eps=0.1)
    torch.testing.assert_close(one, fgsm(classifier, images, labels, 0.1))


def test_half_precision_is_near_and_finite(data: ImageSet, classifier: Classifier) -> None:
    for config in (gan_config(), mae_config()):
        values = []
        for precision in ("float32", "bfloat16"):
            from dataclasses import replace

            plan = plan_pretrain(data, replace(config, precision=precision))
            found = plan.work.losses(*batch(data))
            values.append(torch.stack([value.detach() for value in found.values()]))
            assert all(bool(torch.isfinite(g).all()) for g in gradients(plan.net.network).values())
        torch.testing.assert_close(values[0], values[1], rtol=0.05, atol=0.02)
        assert not torch.equal(values[0], values[1])
    start = plan_pretrain(data, gan_config()).net
    work = plan_finetune(classifier, start, data, tune_config(precision="bfloat16")).work
    assert all(bool(torch.isfinite(value)) for value in work.losses(*batch(data)).values())


@pytest.mark.parametrize("name", ["rt1", "rt2", "rt3"])
def test_fine_tuning_steps_lower_the_classifiers_loss(
    data: ImageSet, classifier: Classifier, name: str
) -> None:
    start = plan_pretrain(data, gan_config()).net
    config = tune_config(
        transform=name, sigma=None if name == "rt1" else 0.1, cls_weight=10.0, lr=5e-3
    )
    work = plan_finetune(classifier, start, data, config).work
    images, labels, keys = batch(data)
    first = work.step(images, labels, keys)
    for _ in range(20):
        last = work.step(images, labels, keys)
    assert last["classifier"] < first["classifier"]


def test_a_discriminator_of_its_own_seed_and_rate(data: ImageSet) -> None:
    plan = plan_pretrain(data, gan_config(discriminator_lr=4e-3, lr=1e-3))
    assert plan.work.rate("discriminator", 0.5e-3) == pytest.approx(2e-3)
    assert plan.work.rate("network", 0.5e-3) == 0.5e-3
    with seeded(1):
        expected = PatchDiscriminator(channels=1, width=4)
    found = plan.net.discriminator
    assert found is not None
    for name, value in expected.named_parameters():
        assert torch.equal(dict(found.named_parameters())[name], value)
    generator = build_restorer("inpainting-gan", channels=1, width=4, coarse_width=2)
    for name, value in generator.named_parameters():
        assert torch.equal(dict(plan.net.network.named_parameters())[name], value)
