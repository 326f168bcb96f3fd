"""Tables of logits (.npy, .parquet, .csv), read some rows at a time: memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unperturb.correction.csv_head import CsvHead, read_head
from unperturb.correction.table_base import LogitTable, reason, regroup, side_by_side
from unperturb.errors import DataError, InputError, SpecError

__all__ = ["CsvTable", "NpyTable", "ParquetTable", "open_table"]

_AGAIN = "write or fetch it again, and check its permissions"
_PICKLES = frozenset((".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"))


class NpyTable(LogitTable):
    """An array (N, K) that ``numpy.save`` wrote."""

    def __init__(self, path: Path, num_classes: int, classes: Sequence[str]) -> None:
        super().__init__(path, num_classes, classes)
        array = self._map()
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise InputError(
                f"The logits in {path} are {array.dtype}",
                expected="float16, float32 or float64",
                fix="if these are logits before softmax, numpy.save(file, z.astype('float32'))",
            )
        if array.ndim != 2 or not len(array):
            raise InputError(
                f"The logits in {path} have shape {array.shape}",
                expected="(N, K), at least one row",
                fix="one row for each image, one column for each class",
            )
        if array.shape[1] != num_classes:
            raise InputError(
                f"The logits in {path} have {array.shape[1]} classes",
                expected=f"{num_classes}, as the corrector has",
                fix="use the corrector of that classifier",
            )
        self.about = len(array)

    def _map(self) -> np.ndarray[Any, Any]:
        try:
            # Mapped, and never unpickled.
            return np.lib.format.open_memmap(self.path, mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"{self.path} cannot be read ({reason(error)})",
                expected="an array of numbers that numpy.save wrote, without pickles",
                fix=_AGAIN,
            ) from error

    def _read(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        for start in range(0, self.about, size):
            # Mapped anew each time: pages of a mapping that is kept count as this process's memory.
            part = self._map()[start : start + size]
            native = part.dtype.newbyteorder("=")
            yield torch.from_numpy(np.array(part, dtype=native, order="C")), None


class ParquetTable(LogitTable):
    """A parquet file with one column of lists, or a column for each class."""

    def __init__(
        self,
        path: Path,
        num_classes: int,
        classes: Sequence[str],
        *,
        columns: str | Sequence[str] | None,
        id_column: str | None,
        label_column: str | None,
    ) -> None:
        import pyarrow as pa

        super().__init__(path, num_classes, classes)
        with self._open() as reader:
            self.about, schema = reader.metadata.num_rows, reader.schema_arrow
        kinds = [field.type for field in schema]
        self._kinds = dict(zip(schema.names, kinds, strict=True))
        numbers = [n for n, kind in self._kinds.items() if pa.types.is_floating(kind)]
        lists = [n for n, kind in self._kinds.items() if _is_list(kind)]
        self._settle(schema.names, numbers, columns, id_column, label_column, single=lists)
        if not self.about:
            raise _no_rows(path)

    def _kind(self, name: str) -> str:
        return str(self._kinds[name])

    def _open(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Small buffers: a row group may be larger than memory.
            return pq.ParquetFile(self.path, buffer_size=1 << 16, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"The parquet file {self.path} cannot be read ({reason(error)})",
            expected="a complete, readable parquet file",
            fix=_AGAIN,
        )

    def _batches(self, size: int) -> Iterator[Any]:
        import pyarrow as pa

        with self._open() as reader:
            try:
                yield from reader.iter_batches(batch_size=size, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from error

    def _read(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        start = 0
        for rows in regroup(self._batches(size), size):
            if len(self.columns) == 1 and _is_list(self._kinds[self.columns[0]]):
                logits = self._lists(rows.column(self.columns[0]).combine_chunks(), start)
            else:
                logits = side_by_side(rows, self.columns)
            yield logits, rows
            start += len(logits)

    def _lists(self, column: Any, start: int) -> Tensor:
        """Logits (n, K) of a column of lists."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != self.num_classes)
        if len(odd):
            found = int(lengths[odd[0]])
            raise InputError(
                f"Row {start + odd[0]} (counted from 0) of {self.path} has "
                f"{'no' if found < 0 else found} logits",
                expected=f"{self.num_classes}, as the corrector has",
                fix="use the corrector of that classifier"
                if found >= 0 and len(odd) == len(lengths)
                else "leave such rows out, or repair what produced them",
            )
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(np.array(flat).reshape(len(column), self.num_classes))


class CsvTable(LogitTable):
    """Comma-separated text with a column for each class; with a first line of names or without."""

    def __init__(
        self,
        path: Path,
        num_classes: int,
        classes: Sequence[str],
        *,
        columns: str | Sequence[str] | None,
        id_column: str | None,
        label_column: str | None,
        header: str,
    ) -> None:
        super().__init__(path, num_classes, classes)
        self.head: CsvHead = read_head(path, header)
        self._settle(self.head.names, self.head.numeric, columns, id_column, label_column)
        if not self.head.rows:
            raise _no_rows(path)
        self.about = self.head.about

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.csv as text

        head = self.head
        # All but the logits is carried through as it is written: "007" is no number.
        kinds = {name: pa.string() for name in head.names}
        kinds.update({name: pa.float64() for name in self.columns})
        try:
            with text.open_csv(
                self.path,
                read_options=text.ReadOptions(
                    use_threads=False, column_names=None if head.header else head.names
                ),
                parse_options=text.ParseOptions(newlines_in_values=True),
                convert_options=text.ConvertOptions(column_types=kinds),
            ) as reader:
                yield from reader
        except (pa.ArrowException, OSError) as error:
            words = reason(error).removeprefix("CSV parse error: ")
            raise DataError(
                f"{self.path} cannot be read ({words})",
                expected="rows of as many cells, with commas between, and numbers as logits",
                fix="correct that row, or choose the columns of the logits with --columns",
            ) from error

    def _read(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        for rows in regroup(self._batches(), size):
            yield side_by_side(rows, self.columns), rows


def open_table(
    path: str | Path,
    num_classes: int,
    *,
    classes: Sequence[str] = (),
    columns: str | Sequence[str] | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    header: str = "auto",
) -> LogitTable:
    """Open a table of logits; its first rows at most are read.

    Args:
        path: ``.npy`` (N, K) of float16, float32 or float64; ``.parquet`` with one column of lists
            of floats or a column of floats for each class; ``.csv``.
        num_classes: K of the corrector.
        classes: Its class names, if it knows them.
        columns: Columns of the logits in the order of the classes: names, or a text such as
            ``"z0:z9"`` or ``"cat,dog"``. By default all columns of floats (in CSV: of numbers) that
            are neither ids nor labels and have a name; or the one column of lists. Columns of a CSV
            file without names are named ``"0"``, ``"1"`` and so on.
        id_column: A column that is no logits though it holds numbers; by default ``id``.
        label_column: Column of the true classes, by default ``label``, ``labels`` or
            ``fine_label``; ``"none"`` if nothing shall be scored.
        header: Whether the first line of a CSV file holds names: ``"yes"``, ``"no"``, ``"auto"``.

    Raises:
        DataError: The file is missing or damaged, or its columns cannot be told.
        InputError: It has no rows, other classes, or numbers of another kind.
        SpecError: It is of another kind, or options are given that it cannot have.
    """
    from unperturb.data.rows import missing_path

    path = Path(path)
    if not path.exists():
        error = missing_path(path)
        raise DataError(error.problem, expected=f"an existing file: {_KINDS}", fix=error.fix)
    if path.is_dir():
        raise DataError(f"{path} is a folder", expected=_KINDS, fix="name one file of logits")
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return CsvTable(
            path,
            num_classes,
            classes,
            columns=columns,
            id_column=id_column,
            label_column=label_column,
            header=header,
        )
    if suffix not in (".npy", ".parquet"):
        raise _other_kind(path, suffix)
    given: dict[str, object] = {"--header": None if header == "auto" else header}
    if suffix == ".npy":
        given |= {"--columns": columns, "--id-column": id_column, "--label-column": label_column}
    named = [option for option, value in given.items() if value is not None]
    if named:
        raise SpecError(
            f"{', '.join(named)} given for {path}",
            expected="only options that the file can have: an array has no columns, and only CSV "
            "may lack a line of names",
            fix="leave them out" + (", or write parquet" if suffix == ".npy" else ""),
        )
    if suffix == ".npy":
        return NpyTable(path, num_classes, classes)
    return ParquetTable(
        path,
        num_classes,
        classes,
        columns=columns,
        id_column=id_column,
        label_column=label_column,
    )


_KINDS = ".npy (an array (N, K)), .parquet or .csv"


def _other_kind(path: Path, suffix: str) -> SpecError:
    if suffix in _PICKLES:
        return SpecError(
            f"{path} is a pickle by its name, and a pickle can run code when it is loaded",
            expected=_KINDS,
            fix="write the logits with numpy.save",
        )
    fix = "numpy.save the array of logits by itself" if suffix == ".npz" else "write one of these"
    return SpecError(
        f"{path} is a file of another kind ({suffix or 'no suffix'})", expected=_KINDS, fix=fix
    )


def _no_rows(path: Path) -> InputError:
    return InputError(f"{path} has no rows", expected="at least one row of logits")


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    nested = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(nested and types.is_floating(kind.value_type))
