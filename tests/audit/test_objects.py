"""Records in object stores: whole or not at all, and every byte checked."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from audit.doubles import EPS, digits, linear_net
from unperturb import tpap
from unperturb.audit import audit, read_result
from unperturb.audit.objects import fetch, open_records, publish, read_records
from unperturb.audit.remote import check_url, failures
from unperturb.errors import MissingExtraError, OutputError, RecordError, SpecError
from unperturb.threat import Linf

URL = "memory://bucket/runs/tpap"


def run(out: Path, **changes: Any) -> Any:
    """A small audit with every kind of file."""
    images, labels = digits(12)
    options: dict[str, Any] = {"threat": Linf(EPS), "attacks": "fgsm", "batch_size": 6}
    return audit(tpap(linear_net()), images, labels, out=out, **{**options, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete audit with its report."""
    out = tmp_path_factory.mktemp("records") / "audit"
    run(out).save_report()
    return out


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    """An empty object store."""
    files = fsspec.filesystem("memory")
    _empty(files)
    yield files
    _empty(files)


def _empty(files: MemoryFileSystem) -> None:
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def _manifest(store: MemoryFileSystem) -> Any:
    return json.loads(store.cat_file("/bucket/runs/tpap/manifest.json"))


def _rewrite(store: MemoryFileSystem, change: Any) -> None:
    manifest = _manifest(store)
    change(manifest)
    store.pipe_file("/bucket/runs/tpap/manifest.json", json.dumps(manifest).encode())


def test_published_and_fetched_is_byte_for_byte_the_same(
    folder: Path, store: MemoryFileSystem, tmp_path: Path
) -> None:
    manifest = publish(folder, URL)
    assert manifest == _manifest(store)
    assert manifest["digest"] == read_result(folder).digest
    for name, raw in _files(folder).items():
        fact = manifest["files"][name]
        assert fact == {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        assert store.cat_file(f"/bucket/runs/tpap/objects/{fact['sha256']}") == raw
    assert fetch(URL, tmp_path / "copy") == tmp_path / "copy"
    assert _files(tmp_path / "copy") == _files(folder)
    assert read_result(tmp_path / "copy").digest == manifest["digest"]


def test_a_folder_behind_a_url_works_too(folder: Path, tmp_path: Path) -> None:
    url = (tmp_path / "there").as_uri()
    publish(folder, url)
    fetch(url, tmp_path / "copy")
    assert _files(tmp_path / "copy") == _files(folder)
    assert not [path for path in (tmp_path / "there").rglob("*") if path.suffix == ".tmp"]


def test_publishing_again_sends_only_what_is_new(
    folder: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "audit"
    part = run(out, shard=(1, 2))
    assert not part.complete
    first = publish(out, URL)
    assert first["digest"] is None
    sent: list[str] = []
    put = MemoryFileSystem.put_file

    def watched(self: Any, local: str, remote: str, **options: Any) -> Any:
        sent.append(remote.rpartition("/")[2])
        return put(self, local, remote, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", watched)
    assert publish(out, URL) == first
    assert sent == []
    whole = run(out)
    second = publish(out, URL)
    assert second["digest"] == whole.digest
    old = {fact["sha256"] for fact in first["files"].values()}
    assert set(sent) == {fact["sha256"] for fact in second["files"].values()} - old
    assert sent


def test_an_incomplete_audit_goes_on_where_it_was_fetched(
    store: MemoryFileSystem, folder: Path, tmp_path: Path
) -> None:
    run(tmp_path / "audit", shard=(1, 2))
    publish(tmp_path / "audit", URL)
    fetch(URL, tmp_path / "copy")
    assert run(tmp_path / "copy").digest == read_result(folder).digest


# -- failures -----------------------------------------------------------------------------------


class Tired(Exception):
    """What a store's library raises that is no OSError."""


@pytest.mark.parametrize("error", [OSError("connection reset"), Tired("no credentials")])
@pytest.mark.parametrize("after", [0, 3, 7, 10_000])
def test_a_failure_publishes_nothing(
    error: Exception, after: int, folder: Path, store: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    botocore = types.ModuleType("botocore.exceptions")
    botocore.BotoCoreError = Tired  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "botocore.exceptions", botocore)
    assert Tired in failures()
    left = [after]
    with monkeypatch.context() as patch:
        for name in ("put_file", "pipe_file"):
            real = getattr(MemoryFileSystem, name)

            def fail(self: Any, *given: Any, _real: Any = real, _name: str = name, **rest: Any):  # type: ignore[no-untyped-def]
                left[0] -= 1
                # The last write of all is the manifest's.
                if left[0] < 0 or (after == 10_000 and _name == "pipe_file"):
                    raise error
                return _real(self, *given, **rest)

            patch.setattr(MemoryFileSystem, name, fail)
        with pytest.raises(OutputError, match="cannot be written.*publish again"):
            publish(folder, URL)
    assert not store.exists("/bucket/runs/tpap/manifest.json")
    with pytest.raises(RecordError, match="holds no published audit"):
        fetch(URL, tmp_path / "copy")
    assert not (tmp_path / "copy" / "plan.json").exists()
    publish(folder, URL)
    fetch(URL, tmp_path / "copy")
    assert _files(tmp_path / "copy") == _files(folder)


def test_a_failure_leaves_what_was_published_before(
    store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(tmp_path / "audit", shard=(1, 2))
    first = publish(tmp_path / "audit", URL)
    run(tmp_path / "audit")
    with monkeypatch.context() as patch:

        def fail(*arguments: Any, **options: Any) -> None:
            raise OSError("no space")

        patch.setattr(MemoryFileSystem, "put_file", fail)
        with pytest.raises(OutputError, match="no space"):
            publish(tmp_path / "audit", URL)
    assert _manifest(store) == first
    fetch(URL, tmp_path / "copy")


def test_an_object_that_arrived_in_part_is_sent_again(
    folder: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put = MemoryFileSystem.put_file

    def cut(self: Any, local: str, remote: str, **options: Any) -> None:
        put(self, local, remote, **options)
        self.pipe_file(remote, self.cat_file(remote)[:10])

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", cut)
        with pytest.raises(OutputError, match="did not arrive whole.*publish again"):
            publish(folder, URL)
    assert not store.exists("/bucket/runs/tpap/manifest.json")
    publish(folder, URL)
    fetch(URL, tmp_path / "copy")


@pytest.mark.parametrize("after", [0, 4])
def test_a_fetch_that_was_cut_off_is_no_audit_and_goes_on(
    after: int, folder: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    publish(folder, URL)
    left = [after]
    real = MemoryFileSystem.get_file

    def fail(self: Any, *given: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("connection reset")
        return real(self, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", fail)
        with pytest.raises(RecordError, match="cannot be read .connection reset"):
            fetch(URL, tmp_path / "copy")
    with pytest.raises(RecordError, match="holds no audit"):
        read_result(tmp_path / "copy")
    fetch(URL, tmp_path / "copy")
    assert _files(tmp_path / "copy") == _files(folder)


# -- tampering ----------------------------------------------------------------------------------


def test_one_changed_byte_is_found(folder: Path, store: MemoryFileSystem, tmp_path: Path) -> None:
    manifest = publish(folder, URL)
    for number, name in enumerate(("plan.json", "rows/00001.parquet", "report.html")):
        path = f"/bucket/runs/tpap/objects/{manifest['files'][name]['sha256']}"
        raw = store.cat_file(path)
        store.pipe_file(path, raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(RecordError, match=f"{name} of .* is not what its manifest says"):
            fetch(URL, tmp_path / str(number))
        assert not (tmp_path / str(number) / "plan.json").exists()
        store.pipe_file(path, raw)


def test_a_missing_object_is_named(folder: Path, store: MemoryFileSystem, tmp_path: Path) -> None:
    manifest = publish(folder, URL)
    sha256 = manifest["files"]["rows/00001.parquet"]["sha256"]
    store.rm_file(f"/bucket/runs/tpap/objects/{sha256}")
    with pytest.raises(RecordError, match=f"The object {sha256[:12]} of .* is missing"):
        fetch(URL, tmp_path / "copy")


@pytest.mark.parametrize(
    "name", ["../plan.json", "/etc/passwd", "rows/../../x", "a\\b", "C:x", ".lock", "", "rows//x"]
)
def test_a_manifest_cannot_name_a_file_elsewhere(
    name: str, folder: Path, store: MemoryFileSystem, tmp_path: Path
) -> None:
    publish(folder, URL)
    _rewrite(store, lambda m: m["files"].update({name: m["files"]["plan.json"]}))
    with pytest.raises(RecordError, match="names the file"):
        fetch(URL, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format="another"),
        lambda m: m.update(version=2),
        lambda m: m.pop("settings_hash"),
        lambda m: m.update(settings_hash=None),
        lambda m: m.update(files=[]),
        lambda m: m["files"].pop("plan.json"),
        lambda m: m["files"].update({"x": {"sha256": "../../x", "bytes": 3}}),
        lambda m: m["files"].update({"x": {"sha256": "0" * 64}}),
        lambda m: m["files"].update({"x": 3}),
    ],
)
def test_a_manifest_that_is_none(
    change: Any, folder: Path, store: MemoryFileSystem, tmp_path: Path
) -> None:
    publish(folder, URL)
    _rewrite(store, change)
    with pytest.raises(RecordError, match="is not what unperturb"):
        fetch(URL, tmp_path / "copy")
    store.pipe_file("/bucket/runs/tpap/manifest.json", b"\xff{")
    with pytest.raises(RecordError, match="is not what unperturb"):
        fetch(URL, tmp_path / "copy")


# -- places -------------------------------------------------------------------------------------


def test_one_place_holds_one_audit(folder: Path, store: MemoryFileSystem, tmp_path: Path) -> None:
    first = publish(folder, URL)
    run(tmp_path / "other", seed=1)
    with pytest.raises(RecordError, match="holds another audit.*choose another URL"):
        publish(tmp_path / "other", URL)
    assert _manifest(store) == first


def test_a_folder_of_something_else(folder: Path, store: MemoryFileSystem, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no audit"):
        publish(tmp_path, URL)
    assert store.store == {}
    publish(folder, URL)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RecordError, match="holds something else .letter.txt"):
        fetch(URL, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_urls_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="is no URL.*s3://"):
        check_url("runs/tpap")
    with pytest.raises(SpecError, match="cannot be opened .Protocol not known: foo"):
        check_url("foo://bucket/x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match="'s3fs'.*pip install 'unperturb.objects.'"):
        check_url("s3://bucket/x")


def test_records_are_read_from_either(folder: Path, store: MemoryFileSystem) -> None:
    publish(folder, URL)
    expected = read_result(folder)
    with open_records(folder) as here:
        assert here == folder
    with open_records(URL) as there:
        assert read_result(there).digest == expected.digest
    assert not there.exists()
    assert read_records(folder).digest == expected.digest
    found = read_records(URL)
    assert found.summary == expected.summary
    # Its folder lives as long as it does, for what is read later.
    assert found.store.folder.is_dir()
    assert found.save_report(folder.parent / "again")[0].name == "report.html"
    with pytest.raises(RecordError, match="holds no published audit"):
        read_records("memory://bucket/runs/none")
