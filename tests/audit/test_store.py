"""Records on disk: what they hold, what the digest is of, and damage, which is named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from audit.doubles import EPS, arguments, conv_net, digits, small
from unperturb.audit import AuditResult, audit, read_result
from unperturb.audit import run as engine
from unperturb.audit.benign import BENIGN
from unperturb.audit.store import COLUMNS, Store, digest_rows
from unperturb.errors import RecordError
from unperturb.presets import tpap
from unperturb.threat import Linf


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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": 3}', "\xff\xfe"])
def test_a_damaged_plan_is_named(done: AuditResult, content: str) -> None:
    (done.store.folder / "plan.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RecordError, match=r"plan\.json is damaged"):
        read_result(done.store.folder)


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


def test_the_plan_reads_back(done: AuditResult) -> None:
    assert len(done.plan["ids"]) == len(done.plan["labels"]) == 8
    assert [u.index for u in engine.plan_units(done.plan)] == list(range(len(done.units)))
    assert engine.plan_units(done.plan) == done.units
