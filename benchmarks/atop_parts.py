"""The parts of a step of fine-tuning as the library does them, and as bare calls of the modules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.classifiers import Classifier
from unperturb.networks.inpainting_gan import InpaintingGenerator, PatchDiscriminator
from unperturb.networks.restorers import build_restorer, seeded
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, corrupt, restore
from unperturb.randomness import Keys
from unperturb.restoration import FineTuneConfig, RestorationNet, plan_finetune
from unperturb.restoration.finetune import FineTuneWork, linf_examples
from unperturb.restoration.gan import Watch, judge
from unperturb.restoration.loop import Work, set_gradients

__all__ = ["UPDATING", "parts_of", "step_of"]

UPDATING = "updating"
"""The one part that calls no module."""

Jobs = dict[str, Callable[[], object]]


def step_of(classifier: Classifier, kind: str, images: Tensor) -> FineTuneWork:
    """Fine-tuning as `unperturb fit atop` has it, from random weights."""
    from unperturb.data import ImageSet

    made = build_restorer(kind)
    discriminator = None
    if isinstance(made, InpaintingGenerator):
        with seeded(1):
            discriminator = PatchDiscriminator()
    shape = tuple(images.shape[1:])
    net = RestorationNet(kind, made, shape, RandomTransform(name="rt2"), discriminator)
    pixels = (images * 255).round().to(torch.uint8)
    data = ImageSet(
        pixels,
        torch.zeros(len(images), dtype=torch.int64),
        tuple(str(i) for i in range(len(images))),
        tuple(str(i) for i in range(classifier.num_classes)),
        source="random pixels",
        split=None,
    )
    plan = plan_finetune(classifier, net, data, FineTuneConfig(batch_size=len(images), lr=1e-6))
    assert isinstance(plan.work, FineTuneWork)
    return plan.work


class Kept:
    """Random numbers that are there already."""

    def __init__(self, draws: KeyedDraws, images: Tensor, transform: RandomTransform) -> None:
        rows, columns = transform.grid((images.shape[2], images.shape[3]))
        self.numbers = {
            "mask": draws.uniform("mask", (rows * columns,)),
            "noise": draws.noise("noise", images.shape[1:]),
        }

    def noise(self, name: str, shape: object) -> Tensor:
        return self.numbers[name]

    def uniform(self, name: str, shape: object) -> Tensor:
        return self.numbers[name]


def parts_of(work: FineTuneWork, images: Tensor, labels: Tensor, keys: Keys) -> tuple[Jobs, Jobs]:
    """Jobs of the library by name, and the bare calls that some of them cannot do without."""
    net, critic, logits = work.network, work.discriminator, work.classifier
    transform, config = work.transform, work.config
    draws = KeyedDraws(keys, images)
    kept = Kept(draws, images, transform)
    corrupted = corrupt(images, transform, kept)
    (mask,) = corrupted.masks
    masked = mask * corrupted.noisy
    with torch.no_grad():
        made = net(masked, mask)
        pull = torch.ones_like(made) / made.numel()
    watch = Watch()

    def gradient(of: Tensor, to: list[Tensor], pull: Tensor | None = None) -> None:
        torch.autograd.grad(of, to, pull)

    def restoring() -> None:
        found = restore(net, images, transform, kept).images
        set_gradients((found * pull).sum(), net)

    def classifying() -> None:
        leaf = made.detach().requires_grad_()
        gradient(F.cross_entropy(logits(leaf), labels), [leaf])

    ours: Jobs = {
        "drawing": lambda: Kept(draws, images, transform),
        "adversarial examples": lambda: linf_examples(logits, images, labels, eps=config.eps),
        "restoring": restoring,
        "classifying": classifying,
        UPDATING: updating(work),
    }
    bare: Jobs = {
        "adversarial examples": lambda: bare_classifying(logits, images, labels),
        "restoring": lambda: gradient(net(masked, mask), list(net.parameters()), pull),
        "classifying": lambda: bare_classifying(logits, made, labels),
        UPDATING: bare_updating(work),
    }
    if critic is not None:
        held = list(critic.parameters())

        def judging() -> None:
            leaf = made.detach().requires_grad_()
            judged, looks = judge(critic, images, leaf, config.form, watch)
            set_gradients(judged, critic, keep=True)
            gradient(looks, [leaf])

        def bare_judging() -> None:
            leaf = made.detach().requires_grad_()
            scores = critic(torch.cat((images, leaf)))
            torch.autograd.grad(scores.mean(), held, retain_graph=True)
            torch.autograd.grad(scores[len(images) :].mean(), leaf)

        ours["judging"], bare["judging"] = judging, bare_judging
    return ours, bare


def bare_classifying(logits: nn.Module, images: Tensor, labels: Tensor) -> None:
    leaf = images.detach().requires_grad_()
    torch.autograd.grad(F.cross_entropy(logits(leaf), labels), leaf)


class _Given(Work):
    """A step whose gradients are there already: what is left is to check and to apply them."""

    def losses(self, images: Tensor, labels: Tensor, keys: Keys) -> dict[str, Tensor]:
        return {}


def updating(work: FineTuneWork) -> Callable[[], object]:
    modules, optimizers = copies_of(work)
    given, empty = _Given(modules, optimizers), torch.empty(0)
    return lambda: given.step(empty, empty, Keys.of(0, []))


def bare_updating(work: FineTuneWork) -> Callable[[], object]:
    _, optimizers = copies_of(work)

    def run() -> None:
        for optimizer in optimizers.values():
            optimizer.step()

    return run


def copies_of(
    work: FineTuneWork,
) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    from unperturb.restoration.loop import make_adam

    modules = {name: copy.deepcopy(module) for name, module in work.modules.items()}
    for module in modules.values():
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
    return modules, {name: make_adam(module, work.config) for name, module in modules.items()}
