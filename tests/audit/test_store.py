"""Records on disk: refused when another's, kept when the disk is full, named when damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from audit.doubles import EPS, arguments, conv_net, digits, linear_net
from unperturb.attacks import FirstOrder
from unperturb.audit import AuditResult, audit, read_result
from unperturb.audit import run as engine
from unperturb.audit.benign import BENIGN
from unperturb.audit.store import COLUMNS, Store, digest_rows
from unperturb.errors import (
    ConfigError,
    InputError,
    OutputError,
    RecordError,
    SpecError,
    UnperturbError,
)
from unperturb.presets import tpap
from unperturb.threat import L2, Linf

SLOWER = FirstOrder(name="fgsm", steps=1, step_size=0.5, draws=20)


def small(**changes: Any) -> dict[str, Any]:
    """An audit of a tenth of a second: 8 images in 2 blocks, one attack, 10 units."""
    images, labels = digits(8)
    found = {
        "defense": tpap(linear_net()), "images": images, "labels": labels, "threat": Linf(EPS),
        "attacks": "fgsm", "batch_size": 4,
    }  # fmt: skip
    return {**found, **changes}


@pytest.fixture(scope="module")
def _done(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return audit(**small(out=tmp_path_factory.mktemp("done")))


@pytest.fixture
def done(_done: AuditResult, tmp_path: Path) -> AuditResult:
    """A complete audit in a folder that the test may spoil."""
    shutil.copytree(_done.store.folder, tmp_path / "done")
    return read_result(tmp_path / "done")


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


@pytest.mark.parametrize("version", [0, 3])
def test_another_schema_is_refused_with_both_versions(done: AuditResult, version: int) -> None:
    path = done.store.folder / "plan.json"
    plan = json.loads(path.read_text())
    plan["settings"]["schema_version"] = version
    path.write_text(json.dumps(plan))
    words = rf"plan\.json has schema version {version}\. Expected: schema version 1 or 2\."
    with pytest.raises(RecordError, match=words):
        audit(**small(out=done.store.folder))
    with pytest.raises(RecordError, match=words):
        read_result(done.store.folder)


@pytest.mark.parametrize("version", [b"0", b"1", None])
def test_rows_of_another_schema_are_refused(done: AuditResult, version: bytes | None) -> None:
    path = done.store.folder / "rows" / "00003.parquet"
    table = pq.ParquetFile(path).read()
    metadata = None if version is None else {b"schema_version": version}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    found = "none" if version is None else version.decode()
    words = rf"00003\.parquet has schema version {found}\. Expected: schema version 2\."
    with pytest.raises(RecordError, match=words):
        read_result(done.store.folder)


def test_the_place_of_weights_decides_nothing(done: AuditResult) -> None:
    # Names, notes and sources are told and not judged: the same bits are the same audit.
    found = audit(**small(out=done.store.folder, name="mine", data={"source": "elsewhere"}))
    assert found.digest == done.digest


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": 3}', "\xff\xfe"])
def test_a_damaged_plan_is_named(done: AuditResult, content: str) -> None:
    (done.store.folder / "plan.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RecordError, match=r"plan\.json is damaged"):
        read_result(done.store.folder)


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


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("these are no rows")
    else:
        table = pq.ParquetFile(path).read()
        pq.write_table(table.drop_columns(["margin"]), path)


@pytest.mark.parametrize("how", ["cut", "empty", "text", "column"])
def test_damaged_rows_are_named_and_only_they_are_redone(done: AuditResult, how: str) -> None:
    folder = done.store.folder
    # The oblivious attack on the second block, whose images were dropped long ago.
    path = folder / "rows" / "00006.parquet"
    spoil(path, how)
    words = r"00006\.parquet is damaged.*delete that file and run the same audit again"
    with pytest.raises(RecordError, match=words):
        read_result(folder)
    with pytest.raises(RecordError, match=words):
        audit(**small(out=folder))
    others = {p: p.stat().st_mtime_ns for p in (folder / "rows").iterdir() if p != path}
    path.unlink()
    partly = read_result(folder)
    assert not partly.complete
    assert partly.digest is None
    found = audit(**small(out=folder))
    assert found.digest == done.digest
    assert {p: p.stat().st_mtime_ns for p in others} == others
    manifest = found.store.manifest()
    assert manifest is not None
    assert manifest["files"] == {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (*(folder / "rows").iterdir(), folder / "rows.parquet")
    }
    assert not any("images" in load_file(p) for p in (folder / "pixels").iterdir())


def test_changed_rows_do_not_pass_for_the_audit(done: AuditResult) -> None:
    folder = done.store.folder
    path = folder / "rows" / "00002.parquet"
    table = pq.ParquetFile(path).read()
    better = pa.array([True] * len(table))
    assert not table["correct"].combine_chunks().equals(better)
    table = table.set_column(table.schema.get_field_index("correct"), "correct", better)
    pq.write_table(table.cast(pq.read_schema(folder / "rows" / "00001.parquet")), path)
    words = r"was changed after it was complete: the digest is \w{12} \(rows/00002\.parquet\)"
    with pytest.raises(RecordError, match=words):
        read_result(folder)
    path.unlink()
    assert audit(**small(out=folder)).digest == done.digest


def test_lost_timings_lose_no_result(done: AuditResult) -> None:
    shutil.rmtree(done.store.folder / "timings")
    found = read_result(done.store.folder)
    assert found.complete
    assert found.digest == done.digest
    assert all(a["seconds"] == 0 for a in found.to_json()["attacks"])


def test_times_are_no_part_of_the_digest(done: AuditResult) -> None:
    for path in (done.store.folder / "timings").iterdir():
        path.write_text('{"unit": 99.0, "attack": 1.0, "scoring": 1.0}')
    found = read_result(done.store.folder)
    assert found.digest == done.digest
    assert found.to_json()["attacks"][0]["seconds"] == 99.0 * 2


@pytest.mark.parametrize("column", COLUMNS)
def test_the_digest_is_of_every_column(done: AuditResult, column: str) -> None:
    before = digest_rows(done.rows, "settings")
    changed = {name: values.copy() for name, values in done.rows.items()}
    kind = COLUMNS[column]
    value = changed[column][3]
    changed[column][3] = {
        "string": f"{value}x",
        "bool": not value,
        "int32": value + (1 if kind == "int32" else 0) if kind == "int32" else 0,
        "float32": np.nextafter(np.nan_to_num(value), np.float32(9)) if kind == "float32" else 0,
        "float64": np.nextafter(value, 9.0) if kind == "float64" else 0,
    }[kind]
    assert digest_rows(changed, "settings") != before
    assert digest_rows(done.rows, "other settings") != before


def test_the_types_and_the_number_of_rows(tmp_path: Path) -> None:
    found = audit(**arguments(out=tmp_path))
    for path in (tmp_path / "rows").iterdir():
        schema = pq.read_schema(path)
        assert schema.metadata[b"schema_version"] == b"2"
        kinds = {"string": "string", "int32": "int32", "bool": "bool", "float": "float32"}
        kinds["double"] = "float64"
        assert {f.name: kinds[str(f.type)] for f in schema} == COLUMNS
    rows = found.rows
    names = (
        "image_id", "subject", "attack", "attacker", "backward", "goal", "purpose", "draw"
    )  # fmt: skip
    keys = list(zip(*(rows[n] for n in names), strict=True))
    assert len(set(keys)) == len(keys), "one row for each of these"
    attacks = [
        ("clean", "none", "none", "none"),
        *((b, "benign", "none", "none") for b in (*BENIGN, "small-eps")),
        ("pgd-3", "oblivious", "exact", "predicted-label"),
        *((a, "oblivious", "exact", "wrong") for a in ("fgsm", "pgd-3")),
        *((a, "adaptive", "exact", "wrong") for a in ("fgsm", "pgd-3")),
    ]
    known = [
        (a, "adaptive", rule, "wrong")
        for a in ("fgsm", "pgd-3")
        for rule in ("identity", "undefended")
    ]
    expected = {
        (str(i), subject, *attack, purpose, draw)
        for i in range(24)
        for subject, purposes, draws in (("target", ("select", "score"), 3),
                                         ("baseline", ("score",), 1))
        for purpose in purposes
        for draw in range(draws)
        for attack in (*attacks, *(known if subject == "target" else ()))
    }  # fmt: skip
    assert set(keys) == expected
    rules = {(a, r) for a, r in zip(rows["attacker"], rows["rule"], strict=True)}
    assert rules == {
        ("none", "none"), ("benign", "none"), ("oblivious", "fixed"), ("adaptive", "first-success"),
    }  # fmt: skip
    assert (rows["correct"] == (rows["prediction"] == rows["label"])).all()
    assert not rows["flagged"].any()
    assert all(len(value) == 32 for value in rows["pixels"])
    clean = rows["attack"] == "clean"
    assert (rows["linf"][clean] == 0).all()
    small = rows["attack"] == "small-eps"
    attacked = np.isin(rows["attacker"], ["oblivious", "adaptive"]) | small
    assert (rows["queries"][~attacked] == 0).all()
    assert (rows["linf"][attacked] <= EPS * (1 + 1e-5) + 1e-6).all()
    assert (rows["inside"] == (rows["linf"] <= EPS * (1 + 1e-5) + 1e-6)).all()
    assert (rows["queries"][attacked] >= 1).all()
    assert set(rows["eps"][clean]) == {0.0}
    assert set(rows["eps"][small]) == {EPS / 4}
    assert (rows["linf"][small] <= EPS / 4 + 1e-6).all()
    assert set(rows["eps"][~clean & ~small]) == {EPS}
    assert np.isnan(rows["detector"]).all()
    assert np.isnan(rows["measure"]).all()


def test_selecting_and_scoring_draws_are_others(tmp_path: Path) -> None:
    """No draw that the worst attack is selected on is one that it is scored on."""
    rows = audit(**arguments(out=tmp_path)).rows
    of = (rows["subject"] == "target") & (rows["attack"] == "clean")
    parts = [rows["margin"][of & (rows["purpose"] == p)] for p in ("select", "score")]
    assert len(set(np.concatenate(parts).tolist())) == 2 * 3 * 24


def test_the_first_schema_is_read_with_its_digest() -> None:
    """Committed records of the first schema: every column that it had no word for is constant."""
    folder = Path(__file__).parents[2] / "docs" / "results" / "records" / "first-audit-b"
    found = read_result(folder)
    assert found.plan["settings"]["schema_version"] == 1
    manifest = found.store.manifest()
    assert manifest is not None
    assert found.digest == manifest["digest"]
    rows = found.rows
    assert list(rows) == list(COLUMNS)
    assert set(rows["purpose"]) == {"score"}
    assert set(rows["goal"]) == {"none", "wrong"}
    assert rows["inside"].all()
    assert found.worst_case_accuracy == pytest.approx(0.003)


def test_an_audit_of_the_first_schema_is_not_gone_on_with(done: AuditResult) -> None:
    path = done.store.folder / "plan.json"
    plan = json.loads(path.read_text())
    plan["settings"]["schema_version"] = 1
    path.write_text(json.dumps(plan))
    with pytest.raises(RecordError, match=r"schema version 1: it can be read, and not gone on"):
        audit(**small(out=done.store.folder))


def test_the_one_file_is_read_in_place_of_many(
    done: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Store._read

    def watch(self: Store, path: Path, *arguments: Any) -> pa.Table:
        opened.append(path.name)
        return real(self, path, *arguments)

    monkeypatch.setattr(Store, "_read", watch)
    found = read_result(done.store.folder)
    assert opened == ["rows.parquet"]
    assert found.digest == done.digest
    assert all(np.array_equal(found.rows[n], done.rows[n], equal_nan=k.startswith("float"))
               for n, k in COLUMNS.items())  # fmt: skip
    (done.store.folder / "rows.parquet").unlink()
    assert read_result(done.store.folder).digest == done.digest
    assert len(opened) > 2


@pytest.mark.parametrize("defended", [False, True])
def test_rows_are_small_enough(tmp_path: Path, defended: bool) -> None:
    """10,000 images under 20 attacks stay below 50 MB: at most 250 bytes a pair.

    With a defense there are rows of two subjects, two attackers and three gradients, and of what
    needs no defense: not six times as many bytes, but twice.
    """
    images, labels = digits(128)
    options: dict[str, Any] = {"threat": Linf(EPS), "attacks": "fgsm,bim-2,pgd-2,mim-2"}
    if defended:
        audit(tpap(conv_net()), images, labels, **options, out=tmp_path)
    else:
        audit(conv_net(), images, labels, **options, attackers="adaptive", out=tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / "rows").iterdir())
    size += (tmp_path / "rows.parquet").stat().st_size
    assert size / (len(images) * 4) <= (550 if defended else 250)


def test_settings_out_of_range() -> None:
    for change, words in (
        ({"batch_size": 0}, "batch_size is 0.*at least 1"),
        ({"scoring_draws": 0, "defense": arguments()["defense"]}, "scoring_draws is 0"),
        ({"seed": -1}, "The seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"time_budget": 0.0}, "time_budget is 0.0.*seconds above 0"),
        ({"attackers": ()}, "No attacker is named.*oblivious and adaptive"),
    ):
        with pytest.raises(ConfigError, match=words):
            audit(**small(**change))
    for change, words in (
        ({"attackers": ("adaptive", "adaptiv")}, "Unknown attacker 'adaptiv'.*did you mean 'adap"),
        ({"attackers": "obvious"}, "Unknown attacker 'obvious'"),
        ({"keep_images": "best"}, "Unknown keep_images 'best'"),
        ({"attacks": "pdg"}, "Unknown attack 'pdg'.*did you mean 'pgd'"),
    ):
        with pytest.raises(SpecError, match=words):
            audit(**small(**change))
    for change, words in (
        ({"ids": ["a"] * 8}, "Image ids repeat"),
        ({"ids": ["a"]}, "1 ids for 8 images"),
    ):
        with pytest.raises(InputError, match=words):
            audit(**small(**change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attacks": None}, "The attacks are None.*a suite"),
        ({"attacks": 5}, "The attacks are 5"),
        ({"outside": {"a": None}}, "The outside images 'a' are None.*a folder"),
        ({"outside": [1]}, r"outside is \[1\].*a dictionary"),
        ({"probe_images": "x"}, "probe_images is 'x'.*a whole number"),
        ({"attackers": None}, "attackers is None.*some of oblivious"),
        ({"ids": 5}, "ids is 5.*one name for each image"),
        ({"shard": 3}, r"shard is 3.*a pair \(i, n\)"),
    ],
    ids=str,
)
def test_arguments_of_another_kind_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UnperturbError, match=words):
        audit(**small(**change))


def test_one_attacker_may_be_named_as_a_string() -> None:
    assert audit(**small(attackers="adaptive")).plan["settings"]["attackers"] == ["adaptive"]
    both = audit(**small(attackers=["adaptive", "oblivious", "adaptive"]))
    assert both.plan["settings"]["attackers"] == ["oblivious", "adaptive"]


def test_nothing_is_written_for_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        audit(**small(out=tmp_path / "out", labels=torch.full((8,), 10)))
    assert not (tmp_path / "out").exists()


def test_the_plan_reads_back(done: AuditResult) -> None:
    assert len(done.plan["ids"]) == len(done.plan["labels"]) == 8
    assert [u.index for u in engine.plan_units(done.plan)] == list(range(len(done.units)))
    assert engine.plan_units(done.plan) == done.units
