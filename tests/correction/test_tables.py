"""Tables of logits: what is read is what stands there, what is written is what `correct` says."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from unperturb.correction import Corrector, correct_file
from unperturb.correction.tables import open_table
from unperturb.errors import DataError, InputError, OutputError, SpecError, UnperturbError
from unperturb.networks.corrector import CorrectionNetwork

K, N = 5, 23
NAMES = tuple(f"z{k}" for k in range(K))
ADDED = ("prediction_before", "prediction", "changed")


@pytest.fixture
def corrector() -> Corrector:
    """One that changes some labels and not others."""
    return Corrector(
        CorrectionNetwork(num_classes=K, width=32, seed=3),
        classifier="ab" * 32,
        arch="small-cnn",
        classes=("ape", "bee", "cat", "dog", "eel"),
    )


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
PRECISIONS = (torch.float16, torch.float32, torch.float64)
KINDS = [(name, dtype) for name in SAVERS for dtype in PRECISIONS]


@pytest.mark.parametrize(
    ("saver", "dtype"),
    [*((name, torch.float32) for name in SAVERS), *KINDS, ("csv", torch.float64)],
)
def test_each_kind_gives_what_correct_gives(
    saver: str, dtype: torch.dtype, corrector: Corrector, tmp_path: Path
) -> None:
    logits = some_logits(dtype)
    source = SAVERS[saver](tmp_path / "in", logits)
    out = tmp_path / f"out{source.suffix}"
    expected = corrector.correct(logits)
    assert 0 < int(expected.changed.sum()) < N, "choose logits of which some labels change"
    report = correct_file(corrector, source, out)
    corrected, predictions = read_back(out)
    same(corrected, expected.logits)
    columns = (expected.before, expected.labels, expected.changed)
    assert predictions == [list(row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    assert (report.rows, report.changed) == (N, int(expected.changed.sum()))
    assert (report.arch, report.classifier) == ("small-cnn", "ab" * 32)
    assert report.out == out
    assert not list(tmp_path.glob(".*")), "temporary files are left"


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("size", [1, 4, 7, N, 100])
def test_chunks_are_the_whole(saver: str, size: int, tmp_path: Path) -> None:
    logits = some_logits()
    table = open_table(SAVERS[saver](tmp_path / "in", logits), K)
    chunks = list(table.chunks(size))
    assert [chunk.start for chunk in chunks] == list(range(0, N, size))
    assert all(len(chunk.logits) == size for chunk in chunks[:-1])
    assert torch.equal(torch.cat([chunk.logits.float() for chunk in chunks]), logits)
    if chunks[0].labels is not None:
        assert torch.cat([chunk.labels for chunk in chunks]).tolist() == LABELS  # type: ignore[misc]
    assert table.about == N


def test_many_chunks_equal_one_call(
    corrector: Corrector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two batches of 3 at a time: chunks of 6 rows, as one call splits 23 rows into batches of 3.
    monkeypatch.setattr("unperturb.correction.files._VALUES", 2 * 3 * K)
    logits = some_logits()
    expected = corrector.correct(logits, batch_size=3).logits
    for name in ("npy", "parquet of columns", "csv"):
        source = SAVERS[name](tmp_path / "in", logits)
        out = tmp_path / f"out{source.suffix}"
        correct_file(corrector, source, out, batch_size=3)
        same(read_back(out)[0], expected)
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 4


# -- what is carried through ----------------------------------------------------------------------


def test_parquet_keeps_all_other_columns_and_their_order(
    corrector: Corrector, tmp_path: Path
) -> None:
    logits = some_logits()
    carried = {
        "id": pa.array(IDS),
        "fine_label": pa.array(LABELS, pa.int16()),
        "fold": pa.array([None, *range(N - 1)]),
        "image": pa.array([{"bytes": b"\x00", "path": None}] * N),
    }
    columns = columns_of(logits)
    table = pa.table({"id": carried["id"], **columns, **carried})
    pq.write_table(table, tmp_path / "in.parquet")
    correct_file(corrector, tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == [*table.column_names, *ADDED]
    for name, values in carried.items():
        assert found[name].type == values.type
        assert found[name].to_pylist() == values.to_pylist()
    assert found["z0"].type == pa.float32()
    assert found["changed"].type == pa.bool_()


def test_csv_keeps_text_as_it_is_written(corrector: Corrector, tmp_path: Path) -> None:
    texts = ["007", "", 'say "no"', "a,b", " space ", "1e3", "two\nlines", "NA"]
    rows = [[texts[n % 8], *row.tolist()] for n, row in enumerate(some_logits())]
    source = write_csv(tmp_path / "in.csv", rows, ["id", *NAMES])
    correct_file(corrector, source, tmp_path / "out.csv")
    assert [row[0] for row in read_csv(tmp_path / "out.csv")[1:]] == [row[0] for row in rows]
    # Quotes only where they are needed.
    plain = write_csv(tmp_path / "plain.csv", [["007", *row[1:]] for row in rows], ["id", *NAMES])
    correct_file(corrector, plain, tmp_path / "out.csv")
    assert '"' not in (tmp_path / "out.csv").read_text()


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


# -- what is refused ------------------------------------------------------------------------------


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


# -- what is written ------------------------------------------------------------------------------


def test_targets_that_cannot_be(corrector: Corrector, tmp_path: Path) -> None:
    source = save_npy(tmp_path / "in", some_logits())
    before = source.read_bytes()

    def fails(out: Path, error: type[UnperturbError], *words: str) -> None:
        with pytest.raises(error) as caught:
            correct_file(corrector, source, out)
        for word in words:
            assert word in str(caught.value), str(caught.value)

    fails(tmp_path / "out.csv", SpecError, "ends in .csv", "Expected: .npy", "out.npy")
    fails(tmp_path / "out", SpecError, "no suffix", "out.npy")
    fails(source, OutputError, "is the input itself")
    (tmp_path / "folder.npy").mkdir()
    fails(tmp_path / "folder.npy", OutputError, "is a folder")
    (tmp_path / "out.predictions.csv").mkdir()
    fails(tmp_path / "out.npy", OutputError, "is a folder")
    fails(source / "out.npy", OutputError, "Cannot write")
    assert source.read_bytes() == before
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("saver", ["npy", "parquet of columns", "csv"])
def test_nothing_is_left_of_a_correction_that_failed(
    saver: str, corrector: Corrector, tmp_path: Path
) -> None:
    logits = some_logits()
    logits[22, 0] = float("nan")
    source = SAVERS[saver](tmp_path / "in", logits)
    out = tmp_path / f"out{source.suffix}"
    there = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="Row 22 "):
        correct_file(corrector, source, out, batch_size=4)
    assert {path.name for path in tmp_path.iterdir()} == there
    out.write_text("mine")
    with pytest.raises(InputError, match="Row 22 "):
        correct_file(corrector, source, out, batch_size=4)
    assert out.read_text() == "mine"


def resident() -> int:
    """Memory of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    count = 20_000
    # Zeros that take no room on disk, 80 MB when they are read.
    shape = (count, 1000)
    np.lib.format.open_memmap(tmp_path / "z.npy", mode="w+", dtype=np.float32, shape=shape).flush()
    part = pa.array(np.zeros(1000 * count // 4, np.float32))
    lists = pa.chunked_array([pa.FixedSizeListArray.from_arrays(part, 1000)] * 4)
    table = pa.table({"z": lists})
    pq.write_table(table, tmp_path / "z.parquet", row_group_size=count, compression="none",
                   use_dictionary=False)  # fmt: skip
    for name in ("z.npy", "z.parquet"):
        chunks = open_table(tmp_path / name, 1000).chunks(1000)
        rows = len(next(chunks).logits)
        before = resident()
        for chunk in chunks:
            rows += len(chunk.logits)
            # A file that stayed in memory would take 74,000 more.
            assert resident() - before < 40_000
        assert rows == count
