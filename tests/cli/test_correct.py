"""``unperturb correct``: what it says and writes, and one message for every mistake."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from unperturb.correction import Corrector, load_corrector
from unperturb.networks.corrector import CorrectionNetwork

Run = Callable[..., Any]

K, N = 4, 40
NAMES = ("ape", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved corrector."""
    made = Corrector(
        CorrectionNetwork(num_classes=K, width=16, seed=1),
        classifier="0123456789abcdef" * 4,
        arch="cifar-resnet20",
        classes=NAMES,
    )
    return made.save(tmp_path_factory.mktemp("corrector") / "pgd")


def logits() -> torch.Tensor:
    return 2 * torch.randn(N, K, generator=torch.Generator().manual_seed(0))


TRUTH = [n % K for n in range(N)]


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """Logits as an array."""
    np.save(tmp_path / "logits.npy", logits().numpy())
    return tmp_path / "logits.npy"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Logits in a parquet file, with ids and true classes."""
    columns = {name: logits()[:, k].numpy() for k, name in enumerate(NAMES)}
    path = tmp_path / "logits.parquet"
    pq.write_table(
        pa.table({"id": [f"image-{n}" for n in range(N)], **columns, "label": TRUTH}), path
    )
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Logits as comma-separated text."""
    rows = [",".join(map(str, [f"image-{n}", *row])) for n, row in enumerate(logits().tolist())]
    path = tmp_path / "logits.csv"
    path.write_text("\n".join([",".join(("id", *NAMES)), *rows]) + "\n")
    return path


def expected(folder: Path) -> tuple[list[int], list[int]]:
    found = load_corrector(folder).correct(logits())
    assert 0 < int(found.changed.sum()) < N
    return found.before.tolist(), found.labels.tolist()


def test_an_array(array: Path, folder: Path, run: Run, tmp_path: Path) -> None:
    before, after = expected(folder)
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    out = tmp_path / "new" / "corrected.npy"
    ran = run("correct", array, "--corrector", folder, "--out", out)
    first, fitted, where = ran.out.splitlines()
    assert first == f"{N} rows, {changed} changed labels ({changed / N:.1%})"
    assert "fitted on logits of cifar-resnet20 (fingerprint 0123456789ab)" in fitted
    assert where == f"{out}, {tmp_path / 'new' / 'corrected.predictions.csv'}"
    assert np.load(out).dtype == np.float32
    np.testing.assert_array_equal(np.load(out).argmax(1), after)
    head, *rows = (tmp_path / "new" / "corrected.predictions.csv").read_text().splitlines()
    assert head == "row,prediction_before,prediction,changed"
    assert rows[0] == f"0,{before[0]},{after[0]},{str(before[0] != after[0]).lower()}"
    assert len(rows) == N
    assert "correct: 100%" in ran.err


def test_accuracy_before_and_after(table: Path, folder: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "corrected.parquet"
    ran = run("correct", table, "--corrector", folder, "--out", out, "--batch-size", 7, "--json")
    assert ran.err == ""
    parts = expected(folder)
    right = [sum(a == b for a, b in zip(part, TRUTH, strict=True)) for part in parts]
    found = ran.json
    assert [found["accuracy"][when]["correct"] for when in ("before", "after")] == right
    assert found["rows"] == N
    assert found["predictions"] is None
    assert found["fitted_on"] == {
        "arch": "cifar-resnet20", "classifier": "0123456789abcdef" * 4,
    }  # fmt: skip
    written = pq.read_table(out)
    assert written["prediction"].to_pylist() == parts[1]
    assert written["id"].to_pylist() == [f"image-{n}" for n in range(N)]
    assert written["label"].to_pylist() == TRUTH
    ran = run("correct", table, "--corrector", folder, "--out", out)
    assert f"accuracy before: {right[0] / N:.1%} (95 % interval " in ran.out
    assert f"accuracy after: {right[1] / N:.1%} (95 % interval " in ran.out
    ran = run("correct", table, "--corrector", folder, "--out", out, "--label-column", "none")
    assert "accuracy before" not in ran.out


def test_text_and_silence(text: Path, folder: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "corrected.csv"
    ran = run("correct", text, "--corrector", folder, "--out", out, "--quiet")
    assert (ran.out, ran.err) == ("", "")
    head, *rows = out.read_text().splitlines()
    assert head == "id,ape,bee,cat,dog,prediction_before,prediction,changed"
    assert [row.split(",")[0] for row in rows] == [f"image-{n}" for n in range(N)]
    assert [int(row.split(",")[6]) for row in rows] == expected(folder)[1]


def test_a_corrector_of_an_unknown_classifier(array: Path, run: Run, tmp_path: Path) -> None:
    made = Corrector(CorrectionNetwork(num_classes=K, width=16)).save(tmp_path / "anonymous")
    ran = run("correct", array, "--corrector", made, "--out", tmp_path / "out.npy")
    assert "fitted on logits of an unnamed classifier (fingerprint unknown)" in ran.out


def _check(ran: Any, *words: str) -> None:
    """One message on standard error, nothing else anywhere."""
    assert ran.out == ""
    for word in words:
        assert word in ran.err, ran.err
    assert ran.err.count("error: ") == 1
    assert ran.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--columns", "ape:dogs"), ("no column 'dogs'", "did you mean 'dog'?")),
        (("--columns", "ape:cat"), ("--columns names 3 columns", "4 columns of numbers")),
        (("--label-column", "ape"), ("has 3 columns that may be logits: bee, cat, dog",)),
        (("--label-column", "labels"), ("no column 'labels'", "did you mean 'label'?")),
        (("--id-column", "idd"), ("no column 'idd'", "did you mean 'id'?")),
        (("--device", "cdua"), ("The device 'cdua' cannot be used", "Fix: --device cpu")),
        (("--header", "no"), ("--header given for", "leave them out")),
        (("--out", "corrected.csv"), ("ends in .csv", "Expected: .parquet", "corrected.parquet")),
        (("--corrector", "nowhere"), ("There is no corrector in 'nowhere'", "config.json")),
    ],
)
def test_wrong_options(
    more: tuple[str, ...], words: tuple[str, ...], table: Path, folder: Path, run: Run,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.iterdir())
    options = ("--corrector", folder, "--out", "corrected.parquet")
    _check(run("correct", table, *options, *more, code=2), *words)
    assert sorted(tmp_path.iterdir()) == there


def test_wrong_files(folder: Path, run: Run, tmp_path: Path, saved: Path) -> None:
    def fails(name: str, *words: str, corrector: Path = folder) -> None:
        out = tmp_path / f"out{Path(name).suffix}"
        command = ("correct", tmp_path / name, "--corrector", corrector, "--out", out)
        _check(run(*command, code=2), *words)
        assert not out.exists()

    np.save(tmp_path / "whole.npy", logits().numpy())
    np.save(tmp_path / "wide.npy", np.zeros((3, 10), np.float32))
    np.save(tmp_path / "whole-numbers.npy", np.zeros((3, K), np.int64))
    np.save(tmp_path / "nan.npy", np.full((3, K), np.nan, np.float32))
    np.save(tmp_path / "objects.npy", np.array([[{}] * K], dtype=object), allow_pickle=True)
    (tmp_path / "z.pkl").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "z.csv").write_text("ape,bee,cat,dog\n1,2,3,4\n1,2,3\n")
    (tmp_path / "z.parquet").write_text("no parquet")
    fails("nothing.npy", "There is no file or folder", "an existing file: .npy")
    fails("wide.npy", "have 10 classes", "Expected: 4", "the corrector of that classifier")
    fails("whole-numbers.npy", "are int64", "float32")
    fails("nan.npy", "Row 0 (counted from 0)", "Expected: finite logits")
    fails("objects.npy", "Python objects", "without pickles")
    fails("z.pkl", "can run code when it is loaded", "numpy.save")
    fails("z.csv", "cannot be read", "as many cells")
    fails("z.parquet", "cannot be read", "a complete, readable parquet file")
    fails("whole.npy", "saved corrector", corrector=saved)


def test_outputs_that_cannot_be_written(
    array: Path, folder: Path, run: Run, tmp_path: Path
) -> None:
    command = ("correct", array, "--corrector", folder)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.npy").mkdir()
    ran = run(*command, "--out", tmp_path / "file" / "out.npy", code=1)
    _check(ran, f"{tmp_path / 'file'} is a file", "choose another --out")
    _check(run(*command, "--out", tmp_path / "folder.npy", code=1), "is a folder", "Expected: a fi")
    _check(run(*command, "--out", array, code=1), "is the input itself")
    np.testing.assert_array_equal(np.load(array), logits().numpy())


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(("kind", "files"), [("npy", 0), ("npy", 1), ("parquet", 0), ("csv", 0)])
def test_a_full_disk(
    kind: str, files: int, there: bool, array: Path, table: Path, text: Path, folder: Path,
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = {"npy": array, "parquet": table, "csv": text}[kind]
    out = tmp_path / "new" / f"out.{kind}"
    out.parent.mkdir()
    if there:
        out.write_text("mine")
    left = files

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        command = ("correct", source, "--corrector", folder, "--out", out)
        _check(run(*command, code=1), "Cannot write", "No space left on device", "free some space")
    assert {path.name for path in out.parent.iterdir()} == ({out.name} if there else set())
    assert not there or out.read_text() == "mine"
    run(*command)


def test_a_disk_that_fills_up_while_writing(
    table: Path, text: Path, array: Path, folder: Path, run: Run, tmp_path: Path,
) -> None:  # fmt: skip
    resource = pytest.importorskip("resource")
    import signal

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for source in (table, text, array):
        out = tmp_path / "new" / f"out{source.suffix}"
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, old[1]))
            ran = run("correct", source, "--corrector", folder, "--out", out, code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        _check(ran, "Cannot write", "File too large")
        assert not list(out.parent.iterdir())
    signal.signal(signal.SIGXFSZ, handler)
