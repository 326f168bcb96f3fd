"""Parquet files in the Hugging Face layout, read one row group at a time."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unperturb.data.decode import Batch, Payload
from unperturb.data.rows import choose_columns, choose_split, class_numbers
from unperturb.errors import DataError

__all__ = ["ParquetRows", "find_parquet", "open_parquet"]

_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")


def find_parquet(folder: Path) -> list[Path]:
    """Parquet files of a folder, sorted by name; [] if there are none.

    A downloaded hub repository keeps them one folder deeper, such as ``data/`` or ``plain_text/``:
    that is looked into where the folder itself has none.

    Raises:
        DataError: Several of its folders hold parquet files.
    """
    found = sorted(folder.glob("*.parquet"))
    if found:
        return found
    deeper = sorted(folder.glob("*/*.parquet"))
    parents = sorted({file.parent.name for file in deeper})
    if len(parents) > 1:
        raise DataError(
            f"The folder {folder} has several folders of parquet files: {', '.join(parents)}",
            expected="one data set",
            fix=f"name one of them, for example {str(folder / parents[0])!r}",
        )
    return deeper


def open_parquet(
    path: Path,
    files: Sequence[Path],
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ParquetRows:
    """Rows of one split of parquet files; only the files' footers are read.

    Args:
        path: The file or folder the user named.
        files: Its parquet files. A file ``SPLIT-NNNNN-of-NNNNN.parquet`` belongs to ``SPLIT``,
            any other is a split of its own, named as the file.
        split: The split wanted; see :func:`unperturb.data.rows.choose_split`.
        image_column: The image column; by default the one the metadata call an image, else
            ``image``, ``img`` or ``pixel_values``.
        label_column: The label column; by default ``label``, ``labels`` or ``fine_label``, else
            the only one the metadata call a class label.

    Raises:
        DataError: Files are missing or damaged, or a column cannot be told.
        SpecError: There is no such split.
    """
    splits: dict[str, list[Path]] = {}
    shards: dict[str, int] = {}
    for file in files:
        match = _SHARD.fullmatch(file.stem)
        name = match["split"] if match else file.stem
        splits.setdefault(name, []).append(file)
        if match:
            shards[name] = int(match["count"])
    chosen = choose_split(split, sorted(splits), str(path))
    parts = splits[chosen]
    if path.is_dir() and len(parts) != shards.get(chosen, len(parts)):
        raise DataError(
            f"The split {chosen!r} of {path} has {len(parts)} of {shards[chosen]} parquet files",
            expected="all of them",
            fix="fetch the missing files, or name one file to read just that",
        )
    return ParquetRows(parts, chosen, image_column=image_column, label_column=label_column)


class ParquetRows:
    """Rows of parquet files with one schema (a :class:`unperturb.data.rows.RowSource`)."""

    def __init__(
        self,
        files: Sequence[Path],
        split: str,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        self.split: str = split
        self.where: str = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({split})"
        self._files = [(file, _open(file)) for file in files]
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        self._starts: list[int] = []
        rows = 0
        for number, (_, reader) in enumerate(self._files):
            for group in range(reader.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(rows)
                rows += reader.metadata.row_group(group).num_rows
        self._rows = rows
        schema = self._files[0][1].schema_arrow
        features = _features(schema)
        kinds = {name: str(feature.get("_type", "")) for name, feature in features.items()}
        self._image, self._label = choose_columns(
            schema.names, kinds, image=image_column, label=label_column, where=self.where
        )
        for file, reader in self._files[1:]:
            if not {self._image, self._label} <= set(reader.schema_arrow.names):
                raise DataError(
                    f"{file} has the columns {', '.join(reader.schema_arrow.names)}",
                    expected=f"{self._image} and {self._label}, as in {self._files[0][0].name}",
                    fix="write the files of a split with the same columns",
                )
        self._id = "id" if "id" in schema.names else None
        self._check_image_type(schema.field(self._image).type)
        self.classes: tuple[str, ...] = self._classes(features.get(self._label, {}), schema)

    def __len__(self) -> int:
        return self._rows

    def ids_and_labels(self, rows: Sequence[int]) -> tuple[list[str], list[Any]]:
        """Ids and labels of ascending ``rows``."""
        ids: list[str] = []
        labels: list[Any] = []
        columns = [self._label] + ([self._id] if self._id else [])
        for _, part, table in self._read(rows, columns):
            labels += table.column(self._label).to_pylist()
            if self._id is None:
                ids += [f"{self.split}-{row:06d}" for row in part]
                continue
            found = table.column(self._id).to_pylist()
            if None in found:
                raise DataError(
                    f"Row {part[found.index(None)]} of {self.where} has no id",
                    expected="an id in every row of the column 'id'",
                    fix="fill the column, or remove it to have rows numbered",
                )
            ids += [str(name) for name in found]
        return ids, labels

    def batches(self, rows: Sequence[int]) -> Iterator[Batch]:
        """Encoded images of ascending ``rows``, a row group at a time."""
        import pyarrow as pa
        import pyarrow.compute as pc

        position = 0
        for file, part, table in self._read(rows, [self._image]):
            column = table.column(self._image)
            payloads: list[Payload]
            if pa.types.is_struct(column.type):
                payloads = pc.struct_field(column, "bytes").to_pylist()
                if None in payloads and column.type.get_field_index("path") >= 0:
                    paths = pc.struct_field(column, "path").to_pylist()
                    payloads = [
                        _beside(file, path) if payload is None else payload
                        for payload, path in zip(payloads, paths, strict=True)
                    ]
            else:
                payloads = column.to_pylist()
            yield range(position, position + len(part)), payloads
            position += len(part)

    def _read(
        self, rows: Sequence[int], columns: list[str]
    ) -> Iterator[tuple[Path, Sequence[int], Any]]:
        """(file, rows, table) of every row group that holds some of ``rows``."""
        import pyarrow as pa

        done = 0
        while done < len(rows):
            group = bisect_right(self._starts, rows[done]) - 1
            number, inner = self._groups[group]
            start = self._starts[group]
            file, reader = self._files[number]
            size = reader.metadata.row_group(inner).num_rows
            stop = done
            while stop < len(rows) and rows[stop] < start + size:
                stop += 1
            part = rows[done:stop]
            try:
                table = reader.read_row_group(inner, columns=columns, use_threads=False)
                if len(part) < size:
                    table = table.take(pa.array([row - start for row in part], pa.int64()))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise _damaged(file, error) from error
            yield file, part, table
            done = stop

    def _check_image_type(self, kind: Any) -> None:
        import pyarrow as pa

        inner = kind
        if pa.types.is_struct(kind):
            inner = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else pa.null()
        if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
            raise DataError(
                f"The column {self._image!r} of {self.where} holds {kind}",
                expected="encoded images: bytes, or a struct of bytes and path",
                fix="choose another column with --image-column, or write encoded images",
            )

    def _classes(self, feature: dict[str, Any], schema: Any) -> tuple[str, ...]:
        import pyarrow as pa
        import pyarrow.compute as pc

        names = feature.get("names")
        if isinstance(names, list) and names:
            return tuple(str(name) for name in names)
        if not pa.types.is_integer(schema.field(self._label).type) or not self._rows:
            return ()
        # Every row counts, not just those under the limit: the classes must not depend on it.
        tables = self._read(range(self._rows), [self._label])
        tops = [pc.max(table.column(self._label)).as_py() for _, _, table in tables]
        highest = max((top for top in tops if top is not None), default=-1)
        return class_numbers(highest, self._label, self.where)


def _open(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"The parquet file {file} cannot be read ({reason.rstrip('.')})",
        expected="a complete, readable parquet file",
        fix="fetch or write it again, and check its permissions",
    )


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """The features that Hugging Face wrote into the schema; {} if there are none."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        found = json.loads(raw)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)}


def _beside(file: Path, path: str | None) -> Path | None:
    """An image file that the table only names; never one outside the table's own folder."""
    if not path:
        return None
    folder = file.parent.resolve()
    target = (folder / path).resolve()
    return target if target.is_relative_to(folder) else None
