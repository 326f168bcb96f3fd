"""Training objectives: each maps a network and a batch to the loss that is back-propagated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.gradients import InputGradients

__all__ = ["OBJECTIVES", "Objective", "Settings", "evaluating", "fgsm_examples", "pgd_examples"]


class Settings(Protocol):
    """The settings an objective reads; ``TrainConfig`` has them."""

    @property
    def eps(self) -> float: ...

    @property
    def clean_pass(self) -> bool: ...

    @property
    def attack_steps(self) -> int: ...

    @property
    def attack_step_size(self) -> float: ...


Objective = Callable[[nn.Module, Tensor, Tensor, Settings, np.random.Generator], Tensor]


# Lower case, since it reads as a statement: ``with evaluating(network):``.
class evaluating:
    """Put a network in eval mode for a block, and each submodule back as it was."""

    def __init__(self, network: nn.Module) -> None:
        self._flags = [(module, module.training) for module in network.modules()]

    def __enter__(self) -> None:
        for module, _ in self._flags:
            module.training = False

    def __exit__(self, *exc: object) -> None:
        for module, flag in self._flags:
            module.training = flag


def fgsm_examples(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """One signed-gradient step up the cross-entropy, made with the network in eval mode.

    ``x_a = clip(x + eps * sign(grad_x CE(f(x), y)), 0, 1)``: Tang et al. 2024, eq. 1 and 2, with
    no random start. The clipping to [0, 1] is not in the equation; it keeps examples images.

    Args:
        network: Images (N, C, H, W) in [0, 1] to logits (N, K).
        images: Clean images in [0, 1].
        labels: True labels (N,).
        eps: Step in pixel units, 8/255 say.

    Returns:
        Adversarial images, detached.
    """
    with evaluating(network), torch.enable_grad(), InputGradients():
        point = images.detach().clone().requires_grad_()
        loss = F.cross_entropy(network(point), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
    return (images + eps * gradient.sign().to(images.dtype)).clamp_(0.0, 1.0)


def pgd_examples(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int,
    step_size: float,
    generator: np.random.Generator,
) -> Tensor:
    """Signed-gradient steps up the cross-entropy from a uniform start (Madry et al. 2018, eq. 2).

    ``x <- clip(P(x + step_size * eps * sign(grad_x CE(f(x), y))), 0, 1)`` with ``P`` the projection
    on the Linf ball, made with the network in eval mode (Madry et al. leave it in train mode; in
    eval mode the examples are those of the network that will be deployed, and cost less).

    Args:
        network: Images (N, C, H, W) in [0, 1] to logits (N, K).
        images: Clean images in [0, 1].
        labels: True labels (N,).
        eps: Radius in pixel units.
        steps: Gradient steps.
        step_size: Step as a fraction of eps.
        generator: Source of the starts.

    Returns:
        Adversarial images, detached.
    """
    low, high = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
    uniform = torch.from_numpy(generator.random(tuple(images.shape), dtype=np.float32))
    start = (2.0 * uniform - 1.0).to(images.device, images.dtype) * eps
    start = start.contiguous(memory_format=torch.channels_last)
    point = torch.clamp(images + start, low, high)
    with evaluating(network), torch.enable_grad(), InputGradients():
        for _ in range(steps):
            point.requires_grad_()
            loss = F.cross_entropy(network(point), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, point)
            move = (step_size * eps) * gradient.sign().to(images.dtype)
            point = torch.clamp(point.detach() + move, low, high)
    return point


def standard(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    generator: np.random.Generator,
) -> Tensor:
    """Cross-entropy on clean images."""
    return F.cross_entropy(network(images), labels)


def fgsm(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    generator: np.random.Generator,
) -> Tensor:
    """Cross-entropy on FGSM examples only (Tang et al. 2024, eq. 1 to 4).

    With ``clean_pass`` the clean batch runs through the network in train mode too, before the
    adversarial one: nothing of it is back-propagated, but it enters the running batch-norm
    statistics, as in the authors' released code.
    """
    adversarial = fgsm_examples(network, images, labels, settings.eps)
    if settings.clean_pass:
        with torch.no_grad():
            network(images)
    return F.cross_entropy(network(adversarial), labels)


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    generator: np.random.Generator,
) -> Tensor:
    """Cross-entropy on PGD examples only (Madry et al. 2018): adversarial training, the yardstick.

    ``min_theta E max_{|d| <= eps} CE(f_theta(x + d), y)``, the inner maximum by ``attack_steps``
    steps of ``attack_step_size * eps`` from a random start.
    """
    adversarial = pgd_examples(
        network,
        images,
        labels,
        settings.eps,
        steps=settings.attack_steps,
        step_size=settings.attack_step_size,
        generator=generator,
    )
    return F.cross_entropy(network(adversarial), labels)


OBJECTIVES: dict[str, Objective] = {"standard": standard, "fgsm": fgsm, "pgd": pgd}
"""Training objectives by name."""
