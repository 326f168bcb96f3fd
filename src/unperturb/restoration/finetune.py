"""Fine-tuning a restoration network by the loss of a frozen classifier: eq. 5 and 9 of AToP."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.classifiers import Classifier
from unperturb.gradients import input_gradients
from unperturb.networks.inpainting_gan import InpaintingGenerator, PatchDiscriminator
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, restore
from unperturb.randomness import Keys
from unperturb.restoration.config import FineTuneConfig
from unperturb.restoration.gan import judge, rate_of
from unperturb.restoration.loop import Work, make_adam, set_gradients
from unperturb.restoration.losses import l1, mse
from unperturb.training.twin import make_twin

__all__ = ["FineTuneWork", "frozen", "linf_examples"]


class _Reading(nn.Module):
    """A classifier with its normalization in front, as a module that can be traced and copied."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.module = classifier.module
        self._prepare = classifier.prepare

    def forward(self, images: Tensor) -> Tensor:
        return self.module(self._prepare(images))  # type: ignore[no-any-return]


def frozen(classifier: Classifier, images: Tensor) -> nn.Module:
    """The classifier as it is, its batch norms folded into its convolutions where that can be done.

    Equal logits up to rounding; nothing of the classifier is touched.

    Args:
        classifier: The classifier, which stays as it is for the whole run.
        images: A few images to compare the answers on.
    """
    twin = make_twin(_Reading(classifier), images)
    return classifier if twin is None else twin


def linf_examples(
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 1,
    step_size: float = 1.0,
) -> Tensor:
    """Signed-gradient steps up the cross-entropy, from the image itself.

    ``x' = clip(P(x + step_size * eps * sign(grad CE(f(x), y))), 0, 1)``: one step of the whole eps
    is FGSM. Only the gradient of the images is computed.

    Args:
        logits: Images to logits.
        images: Clean images (N, C, H, W) in [0, 1].
        labels: True labels (N,).
        eps: Linf radius in pixel units.
        steps: Steps.
        step_size: Step as a fraction of eps.

    Returns:
        Adversarial images, detached.
    """
    low, high = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
    point = images
    for _ in range(steps):
        leaf = point.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(logits(leaf), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
        point = torch.clamp(point + step_size * eps * gradient.sign(), low, high)
    return point


class FineTuneWork(Work):
    """One step: adversarial examples, their restoration, what the classifier says of it.

    The classifier is never differentiated to its weights, the restoration network not to its own
    while examples are made; one pass of each serves all the terms of the loss.

    Args:
        network: The restoration network, trained in place.
        discriminator: Its other half, likewise; None for an autoencoder, or where its terms weigh
            nothing.
        classifier: Images to logits, its weights frozen: what `frozen` gives.
        transform: What is drawn.
        config: The settings.
    """

    def __init__(
        self,
        network: nn.Module,
        discriminator: PatchDiscriminator | None,
        classifier: nn.Module,
        transform: RandomTransform,
        config: FineTuneConfig,
    ) -> None:
        modules: dict[str, nn.Module] = {"network": network}
        if discriminator is not None:
            modules["discriminator"] = discriminator
        for module in modules.values():
            module.train().requires_grad_(True)
        super().__init__(modules, {name: make_adam(m, config) for name, m in modules.items()})
        self.network, self.discriminator, self.classifier = network, discriminator, classifier
        self.transform, self.config = transform, config
        # What the network was pre-trained with.
        self.error = l1 if isinstance(network, InpaintingGenerator) else mse

    def rate(self, name: str, rate: float) -> float:
        """The discriminator may have a rate of its own, decayed alike."""
        return rate_of(name, rate, self.config)

    def examples(self, images: Tensor, labels: Tensor, keys: Keys) -> Tensor:
        """What is restored: adversarial examples, or the images themselves."""
        config = self.config
        if config.examples == "clean":
            return images
        one = config.attack == "fgsm"
        logits: Callable[[Tensor], Tensor] = self.classifier
        if config.against == "whole":
            # The attacker's draws are not those that the loss is computed on.
            draws = KeyedDraws(keys.within(f"{keys.domain}/attack"), images)

            def whole(point: Tensor) -> Tensor:
                made = restore(self.network, point, self.transform, draws).images
                return self.classifier(made)  # type: ignore[no-any-return]

            logits = whole
        return linf_examples(
            logits,
            images,
            labels,
            eps=config.eps,
            steps=1 if one else config.attack_steps,
            step_size=1.0 if one else config.attack_step_size,
        )

    def losses(self, images: Tensor, labels: Tensor, keys: Keys) -> dict[str, Tensor]:
        """The restoration's and the classifier's loss, and both sides of the adversarial one."""
        config, kind = self.config, images.device.type
        half = config.precision == "bfloat16"
        # Around forward and backward passes: a batch norm that could not be folded is cheaper so.
        with input_gradients(self.classifier):
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
                shown = self.examples(images, labels, keys)
                made = restore(self.network, shown, self.transform, KeyedDraws(keys, images)).images
                logits = self.classifier(made)
            made = made.float()
            target = shown if config.target == "adversarial" else images
            name = self.error.__name__
            found = {name: self.error(made, target)}
            found["classifier"] = F.cross_entropy(logits.float(), labels)
            whole = found[name] + config.cls_weight * found["classifier"]
            if self.discriminator is not None:
                with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
                    judged, looks = judge(self.discriminator, target, made, config.form, self.watch)
                found |= {"discriminator": judged, "adversarial": looks}
                whole = whole + config.adversarial_weight * looks
                set_gradients(judged, self.discriminator, keep=True)
            set_gradients(whole, self.network)
        return found
