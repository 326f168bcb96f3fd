"""Small defenses that any process can build alike, and the audits the tests run on them.

``python -m audit.doubles OUT WORKERS THREADS`` runs the audit of ``arguments()`` into a folder: the
process that tests kill.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.attacks import FirstOrder
from unperturb.context import Context
from unperturb.data.digits import digits_arrays
from unperturb.defense import Defense
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.threat import Linf

EPS = 0.15


@cache
def _digits() -> tuple[Tensor, Tensor]:
    pixels, labels = digits_arrays()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return pixels[order], labels[order]


def digits(count: int = 24, start: int = 1200) -> tuple[Tensor, Tensor]:
    """Digits that the nets below have not seen, (N, 1, 8, 8) in [0, 1], and their labels."""
    pixels, labels = _digits()
    return pixels[start : start + count].clone(), labels[start : start + count].clone()


def _centroids(features: Tensor, labels: Tensor, scale: float) -> nn.Linear:
    """The linear layer whose greatest score is the nearest class mean."""
    means = torch.stack([features[labels == c].mean(0) for c in range(10)])
    layer = nn.utils.skip_init(nn.Linear, features.shape[1], 10)
    with torch.no_grad():
        layer.weight.copy_(2 * scale * means)
        layer.bias.copy_(-scale * means.square().sum(1))
    return layer


def linear_net(scale: float = 1.0) -> nn.Module:
    """Nearest class mean on the pixels: about 90 % right, linear, built without training."""
    pixels, labels = digits(1200, 0)
    return nn.Sequential(nn.Flatten(), _centroids(pixels.flatten(1), labels, scale)).eval()


def conv_net() -> nn.Module:
    """Nearest class mean on fixed random convolutional features."""
    conv = nn.utils.skip_init(nn.Conv2d, 1, 8, 3, padding=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * 0.5)
        conv.bias.copy_(torch.randn(8, generator=generator) * 0.1)
    body = nn.Sequential(conv, nn.Tanh(), nn.AvgPool2d(2), nn.Flatten())
    pixels, labels = digits(1200, 0)
    with torch.no_grad():
        features = body(pixels)
    return nn.Sequential(*body, _centroids(features, labels, 0.5)).eval()


class Noisy(Purifier):
    """Adds keyed noise."""

    name = "noisy"
    stochastic = True

    def __init__(self, *, size: float = 0.1) -> None:
        super().__init__()
        self.size = size

    def config(self) -> dict[str, Any]:
        return {"size": self.size}

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        noisy = (images + self.size * ctx.noise("noisy", images.shape[1:])).clamp(0, 1)
        return Purified(noisy, noisy)


class SometimesNegative(Purifier):
    """Shows the classifier the negative of some images, drawn with a probability."""

    name = "sometimes-negative"
    stochastic = True

    def __init__(self, *, probability: float = 0.1) -> None:
        super().__init__()
        self.probability = probability

    def config(self) -> dict[str, Any]:
        return {"probability": self.probability}

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        negative = (ctx.uniform("coin", (1, 1, 1)) < self.probability).to(images.dtype)
        reading = negative * (1 - images) + (1 - negative) * images
        return Purified(reading, reading)


class Blind(Purifier):
    """The identity, whose declared gradient is zero everywhere."""

    name = "blind"
    backwards = ("exact",)
    adaptive = ("exact",)

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        reading = images.detach() + 0 * images
        return Purified(reading, reading)


class DiesInWorkers(nn.Module):
    """Ends the process it runs in, if that is a worker."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        if multiprocessing.parent_process() is not None:
            os._exit(3)
        return self.net(images)  # type: ignore[no-any-return]


class Rounding(nn.Module):
    """Rounds pixels to 16 levels before a net, so that its gradient is zero."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(torch.round(images * 16) / 16)  # type: ignore[no-any-return]


def random_defense() -> Defense:
    """A random defense around a net with convolutions."""
    return Defense(conv_net(), purifier=Noisy())


PGD = FirstOrder(name="pgd-3", steps=3, step_size=0.5, random_start=True, draws=2)
FGSM = FirstOrder(name="fgsm", steps=1, step_size=1.0, draws=2)


def arguments(**changes: Any) -> dict[str, Any]:
    """Arguments of the audit that the tests of repeatability run: 48 units of 8 images.

    The defense is random, and one of the attacks begins at random points.
    """
    images, labels = digits(24)
    found: dict[str, Any] = {
        "defense": random_defense(),
        "images": images,
        "labels": labels,
        "threat": Linf(EPS),
        "attacks": [FGSM, PGD],
        "attackers": ("oblivious", "adaptive"),
        "batch_size": 8,
        "scoring_draws": 3,
    }
    return {**found, **changes}


def standard(**changes: Any) -> dict[str, Any]:
    """Arguments of an audit by every attack of the suite ``standard``, probes included."""
    images, labels = digits(16)
    found: dict[str, Any] = {
        "defense": tpap(linear_net()),
        "images": images,
        "labels": labels,
        "threat": Linf(EPS),
        "attacks": "standard",
        "attackers": ("oblivious", "adaptive"),
        "batch_size": 8,
        "probe_images": 8,
    }
    return {**found, **changes}


def small(**changes: Any) -> dict[str, Any]:
    """An audit of a tenth of a second: 8 images in 2 blocks, one attack, 10 units."""
    images, labels = digits(8)
    found = {
        "defense": tpap(linear_net()), "images": images, "labels": labels, "threat": Linf(EPS),
        "attacks": "fgsm", "batch_size": 4,
    }  # fmt: skip
    return {**found, **changes}


KINDS = {"usual": arguments, "standard": standard}


if __name__ == "__main__":
    # The module by its own name, so that worker processes find its classes too.
    from audit.doubles import KINDS as named
    from unperturb.audit import audit

    torch.set_num_threads(int(sys.argv[3]))
    print("ready", flush=True)  # noqa: T201
    print(audit(**named[sys.argv[4]](out=sys.argv[1], workers=int(sys.argv[2]))).digest)  # noqa: T201
