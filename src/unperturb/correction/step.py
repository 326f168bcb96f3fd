"""Training steps of a correction network: by autograd, and by hand for the paper's two layers."""

from __future__ import annotations

import torch
from torch import Tensor

from unperturb.correction.config import CorrectionConfig
from unperturb.correction.draws import mask_generator
from unperturb.correction.losses import LOSSES, Loss
from unperturb.correction.masks import Masks
from unperturb.networks.corrector import CorrectionNetwork

__all__ = ["AutogradStep", "SlabStep", "TrainingStep", "make_step"]

SLAB, FEW = 2048, 32
"""Hidden units that are worked on at a time, where there are at most so many classes."""


class TrainingStep:
    """Forward, backward and Adam of a `CorrectionNetwork` in training mode.

    Dropout masks are a function of (seed, epoch, step, layer), so that the weights and the moments
    of Adam are all that a checkpoint needs.

    Args:
        network: The network whose weights are started from; it is not changed.
        config: Loss, learning rate, weight decay, batch size and seed.
        device: Where to train.
    """

    def __init__(
        self, network: CorrectionNetwork, config: CorrectionConfig, device: torch.device
    ) -> None:
        self.config, self.device = config, device
        self.loss: Loss = LOSSES[config.loss]
        self.dropout = network.dropout
        self.scale = 1.0 / (1.0 - network.dropout)
        state = network.state_dict()
        self.weights = [
            self._laid_out(state[f"layers.{number}.weight"], number)
            .to(device, torch.float32, copy=True)
            .contiguous()
            for number in range(network.depth)
        ]
        self.biases = [
            state[f"layers.{number}.bias"].to(device, torch.float32, copy=True)
            for number in range(network.depth)
        ]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        # Fused: one pass over weights, gradients and moments.
        self.adam = torch.optim.Adam(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )

    def _laid_out(self, weight: Tensor, layer: int) -> Tensor:
        """A layer's weight (out, in) as this step keeps it, and back."""
        return weight

    @property
    def parameters(self) -> list[Tensor]:
        """Weights, and after them biases."""
        return [*self.weights, *self.biases]

    def run(self, logits: Tensor, labels: Tensor, *, epoch: int, step: int) -> Tensor:
        """One update; returns the loss before it, as a tensor without dimensions.

        Args:
            logits: Logits (B, K) on the device, B at most the batch size.
            labels: True labels (B,).
            epoch: Epochs done before, which names the masks.
            step: Steps of this epoch done before.
        """
        raise NotImplementedError

    def export(self, network: CorrectionNetwork) -> None:
        """Copy the weights into a network of the same shape."""
        state = network.state_dict()
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            state[f"layers.{number}.weight"].copy_(self._laid_out(weight, number))
            state[f"layers.{number}.bias"].copy_(bias)

    def state(self) -> dict[str, Tensor]:
        """Weights, biases, and the moments of Adam, by name."""
        found: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            found[f"parameter.{index}"] = parameter.detach()
            for name, value in self.adam.state.get(parameter, {}).items():
                found[f"{name}.{index}"] = value
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` gave."""
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(state[f"parameter.{index}"])
                if f"step.{index}" in state:
                    self.adam.state[parameter] = {
                        name: state[f"{name}.{index}"].to(self.device)
                        for name in ("step", "exp_avg", "exp_avg_sq")
                    }


class AutogradStep(TrainingStep):
    """The step as anyone would write it, for any number of layers."""

    def __init__(
        self, network: CorrectionNetwork, config: CorrectionConfig, device: torch.device
    ) -> None:
        super().__init__(network, config, device)
        size = config.batch_size * min(SLAB, network.width)
        self._masks = Masks(self.dropout, size, device, kept=self.scale, dropped=0.0)

    def run(self, logits: Tensor, labels: Tensor, *, epoch: int, step: int) -> Tensor:
        """One update; see `TrainingStep.run`."""
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in self.parameters]
            weights, biases = leaves[: len(self.weights)], leaves[len(self.weights) :]
            hidden = logits
            for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
                hidden = torch.relu(torch.nn.functional.linear(hidden, weight, bias))
                if self.dropout:
                    generator = mask_generator(self.config.seed, epoch, step, layer)
                    masks = self._masks.columns(generator, len(hidden), hidden.shape[1], SLAB)
                    hidden = hidden * torch.cat([mask.clone() for mask in masks], 1)
            loss = self.loss(torch.nn.functional.linear(hidden, weights[-1], biases[-1]), labels)
            found = torch.autograd.grad(loss, leaves)
        for gradient, value in zip(self.gradients, found, strict=True):
            gradient.copy_(value)
        self.adam.step()
        return loss.detach()


class SlabStep(TrainingStep):
    """The step of two layers by hand, so that the matrix products are what takes the time.

    With a mask ``m`` of ones (kept, with probability ``1 - dropout``) and zeros::

        h = m * relu(W1 z + b1),    g(z) = s W2 h + b2,    s = 1 / (1 - dropout)

    which is the network's own forward pass: the factor of dropout is drawn out of the hidden
    units, where it would be a pass over all of them, into the products. Gradients are those of
    autograd; only the loss, on (B, K) numbers, is left to it.

    - With few classes, hidden units are worked on in slabs that stay in the cache from one
      operation to the next. (With many, the products take so long that it does not matter.)
    - Both weights lie with the hidden dimension last: with few classes, the products with the
      other layout take several times as long.
    - Beside the products, one pass over the hidden units forward (ReLU and mask at once: a clamp
      between 0 and either 0 or infinity) and one backward. Nothing is allocated that is as large.
    """

    def __init__(
        self, network: CorrectionNetwork, config: CorrectionConfig, device: torch.device
    ) -> None:
        assert network.depth == 2
        super().__init__(network, config, device)
        # More slabs are more launches, for which a GPU would wait.
        cached = device.type == "cpu" and network.num_classes <= FEW
        self.slab = min(SLAB, network.width) if cached else network.width
        self._columns = [
            slice(start, min(start + self.slab, network.width))
            for start in range(0, network.width, self.slab)
        ]
        rows = config.batch_size
        self._hidden = [
            _memory(rows * (part.stop - part.start), device).view(rows, -1)
            for part in self._columns
        ]
        self._gradient = _memory(rows * self.slab, device)
        self._masks = Masks(self.dropout, rows * self.slab, device, kept=float("inf"), dropped=0.0)
        self._zero = torch.zeros((), dtype=torch.float32, device=device)

    def _laid_out(self, weight: Tensor, layer: int) -> Tensor:
        return weight if layer else weight.t()

    @torch.no_grad()
    def run(self, logits: Tensor, labels: Tensor, *, epoch: int, step: int) -> Tensor:
        """One update; see `TrainingStep.run`."""
        hidden = [slab[: len(logits)] for slab in self._hidden]
        scores = self._forward(logits, hidden, epoch, step)
        with torch.enable_grad():
            leaf = scores.requires_grad_()
            loss = self.loss(leaf, labels)
            (gradient,) = torch.autograd.grad(loss, leaf)
        self._backward(logits, hidden, gradient)
        self.adam.step()
        return loss.detach()

    def _forward(self, logits: Tensor, hidden: list[Tensor], epoch: int, step: int) -> Tensor:
        """Corrected logits (B, K); the hidden units stay for the backward pass."""
        (first, second), (bias, last) = self.weights, self.biases
        generator = mask_generator(self.config.seed, epoch, step, 0)
        scores: Tensor = last.expand(len(logits), -1).clone()
        for slab, part in zip(hidden, self._columns, strict=True):
            torch.addmm(bias[part], logits, first[:, part], out=slab)
            if self.dropout:
                torch.clamp(slab, self._zero, self._masks.draw(generator, *slab.shape), out=slab)
            else:
                slab.relu_()
            scores.addmm_(slab, second[:, part].t(), alpha=self.scale)
        return scores

    def _backward(self, logits: Tensor, hidden: list[Tensor], gradient: Tensor) -> None:
        """Fill the gradients of all weights and biases, from that of the scores (B, K)."""
        second = self.weights[1]
        d_first, d_second, d_bias, d_last = self.gradients
        torch.sum(gradient, 0, out=d_last)
        # The last slab is still in the cache.
        for slab, part in zip(reversed(hidden), reversed(self._columns), strict=True):
            below = self._gradient[: slab.numel()].view_as(slab)
            _product(gradient.t(), slab, self.scale, out=d_second[:, part])
            _product(gradient, second[:, part], self.scale, out=below)
            # A hidden unit is above zero where it is kept and its ReLU is open.
            torch.ops.aten.threshold_backward.grad_input(below, slab, 0, grad_input=below)
            _product(logits.t(), below, 1.0, out=d_first[:, part])
            torch.sum(below, 0, out=d_bias[part])


def make_step(
    network: CorrectionNetwork, config: CorrectionConfig, device: torch.device
) -> TrainingStep:
    """The fastest step there is for this network."""
    if network.depth == 2:
        return SlabStep(network, config, device)
    return AutogradStep(network, config, device)


def _memory(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device=device)


def _product(one: Tensor, two: Tensor, scale: float, *, out: Tensor) -> None:
    """``scale * one @ two`` into memory that is there; what stood there is not read."""
    torch.addmm(out, one, two, beta=0, alpha=scale, out=out)
