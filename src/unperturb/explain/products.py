"""What a correction network's answers hang on: derivatives in closed form (Li et al. 2019, S. 5.1).

With ``g`` the network, ``z`` logits of K classes and ``H[l, k] = d g(z)_l / d z_k`` its Jacobian,
an explanation needs two rows of numbers for each image: row i of H for the true class i, and the
mean over all rows. Both are vector-Jacobian products ``v^T H``, and those of a network of linear
layers with ReLU in between are products of matrices: for two layers

    v^T H(z) = W1^T (m * (W2^T v)),   m = [W1 z + b1 > 0]

so the K x K Jacobian is never formed, nor is a graph for autograd.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from unperturb.checks import check_labels
from unperturb.correction.corrector import Corrector, check_logits
from unperturb.errors import ConfigError, InputError
from unperturb.networks.corrector import CorrectionNetwork

__all__ = [
    "Contributions",
    "contributions",
    "corrected_logits",
    "network_of",
    "vector_jacobian_product",
]


class Contributions(NamedTuple):
    """What raising each logit does to corrected logits, for each image."""

    pull: Tensor  # H[i, k] for the true class i, (N, K)
    mean: Tensor  # the mean over l of H[l, k], (N, K)
    corrected: Tensor  # g(z), (N, K)

    @property
    def score(self) -> Tensor:
        """``S_k = H[i, k] - mean_l H[l, k]`` (Section 5.2), (N, K)."""
        return self.pull - self.mean


def network_of(corrector: Corrector | CorrectionNetwork) -> CorrectionNetwork:
    """The network of a corrector, or the network itself.

    Raises:
        InputError: It is neither.
    """
    network = corrector.network if isinstance(corrector, Corrector) else corrector
    if not isinstance(network, CorrectionNetwork):
        raise InputError(
            f"The corrector is a {type(corrector).__name__}",
            expected="a Corrector or a CorrectionNetwork",
            fix="load_corrector(...) reads a saved one",
        )
    return network


@torch.no_grad()
def corrected_logits(network: CorrectionNetwork, logits: Tensor) -> Tensor:
    """``g(z)`` (N, K) with dropout off, whatever mode the network is in."""
    return _forward(network, logits)[1]


@torch.no_grad()
def contributions(
    corrector: Corrector | CorrectionNetwork, logits: Tensor, labels: Tensor
) -> Contributions:
    """Row i of the Jacobian for each image's true class i, and the mean of all rows.

    Dropout is off, whatever mode the network is in. Where a hidden unit is exactly 0, its
    derivative is taken as 0, as PyTorch does. All rows given are computed at once: memory is a few
    times N x width; `supporting_classes` goes through a set in batches.

    Args:
        corrector: The corrector or its network.
        logits: Logits (N, K), as the attacked classifier gives them.
        labels: True classes (N,).

    Returns:
        Both on the network's device and in its dtype, with the corrected logits, which the same
        forward pass gives.

    Raises:
        InputError: Logits or labels are not what the contract says.

    Example:
        >>> net = CorrectionNetwork(num_classes=4, width=16)
        >>> found = contributions(net, torch.zeros(3, 4), torch.tensor([0, 1, 2]))
        >>> found.pull.shape, found.mean.shape
        (torch.Size([3, 4]), torch.Size([3, 4]))
    """
    network = network_of(corrector)
    check_logits(logits, network.num_classes)
    check_labels(labels, count=len(logits), num_classes=network.num_classes)
    masks, corrected = _forward(network, logits)
    last = _weights(network)[-1]
    # Row i of the last weights is what a one-hot vector would choose from them by a product.
    pull = _backward(network, masks, last[labels.to(last.device).long()])
    mean = _backward(network, masks, last.mean(0, keepdim=True))
    return Contributions(pull, mean.expand_as(pull), corrected)


@torch.no_grad()
def vector_jacobian_product(
    corrector: Corrector | CorrectionNetwork, logits: Tensor, vectors: Tensor
) -> Tensor:
    """``v^T H(z)`` for each image, in closed form (module's equation), dropout off.

    Args:
        corrector: The corrector or its network.
        logits: Logits (N, K).
        vectors: One vector for each image (N, K), or one (K,) for all.

    Returns:
        The products (N, K), on the network's device and in its dtype.

    Raises:
        InputError: Logits or vectors are not what the contract says.

    Example:
        >>> net = CorrectionNetwork(num_classes=3, depth=1)
        >>> row = vector_jacobian_product(net, torch.zeros(1, 3), torch.tensor([0.0, 1.0, 0.0]))
        >>> bool((row[0] == net.layers[0].weight[1]).all())
        True
    """
    network = network_of(corrector)
    check_logits(logits, network.num_classes)
    if vectors.shape not in (logits.shape, logits.shape[1:]):
        raise InputError(
            f"Vectors have shape {tuple(vectors.shape)}",
            expected=f"{tuple(logits.shape)}, one for each row of logits, or "
            f"{tuple(logits.shape[1:])}, one for all",
        )
    weights = _weights(network)
    masks, _ = _forward(network, logits)
    like = weights[-1]
    rows = torch.atleast_2d(vectors.to(like.device, like.dtype)) @ like
    return _backward(network, masks, rows).expand(len(logits), -1)


def check_batch(batch_size: int) -> None:
    """Check a number of rows at a time.

    Raises:
        ConfigError: It is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")


def _weights(network: CorrectionNetwork) -> list[Tensor]:
    return [cast(nn.Linear, layer).weight for layer in network.layers]


def _forward(network: CorrectionNetwork, logits: Tensor) -> tuple[list[Tensor], Tensor]:
    """Which units of each hidden layer are active, (N, width) bool each, and ``g(z)``."""
    like = _weights(network)[0]
    hidden, masks = logits.to(like.device, like.dtype), []
    for layer in network.layers[:-1]:
        hidden = layer(hidden)
        masks.append(hidden > 0)
        hidden.clamp_(min=0)
    return masks, network.layers[-1](hidden)


def _backward(network: CorrectionNetwork, masks: list[Tensor], rows: Tensor) -> Tensor:
    """From the derivative by the last hidden layer, (N or 1, width), to that by the logits."""
    for weight, mask in zip(reversed(_weights(network)[:-1]), reversed(masks), strict=True):
        rows = (rows * mask) @ weight
    return rows
