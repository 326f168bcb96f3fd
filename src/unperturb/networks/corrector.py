"""The network that corrects logits: linear layers with ReLU and dropout between them."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from unperturb.errors import ConfigError

__all__ = ["CorrectionNetwork"]

_MOST = 1_000_000


class CorrectionNetwork(nn.Module):
    """``g(z) = W2 dropout(relu(W1 z + b1)) + b2`` (Li et al. 2019, Section 4.2).

    Li, Xie, Zhang, Zhang, Wang and Tian. *Defending adversarial attacks by correcting logits.*
    arXiv:1906.10973, 2019.

    Dropout acts in training mode only, and there on masks from the generator it is given: nothing
    global is drawn. In eval mode, as a defense has it, ``g`` is a plain function.

    Deviations: the paper's network has two layers; ``depth`` 1 (a single linear map) and more
    than 2 are for its ablations, with ``width`` units in every hidden layer. Weights start as
    PyTorch's linear layers do (the paper does not say), from the seed's own generator.

    Args:
        num_classes: K, at least 2.
        width: Hidden units D of each hidden layer.
        depth: Linear layers; 1 has no hidden layer.
        dropout: Share of the hidden units that is dropped in training, in [0, 1).
        seed: Seed of the first weights.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> net = CorrectionNetwork(num_classes=10, width=64).eval()
        >>> net(torch.zeros(3, 10)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([3, 10]), 1354)
    """

    def __init__(
        self,
        *,
        num_classes: int,
        width: int = 10_000,
        depth: int = 2,
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_classes", num_classes, 2),
            ("width", width, 1),
            ("depth", depth, 1),
        ):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least <= value <= _MOST:
                raise ConfigError(
                    f"{name} of the corrector is {value!r}",
                    expected=f"a whole number from {least} to {_MOST:,}",
                )
        number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
        if not number or not 0 <= dropout < 1:
            raise ConfigError(
                f"dropout of the corrector is {dropout!r}",
                expected="the share of hidden units dropped, at least 0 and below 1",
                fix="the paper keeps half of them: 0.5",
            )
        self.num_classes, self.width, self.depth = num_classes, width, depth
        self.dropout = float(dropout)
        sizes = [num_classes, *[width] * (depth - 1), num_classes]
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(
            _linear(before, after, generator) for before, after in itertools.pairwise(sizes)
        )

    def config(self) -> dict[str, int | float]:
        """The keyword arguments that build this network again; the seed is in the weights."""
        return {
            "num_classes": self.num_classes,
            "width": self.width,
            "depth": self.depth,
            "dropout": self.dropout,
        }

    def forward(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Corrected logits (N, K) of logits (N, K).

        Args:
            logits: Logits of the classifier.
            generator: Draws the dropout masks; needed in training mode with dropout.
        """
        hidden = logits
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
            if self.training and self.dropout:
                assert generator is not None, "dropout draws from a generator of its own"
                hidden = hidden * self.mask(hidden, generator)
        return self.layers[-1](hidden)  # type: ignore[no-any-return]

    def mask(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Which units are kept, scaled so that the expectation stays: 0 or 1 / (1 - dropout)."""
        kept = torch.empty_like(hidden).bernoulli_(1.0 - self.dropout, generator=generator)
        return kept.div_(1.0 - self.dropout)


def _linear(before: int, after: int, generator: torch.Generator) -> nn.Linear:
    # On the meta device first: the layer's own initialization draws from the global generator.
    layer = nn.Linear(before, after, device="meta").to_empty(device="cpu")
    bound = 1.0 / math.sqrt(before)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
