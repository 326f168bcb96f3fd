"""The records of an audit as one file that a reader of the report can take along."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["LARGEST_INLINE", "NAME", "records_bytes"]

NAME = "records.parquet"
LARGEST_INLINE = 4_000_000
"""Bytes up to which the page carries the records in itself."""


def records_bytes(rows: Mapping[str, np.ndarray[Any, Any]], facts: Mapping[str, str]) -> bytes:
    """All rows as one Parquet file (zstd); equal rows and facts give equal bytes.

    Args:
        rows: Columns of equal length.
        facts: Metadata of the file, such as the settings' hash.

    Example:
        >>> records_bytes({"draw": np.arange(3)}, {})[:4]
        b'PAR1'
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    strings = [name for name, values in rows.items() if values.dtype.kind in "OUS"]
    columns = {
        name: pa.array(values, pa.string()) if name in strings else pa.array(values)
        for name, values in rows.items()
    }
    table = pa.table(columns)
    stream = io.BytesIO()
    # Hashes do not repeat: a dictionary of them is twice the work for nothing.
    repeated = [name for name in strings if name != "pixels"]
    with pq.ParquetWriter(
        stream, table.schema, compression="zstd", use_dictionary=repeated, store_schema=False,
        write_statistics=False,
    ) as writer:  # fmt: skip
        writer.write_table(table)
        writer.add_key_value_metadata(dict(facts))
    return stream.getvalue()
