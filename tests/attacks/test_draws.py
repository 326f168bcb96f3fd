"""Many draws in bounded pieces: what one large batch gives, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks import Surface, draws, make_attack
from unperturb.attacks.batch import Batch
from unperturb.attacks.surface import Judged
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf

DRAWS = 10
PIECE = 7


class Counting(Purifier):
    """Adds noise, and remembers how many images it was shown at once."""

    name = "counting"
    stochastic = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        self.seen.append(len(images))
        noisy = images + 0.05 * ctx.noise("counting", images.shape[1:])
        return Purified(noisy, noisy)


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 50])
def test_pieces_cover_every_row_once(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(draws, "MOST_VALUES", PIECE * 12)
    cut = draws.pieces(rows, (3, 2, 2), DRAWS)
    assert [row for piece in cut for row in range(rows)[piece]] == list(range(rows))
    assert all(piece.stop - piece.start <= PIECE for piece in cut)
    assert draws.pieces(rows, (3, 2, 2), 1) == [slice(0, rows, None)]
    monkeypatch.setattr(draws, "MOST_VALUES", 1)
    assert len(draws.pieces(rows, (3, 2, 2), 2)) == rows
    monkeypatch.setattr(draws, "MOST_VALUES", PIECE * 12)
    assert draws.pieces(rows, (3, 2, 2), DRAWS, device="cuda")[0].stop == min(4 * PIECE, rows)


@pytest.mark.parametrize("spec", ["pgd-3", "apgd-t-3", "deepfool-4", "logit-matching-3", "cw-l2-3"])
def test_pieces_give_what_the_whole_gives(
    conv: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    # Signs of gradients near zero would tell the two apart in single precision.
    dtype = torch.float32 if spec.startswith(("deepfool", "cw")) else torch.float64
    images, labels = pixels(5).to(dtype), torch.arange(5)
    found = []
    for most in (1 << 21, PIECE * 192):
        monkeypatch.setattr(draws, "MOST_VALUES", most)
        purifier = Counting()
        surface = Surface(Defense(conv(smooth=True).to(dtype), purifier=purifier))
        attack = make_attack(spec, draws=DRAWS)
        keys = Keys.of(3, [str(i) for i in range(5)])
        found.append(
            attack.run(surface, images, labels, threat=Linf(0.03), keys=keys, stop="fixed")
        )
        largest = max(purifier.seen)
        assert largest >= 5 * DRAWS if most > 10_000 else largest <= DRAWS
    whole, cut = found
    torch.testing.assert_close(cut.images, whole.images, rtol=0, atol=1e-5)
    assert torch.equal(cut.success, whole.success)
    assert torch.equal(cut.queries, whole.queries)
    assert cut.gradients is not None
    assert whole.gradients is not None
    assert torch.equal(cut.gradients, whole.gradients)


def test_of_two_ends_of_a_run_the_one_that_most_draws_get_wrong_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By success and then margin; and only what every draw gets wrong leaves."""
    images = torch.zeros(1, 1, 2, 2)
    batch = Batch(
        Surface(nn.Flatten()), images, torch.zeros(1), threat=Linf(1.0), keys=Keys.of(0, ["a"])
    )
    told: list[Judged] = []
    monkeypatch.setattr(batch, "judge", lambda *args, **settings: told[-1])
    # share of the draws, mean margin, whether the new image is kept
    steps = [
        (0.2, 0.5, True), (0.1, 0.9, True), (0.6, -0.2, True), (0.4, 2.0, False),
        (0.9, -0.3, False), (0.7, 0.1, True), (1.0, 0.2, True),
    ]  # fmt: skip
    for number, (share, margin, kept) in enumerate(steps):
        assert not bool(batch.broken)
        found = torch.tensor([share > 0.5])
        told.append(
            Judged(found, found.long(), torch.tensor([margin]), ~found, None, torch.tensor([share]))
        )
        image = torch.full_like(images, number + 1.0)
        batch.offer(torch.tensor([0]), image, draw=number)
        assert torch.equal(batch.best, image) == kept
    assert bool(batch.broken)
