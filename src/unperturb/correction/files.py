"""Correct a file of logits: no images, no classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unperturb.correction.table_base import Chunk
from unperturb.correction.table_writers import check_target, predictions_beside, write_table
from unperturb.correction.tables import open_table
from unperturb.errors import ConfigError
from unperturb.progress import progress

if TYPE_CHECKING:
    from unperturb.correction.corrector import Corrected, Corrector

__all__ = ["CorrectedFile", "correct_file"]

# Logits held at a time: 16 MB of float32, whatever the number of classes.
_VALUES = 1 << 22


@dataclass(frozen=True)
class CorrectedFile:
    """What became of a file of logits.

    Attributes:
        out: The file of corrected logits.
        predictions: The file of labels beside it; None where they are columns of ``out``.
        rows: Rows N.
        changed: Rows whose label the correction changed.
        right: Rows whose label was right before and after, if the table names true classes.
        arch: Architecture of the classifier whose logits the corrector was fitted on; "" if
            unknown.
        classifier: That classifier's fingerprint; "" if unknown.
    """

    out: Path
    predictions: Path | None
    rows: int
    changed: int
    right: tuple[int, int] | None
    arch: str
    classifier: str

    def accuracy(self) -> dict[str, Any] | None:
        """Accuracy before and after with Wilson 95 % intervals, where labels are known."""
        from unperturb.audit.statistics import wilson

        if self.right is None:
            return None
        return {
            when: {
                "accuracy": count / self.rows,
                "correct": count,
                "n": self.rows,
                "interval": list(wilson(count, self.rows)),
            }
            for when, count in zip(("before", "after"), self.right, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {
            "out": str(self.out),
            "predictions": None if self.predictions is None else str(self.predictions),
            "rows": self.rows,
            "changed": self.changed,
            "accuracy": self.accuracy(),
            "fitted_on": {"arch": self.arch, "classifier": self.classifier},
        }


@dataclass
class _Tally:
    rows: int = 0
    changed: int = 0
    before: int = 0
    after: int = 0
    labelled: bool = field(default=False)

    def add(self, chunk: Chunk, found: Corrected) -> None:
        self.rows += len(chunk.logits)
        self.changed += int(found.changed.sum())
        if chunk.labels is not None:
            truth = chunk.labels.to(found.labels.device)
            self.labelled = True
            self.before += int((found.before == truth).sum())
            self.after += int((found.labels == truth).sum())


def correct_file(
    corrector: Corrector,
    source: str | Path,
    out: str | Path,
    *,
    columns: str | Sequence[str] | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    header: str = "auto",
    batch_size: int = 1024,
    show: bool = False,
) -> CorrectedFile:
    """Correct all logits of a file, some rows at a time.

    The numbers are those of :meth:`Corrector.correct` with the same batch size. A table does not
    say which classifier its logits are of: that it is the corrector's is the caller's word.

    Args:
        corrector: What corrects them; on its device.
        source: Logits before softmax, one row for each image: ``.npy``, ``.parquet`` or ``.csv``;
            see :func:`unperturb.correction.tables.open_table`, also for the options of columns.
        out: A file of the same kind: float32 logits in place of those given, all other columns
            carried through, and the columns ``prediction_before``, ``prediction`` and ``changed``.
            For an array they stand in ``NAME.predictions.csv`` beside it. An old file is replaced.
        columns: Columns of the logits.
        id_column: A column of numbers that are no logits.
        label_column: Column of the true classes; ``"none"`` scores nothing.
        header: Whether the first line of a CSV file holds names: ``"yes"``, ``"no"``, ``"auto"``.
        batch_size: Rows that the network takes at a time.
        show: Whether to show a progress bar.

    Raises:
        ConfigError: The batch size is below 1.
        DataError: The source is missing or damaged, or its columns cannot be told.
        InputError: Its logits are not finite numbers of the corrector's classes.
        OutputError: ``out`` cannot be written; it is then as it was.
        SpecError: The source or ``out`` is of a kind that cannot be.

    Example:
        >>> import tempfile, numpy as np
        >>> from unperturb.correction import Corrector
        >>> from unperturb.networks.corrector import CorrectionNetwork
        >>> corrector = Corrector(CorrectionNetwork(num_classes=3, width=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/z.npy", np.eye(3, dtype=np.float32))
        ...     found = correct_file(corrector, f"{folder}/z.npy", f"{folder}/corrected.npy")
        ...     (found.rows, np.load(found.out).shape, found.predictions.name)
        (3, (3, 3), 'corrected.predictions.csv')
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")
    out = Path(out)
    table = open_table(
        source,
        corrector.num_classes,
        classes=corrector.classes,
        columns=columns,
        id_column=id_column,
        label_column=label_column,
        header=header,
    )
    check_target(table, out)
    tally = _Tally()
    # Whole batches, so that the network sees the same ones as in a single call.
    size = batch_size * max(1, _VALUES // (batch_size * corrector.num_classes))

    def parts(bar: Any) -> Iterator[tuple[Chunk, Corrected]]:
        for chunk in table.chunks(size):
            found = corrector.correct(chunk.logits, batch_size=batch_size)
            tally.add(chunk, found)
            yield chunk, found
            bar.update(len(chunk.logits))

    with progress(total=table.about, desc="correct", show=show, unit="row") as bar:
        write_table(table, out, parts(bar))
    beside = predictions_beside(out)
    return CorrectedFile(
        out,
        beside if out.suffix.lower() == ".npy" else None,
        tally.rows,
        tally.changed,
        (tally.before, tally.after) if tally.labelled else None,
        corrector.arch,
        corrector.classifier,
    )
