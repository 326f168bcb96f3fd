"""What every table of logits has: columns that are settled once, rows that are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unperturb.correction.columns import (
    ID_COLUMNS,
    LABEL_COLUMNS,
    PREDICTIONS,
    check_logit_names,
    listed,
    logit_columns,
    one_column,
    repeated,
    true_labels,
)
from unperturb.errors import DataError, InputError

__all__ = ["Chunk", "LogitTable", "reason", "regroup", "side_by_side"]


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table.

    Attributes:
        start: Number of the first, from 0.
        logits: Logits (n, K), finite, of the file's precision.
        labels: True classes (n,), if the table has them.
        rows: All columns as they stand in the file, an Arrow table; None for an array.
    """

    start: int
    logits: Tensor
    labels: Tensor | None = None
    rows: Any = None


class LogitTable(ABC):
    """A file of logits whose columns are known.

    Attributes:
        path: The file.
        columns: Columns of the logits, in the order of the classes; empty for an array.
        label_column: Column of the true classes, if there is one.
        about: Number of rows; of a CSV file an estimate, for progress only.
    """

    path: Path
    columns: tuple[str, ...] = ()
    label_column: str | None = None
    about: int

    def __init__(self, path: Path, num_classes: int, classes: Sequence[str]) -> None:
        self.path, self.num_classes, self.classes = path, num_classes, tuple(classes)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All rows in order, ``size`` at a time.

        Raises:
            DataError: The file is damaged, or a label is no class.
            InputError: A row holds NaN, infinity or another number of logits.
        """
        start = 0
        for logits, rows in self._read(size):
            bad = ~torch.isfinite(logits).all(1)
            if bool(bad.any()):
                row = start + int(bad.nonzero()[0, 0])
                raise InputError(
                    f"Row {row} (counted from 0) of {self.path} holds NaN, infinity or no number",
                    expected="finite logits",
                    fix="leave such rows out, or repair what produced them",
                )
            labels = None
            if self.label_column is not None:
                labels = true_labels(
                    rows.column(self.label_column).to_pylist(),
                    self.num_classes,
                    self.classes,
                    start=start,
                    where=f"{self.path} ({self.label_column})",
                )
            yield Chunk(start, logits, labels, rows)
            start += len(logits)

    @abstractmethod
    def _read(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        """Logits and all columns of ``size`` rows at a time, the last fewer."""

    def _settle(
        self,
        names: Sequence[str],
        candidates: Sequence[str],
        asked: str | Sequence[str] | None,
        id_column: str | None,
        label_column: str | None,
        *,
        single: Sequence[str] = (),
    ) -> None:
        """Settle which columns are what.

        Args:
            names: All columns.
            candidates: Those that may be one class's logits each.
            asked: What ``--columns`` says.
            id_column: What ``--id-column`` says.
            label_column: What ``--label-column`` says.
            single: Those that may be all logits, a list in each row.
        """
        where = str(self.path)
        twice = repeated(names)
        if twice:
            raise DataError(
                f"{where} has several columns named {listed(twice)}",
                expected="columns that can be told apart",
                fix="rename them",
            )
        taken = [name for name in PREDICTIONS if name in names]
        if taken:
            raise DataError(
                f"{where} has the column{'s' * (len(taken) > 1)} {listed(taken)} already",
                expected="none of that name: they are written beside the corrected logits",
                fix="rename or remove them (is this file the result of a correction?)",
            )
        self.label_column = one_column("label", label_column, LABEL_COLUMNS, names, where)
        identity = one_column("id", id_column, ID_COLUMNS, names, where)
        apart = {self.label_column, identity}
        if asked is not None:
            found = logit_columns(asked, names, where)
            odd = [name for name in found if name not in (*candidates, *single)]
            if odd or (len(found) > 1 and any(name in single for name in found)):
                raise DataError(
                    f"--columns names {listed(odd or found)}, which {where} holds as "
                    + self._kind((odd or found)[0]),
                    expected="a column of floats for each class, or one column of lists of floats",
                    fix="name others, or write them as floats if they are logits",
                )
        else:
            found = [name for name in candidates if name not in apart]
            lists = [name for name in single if name not in apart]
            if lists and (len(lists) > 1 or len(found) == self.num_classes):
                either = [*lists, *found]
                raise DataError(
                    f"Several columns of {where} may hold the logits: {listed(either)}",
                    expected="one of them named",
                    fix=f"--columns {lists[0]}, say",
                )
            found = lists or found
        self.columns = tuple(found)
        if not (len(found) == 1 and found[0] in single):
            check_logit_names(found, self.num_classes, self.classes, where, asked=asked is not None)

    def _kind(self, name: str) -> str:
        """What a column holds, in words."""
        return "text"


def reason(error: Exception) -> str:
    """First line of an error's message."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def side_by_side(rows: Any, names: Sequence[str]) -> Tensor:
    """Columns side by side, (n, K); nulls become NaN."""
    parts = [rows.column(name).to_numpy() for name in names]
    return torch.from_numpy(np.stack(parts, axis=1))


def regroup(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Arrow tables of exactly ``size`` rows, the last fewer: batches end where files like."""
    import pyarrow as pa

    held: list[Any] = []
    count = 0
    for batch in batches:
        left = batch
        while left.num_rows:
            part = left.slice(0, size - count)
            left = left.slice(part.num_rows)
            held.append(part)
            count += part.num_rows
            if count == size:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)
