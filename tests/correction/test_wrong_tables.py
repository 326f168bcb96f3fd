"""Tables that hold no logits of the classifier: refused with what is wrong and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from correction.saved import (
    IDS,
    LABELS,
    NAMES,
    SAVERS,
    K,
    columns_of,
    save_columns,
    save_csv,
    save_npy,
    some_logits,
    write_csv,
)
from unperturb.correction.tables import open_table
from unperturb.errors import DataError, InputError, SpecError, UnperturbError


def refused(source: Path, error: type[UnperturbError], *words: str, **options: Any) -> None:
    """Reading the file raises the error, which says these words."""
    with pytest.raises(error) as caught:
        for _ in open_table(source, K, **options).chunks(4):
            pass
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert str(source) in str(caught.value) or "--columns" in str(caught.value)


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite(saver: str, bad: float, tmp_path: Path) -> None:
    logits = some_logits()
    logits[17, 2] = bad
    logits[20, 2] = bad
    source = SAVERS[saver](tmp_path / "in", logits)
    refused(source, InputError, "Row 17 (counted from 0)", "Expected: finite logits")


@pytest.mark.parametrize("saver", SAVERS)
def test_another_number_of_classes(saver: str, tmp_path: Path) -> None:
    source = SAVERS[saver](tmp_path / "in", some_logits())
    with pytest.raises(InputError) as caught:
        list(open_table(source, 7).chunks(9))
    assert str(K) in caught.value.problem
    assert "7" in caught.value.expected
    assert "use the corrector of that classifier" in caught.value.fix


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, K), np.int64), ("are int64", "float16, float32 or float64", "astype")),
        (np.zeros((3, K), np.uint8), ("are uint8",)),
        (np.zeros((3, K), bool), ("are bool",)),
        (np.zeros((3, K), np.complex64), ("are complex64",)),
        (np.zeros((3, K), [("a", "f4")]), ("'a'",)),
        (np.zeros((0, K), np.float32), ("(0, 5)", "at least one row")),
        (np.zeros(K, np.float32), ("(5,)", "one row for each image")),
        (np.zeros((3, K, 1), np.float32), ("(3, 5, 1)", "(N, K)")),
        (np.float32(1), ("()", "(N, K)")),
    ],
)
def test_arrays_that_are_no_logits(array: Any, words: tuple[str, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", array)
    refused(tmp_path / "in.npy", InputError, *words)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    objects = np.array([[{}, []]], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    refused(tmp_path / "objects.npy", DataError, "Python objects", "without pickles")
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04K\x01.")
    refused(tmp_path / "pickle.npy", DataError, "magic string", "without pickles")
    whole = save_npy(tmp_path / "whole", some_logits())
    for size in (0, 50, 200):
        (tmp_path / "cut.npy").write_bytes(whole.read_bytes()[:size])
        refused(tmp_path / "cut.npy", DataError, "cannot be read", "write or fetch it again")
    table = save_columns(tmp_path / "whole", some_logits())
    for size in (0, 50, 200):
        (tmp_path / "cut.parquet").write_bytes(table.read_bytes()[:size])
        refused(tmp_path / "cut.parquet", DataError, "cannot be read", "a complete, readable")
    damaged = bytearray(table.read_bytes())
    damaged[4:200] = bytes(196)
    (tmp_path / "cut.parquet").write_bytes(damaged)
    refused(tmp_path / "cut.parquet", DataError, "cannot be read")
    (tmp_path / "in.csv").write_bytes(b"z0,z1\n\xff\xfe,1\n")
    refused(tmp_path / "in.csv", DataError, "cannot be read", "UTF-8")
    (tmp_path / "in.csv").write_bytes(b"")
    refused(tmp_path / "in.csv", DataError, "is empty")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("z.pkl", ("is a pickle by its name", "can run code", "numpy.save")),
        ("z.pth", ("is a pickle by its name",)),
        ("z.npz", ("another kind (.npz)", "the array of logits by itself")),
        ("z.txt", ("another kind (.txt)", ".parquet or .csv")),
        ("logits", ("no suffix",)),
    ],
)
def test_files_of_another_kind(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"1")
    refused(tmp_path / name, SpecError, *words)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "logits.npy").mkdir()
    refused(tmp_path / "logit.npy", DataError, "There is no file", "did you mean", "logits.npy'?")
    refused(tmp_path / "logits.npy", DataError, "is a folder", "name one file")


def test_options_that_the_file_cannot_have(tmp_path: Path) -> None:
    source = save_npy(tmp_path / "in", some_logits())
    refused(source, SpecError, "--columns", "an array has no columns", columns="a:b")
    refused(source, SpecError, "--header, --label-column", header="no", label_column="y")
    refused(save_columns(tmp_path / "in", some_logits()), SpecError, "--header", header="no")
    with pytest.raises(SpecError, match="did you mean 'yes'"):
        open_table(save_csv(tmp_path / "in", some_logits()), K, header="yess")


def test_parquet_columns_that_cannot_be_told(tmp_path: Path) -> None:
    path, logits = tmp_path / "in.parquet", some_logits()
    lists = list(logits.numpy())

    def write(**columns: Any) -> Path:
        pq.write_table(pa.table(columns), path)
        return path

    refused(write(a=lists, b=lists), DataError, "Several columns", "a, b", "--columns a")
    refused(write(a=lists, **columns_of(logits)), DataError, "Several columns", "a, z0, z1")
    refused(write(a=IDS), InputError, "has 0 columns that may be logits", "--columns FIRST:LAST")
    refused(write(a=LABELS, z=logits[:, 0].numpy()), InputError, "has 1 columns", ": z.")
    refused(write(**columns_of(logits), more=logits[:, 0].numpy()), InputError, "has 6 columns",
            "z0, z1, z2, z3, z4, more", "5 columns of numbers")  # fmt: skip
    refused(write(prediction=LABELS, **columns_of(logits)), DataError, "the column prediction",
            "rename or remove")  # fmt: skip
    refused(path, DataError, "has the column")
    twice = pa.table([logits[:, k].numpy() for k in range(K)], names=["a", "a", "b", "c", "d"])
    pq.write_table(twice, path)
    refused(path, DataError, "several columns named a", "rename")
    empty = pa.table({name: pa.array([], pa.float32()) for name in NAMES})
    pq.write_table(empty, path)
    refused(path, InputError, "has no rows")
    refused(write(**columns_of(logits), n=LABELS), DataError, "holds as int64", "write them as flo",
            columns="n,z1:z4")  # fmt: skip
    refused(write(**columns_of(logits), a=lists), DataError, "z0, a", columns="z0,a")


def test_lists_of_several_lengths(tmp_path: Path) -> None:
    lists: list[Any] = some_logits().tolist()
    for bad, words in (([1.0] * 4, "has 4 logits"), (None, "has no logits"), ([], "has 0 logits")):
        pq.write_table(pa.table({"z": [*lists[:6], bad, *lists[6:]]}), tmp_path / "in.parquet")
        refused(tmp_path / "in.parquet", InputError, "Row 6 (counted from 0) of", words, "repair")
    holes = [*lists[:6], [1.0, None, 1.0, 1.0, 1.0]]
    pq.write_table(pa.table({"z": holes}), tmp_path / "in.parquet")
    refused(tmp_path / "in.parquet", InputError, "Row 6 (counted from 0)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": "z0:z9"}, ("no column 'z9'", "name, z0, z1, z2, z3, z4, label", "did you")),
        ({"columns": "z3:z0"}, ("'z3' stands behind 'z0'", "--columns z0:z3")),
        ({"columns": "z0,z0:z3"}, ("names z0 twice",)),
        ({"columns": "z0:z3"}, ("names 4 columns", "5 columns of numbers")),
        ({"columns": "z0:z3,name"}, ("names name", "holds as text")),
        ({"columns": ["z0:z4"]}, ("no column 'z0:z4'",)),
        ({"id_column": "nam"}, ("no column 'nam'", "did you mean 'name'?")),
        ({"label_column": "labell"}, ("no column 'labell'", "did you mean 'label'?")),
        ({"id_column": "z0"}, ("has 4 columns",)),
        ({"label_column": "none"}, ("has 6 columns",)),
        ({"label_column": "name"}, ("The label of row 0", "'000, odd'", "from 0 to 4")),
    ],
)
def test_csv_columns_that_cannot_be(
    options: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    source = save_csv(tmp_path / "in", some_logits())
    if "label of" in words[0]:
        refused(source, DataError, *words, columns="z0:z4", **options)
        return
    with pytest.raises((DataError, InputError)) as caught:
        open_table(source, K, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_columns_named_as_the_classes_in_another_order(tmp_path: Path) -> None:
    names, classes = ["bee", "ape"], ("ape", "bee")
    source = write_csv(tmp_path / "in.csv", [[0.5, 1.5]], names)
    with pytest.raises(InputError, match="in another order") as caught:
        open_table(source, 2, classes=classes)
    assert "--columns" in caught.value.fix
    assert open_table(source, 2, classes=classes, columns="ape,bee").columns == classes
    straight = write_csv(tmp_path / "in.csv", [[0.5, 1.5]], ["ape", "bee"])
    assert open_table(straight, 2, classes=classes).columns == classes


def test_csv_rows_that_cannot_be(tmp_path: Path) -> None:
    rows: list[list[Any]] = some_logits(count=200).tolist()
    short = write_csv(tmp_path / "in.csv", [*rows, [1.0, 2.0]], list(NAMES))
    refused(short, DataError, "Expected 5 columns, got 2", "as many cells")
    word = write_csv(tmp_path / "in.csv", [*rows, [1.0, "many", 2, 3, 4]], list(NAMES))
    refused(word, DataError, "Row #202", "'many'")
    gap = write_csv(tmp_path / "in.csv", [*rows, [1.0, "", 2, 3, 4]], list(NAMES))
    refused(gap, InputError, "Row 200 (counted from 0)")
    head = write_csv(tmp_path / "in.csv", [], list(NAMES))
    refused(head, InputError, "columns that may be logits")
    mixed = write_csv(tmp_path / "in.csv", rows, ["0.5", "many", "1", "2", "3"])
    refused(mixed, DataError, "mixes names and numbers ('many', '0.5')", "--header no")
    apart = tmp_path / "in.csv"
    apart.write_text("z0;z1;z2;z3;z4\n1;2;3;4;5\n")
    refused(apart, InputError, "has 0 columns")
