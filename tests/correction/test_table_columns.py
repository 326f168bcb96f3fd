"""Which columns of a table are the logits and the true classes: told, or seen by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from correction.saved import (
    LABELS,
    NAMES,
    K,
    N,
    columns_of,
    read_back,
    read_csv,
    same,
    some_logits,
    write_csv,
)
from unperturb.correction import Corrector, correct_file
from unperturb.correction.tables import open_table
from unperturb.errors import DataError

# -- logits ---------------------------------------------------------------------------------------


def test_csv_without_names(corrector: Corrector, tmp_path: Path) -> None:
    logits = some_logits()
    source = write_csv(tmp_path / "in.csv", logits.tolist())
    report = correct_file(corrector, source, tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    expected = corrector.correct(logits)
    assert len(rows) == N == report.rows
    found = torch.tensor([[float(cell) for cell in row[:K]] for row in rows])
    same(found, expected.logits)
    assert [int(row[K + 1]) for row in rows] == expected.labels.tolist()
    assert report.right is None


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (["id", "z0", "z1", "z2", "z3", "z4"], True),
        (["", "0", "1", "2", "3", "4"], True),  # as pandas writes an array with its index
        (["id", "0", "1", "2", "3", "4"], True),
        (["id", "1", "2", "3", "4", "5"], True),
        (["7", "0.5", "1", "-2", "3", "4"], False),
        (["7", "nan", "1", "-2", "3", "4"], False),
    ],
)
def test_whether_a_csv_has_names(first: list[str], named: bool, tmp_path: Path) -> None:
    rows = [[str(100 + n), *map(str, row.tolist())] for n, row in enumerate(some_logits())]
    source = write_csv(tmp_path / "in.csv", rows, first)
    columns = None if named else "1:5"
    table = open_table(source, K, columns=columns)
    assert table.columns == (tuple(first[1:]) if named else ("1", "2", "3", "4", "5"))
    assert table.about == N + (not named)


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_whether_a_csv_has_names_can_be_said(answer: str, tmp_path: Path) -> None:
    rows = some_logits().tolist()
    source = write_csv(tmp_path / "in.csv", rows, ["0", "1", "2", "3", "4"])
    logits = torch.cat([chunk.logits for chunk in open_table(source, K, header=answer).chunks(9)])
    assert len(logits) == N + (answer == "no")
    assert torch.equal(logits[-N:].float(), some_logits())


def test_columns_are_read_in_the_order_in_which_they_are_named(
    corrector: Corrector, tmp_path: Path
) -> None:
    logits = some_logits()
    table = pa.table({**dict(reversed(columns_of(logits).items())), "other": np.zeros(N)})
    pq.write_table(table, tmp_path / "in.parquet")
    for asked in ("z0,z1,z2,z3,z4", list(NAMES)):
        correct_file(corrector, tmp_path / "in.parquet", tmp_path / "out.parquet", columns=asked)
        same(read_back(tmp_path / "out.parquet")[0], corrector.correct(logits).logits)
    turned = open_table(tmp_path / "in.parquet", K, columns="z4:z0")
    assert turned.columns == NAMES[::-1]
    mixed = open_table(tmp_path / "in.parquet", 3, columns="z0, z4:z3")
    assert mixed.columns == ("z0", "z4", "z3")


def test_one_of_several_columns_of_lists(corrector: Corrector, tmp_path: Path) -> None:
    logits = some_logits()
    table = pa.table({"clean": list(logits.numpy()), "z": list((logits + 1).numpy())})
    pq.write_table(table, tmp_path / "in.parquet")
    correct_file(corrector, tmp_path / "in.parquet", tmp_path / "out.parquet", columns="z")
    found = pq.read_table(tmp_path / "out.parquet")
    same(torch.tensor(found["z"].to_pylist()), corrector.correct(logits + 1).logits)
    assert found["clean"].to_pylist() == table["clean"].to_pylist()


# -- true classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        [float(k) for k in LABELS],
        [str(k) for k in LABELS],
        [("ape", "bee", "cat", "dog", "eel")[k] for k in LABELS],
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_accuracy_by_any_spelling_of_labels(
    labels: list[Any], suffix: str, corrector: Corrector, tmp_path: Path
) -> None:
    logits = some_logits()
    source = tmp_path / f"in{suffix}"
    if suffix == ".csv":
        rows = [[*row.tolist(), labels[n]] for n, row in enumerate(logits)]
        write_csv(source, rows, [*NAMES, "truth"])
    else:
        pq.write_table(pa.table({**columns_of(logits), "truth": labels}), source)
    report = correct_file(corrector, source, tmp_path / f"out{suffix}", label_column="truth")
    expected, truth = corrector.correct(logits), torch.tensor(LABELS)
    right = [int((part == truth).sum()) for part in (expected.before, expected.labels)]
    assert report.right == tuple(right)
    accuracy = report.accuracy()
    assert accuracy is not None
    assert accuracy["before"]["accuracy"] == right[0] / N
    # Wilson's interval is where (p - q)^2 = z^2 q (1 - q) / n.
    for end in accuracy["after"]["interval"]:
        gap = (right[1] / N - end) ** 2
        assert gap == pytest.approx(1.959964**2 * end * (1 - end) / N, rel=1e-5)
    silent = source, tmp_path / f"out{suffix}"
    if suffix == ".csv" and labels[0] == "ape":
        assert correct_file(corrector, *silent, label_column="none").right is None


@pytest.mark.parametrize("bad", [-1, K, 2.5, None])
def test_a_label_that_is_no_class(bad: Any, corrector: Corrector, tmp_path: Path) -> None:
    labels = [*LABELS[:20], bad, *LABELS[21:]]
    table = pa.table({**columns_of(some_logits()), "label": pa.array(labels, pa.float64())})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(DataError, match="The label of row 20 ") as caught:
        correct_file(corrector, tmp_path / "in.parquet", tmp_path / "out.parquet", batch_size=4)
    assert "--label-column none" in caught.value.fix
    assert not (tmp_path / "out.parquet").exists()
    # Said to be no label, it is a column of numbers too many; named, all is well.
    options: dict[str, Any] = {"label_column": "none", "columns": "z0:z4"}
    report = correct_file(corrector, tmp_path / "in.parquet", tmp_path / "out.parquet", **options)
    assert report.right is None
