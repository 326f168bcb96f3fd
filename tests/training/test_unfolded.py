"""Convolutions that must not be folded, and networks that have no twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import fill
from training.twins import close, in_eval, photos, quietly, used
from unperturb.training.twin import make_twin


class Wired(nn.Module):
    """A convolution with a batch norm, wired in a way that a subclass says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def middle(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.middle(images))
        return self.head(F.relu(self.last(self.other(hidden))).mean((2, 3)))  # type: ignore[no-any-return]


class Residual(Wired):
    """The convolution's output is read twice."""

    def middle(self, images: Tensor) -> Tensor:
        out = self.conv(images)
        return out + self.norm(out)  # type: ignore[no-any-return]


class Between(Wired):
    """Something stands between convolution and norm."""

    def middle(self, images: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(images)))  # type: ignore[no-any-return]


class Twice(Wired):
    """One convolution, two calls."""

    def middle(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(images)))  # type: ignore[no-any-return]


class TwoNorms(Wired):
    """One norm, two calls."""

    def middle(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(images)))  # type: ignore[no-any-return]


class Peeking(Wired):
    """The weights are read beside the convolution."""

    def middle(self, images: Tensor) -> Tensor:
        out = self.norm(self.conv(images))
        return out * self.conv.weight.square().sum()  # type: ignore[no-any-return]


class Tied(Wired):
    """Two convolutions share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.other.weight = self.conv.weight


class Alias(Wired):
    """One convolution under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.conv

    def middle(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(self.again(images)))  # type: ignore[no-any-return]


class Unscaled(Wired):
    """Norms without running statistics: eval mode takes the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)


class Transposed(Wired):
    """A transposed convolution, whose weights lie otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(3, 3, 3, padding=1)  # type: ignore[assignment]


class Hooked(Wired):
    """A hook changes what comes out of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(lambda module, inputs, out: out.tanh())


class NormHooked(Wired):
    """A hook changes what comes out of the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm.register_forward_hook(lambda module, inputs, out: 2.0 * out)


class Normed(Wired):
    """Weights that are made anew at each call (the old spectral norm)."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.utils.spectral_norm(self.conv)


class Parametrized(Wired):
    """Weights that are made anew at each call (parametrizations)."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.utils.parametrizations.weight_norm(self.conv)


class Moody(Wired):
    """In training mode the convolution's output is read once, in eval mode twice."""

    def middle(self, images: Tensor) -> Tensor:
        out = self.conv(images)
        return self.norm(out) if self.training else out + self.norm(out)  # type: ignore[no-any-return]


WIRED = (
    Residual, Between, Twice, TwoNorms, Peeking, Tied, Alias, Unscaled, Transposed, Hooked,
    NormHooked, Normed, Parametrized, Moody,
)  # fmt: skip
WITHOUT = (Peeking, Tied, Hooked, NormHooked, Normed)
"""Of them no twin is made at all."""


@pytest.mark.parametrize("kind", [kind for kind in WIRED if kind not in WITHOUT])
def test_what_cannot_be_folded_is_not(kind: type[Wired], untouched: Any) -> None:
    # Made of a fresh network, where norms change nothing yet, as a training run does.
    net, images = quietly(kind).train(), photos()
    with untouched(net):
        twin = make_twin(net, images[:2])
    assert twin is not None
    with torch.no_grad():
        used(net)
        for parameter in net.parameters():
            parameter.mul_(1.1)
    twin.refresh()
    close(twin(images), in_eval(net, images))
    assert isinstance(twin.copy.get_submodule("norm"), nn.BatchNorm2d)
    assert isinstance(twin.copy.get_submodule("last"), nn.Identity), "the other one still is"


@pytest.mark.parametrize("kind", WITHOUT)
def test_what_a_twin_could_not_follow_has_none(kind: type[Wired], untouched: Any) -> None:
    net = quietly(kind).train()
    with untouched(net):
        assert make_twin(net, photos(2)) is None


def test_the_plain_wiring_is_folded() -> None:
    twin = make_twin(quietly(Wired), photos(2))
    assert twin is not None
    assert isinstance(twin.copy.get_submodule("norm"), nn.Identity)


class Branching(Wired):
    """Control flow on pixels, which cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.mean() > 0.5 else 1.0 - images)


class Uncopyable(Wired):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = (line for line in ())


class Noisy(Wired):
    """Answers at random."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.5 * torch.randn(2, 3, 1, 1))


@pytest.mark.parametrize("kind", [Branching, Uncopyable, Noisy])
def test_networks_without_a_twin(kind: type[Wired], untouched: Any) -> None:
    net = quietly(kind)
    with untouched(net):
        assert make_twin(net, photos(2)) is None


def test_networks_with_nothing_to_fold(linear: Callable[..., nn.Module]) -> None:
    assert make_twin(linear(channels=3, side=16), photos(2)) is None
    net = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 768, 4), nn.BatchNorm1d(4))
    assert make_twin(fill(net), photos(2)) is None
