"""Training objectives: each maps a network and a batch to the loss that is back-propagated."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.gradients import InputGradients

__all__ = ["OBJECTIVES", "Objective", "evaluating", "fgsm_examples"]

Objective = Callable[[nn.Module, Tensor, Tensor, float, bool], Tensor]


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


def standard(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, clean_pass: bool
) -> Tensor:
    """Cross-entropy on clean images."""
    return F.cross_entropy(network(images), labels)


def fgsm(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, clean_pass: bool
) -> Tensor:
    """Cross-entropy on FGSM examples only (Tang et al. 2024, eq. 1 to 4).

    With ``clean_pass`` the clean batch runs through the network in train mode too, before the
    adversarial one: nothing of it is back-propagated, but it enters the running batch-norm
    statistics, as in the authors' released code.
    """
    adversarial = fgsm_examples(network, images, labels, eps)
    if clean_pass:
        with torch.no_grad():
            network(images)
    return F.cross_entropy(network(adversarial), labels)


OBJECTIVES: dict[str, Objective] = {"standard": standard, "fgsm": fgsm}
"""Training objectives by name."""
