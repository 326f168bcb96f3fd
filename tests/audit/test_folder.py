"""The folder of an audit: refused when in use, or of something else; kept when the disk is full."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from audit.doubles import EPS, conv_net, linear_net, small
from unperturb.attacks import FirstOrder
from unperturb.audit import AuditResult, audit, read_result
from unperturb.audit.store import Store
from unperturb.errors import OutputError, RecordError
from unperturb.presets import tpap
from unperturb.threat import L2, Linf

SLOWER = FirstOrder(name="fgsm", steps=1, step_size=0.5, draws=20)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def brighter(change: dict[str, Any]) -> dict[str, Any]:
    return {"images": (change["images"] + 0.01).clamp(0, 1)}


def relabeled(change: dict[str, Any]) -> dict[str, Any]:
    return {"labels": (change["labels"] + 1) % 10}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threat": Linf(0.3)}, r"threat\.eps: 0\.15 there, 0\.3 here"),
        ({"threat": L2(EPS)}, r'threat\.norm: "linf" there, "l2" here'),
        ({"attacks": "bim-2"}, r'attacks: \["fgsm"\] there, \["bim-2"\] here'),
        ({"attacks": [SLOWER]}, r"attacks\.fgsm\.step_size: 1\.0 there, 0\.5 here"),
        ({"attackers": ("adaptive",)}, r'attackers: \["oblivious", "adaptive"\] there, \["adap'),
        ({"seed": 5}, "seed: 0 there, 5 here"),
        ({"batch_size": 2}, "batch_size: 4 there, 2 here"),
        ({"keep_images": "all"}, 'keep_images: "worst" there, "all" here'),
        ({"ids": list("abcdefgh")}, r'ids_sha256: "\w+\.\.\. there, "\w+\.\.\. here'),
        (
            {"defense": tpap(linear_net(2.0))},
            r'target\.fingerprint: "\w+\.\.\. there, "\w+\.\.\. h',
        ),
        (
            {"defense": tpap(linear_net(), radius=0.01)},
            r"target\.describe\.purifier\.radius: 0\.0313\d+ there, 0\.01 here",
        ),
        (
            {"baseline": conv_net(), "attackers": ("adaptive",)},
            r'baseline\.fingerprint: "\w+\.\.\. there, "\w+\.\.\. here',
        ),
        (brighter, r'data\.fingerprint: "\w+\.\.\. there, "\w+\.\.\. here'),
        (relabeled, r'data\.fingerprint: "\w+\.\.\. there, "\w+\.\.\. here'),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:24],
)
def test_another_audit_is_refused_with_both_values(
    done: AuditResult, change: Any, words: str
) -> None:
    before = files(done.store.folder)
    arguments = small(out=done.store.folder)
    changed = change(arguments) if callable(change) else change
    with pytest.raises(RecordError, match=f"holds another audit .*{words}") as caught:
        audit(**{**arguments, **changed})
    assert "choose another --out" in str(caught.value)
    assert files(done.store.folder) == before


def test_another_environment_is_refused_with_both_values(
    done: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    before = files(done.store.folder)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 7)
    words = rf"begun in another environment \(threads: {threads} there, {threads + 7} here\)"
    with pytest.raises(RecordError, match=words):
        audit(**small(out=done.store.folder))
    assert files(done.store.folder) == before


def test_the_place_of_weights_decides_nothing(done: AuditResult) -> None:
    # Names, notes and sources are told and not judged: the same bits are the same audit.
    found = audit(**small(out=done.store.folder, name="mine", data={"source": "elsewhere"}))
    assert found.digest == done.digest


def test_a_folder_with_strange_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "rows").mkdir()
    words = r"is not empty and holds no audit \(rows, thesis\.tex\).*an empty or new folder"
    with pytest.raises(RecordError, match=words):
        audit(**small(out=tmp_path))
    assert files(tmp_path) == {"thesis.tex": b"precious"}


def test_a_folder_without_an_audit_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"holds no audit: plan\.json is missing"):
        read_result(tmp_path)


def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys, filelock\n"
        "lock = filelock.FileLock(sys.argv[1], timeout=0); lock.acquire()\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="Another process is writing into .*one audit at a"):
            audit(**small(out=tmp_path))
        assert files(tmp_path) == {}
    finally:
        process.communicate("")
    assert audit(**small(out=tmp_path)).complete


def test_an_audit_in_this_process_holds_the_folder_too(tmp_path: Path) -> None:
    with (
        Store(tmp_path).locked(),
        pytest.raises(OutputError, match="Another process is writing"),
        Store(tmp_path).locked(),
    ):
        pass
    with Store(tmp_path).locked():
        pass


@pytest.mark.parametrize("place", ["file/out", "file"])
def test_a_place_under_a_file_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match=r"Cannot write into .*choose another --out"):
        audit(**small(out=tmp_path / place))
    assert files(tmp_path) == {"file": b"a file"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_file_system_that_takes_no_folder_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="Cannot write into /proc/audit"):
        audit(**small(out="/proc/audit"))


def test_a_read_only_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="Cannot write into .*: Read-only file system"):
        audit(**small(out=tmp_path / "out"))


def failing(after: int, number: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` that fails for good after some calls."""
    left = [after]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        left[0] -= 1
        return call(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 9, 10, 11, 25, 28, 31])
def test_a_full_disk_keeps_what_is_finished(
    tmp_path: Path, done: AuditResult, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    out = tmp_path / "out"
    owner: Any = os if name == "fsync" else Path
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(after, errno.ENOSPC, getattr(owner, name)))
        with pytest.raises(OutputError, match=r"Cannot write .*No space left.*what is finished is"):
            audit(**small(out=out))
    assert not list(out.rglob("*.tmp"))
    kept = files(out)
    for path in out.rglob("*.parquet"):
        pq.ParquetFile(path).read()
    for path in out.rglob("*.safetensors"):
        load_file(path)
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    assert not (out / "manifest.json").exists()
    found = audit(**small(out=out))
    assert found.digest == done.digest
    # Pixels may since have been dropped; rows stay as they were.
    assert all(files(out)[name] == data for name, data in kept.items() if name.startswith("rows/"))


def test_a_plan_that_cannot_be_written_leaves_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(0, errno.ENOSPC, os.fsync))
    with pytest.raises(OutputError):
        audit(**small(out=tmp_path / "out"))
    assert files(tmp_path / "out") == {}
