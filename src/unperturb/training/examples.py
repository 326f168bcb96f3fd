"""Adversarial examples to train on: a network and a batch to images, no gradient kept.

All of them are made with the network in eval mode: they are then those of the network that will be
deployed, its statistics stay as they were, and batch norms cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.attacks.stadv import sample, warp
from unperturb.gradients import InputGradients

__all__ = [
    "cw_examples",
    "evaluating",
    "fgsm_direction",
    "fgsm_examples",
    "friendly_examples",
    "kl_examples",
    "pgd_examples",
    "pgd_survivals",
    "stadv_examples",
]

Objective = Callable[[Tensor], Tensor]
"""Logits (N, K) to the sum that an attack climbs."""


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


def _slope(network: nn.Module, point: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Gradient of an objective to images, and the logits it was taken at."""
    with evaluating(network), torch.enable_grad(), InputGradients():
        leaf = point.detach().requires_grad_()
        logits = network(leaf)
        (gradient,) = torch.autograd.grad(objective(logits), leaf)
    return gradient, logits.detach()


def _cross_entropy(labels: Tensor) -> Objective:
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


def _uniform(like: Tensor, generator: np.random.Generator) -> Tensor:
    drawn = torch.from_numpy(generator.random(tuple(like.shape), dtype=np.float32))
    start = 2.0 * drawn.to(like.device, like.dtype) - 1.0
    return start.contiguous(memory_format=torch.channels_last) if like.ndim == 4 else start


def fgsm_direction(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """``sign(grad_x CE(f(x), y))``: Goodfellow et al. 2015, and Tang et al. 2024, eq. 1.

    One direction serves FGSM examples of every size.

    Args:
        network: Images (N, C, H, W) in [0, 1] to logits (N, K).
        images: Clean images in [0, 1].
        labels: True labels (N,).
    """
    return _slope(network, images, _cross_entropy(labels))[0].sign().to(images.dtype)


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
    return (images + eps * fgsm_direction(network, images, labels)).clamp_(0.0, 1.0)


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
    point = images + eps * _uniform(images, generator)
    return _climb(network, images, point, eps, steps, step_size, _cross_entropy(labels))


def _climb(
    network: nn.Module,
    images: Tensor,
    point: Tensor,
    eps: float,
    steps: int,
    step_size: float,
    objective: Objective,
    seen: Callable[[Tensor], object] = lambda logits: None,
) -> Tensor:
    """Projected signed steps up an objective; ``seen`` is shown the logits of every iterate."""
    low, high = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
    point = torch.clamp(point, low, high)
    for _ in range(steps):
        gradient, logits = _slope(network, point, objective)
        seen(logits)
        move = (step_size * eps) * gradient.sign().to(images.dtype)
        point = torch.clamp(point + move, low, high)
    return point


def kl_examples(
    network: nn.Module,
    images: Tensor,
    eps: float,
    *,
    steps: int,
    step_size: float,
    generator: np.random.Generator,
) -> Tensor:
    """Signed-gradient steps up ``KL(p(x) || p(x'))``, the inner maximum of TRADES.

    Zhang et al. 2019, eq. 5 and Algorithm 1: the start is the image plus ``0.001 * N(0, I)``, since
    at the image itself the divergence has no slope.

    Args:
        network: Images (N, C, H, W) in [0, 1] to logits (N, K).
        images: Clean images in [0, 1].
        eps: Radius in pixel units.
        steps: Gradient steps.
        step_size: Step as a fraction of eps.
        generator: Source of the starts.

    Returns:
        Adversarial images, detached. No label is read.
    """
    with evaluating(network), torch.no_grad():
        clean = F.softmax(network(images).float(), 1)

    def divergence(logits: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(logits.float(), 1), clean, reduction="sum")

    drawn = generator.standard_normal(tuple(images.shape), dtype=np.float32)
    point = images + 0.001 * torch.from_numpy(drawn).to(images.device, images.dtype)
    point = point.contiguous(memory_format=torch.channels_last)
    return _climb(network, images, point, eps, steps, step_size, divergence)


def friendly_examples(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int,
    step_size: float,
    tau: int,
    generator: np.random.Generator,
) -> Tensor:
    """PGD that stops ``tau`` steps after an image is first misclassified.

    PGD-K-tau of Zhang et al. 2020 (friendly adversarial training), Algorithm 1: an image that is
    wrong takes ``tau`` more steps and stays where it is then; one that stays right takes all.

    Args:
        network: Images (N, C, H, W) in [0, 1] to logits (N, K).
        images: Clean images in [0, 1].
        labels: True labels (N,).
        eps: Radius in pixel units.
        steps: Most gradient steps, K.
        step_size: Step as a fraction of eps.
        tau: Steps that an image takes once it is wrong.
        generator: Source of the starts.

    Returns:
        Adversarial images, detached. Images that are done leave the batch.
    """
    low, high = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
    point = torch.clamp(images + eps * _uniform(images, generator), low, high)
    left = torch.full_like(labels, tau)
    rows = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        if not len(rows):
            break
        gradient, logits = _slope(network, point[rows], _cross_entropy(labels[rows]))
        wrong = logits.argmax(1) != labels[rows]
        going = ~wrong | (left[rows] > 0)
        left[rows] -= wrong.to(left.dtype)
        rows, gradient = rows[going], gradient[going]
        move = (step_size * eps) * gradient.sign().to(images.dtype)
        point[rows] = torch.clamp(point[rows] + move, low[rows], high[rows])
    return point


def pgd_survivals(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int,
    step_size: float,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """PGD examples, and how many of the iterates each image survived.

    The geometry value kappa of Zhang et al. 2021 (GAIRAT), Algorithm 1: of the points that PGD
    steps from, the number that are classified correctly, 0 to ``steps``.

    Args:
        network: Images (N, C, H, W) in [0, 1] to logits (N, K).
        images: Clean images in [0, 1].
        labels: True labels (N,).
        eps: Radius in pixel units.
        steps: Gradient steps, K.
        step_size: Step as a fraction of eps.
        generator: Source of the starts.

    Returns:
        Adversarial images, detached, and kappa (N,).
    """
    survived = torch.zeros(len(images), device=images.device)

    def count(logits: Tensor) -> None:
        survived.add_((logits.argmax(1) == labels).float())

    point = images + eps * _uniform(images, generator)
    objective = _cross_entropy(labels)
    return _climb(network, images, point, eps, steps, step_size, objective, count), survived


def cw_examples(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    confidence: float = 1.0,
    rate: float = 0.01,
) -> Tensor:
    """Carlini and Wagner's L2 attack with one weight and few steps.

    ``min_w ||x(w) - x||_2^2 + c * max(z_y - max_{k != y} z_k, 0)`` with
    ``x(w) = (tanh(w) + 1) / 2`` (Carlini and Wagner 2017, section V), by Adam. Each image becomes
    the nearest misclassified iterate, or the last one if none is.

    Their search over ``c`` is left out, as in the implementations that are trained with: nine
    searches of thousands of steps cannot be made at every training step. No norm is bounded.

    Args:
        network: Images (N, C, H, W) in [0, 1] to logits (N, K).
        images: Clean images in [0, 1].
        labels: True labels (N,).
        steps: Steps of Adam.
        confidence: The weight ``c``.
        rate: Adam's step in ``w``.

    Returns:
        Adversarial images, detached.
    """
    with torch.autocast(images.device.type, enabled=False):
        w = torch.atanh((2.0 * images.float() - 1.0).clamp(-1 + 1e-6, 1 - 1e-6))
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    best, nearest = images, torch.full((len(images),), float("inf"), device=images.device)

    def margin(logits: Tensor) -> Tensor:
        own = logits.gather(1, labels[:, None]).squeeze(1)
        other = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
        return confidence * (own - other).float().clamp(min=0.0).sum()

    for step in range(1, steps + 2):
        tanh = w.tanh()
        point = (0.5 * (tanh + 1.0)).to(images.dtype)
        gradient, logits = _slope(network, point, margin)
        apart = (point - images).flatten(1).square().sum(1)
        wrong = (logits.argmax(1) != labels) & (apart < nearest)
        nearest = torch.where(wrong, apart, nearest)
        best = torch.where(wrong.view(-1, 1, 1, 1), point, best)
        if step > steps:
            break
        total = gradient.float() + 2.0 * (point - images).float()
        slope = total * 0.5 * (1.0 - tanh.square())
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope.square()
        move = (first / (1.0 - 0.9**step)) / ((second / (1.0 - 0.999**step)).sqrt() + 1e-8)
        w = w - rate * move
    return torch.where(nearest.isinf().view(-1, 1, 1, 1), point, best)


def stadv_examples(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    flow: float,
    steps: int,
    step_size: float,
    generator: np.random.Generator,
) -> Tensor:
    """Images bent by a small flow that climbs the cross-entropy (Xiao et al. 2018, eq. 1).

    ``f <- clip(f + step_size * flow * sign(grad_f CE(f(warp(x, f)), y)), -flow, flow)`` from a
    random flow: the attack ``stadv`` of this package, with its units and its deviations, on the
    cross-entropy.

    Args:
        network: Images (N, C, H, W) in [0, 1] to logits (N, K).
        images: Clean images in [0, 1].
        labels: True labels (N,).
        flow: Greatest flow component, in ``grid_sample`` units: 0.05 is 0.8 pixels at width 32.
        steps: Gradient steps.
        step_size: Step as a fraction of ``flow``.
        generator: Source of the starts.

    Returns:
        Adversarial images, detached.
    """
    count, _, height, width = images.shape
    field = flow * _uniform(images.new_empty((count, 2, height, width)), generator)
    for _ in range(steps):
        point, by_x, by_y = sample(images, field)
        gradient, _ = _slope(network, point, _cross_entropy(labels))
        slope = torch.stack(((gradient * by_x).sum(1), (gradient * by_y).sum(1)), 1)
        field = (field + step_size * flow * slope.sign()).clamp_(-flow, flow)
    return warp(images, field).contiguous(memory_format=torch.channels_last)
