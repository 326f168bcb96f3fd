"""Running attacks with a test's own settings, and a target that answers at random."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unperturb.attacks.apgd import APGD
from unperturb.attacks.base import Attack, Attacked
from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.surface import Surface
from unperturb.context import Context
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Threat


class Noisy(Purifier):
    """Adds noise, at a scale that matters."""

    name = "noisy"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        noisy = images + 0.2 * ctx.noise("noisy", images.shape[1:])
        return Purified(noisy, noisy)


def keys_of(images: Tensor, seed: int = 0) -> Keys:
    return Keys.of(seed, [f"image-{i}" for i in range(len(images))])


def run(
    made: Attack,
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    stop: str,
    keys: Keys | None,
) -> Attacked:
    keys = keys or keys_of(images)
    return made.run(Surface(net), images, labels, threat=threat, keys=keys, stop=stop)


def first_order(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    stop: str = "fixed",
    keys: Keys | None = None,
    **settings: Any,
) -> Attacked:
    made = FirstOrder(**{"name": "own", "steps": 10, "step_size": 0.25, **settings})
    return run(made, net, images, labels, threat, stop, keys)


def apgd(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    stop: str = "fixed",
    keys: Keys | None = None,
    **settings: Any,
) -> Attacked:
    made = APGD(**{"name": "own", "steps": 30, **settings})
    return run(made, net, images, labels, threat, stop, keys)
