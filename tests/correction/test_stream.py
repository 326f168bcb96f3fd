"""The order of an epoch, whose logits a row takes, and how much memory that needs."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from correction.fakes import FakeBank, config, numbered
from unperturb.correction.stream import LogitStream, choose_attacks, pieces_of, split_rows
from unperturb.errors import ConfigError, DataError, RecordError, SpecError

SMALL = 24 * 16 * 4 * 3  # bytes for which a piece has 16 rows of 3 logits


def stream(bank: Any, *, buffer: int = 2**20, attacks: Any = None, **settings: Any) -> LogitStream:
    chosen = config(**{"batch_size": 8, **settings})
    split = split_rows(bank.ids, chosen)
    names = bank.attacks if attacks is None else attacks
    return LogitStream(bank, names, split.trained, chosen, buffer=buffer)


def names(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def rows(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([logits[:, 0] for logits, _ in batches]).long()


def copied(found: Any) -> list[tuple[Tensor, Tensor]]:
    """Batches are views of memory that is used again."""
    return [(logits.clone(), labels.clone()) for logits, labels in found]


# --- order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, SMALL, 4 * SMALL, 2**20])
@pytest.mark.parametrize(("count", "shard", "size"), [(100, 16, 8), (97, 10, 7), (33, 100, 64)])
def test_every_training_row_comes_once_with_its_label(
    count: int, shard: int, size: int, buffer: int
) -> None:
    bank = numbered(count, shard=shard)
    found = stream(bank, buffer=buffer, batch_size=size)
    trained = split_rows(names(count), config()).trained.nonzero().squeeze(1)
    for epoch in (0, 1):
        batches = copied(found.batches(epoch))
        assert len(batches) == found.steps == math.ceil(len(trained) / size)
        assert [len(labels) for _, labels in batches[:-1]] == [size] * (found.steps - 1)
        order = rows(batches)
        assert torch.equal(order.sort().values, trained)
        assert torch.equal(torch.cat([labels for _, labels in batches]), bank.labels[order])


@pytest.mark.parametrize("buffer", [SMALL, 2**20])
def test_an_epoch_begun_at_any_step_is_the_rest_of_it(buffer: int) -> None:
    found = stream(numbered(90, shard=7), buffer=buffer)
    whole = copied(found.batches(3))
    for start in range(found.steps + 2):
        rest = copied(found.batches(3, start))
        assert len(rest) == max(found.steps - start, 0)
        for (one, one_labels), (two, two_labels) in zip(whole[start:], rest, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one_labels, two_labels)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    bank = numbered(400, shard=16)

    def order(seed: int, epoch: int) -> Tensor:
        return torch.cat([z for z, _ in copied(stream(bank, seed=seed).batches(epoch))])

    assert torch.equal(order(0, 0), order(0, 0))
    assert not torch.equal(order(0, 0), order(0, 1))
    assert not torch.equal(order(0, 0), order(1, 0))


def test_a_bank_in_one_block_is_shuffled_as_a_whole() -> None:
    order = rows(copied(stream(numbered(2000), holdout=0.001).batches(0))).double()
    place = torch.arange(len(order), dtype=torch.float64)
    # Rank correlations of random orders have a deviation of 1 / sqrt(n).
    for one, two in ((order, place), (order[1:], order[:-1])):
        assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 5 / 2000**0.5


def test_blocks_take_shards_from_everywhere_and_shuffle_their_rows() -> None:
    found = stream(numbered(640, shard=16), buffer=SMALL, holdout=0.001, batch_size=64)
    blocks = [found._counts[block].sum() for block in found._blocks(0)]
    assert 3 < len(blocks) < 10
    order = rows(copied(found.batches(0)))
    first = order[: blocks[0]]
    assert bool((first.sort().values != first).any())
    # The shards of the first block are not neighbors in the bank.
    shards = (first // 16).unique()
    assert 1 < len(shards) < 40
    assert int(shards.max() - shards.min()) >= len(shards)


# --- whose logits ---------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "attacks"), [(0.3, 1), (0.3, 3), (0.0, 2), (1.0, 2), (0.7, 2)])
def test_rows_are_clean_with_probability_p_and_attacks_are_as_likely(
    share: float, attacks: int
) -> None:
    bank = numbered(4000, attacks=attacks, shard=512)
    found = stream(bank, clean_share=share, batch_size=4000, holdout=0.001)
    sources = torch.cat([z[:, 1] for epoch in range(5) for z, _ in copied(found.batches(epoch))])
    wanted = [share] + [(1 - share) / attacks] * attacks
    for source, p in enumerate(wanted):
        deviation = (p * (1 - p) / len(sources)) ** 0.5
        assert abs(float((sources == source).double().mean()) - p) <= 5 * deviation


def test_a_rows_source_is_drawn_anew_in_each_epoch() -> None:
    found = stream(numbered(2000, attacks=1), clean_share=0.5, holdout=0.001)
    drawn = []
    for epoch in (0, 1):
        logits = torch.cat([z for z, _ in copied(found.batches(epoch))])
        drawn.append(logits[logits[:, 0].argsort(), 1])
    same = float((drawn[0] == drawn[1]).double().mean())
    assert abs(same - 0.5) < 5 * 0.5 / 2000**0.5


def test_only_the_named_attacks_are_read() -> None:
    bank = numbered(attacks=3)
    batches = copied(stream(bank, attacks=("attack-1",)).batches(0))
    assert set(torch.cat([z[:, 1] for z, _ in batches]).tolist()) == {0.0, 2.0}
    assert {name for name, _, _ in bank.reads} == {"clean", "attack-1"}


# --- memory and threads ---------------------------------------------------------------------


def test_no_more_than_a_piece_is_read_at_a_time_and_no_block_is_larger_than_its_share() -> None:
    bank = numbered(1000, shard=300)
    buffer = 4 * SMALL
    found = stream(bank, buffer=buffer, holdout=0.001)
    piece = buffer // 24 // (4 * 3)
    for _ in found.batches(0):
        pass
    assert max(stop - start for _, start, stop in bank.reads) <= piece
    largest = max(int(found._counts[block].sum()) for block in found._blocks(0))
    # Two blocks, a piece of a bank that is stored in half the size, and its copies.
    assert (2 * largest + 2.5 * piece) * 4 * 3 <= buffer


def test_pieces_are_the_shards_cut_where_they_are_long() -> None:
    bank = numbered(50, shard=20)
    assert pieces_of(bank, 100) == bank.shards == [(0, 20), (20, 40), (40, 50)]
    assert pieces_of(bank, 15) == [(0, 15), (15, 20), (20, 35), (35, 40), (40, 50)]


def test_the_next_block_is_read_in_another_thread_that_ends_with_the_epoch() -> None:
    threads = set()

    class Watched(FakeBank):
        def rows(self, source: str, start: int, stop: int) -> Tensor:
            threads.add(threading.current_thread().name)
            return super().rows(source, start, stop)

    plain = numbered(200)
    bank = Watched({name: plain.logits(name) for name in ("clean", *plain.attacks)}, plain.labels)
    found = stream(bank, buffer=SMALL)
    batches = found.batches(0)
    next(batches)
    batches.close()
    assert threads
    assert all(name.startswith("logit-stream") for name in threads)
    assert not [t for t in threading.enumerate() if t.name.startswith("logit-stream")]


# --- held-out rows and mistakes -------------------------------------------------------------


def test_held_out_rows_are_a_share_that_the_seed_chooses() -> None:
    one, two = (split_rows(names(1000), config(holdout=0.25, seed=seed)) for seed in (0, 1))
    assert one.held == int((~one.trained).sum()) == 250
    assert torch.equal(
        one.trained, split_rows(names(1000), config(holdout=0.25, epochs=9, seed=0)).trained
    )
    assert not torch.equal(one.trained, two.trained)
    # In a random order, and not at the bank's end.
    assert abs(float((~one.trained).nonzero().double().mean()) - 500) < 5 * 289 / 250**0.5
    assert split_rows(names(30), config(holdout=0.001)).held == 1
    none = split_rows(names(30), config(holdout=0.0, keep="last"))
    assert none.held == 0
    assert bool(none.trained.all())


def test_crops_of_an_image_are_held_out_together() -> None:
    whole = split_rows(names(40), config(holdout=0.25))
    crops = [f"{name}#crop-{number}" for name in names(40) for number in range(3)]
    split = split_rows(crops, config(holdout=0.25))
    assert split.held == 30
    assert torch.equal(split.trained, whole.trained.repeat_interleave(3))


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 images, of which 1 are held out.*larger bank"):
        split_rows(names(1), config())


def test_attacks_are_chosen_by_name() -> None:
    bank: Any = numbered(attacks=1)
    bank.attacks = ("pgd-10?step_size=0.125", "mim-10", "pgd-20?a=1", "pgd-20?a=2")
    assert choose_attacks(bank, ()) == bank.attacks
    assert choose_attacks(bank, ["mim-10", "pgd-10"]) == ("pgd-10?step_size=0.125", "mim-10")
    assert choose_attacks(bank, ["pgd-20?a=2"]) == ("pgd-20?a=2",)
    with pytest.raises(
        SpecError, match="Unknown attack of the bank 'mim-1'.*did you mean 'mim-10'"
    ):
        choose_attacks(bank, ["mim-1"])
    with pytest.raises(ConfigError, match=r"'pgd-20' may be pgd-20\?a=1 or pgd-20\?a=2"):
        choose_attacks(bank, ["pgd-20"])
    bank.attacks = ()
    with pytest.raises(ConfigError, match="The bank has no attacks"):
        choose_attacks(bank, ())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bank_with_nan_is_refused_with_the_row(value: float) -> None:
    bank = numbered(100)
    bank._logits["attack-1"][37, 2] = value
    words = "The bank holds NaN or infinity: attack-1, row 37. Expected: finite logits"
    with pytest.raises(RecordError, match=words):
        for _ in stream(bank, clean_share=0.0).batches(0):
            pass
    # Large numbers, whose sum is infinite, are numbers all the same.
    bank._logits["attack-1"][:] = 3e38
    assert len(copied(stream(bank).batches(0))) == stream(bank).steps
