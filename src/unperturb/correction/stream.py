"""Batches of a logit bank in a shuffled order, in bounded memory, from any step on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unperturb.correction.config import CorrectionConfig
from unperturb.correction.draws import block_generator, order_generator, split_generator
from unperturb.data.crops import image_of
from unperturb.errors import ConfigError, DataError, RecordError, unknown_name

if TYPE_CHECKING:
    from unperturb.banks import LogitBank

__all__ = [
    "BUFFER",
    "Batch",
    "LogitStream",
    "Split",
    "choose_attacks",
    "finite",
    "pieces_of",
    "split_rows",
    "targets_of",
]

BUFFER = 256 * 2**20
"""Bytes of logits in memory at most, whatever the bank's size: two blocks, the present one and the
next, which is read meanwhile, of up to five twelfths each, and what is being copied into it."""

Batch = tuple[Tensor, Tensor]
"""Logits (B, K) and labels (B,)."""


def choose_attacks(bank: LogitBank, wanted: Sequence[str]) -> tuple[str, ...]:
    """Attacks of a bank by name, in the bank's order; all of them if none is named.

    A name may leave out what follows ``?`` where only one attack of the bank begins like that.

    Raises:
        SpecError: The bank has no such attack.
        ConfigError: A short name fits several, or the bank has no attacks at all.
    """
    if not bank.attacks:
        raise ConfigError(
            "The bank has no attacks: nothing can be learnt from clean logits alone",
            expected="clean and adversarial logits",
            fix="unperturb bank ... --attacks pgd-10",
        )
    found = set()
    for name in wanted:
        fits = [name] if name in bank.attacks else _beginning(name, bank.attacks)
        if not fits:
            raise unknown_name("attack of the bank", name, bank.attacks)
        if len(fits) > 1:
            raise ConfigError(
                f"The attack {name!r} may be {' or '.join(fits)}", expected="one attack of the bank"
            )
        found.add(fits[0])
    return tuple(a for a in bank.attacks if a in found) if found else tuple(bank.attacks)


def _beginning(name: str, attacks: Sequence[str]) -> list[str]:
    return [attack for attack in attacks if attack.partition("?")[0] == name]


@dataclass(frozen=True)
class Split:
    """Which rows are trained on.

    Attributes:
        trained: (N,) bool.
        held: How many are not.
    """

    trained: Tensor
    held: int


def split_rows(ids: Sequence[str], config: CorrectionConfig) -> Split:
    """Hold out the last images of a random order, which the seed alone decides.

    Crops of one image are all held out, or none of them.

    Raises:
        DataError: No row would be left to train on.
    """
    numbers: dict[str, int] = {}
    image = torch.tensor([numbers.setdefault(image_of(name), len(numbers)) for name in ids])
    count = len(numbers)
    held = max(1, round(config.holdout * count)) if config.holdout else 0
    if held >= count:
        raise DataError(
            f"A bank of {count} images, of which {held} are held out",
            expected="rows to train on",
            fix="a larger bank, or a smaller holdout",
        )
    order = split_generator(config.seed).permutation(count)
    kept = torch.ones(count, dtype=torch.bool)
    kept[torch.from_numpy(order[count - held :])] = False
    trained = kept[image]
    return Split(trained, int((~trained).sum()))


def targets_of(bank: LogitBank, config: CorrectionConfig) -> Tensor:
    """What is learnt for each row of a bank, (N,) int64: its label, or the clean logits' answer."""
    if config.target == "label":
        return bank.labels
    return torch.cat(
        [
            finite(bank.rows("clean", start, stop), "clean", start).argmax(1)
            for start, stop in pieces_of(bank, max(1, BUFFER // 24 // (4 * bank.num_classes)))
        ]
    )


def finite(logits: Tensor, source: str, start: int) -> Tensor:
    """The logits, if all of them are finite.

    Raises:
        RecordError: They are not; the first such row is named.
    """
    # The sum of finite numbers is finite up to 3e38 / 1e6 each: one pass, and no mask is made.
    if not bool(torch.isfinite(logits.sum())):
        bad = ~torch.isfinite(logits).all(1)
        if bool(bad.any()):
            raise RecordError(
                f"The bank holds NaN or infinity: {source}, row {start + int(bad.int().argmax())}",
                expected="finite logits",
                fix="make the bank again",
            )
    return logits


def pieces_of(bank: LogitBank, size: int) -> list[tuple[int, int]]:
    """The bank's shards, cut where they are longer than ``size`` rows: what is read at a time."""
    return [
        (first, min(first + size, stop))
        for start, stop in bank.shards
        for first in range(start, stop, size)
    ]


class LogitStream:
    """Every training row once an epoch, each with clean logits or those of one attack.

    An epoch takes the bank's shards in a random order, several to a block, and the rows of a
    block in a random order. With probability p a row has its clean logits, otherwise those of one
    of the attacks, each as likely. All this is a function of (seed, epoch, block). The last batch
    of an epoch may be smaller.

    Deviation: Algorithm 1 of Li et al. samples each batch from the whole set. Here rows are
    shuffled within blocks of at most ``buffer`` bytes, so that a bank of any size is read from
    disk in whole shards; a bank that fits into one block is shuffled as a whole.

    Args:
        bank: The bank.
        attacks: Names of its attacks to draw from.
        trained: Rows to train on (N,) bool.
        targets: What is learnt for each row (N,); None: its true label.
        config: Batch size, p and seed.
        pin: Put batches where a GPU can fetch them by itself.
        buffer: Bytes of logits in memory at most.

    Attributes:
        steps: Batches of an epoch.
    """

    def __init__(
        self,
        bank: LogitBank,
        attacks: Sequence[str],
        trained: Tensor,
        config: CorrectionConfig,
        *,
        targets: Tensor | None = None,
        pin: bool = False,
        buffer: int = BUFFER,
    ) -> None:
        self.targets = bank.labels if targets is None else targets
        self.bank, self.attacks, self.trained = bank, tuple(attacks), trained
        self.config, self.pin = config, pin
        row = 4 * bank.num_classes
        self._block = max(1, buffer * 3 // 8 // row)
        # A block ends with the piece that crosses its size; reading a piece takes up to 2.5 of it.
        self._pieces = pieces_of(bank, max(1, buffer // 24 // row))
        self._counts = np.array(
            [int(trained[start:stop].sum()) for start, stop in self._pieces], dtype=np.int64
        )
        self.count = int(self._counts.sum())
        self.steps = -(-self.count // config.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on: logits (B, K) and labels (B,), float32.

        The tensors are views of memory that is free again after the next batch.
        """
        if start >= self.steps:
            return
        size = self.config.batch_size
        blocks = self._blocks(epoch)
        ends = np.cumsum([int(self._counts[block].sum()) for block in blocks])
        first = int(np.searchsorted(ends, start * size, side="right"))
        skip = start * size - int(ends[first - 1] if first else 0)
        with (
            ThreadPoolExecutor(1, thread_name_prefix="logit-stream") as reader,
            closing(self._filled(reader, epoch, blocks, first)) as filled,
        ):
            rest: Batch | None = None
            for logits, labels in filled:
                at, skip = skip, 0
                if rest is not None:
                    at = size - len(rest[1])
                    rest = torch.cat([rest[0], logits[:at]]), torch.cat([rest[1], labels[:at]])
                    if len(rest[1]) < size:
                        continue
                    yield rest
                    rest = None
                stop = at + (len(labels) - at) // size * size
                for begin in range(at, stop, size):
                    yield logits[begin : begin + size], labels[begin : begin + size]
                if stop < len(labels):
                    rest = logits[stop:].clone(), labels[stop:].clone()
            if rest is not None:
                yield rest

    def _blocks(self, epoch: int) -> list[NDArray[np.int64]]:
        """Numbers of the pieces of each block, in the order of the epoch."""
        order = order_generator(self.config.seed, epoch).permutation(len(self._pieces))
        order = order[self._counts[order] > 0]
        before = np.cumsum(self._counts[order]) - self._counts[order]
        cuts = np.flatnonzero(np.diff(before // self._block)) + 1
        return np.split(order, cuts)

    def _filled(
        self,
        reader: ThreadPoolExecutor,
        epoch: int,
        blocks: list[NDArray[np.int64]],
        first: int,
    ) -> Generator[Batch]:
        """The blocks, the next of which is read while the present one is trained on."""
        coming = reader.submit(self._fill, epoch, first, blocks[first])
        for number in range(first, len(blocks)):
            block = coming.result()
            if number + 1 < len(blocks):
                coming = reader.submit(self._fill, epoch, number + 1, blocks[number + 1])
            yield block
            del block

    def _fill(self, epoch: int, number: int, block: NDArray[np.int64]) -> Batch:
        """Read one block: its rows shuffled, each from the source that is drawn for it."""
        count = int(self._counts[block].sum())
        generator = block_generator(self.config.seed, epoch, number)
        # Where each row of the block goes, and whence its logits come (0: clean).
        places = torch.from_numpy(generator.permutation(count))
        drawn = generator.integers(1, len(self.attacks) + 1, count)
        drawn[generator.random(count) < self.config.clean_share] = 0
        sources = torch.from_numpy(drawn)
        logits = torch.empty(count, self.bank.num_classes, dtype=torch.float32, pin_memory=self.pin)
        labels = torch.empty(count, dtype=torch.int64, pin_memory=self.pin)
        done = 0
        for piece in block.tolist():
            start, stop = self._pieces[piece]
            rows = self.trained[start:stop].nonzero().squeeze(1)
            mine = slice(done, done + len(rows))
            done += len(rows)
            labels[places[mine]] = self.targets[start:stop][rows]
            for source, name in enumerate(("clean", *self.attacks)):
                chosen = (sources[mine] == source).nonzero().squeeze(1)
                if len(chosen):
                    read = finite(self.bank.rows(name, start, stop), name, start)
                    logits[places[mine][chosen]] = read[rows[chosen]]
        assert done == count
        return logits, labels
