"""A corrector made by hand, of which everything that can be asked is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from unperturb.networks.corrector import CorrectionNetwork


class Gated(NamedTuple):
    """A corrector that works only as long as one class's logit is high."""

    network: CorrectionNetwork
    logits: Tensor
    labels: Tensor
    gate: int


def _gated(classes: int = 12, gate: int = 5) -> Gated:
    """``g_k = 10 relu(u_k - 0.5) - 100 relu(u_k - 1.5) + z_k / 10``, ``u_k = z_k + 5 (z_c - 1)``.

    Every pair of a true class i and a fooled answer j, both not the gate c, is one image, with
    ``z_i = 1, z_j = 2, z_c = 1`` and zeros elsewhere: ``g_i = 5.1`` wins. With ``z_c`` lowered by
    20 all that is left is ``z / 10``, and j wins; lowering others than i and c changes nothing.

    So ``H[i] = 10 (e_i + 5 e_c) + e_i / 10``, ``H[j] = -90 (e_j + 5 e_c) + e_j / 10``,
    ``H[k] = e_k / 10`` for other k, but for ``H[c]``, which is ``e_c / 10``.
    """
    network = CorrectionNetwork(num_classes=classes, width=3 * classes, depth=2).double()
    first, second = network.layers
    eye = torch.eye(classes, dtype=torch.float64)
    own = eye.clone()
    own[gate, gate] = 0
    gates = own + 5 * own.sum(1, keepdim=True) * eye[gate]
    with torch.no_grad():
        first.weight.copy_(torch.cat([gates, gates, eye]))
        first.bias.copy_(torch.tensor([-5.5, -6.5, 50.0]).repeat_interleave(classes))
        second.weight.copy_(torch.cat([10 * own, -100 * own, 0.1 * eye], 1))
        second.bias.fill_(-5.0)
    network.eval().requires_grad_(False)
    others = [k for k in range(classes) if k != gate]
    pairs = torch.tensor([(i, j) for i in others for j in others if i != j])
    logits = eye[pairs[:, 0]] + 2 * eye[pairs[:, 1]] + eye[gate]
    return Gated(network, logits, pairs[:, 0], gate)


@pytest.fixture
def gated() -> Callable[..., Gated]:
    """Builder of the corrector with a gate, and its images."""
    return _gated
