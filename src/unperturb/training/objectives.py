"""Training objectives: each maps one step of training to the loss that is back-propagated.

Notation: ``f`` the network in train mode, ``p = softmax(f)``, ``x`` clean images, ``x'`` the
adversarial ones, ``y`` labels. Cross-entropies and divergences are means over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.training.examples import (
    cw_examples,
    fgsm_direction,
    fgsm_examples,
    friendly_examples,
    kl_examples,
    pgd_examples,
    pgd_survivals,
    stadv_examples,
)

if TYPE_CHECKING:
    from unperturb.training.config import TrainConfig

__all__ = ["OBJECTIVES", "OVERFITTING", "Objective", "Step"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an objective sees of one step.

    Attributes:
        network: The network in train mode; what it is called on enters the statistics.
        attacked: What examples are made against: the network itself, or its folded twin.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        settings: The settings.
        generator: Source of the random numbers of this step.
        done: Share of the run that is over, in [0, 1).
    """

    network: nn.Module
    attacked: nn.Module
    images: Tensor
    labels: Tensor
    settings: TrainConfig
    generator: np.random.Generator
    done: float = 0.0


Objective = Callable[[Step], Tensor]


def standard(step: Step) -> Tensor:
    """Cross-entropy on clean images."""
    return F.cross_entropy(step.network(step.images), step.labels)


def _fgsm(step: Step) -> Tensor:
    """FGSM examples; with ``clean_pass`` the clean batch enters the statistics before them."""
    found = fgsm_examples(step.attacked, step.images, step.labels, step.settings.eps)
    if step.settings.clean_pass:
        with torch.no_grad():
            step.network(step.images)
    return found


def fgsm(step: Step) -> Tensor:
    """Cross-entropy on FGSM examples only (Tang et al. 2024, eq. 1 to 4).

    With ``clean_pass`` the clean batch runs through the network in train mode too, before the
    adversarial one: nothing of it is back-propagated, but it enters the running batch-norm
    statistics, as in the authors' released code.

    With a ``mixture`` of sizes the loss is the mean over FGSM examples of each size, 0 being the
    clean images (section 4.3: 8/255 and 16/255, and those with the clean images). All sizes share
    one gradient, and go through the network as one batch, with one set of statistics.
    """
    mixture = step.settings.mixture
    if not mixture:
        return F.cross_entropy(step.network(_fgsm(step)), step.labels)
    direction = fgsm_direction(step.attacked, step.images, step.labels)
    parts = [(step.images + eps * direction).clamp_(0.0, 1.0) for eps in mixture]
    batch = torch.cat(parts).contiguous(memory_format=torch.channels_last)
    return F.cross_entropy(step.network(batch), step.labels.repeat(len(mixture)))


def _pgd(step: Step) -> Tensor:
    return pgd_examples(
        step.attacked,
        step.images,
        step.labels,
        step.settings.eps,
        steps=step.settings.attack_steps,
        step_size=step.settings.attack_step_size,
        generator=step.generator,
    )


def pgd(step: Step) -> Tensor:
    """Cross-entropy on PGD examples only (Madry et al. 2018): adversarial training, the yardstick.

    ``min_theta E max_{|d| <= eps} CE(f_theta(x + d), y)``, the inner maximum by ``attack_steps``
    steps of ``attack_step_size * eps`` from a random start.
    """
    return F.cross_entropy(step.network(_pgd(step)), step.labels)


def _divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """``KL(p(x) || p(x'))`` of each image (N,)."""
    return F.kl_div(
        F.log_softmax(adversarial.float(), 1),
        F.log_softmax(clean.float(), 1),
        reduction="none",
        log_target=True,
    ).sum(1)


def _trades(step: Step, adversarial: Tensor) -> Tensor:
    clean = step.network(step.images)
    attacked = step.network(adversarial)
    robust = _divergence(clean, attacked).mean()
    return F.cross_entropy(clean, step.labels) + step.settings.beta * robust


def trades(step: Step) -> Tensor:
    """``CE(f(x), y) + beta * KL(p(x) || p(x'))``, TRADES (Zhang et al. 2019, eq. 5).

    ``x'`` climbs the divergence itself. ``beta`` is the paper's ``1 / lambda``, 6 by default. Clean
    and adversarial images go through the network one after the other, as in the authors' code.
    """
    settings = step.settings
    adversarial = kl_examples(
        step.attacked,
        step.images,
        settings.eps,
        steps=settings.attack_steps,
        step_size=settings.attack_step_size,
        generator=step.generator,
    )
    return _trades(step, adversarial)


def fgsm_trades(step: Step) -> Tensor:
    """The loss of TRADES on FGSM examples: TPAP+TRADES (Tang et al. 2024, section 4.1.3).

    ``x'`` climbs the cross-entropy in one step of eps: the divergence has no slope at ``x``.
    """
    examples = fgsm_examples(step.attacked, step.images, step.labels, step.settings.eps)
    return _trades(step, examples)


def _mart(step: Step, adversarial: Tensor) -> Tensor:
    clean = step.network(step.images)
    attacked = step.network(adversarial).float()
    log_p = F.log_softmax(attacked, 1)
    own = log_p.gather(1, step.labels[:, None]).squeeze(1)
    other = log_p.exp().scatter(1, step.labels[:, None], 0.0).amax(1)
    boosted = -own - torch.log1p(-other.clamp(max=1.0 - 1e-6))
    missed = 1.0 - F.softmax(clean.float(), 1).gather(1, step.labels[:, None]).squeeze(1)
    return (boosted + step.settings.beta * _divergence(clean, attacked) * missed).mean()


def mart(step: Step) -> Tensor:
    """MART, which weighs misclassified images more (Wang et al. 2020, eq. 11 and 12).

    ``BCE(p(x'), y) + beta * KL(p(x) || p(x')) * (1 - p_y(x))`` with the boosted cross-entropy
    ``BCE = -log p_y(x') - log(1 - max_{k != y} p_k(x'))``; ``x'`` by PGD on the cross-entropy.
    ``beta`` is the paper's lambda: 5 there, 6 in the authors' code and here by default.
    """
    return _mart(step, _pgd(step))


def fgsm_mart(step: Step) -> Tensor:
    """The loss of MART on FGSM examples: TPAP+MART (Tang et al. 2024, section 4.1.3)."""
    examples = fgsm_examples(step.attacked, step.images, step.labels, step.settings.eps)
    return _mart(step, examples)


def fat(step: Step) -> Tensor:
    """Cross-entropy on friendly examples (FAT, Zhang et al. 2020, eq. 6 and Algorithm 2).

    PGD stops ``tau`` steps after an image is wrong. Tau grows over the run, through the values of
    ``fat_tau`` in parts of equal length (the paper's 0, 1, 2, which change at epochs of its own).
    """
    settings = step.settings
    taus = settings.fat_tau
    adversarial = friendly_examples(
        step.attacked,
        step.images,
        step.labels,
        settings.eps,
        steps=settings.attack_steps,
        step_size=settings.attack_step_size,
        tau=taus[min(int(step.done * len(taus)), len(taus) - 1)],
        generator=step.generator,
    )
    return F.cross_entropy(step.network(adversarial), step.labels)


def gairat(step: Step) -> Tensor:
    """PGD training that weighs images near the boundary more (GAIRAT, Zhang et al. 2021, eq. 6).

    ``sum_i w_i CE(f(x'_i), y_i) / sum_i w_i`` with
    ``w = (1 + tanh(lambda + 5 * (1 - 2 * kappa / K))) / 2``, kappa the number of the K iterates of
    PGD that are still right. For a first part of the run, ``gairat_burn_in``, all weights are one.
    """
    settings = step.settings
    adversarial, survived = pgd_survivals(
        step.attacked,
        step.images,
        step.labels,
        settings.eps,
        steps=settings.attack_steps,
        step_size=settings.attack_step_size,
        generator=step.generator,
    )
    losses = F.cross_entropy(step.network(adversarial), step.labels, reduction="none")
    if step.done < settings.gairat_burn_in:
        return losses.mean()
    near = 5.0 * (1.0 - 2.0 * survived / settings.attack_steps)
    weights = 0.5 * (1.0 + torch.tanh(settings.gairat_lambda + near))
    return (weights * losses).sum() / weights.sum()


def cw(step: Step) -> Tensor:
    """Cross-entropy on Carlini and Wagner's L2 examples: "CW-AT" (Tang et al. 2024, Figure 1).

    The paper gives no settings of this attack; here ``attack_steps`` steps of Adam with the weight
    ``cw_weight``. No norm is bounded, so ``eps`` plays no part.
    """
    settings = step.settings
    adversarial = cw_examples(
        step.attacked,
        step.images,
        step.labels,
        steps=settings.attack_steps,
        confidence=settings.cw_weight,
        rate=settings.cw_rate,
    )
    return F.cross_entropy(step.network(adversarial), step.labels)


def stadv(step: Step) -> Tensor:
    """Cross-entropy on spatially transformed images: "STA-AT" (Tang et al. 2024, Figure 1).

    ``flow`` bounds the bending in ``grid_sample`` units, and ``eps`` plays no part. The paper gives
    no settings of this attack.
    """
    settings = step.settings
    adversarial = stadv_examples(
        step.attacked,
        step.images,
        step.labels,
        flow=settings.flow,
        steps=settings.attack_steps,
        step_size=settings.attack_step_size,
        generator=step.generator,
    )
    return F.cross_entropy(step.network(adversarial), step.labels)


OBJECTIVES: dict[str, Objective] = {
    "standard": standard,
    "fgsm": fgsm,
    "fgsm-trades": fgsm_trades,
    "fgsm-mart": fgsm_mart,
    "pgd": pgd,
    "trades": trades,
    "mart": mart,
    "fat": fat,
    "gairat": gairat,
    "cw": cw,
    "stadv": stadv,
}
"""Training objectives by name."""

OVERFITTING = ("fgsm", "fgsm-trades", "fgsm-mart")
"""Those that train on one-step examples, on the way into robust overfitting."""
