"""A corrector whose classes share their weights, for banks with few rows of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unperturb.correction.config import CorrectionConfig
from unperturb.correction.losses import LOSSES
from unperturb.correction.step import TrainingStep
from unperturb.correction.stream import BUFFER, finite, pieces_of
from unperturb.errors import ConfigError
from unperturb.networks.corrector import CorrectionNetwork

if TYPE_CHECKING:
    from unperturb.banks import LogitBank

__all__ = ["Residuals", "TiedStep", "measure_residuals"]


@dataclass(frozen=True)
class Residuals:
    """What each logit is beside what the other logits lead one to expect.

    With mean ``m`` and covariance ``C`` of the logits, ``L = (C + s mean(eigenvalues of C) I)^-1``
    and a common scale ``c``::

        r_i(z) = (L (z - m))_i / (c sqrt(L_ii)),    l(z) = (mean_k z_k - mean_k m_k) / d

    ``r_i`` is, up to the shrinkage ``s`` and the scale, the residual of regressing the logit of
    class i on all the others, in units of its standard deviation; ``l`` is the mean logit in units
    of its own. Both are linear in the logits.

    Attributes:
        mean: m (K,), float64.
        transform: Columns of it (K, K), float64: ``r = (z - m) @ transform``.
        spread: d, the standard deviation of the mean logit.
    """

    mean: Tensor
    transform: Tensor
    spread: float

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, shrinkage: float) -> Residuals:
        """From mean (K,) and covariance (K, K).

        Example:
            >>> found = Residuals.of(torch.zeros(2), torch.eye(2), 0.0)
            >>> found.transform.tolist(), round(found.spread, 3)
            ([[1.0, 0.0], [0.0, 1.0]], 0.707)
        """
        mean, covariance = mean.double().cpu(), covariance.double().cpu()
        count = len(mean)
        ridge = shrinkage * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
        inverse = torch.linalg.inv(covariance + ridge * torch.eye(count, dtype=torch.float64))
        transform = inverse / inverse.diagonal().sqrt()
        # Mean square of the residuals of the rows that mean and covariance are of.
        square = ((covariance @ transform) * transform).sum(0).mean()
        spread = covariance.mean().clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        return cls(mean, transform / square.sqrt(), float(spread))

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals (N, K) and levels (N,) of logits (N, K), in their dtype."""
        there = logits - self.mean.to(logits)
        return there @ self.transform.to(logits), there.mean(1) / self.spread


def measure_residuals(
    bank: LogitBank, attacks: Sequence[str], trained: Tensor, config: CorrectionConfig
) -> Residuals:
    """Residuals by the rows of a bank that are trained on, in the shares in which they are drawn.

    Args:
        bank: The bank.
        attacks: Names of its attacks.
        trained: Rows that are trained on (N,) bool.
        config: Clean share and shrinkage.
    """
    shares = {"clean": config.clean_share}
    shares |= {name: (1.0 - config.clean_share) / len(attacks) for name in attacks}
    total = torch.zeros(bank.num_classes, dtype=torch.float64)
    products = torch.zeros(bank.num_classes, bank.num_classes, dtype=torch.float64)
    pieces = pieces_of(bank, max(1, BUFFER // 48 // (4 * bank.num_classes)))
    for source, share in shares.items():
        for start, stop in pieces:
            logits = finite(bank.rows(source, start, stop), source, start)
            rows = logits[trained[start:stop]].double()
            total += share * rows.sum(0)
            products.addmm_(rows.t(), rows, alpha=share)
    count = int(trained.sum())
    mean = total / count
    return Residuals.of(mean, products / count - torch.outer(mean, mean), config.shrinkage)


class TiedStep(TrainingStep):
    """Training of two layers whose hidden units are the same for each class.

    A class i has M hidden units, which see its own residual and the level of all logits::

        g_i(z) = sum_m v_m relu(u_m r_i(z) + w_m l(z) + b_m)

    The 4 M numbers u, w, b and v are trained, by the loss of all rows; they are one function for
    all classes, so that what is learnt of some holds for those that were never the right one. As
    r and l are linear in the logits, g is a network of two layers as the paper's, which is what
    ``export`` writes: hidden unit m K + i is unit m of class i; units beyond M K are zero.

    Args:
        network: Of two layers and at least K hidden units.
        config: Loss, learning rate, weight decay and seed.
        device: Where to train.
        residuals: r and l.

    Raises:
        ConfigError: There are fewer hidden units than classes.
    """

    def __init__(
        self,
        network: CorrectionNetwork,
        config: CorrectionConfig,
        device: torch.device,
        residuals: Residuals,
    ) -> None:
        self.config, self.device, self.residuals = config, device, residuals
        self.loss = LOSSES[config.loss]
        units = network.width // network.num_classes
        if not units:
            raise ConfigError(
                f"width is {network.width}, for {network.num_classes} classes",
                expected="at least one hidden unit a class, where these share their weights",
                fix=f"--width {10 * network.num_classes}",
            )
        generator = torch.Generator().manual_seed(config.seed)
        first, offset, last = torch.randn(3, units, generator=generator)
        self._parameters = [
            value.to(device) for value in (first, torch.zeros(units), offset, last / units**0.5)
        ]
        self.gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.adam = torch.optim.Adam(
            self._parameters, lr=config.lr, weight_decay=config.weight_decay
        )

    @property
    def parameters(self) -> list[Tensor]:
        """u, w, b and v, each (M,)."""
        return self._parameters

    def run(self, logits: Tensor, labels: Tensor, *, epoch: int, step: int) -> Tensor:
        """One update; see `TrainingStep.run`."""
        with torch.no_grad():
            residuals, levels = self.residuals(logits)
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in self._parameters]
            first, level, offset, last = (leaf[:, None, None] for leaf in leaves)
            hidden = torch.relu(first * residuals + level * levels[:, None] + offset)
            loss = self.loss((last * hidden).sum(0), labels)
            found = torch.autograd.grad(loss, leaves)
        for gradient, value in zip(self.gradients, found, strict=True):
            gradient.copy_(value)
        self.adam.step()
        return loss.detach()

    @torch.no_grad()
    def export(self, network: CorrectionNetwork) -> None:
        """Write out the network of two layers that this is."""
        first, level, offset, last = (value.double().cpu() for value in self._parameters)
        count, units = network.num_classes, len(first)
        across = self.residuals.transform.t()
        weight = first[:, None, None] * across
        weight += (level / (self.residuals.spread * count))[:, None, None]
        bias = offset[:, None] - weight @ self.residuals.mean
        for parameter in network.parameters():
            parameter.zero_()
        state = network.state_dict()
        used = slice(units * count)
        state["layers.0.weight"][used] = weight.flatten(0, 1).to(state["layers.0.weight"])
        state["layers.0.bias"][used] = bias.flatten().to(state["layers.0.bias"])
        same = torch.eye(count, dtype=torch.float64)
        after = torch.cat([value * same for value in last], 1)
        state["layers.1.weight"][:, used] = after.to(state["layers.1.weight"])
