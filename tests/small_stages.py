"""Small stages of every kind that a defense must carry, and TPAP by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.context import Context
from unperturb.decisions import Decision
from unperturb.purifiers import Purified, Purifier


class Encoder(Purifier):
    """The classifier reads features; there is no purified image."""

    name = "encoder"
    backwards = ("exact",)
    adaptive = ("exact",)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.weight = nn.Parameter(torch.randn(6, 3 * 64, generator=generator) * 0.1)

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images.flatten(1) @ self.weight.T, None)


class NeverRun(Purifier):
    """Fails when it is asked."""

    name = "never-run"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        raise AssertionError("nothing reads what this purifier would return")


class Noisy(Purifier):
    """Adds noise."""

    name = "noisy"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        noisy = images + 0.1 * ctx.noise("noisy", images.shape[1:])
        return Purified(noisy, noisy)


class Asking(Purifier):
    """Asks for the logits before, and moves by the answer."""

    name = "asking"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        moved = images + 0.01 * ctx.before().argmax(1).view(-1, 1, 1, 1)
        return Purified(moved, moved)


class Halves(Purifier):
    """Reads half the pixels' brightness; its "before" is another reading."""

    name = "halves"
    references = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images / 2, images / 2, images / 4)


class OnLogits(Decision):
    """Reads the logits before only."""

    name = "on-logits"
    reads = frozenset({"before"})

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        assert after is None
        assert before is not None
        return before.flip(1)


class Branching(Decision):
    """The logits' change where flagged, else the logits after."""

    name = "branching"
    reads = frozenset({"before", "after"})

    def branches(self, before: Tensor | None, after: Tensor | None) -> dict[str, Tensor]:
        assert before is not None
        assert after is not None
        return {"difference": before - after, "after": after}

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        both = self.branches(before, after)
        return torch.where(flagged[:, None], both["difference"], both["after"])


def by_hand(net: nn.Module, images: Tensor, radius: float, *, clip: bool = True) -> Tensor:
    """TPAP in eight lines."""
    with torch.inference_mode(False), torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        logits = net(x)
        loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        purified = x + radius * gradient.sign()
        return (purified.clamp(0, 1) if clip else purified).detach()
