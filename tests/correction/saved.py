"""Logits that are known, saved as a table of every kind, and corrected ones read back by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

K, N = 5, 23
NAMES = tuple(f"z{k}" for k in range(K))
ADDED = ("prediction_before", "prediction", "changed")


def some_logits(dtype: torch.dtype = torch.float32, count: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(count, K, generator=generator)).to(dtype)


LABELS = [k % K for k in range(N)]
IDS = [f"00{n}, {'even' if n % 2 else 'odd'}" for n in range(N)]


def same(found: Tensor, expected: Tensor) -> None:
    """Equal float32 numbers, but for how a product's order depends on where a matrix lies."""
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def columns_of(logits: Tensor) -> dict[str, Any]:
    return {name: logits[:, k].numpy() for k, name in enumerate(NAMES)}


def write_csv(path: Path, rows: list[list[Any]], head: list[str] | None = None) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(([head] if head else []) + rows)
    return path


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def read_back(path: Path) -> tuple[Tensor, list[list[Any]]]:
    """Logits of a corrected file, and the columns of predictions, by hand."""
    if path.suffix == ".npy":
        head, *rows = read_csv(path.with_name(f"{path.stem}.predictions.csv"))
        assert head == ["row", *ADDED]
        assert [row[0] for row in rows] == [str(n) for n in range(len(rows))]
        found = [[int(a), int(b), c == "true"] for _, a, b, c in rows]
        return torch.from_numpy(np.load(path)), found
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        found = [list(row) for row in zip(*(table[n].to_pylist() for n in ADDED), strict=True)]
        if "z" in table.column_names:
            return torch.tensor(table["z"].to_pylist()), found
        return torch.from_numpy(np.stack([table[name].to_numpy() for name in NAMES], 1)), found
    head, *rows = read_csv(path)
    where = [head.index(name) for name in NAMES]
    found = [[int(row[-3]), int(row[-2]), row[-1] == "true"] for row in rows]
    assert tuple(head[-3:]) == ADDED
    return torch.tensor([[float(row[k]) for k in where] for row in rows]), found


def save_npy(path: Path, logits: Tensor) -> Path:
    np.save(path.with_suffix(".npy"), logits.numpy())
    return path.with_suffix(".npy")


def save_fortran(path: Path, logits: Tensor) -> Path:
    swapped = np.asfortranarray(logits.numpy()).astype(logits.numpy().dtype.newbyteorder(">"))
    np.save(path.with_suffix(".npy"), swapped)
    return path.with_suffix(".npy")


def save_columns(path: Path, logits: Tensor) -> Path:
    table = pa.table({"id": IDS[: len(logits)], **columns_of(logits)})
    pq.write_table(table, path.with_suffix(".parquet"), row_group_size=7)
    return path.with_suffix(".parquet")


def save_lists(kind: Callable[[Any], Any]) -> Callable[[Path, Tensor], Path]:
    def save(path: Path, logits: Tensor) -> Path:
        number = pa.from_numpy_dtype(logits.numpy().dtype)
        lists = pa.array(list(logits.numpy()), type=kind(number))
        table = pa.table({"label": LABELS[: len(logits)], "z": lists})
        pq.write_table(table, path.with_suffix(".parquet"), row_group_size=4)
        return path.with_suffix(".parquet")

    return save


def save_csv(path: Path, logits: Tensor) -> Path:
    rows = [[IDS[n], *row.tolist(), LABELS[n]] for n, row in enumerate(logits)]
    return write_csv(path.with_suffix(".csv"), rows, ["name", *NAMES, "label"])


SAVERS: dict[str, Callable[[Path, Tensor], Path]] = {
    "npy": save_npy,
    "npy, columns first, big-endian": save_fortran,
    "parquet of columns": save_columns,
    "parquet of lists": save_lists(pa.list_),
    "parquet of large lists": save_lists(pa.large_list),
    "parquet of fixed lists": save_lists(lambda kind: pa.list_(kind, K)),
    "csv": save_csv,
}
