"""Corrected logits in a file of the kind they came in, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from unperturb.correction.columns import PREDICTIONS
from unperturb.correction.corrector import Corrected
from unperturb.correction.table_base import Chunk, LogitTable
from unperturb.correction.tables import CsvTable, NpyTable, ParquetTable
from unperturb.errors import OutputError, SpecError
from unperturb.files import write_atomic

__all__ = ["check_target", "predictions_beside", "write_table"]

Parts = Iterable[tuple[Chunk, Corrected]]


def predictions_beside(out: Path) -> Path:
    """Where the labels of a corrected array stand: an array has no column for them.

    Example:
        >>> predictions_beside(Path("corrected.npy")).name
        'corrected.predictions.csv'
    """
    return out.with_name(f"{out.stem}.predictions.csv")


def check_target(table: LogitTable, out: Path) -> None:
    """Refuse a target of another kind, or one that would replace the table itself.

    Raises:
        SpecError: Another suffix than the table's.
        OutputError: It is the table, or a folder.
    """
    suffix = table.path.suffix.lower()
    if out.suffix.lower() != suffix:
        raise SpecError(
            f"The output {out} ends in {out.suffix or 'no suffix'}",
            expected=f"{suffix}, as its input {table.path} does",
            fix=f"--out {out.with_suffix(suffix)}",
        )
    for path in (out, predictions_beside(out)) if suffix == ".npy" else (out,):
        if path.is_dir():
            raise OutputError(
                f"{path} is a folder", expected="a file, new or old", fix="choose another --out"
            )
        if path.exists() and path.samefile(table.path):
            raise OutputError(
                f"{path} is the input itself",
                expected="another file: the logits that were given are not replaced",
                fix="choose another --out",
            )


def write_table(table: LogitTable, out: Path, parts: Parts) -> None:
    """Write corrected logits as float32, and the labels before and after.

    Args:
        table: Where the logits come from.
        out: A file of the same kind; an old one is replaced. All columns but the logits' are
            carried through; ``prediction_before``, ``prediction`` and ``changed`` are added, for an
            array in a CSV file beside it.
        parts: All chunks of the table, with what became of them; read once, a part at a time.

    Raises:
        OutputError: It cannot be written. ``out`` is as it was.
    """
    if isinstance(table, NpyTable):
        _array(table, out, parts)
    elif isinstance(table, ParquetTable):
        write_atomic(out, lambda path: _parquet(table, path, parts))
    else:
        assert isinstance(table, CsvTable)
        write_atomic(out, lambda path: _csv(table, path, parts))


def _array(table: NpyTable, out: Path, parts: Parts) -> None:
    beside = predictions_beside(out)
    there, complete = beside.exists(), False

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.lib.format.write_array_header_1_0(
                stream,
                {"descr": "<f4", "fortran_order": False, "shape": (table.about, table.num_classes)},
            )
            write_atomic(beside, lambda second: _logits_and_labels(stream, second, parts))

    try:
        write_atomic(out, write)
        complete = True
    finally:
        if not complete and not there:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def _logits_and_labels(stream: BinaryIO, second: Path, parts: Parts) -> None:
    import pyarrow as pa

    with second.open("wb") as labels:
        labels.write(",".join(("row", *PREDICTIONS)).encode() + b"\n")
        for chunk, found in parts:
            stream.write(_plain(found.logits).astype("<f4", copy=False).data)
            rows = pa.array(range(chunk.start, chunk.start + len(chunk.logits)))
            _write_csv(pa.table({"row": rows, **_predictions(found)}), labels)
    stream.flush()


def _parquet(table: ParquetTable, path: Path, parts: Parts) -> None:
    import pyarrow.parquet as pq

    writer = None
    # A stream of our own: a full disk is then an OSError that says so.
    with path.open("wb") as stream, contextlib.ExitStack() as stack:
        for chunk, found in parts:
            whole = _with(chunk.rows, _logit_columns(table, chunk, found), _predictions(found))
            if writer is None:
                carried = [name for name in chunk.rows.column_names if name not in table.columns]
                writer = stack.enter_context(
                    pq.ParquetWriter(stream, whole.schema, use_dictionary=carried or False)
                )
            writer.write_table(whole)


def _csv(table: CsvTable, path: Path, parts: Parts) -> None:
    import csv
    import io

    head = io.StringIO()
    csv.writer(head, lineterminator="\n").writerow([*table.head.names, *PREDICTIONS])
    with path.open("wb") as stream:
        if table.head.header:
            stream.write(head.getvalue().encode())
        for chunk, found in parts:
            corrected = _logit_columns(table, chunk, found)
            _write_csv(_with(chunk.rows, corrected, _predictions(found)), stream)


def _write_csv(rows: Any, stream: BinaryIO) -> None:
    """Append rows, with quotes only where a cell needs them (Arrow would quote all text)."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as text

    needed = any(
        pc.any(pc.match_substring_regex(column, '[",\r\n]')).as_py()
        for column in rows.columns
        if pa.types.is_string(column.type)
    )
    style = "needed" if needed else "none"
    text.write_csv(rows, stream, text.WriteOptions(include_header=False, quoting_style=style))


def _logit_columns(
    table: ParquetTable | CsvTable, chunk: Chunk, found: Corrected
) -> dict[str, Any]:
    """Corrected logits in columns as those they came from, of float32."""
    import pyarrow as pa

    logits = _plain(found.logits)
    if len(table.columns) == table.num_classes:
        return {
            name: pa.array(np.ascontiguousarray(logits[:, number]))
            for number, name in enumerate(table.columns)
        }
    (name,) = table.columns
    kind, values = chunk.rows.schema.field(name).type, pa.array(logits.reshape(-1))
    if pa.types.is_fixed_size_list(kind):
        return {name: pa.FixedSizeListArray.from_arrays(values, table.num_classes)}
    offsets = np.arange(len(logits) + 1) * table.num_classes
    if pa.types.is_large_list(kind):
        return {name: pa.LargeListArray.from_arrays(offsets, values)}
    return {name: pa.ListArray.from_arrays(offsets.astype(np.int32), values)}


def _predictions(found: Corrected) -> dict[str, Any]:
    import pyarrow as pa

    columns = (found.before, found.labels, found.changed)
    return {
        name: pa.array(column.cpu().numpy())
        for name, column in zip(PREDICTIONS, columns, strict=True)
    }


def _with(rows: Any, corrected: dict[str, Any], more: dict[str, Any]) -> Any:
    """A table with columns replaced and columns added; metadata that told of the old are gone."""
    import pyarrow as pa

    columns = {name: corrected.get(name, rows.column(name)) for name in rows.column_names}
    return pa.table({**columns, **more})


def _plain(logits: Tensor) -> np.ndarray[Any, Any]:
    return logits.detach().to("cpu", torch.float32).contiguous().numpy()
