"""What a training attack differentiates: the network with its batch norms folded away.

In eval mode a batch norm is the affine map ``y = s * (x - mean) + bias`` with
``s = weight / sqrt(var + eps)``, which a convolution in front of it takes up in its own weights:
``W' = s * W``, ``b' = s * (b - mean) + bias``. Making adversarial examples is most of what
adversarial training costs, it is done in eval mode, and the weights stand still meanwhile: folded
once a step, every pass of the attack is spared the batch norms.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unperturb.errors import UnperturbError

__all__ = ["Twin", "make_twin"]

_TOLERANCE = 1e-3
# What a user's module may raise where it is copied, or called on a symbol.
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    UnperturbError,
    ValueError,
    copy.Error,
)


class Twin(nn.Module):
    """A copy of a network in eval mode whose batch norms are folded into the convolutions.

    ``refresh`` takes over the network's present weights and statistics. Logits equal those of the
    network in eval mode up to rounding.

    Args:
        network: The network that is trained; it is copied, and never touched.
        pairs: Names of a convolution and of the batch norm that alone reads it.
    """

    def __init__(self, network: nn.Module, pairs: list[tuple[str, str]]) -> None:
        super().__init__()
        # Kept out of the module tree: its parameters are not the twin's.
        self._source = [network]
        self._pairs = pairs
        self.copy = copy.deepcopy(network).eval().requires_grad_(False)
        for conv_name, norm_name in pairs:
            conv = cast(nn.Conv2d, self.copy.get_submodule(conv_name))
            if conv.bias is None:
                zero = conv.weight.new_zeros(conv.out_channels)
                conv.bias = nn.Parameter(zero, requires_grad=False)
            parent, _, leaf = norm_name.rpartition(".")
            setattr(self.copy.get_submodule(parent), leaf, nn.Identity())
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights and statistics that the network has now."""
        source = self._source[0]
        folded = {name for conv, _ in self._pairs for name in (f"{conv}.weight", f"{conv}.bias")}
        theirs = source.state_dict(keep_vars=True)
        for name, value in self.copy.state_dict(keep_vars=True).items():
            if name not in folded:
                value.copy_(theirs[name])
        for conv_name, norm_name in self._pairs:
            conv = cast(nn.Conv2d, source.get_submodule(conv_name))
            norm = cast(_BatchNorm, source.get_submodule(norm_name))
            mine = cast(nn.Conv2d, self.copy.get_submodule(conv_name))
            mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            scale = (var + norm.eps).rsqrt()
            if norm.affine:
                scale = scale * norm.weight
            shift = -mean if conv.bias is None else conv.bias - mean
            mine.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
            cast(Tensor, mine.bias).copy_(
                shift * scale + norm.bias if norm.affine else shift * scale
            )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1], as the network's in eval mode."""
        return self.copy(images)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Twin:
        """Do nothing: a twin stays in eval mode."""
        return self


def make_twin(network: nn.Module, images: Tensor) -> Twin | None:
    """A twin of a network, or None where there is nothing to fold or it cannot be done safely.

    Whether a batch norm alone reads a convolution is seen by tracing the network symbolically, and
    tried out on a copy whose batch norms are given statistics and scales of all kinds: those of a
    new network change so little that a wrong twin would not be noticed. A network that cannot be
    traced, or copied, or whose twin answers otherwise (its convolutions share weights, say, or have
    hooks), has no twin, and its attacks run on the network itself: slower, with the same results up
    to rounding.

    Args:
        network: Images in [0, 1] to logits.
        images: A few images to compare the answers on.
    """
    devices = [images.device] if images.is_cuda else []
    # A user's module may draw from the global generator.
    with torch.random.fork_rng(devices=devices):
        try:
            trial = copy.deepcopy(network).eval()
            pairs = _pairs(trial)
            if not pairs:
                return None
            twin = Twin(trial, pairs)
            _shake(trial)
            twin.refresh()
            return Twin(network, pairs) if _agree(trial, twin, images) else None
        except _FAILURES:
            return None


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Convolutions that one batch norm alone reads, each called once."""
    from torch.fx import Node, Tracer

    graph = Tracer().trace(network)
    modules = dict(network.named_modules())
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.BatchNorm2d):
            continue
        norm, before = modules[str(node.target)], node.args[0]
        if not isinstance(before, Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv = modules[str(before.target)]
        once = called.count(str(node.target)) == called.count(str(before.target)) == 1
        if type(conv) is nn.Conv2d and once and norm.track_running_stats:
            found.append((str(before.target), str(node.target)))
    return found


@torch.no_grad()
def _shake(network: nn.Module) -> None:
    """Give every batch norm statistics and scales that make a difference."""
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if not isinstance(norm, _BatchNorm):
            continue
        for tensor, low, high in (
            (norm.running_mean, -0.5, 0.5),
            (norm.running_var, 0.5, 2.0),
            (norm.weight, 0.5, 1.5),
            (norm.bias, -0.5, 0.5),
        ):
            if tensor is not None:
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))


@torch.no_grad()
def _agree(network: nn.Module, twin: Twin, images: Tensor) -> bool:
    ours, theirs = twin(images), network(images)
    worst = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0)
    return bool(worst < _TOLERANCE)
