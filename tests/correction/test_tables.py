"""Tables of logits: what is read is what stands there, what is written is what `correct` says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from correction.saved import (
    ADDED,
    IDS,
    LABELS,
    NAMES,
    SAVERS,
    K,
    N,
    columns_of,
    read_back,
    read_csv,
    same,
    save_npy,
    some_logits,
    write_csv,
)
from unperturb.correction import Corrector, correct_file
from unperturb.correction.tables import open_table
from unperturb.errors import InputError, OutputError, SpecError, UnperturbError

PRECISIONS = (torch.float16, torch.float32, torch.float64)
KINDS = [(name, dtype) for name in SAVERS for dtype in PRECISIONS]


@pytest.mark.parametrize(("saver", "dtype"), KINDS)
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
