"""Columns of the records, in every schema that can be read, and the digest over them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from unperturb.audit.plan import SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "Rows", "arrays", "digest_rows", "schema", "upgraded"]

Rows = dict[str, np.ndarray[Any, Any]]

COLUMNS: dict[str, str] = {
    "image_id": "string",
    "subject": "string",
    "attack": "string",
    "attacker": "string",
    "backward": "string",
    "rule": "string",
    "goal": "string",
    "eps": "float64",
    "purpose": "string",
    "draw": "int32",
    "label": "int32",
    "prediction": "int32",
    "correct": "bool",
    "flagged": "bool",
    "correct_8bit": "bool",
    "inside": "bool",
    "margin": "float32",
    "detector": "float32",
    "linf": "float32",
    "l2": "float32",
    "measure": "float32",
    "queries": "int32",
    "gradients": "int32",
    "zero_gradients": "int32",
    "nan_gradients": "int32",
    "pixels": "string",
}
"""Columns of a row and their types.

``eps`` is the size the attack was run at; ``purpose`` is ``score`` or, for a random subject, also
``select`` (draws on which its worst attack is selected, none of which it is scored on); ``inside``
says whether the image lies in the ball of the threat model; ``detector`` is the detector's score
and ``measure`` the attack's own measure, NaN where there is none; ``gradients`` are the gradient
evaluations spent on the image (-1: not known), of which ``zero_gradients`` were zero; ``pixels`` is
the first half of the SHA-256 of the image's float32 bytes, in C order.
"""

_NEW = ("goal", "eps", "purpose", "inside", "detector", "measure", "gradients")
_VERSIONS = {1: {n: kind for n, kind in COLUMNS.items() if n not in _NEW}, 2: COLUMNS}


def schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """Columns and types of a schema, as Parquet has them."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int32": pa.int32(),
        "bool": pa.bool_(),
        "float32": pa.float32(),
        "float64": pa.float64(),
    }
    columns = _VERSIONS[version]
    meta = {"schema_version": str(version)}
    return pa.schema([(name, types[kind]) for name, kind in columns.items()], metadata=meta)


def arrays(table: pa.Table) -> Rows:
    """Columns as arrays; texts, of which few differ, are made once each."""
    import pyarrow as pa

    found: Rows = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_string(column.type) and name != "pixels":
            coded = column.combine_chunks().dictionary_encode()
            words = np.array(coded.dictionary.to_pylist(), dtype=object)
            codes = coded.indices.to_numpy(zero_copy_only=False)
            found[name] = words[codes] if len(words) else np.array([], dtype=object)
        else:
            found[name] = column.to_numpy(zero_copy_only=False)
    return found


def upgraded(table: pa.Table, eps: float) -> pa.Table:
    """Rows of the first schema in the columns of this one: what it had no word for is constant."""
    import pyarrow as pa

    none = [attack == "clean" for attack in table.column("attack").to_pylist()]
    count = len(none)
    fresh = {
        "goal": ["none" if clean else "wrong" for clean in none],
        "eps": [0.0 if clean else eps for clean in none],
        "purpose": ["score"] * count,
        "inside": [True] * count,
        "detector": [float("nan")] * count,
        "measure": [float("nan")] * count,
        "gradients": [-1] * count,
    }
    own = schema()
    columns = [fresh[n] if n in fresh else table.column(n) for n in COLUMNS]
    columns = [
        pa.array(column, field.type) if isinstance(column, list) else column
        for column, field in zip(columns, own, strict=True)
    ]
    return pa.table(columns, schema=own)


def digest_rows(rows: Rows, settings_hash: str, version: int = SCHEMA_VERSION) -> str:
    """SHA-256 over the settings' hash and the canonical, sorted rows, pixel hashes among them.

    Args:
        rows: What ``Store.rows`` reads.
        settings_hash: Hash of the plan's settings.
        version: Schema the rows were written in: its columns alone are digested.

    Example:
        >>> empty = {name: np.array([]) for name in COLUMNS}
        >>> len(digest_rows(empty, ""))
        64
    """
    found = hashlib.sha256(settings_hash.encode())
    for name, kind in _VERSIONS[version].items():
        values = rows[name]
        found.update(name.encode() + b"\0")
        if kind == "string":
            found.update("\0".join(map(str, values.tolist())).encode())
        else:
            plain = values.astype(_little(kind))
            if kind.startswith("float"):
                plain[np.isnan(plain)] = np.nan  # one NaN of many
            found.update(np.ascontiguousarray(plain).tobytes())
    return found.hexdigest()


def _little(kind: str) -> str:
    return {"int32": "<i4", "bool": "u1", "float32": "<f4", "float64": "<f8"}[kind]
