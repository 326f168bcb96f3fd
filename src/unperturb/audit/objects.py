"""Records in object stores: content-named objects first, the manifest that names them last.

Layout below the URL (any that fsspec knows, such as ``s3://bucket/runs/tpap``)::

    objects/SHA256   one for each file of the audit's folder, named by its content
    manifest.json    path in the folder -> SHA-256 and size, for every file

An object never changes and is never deleted, and the manifest is one atomic put. So a reader sees
one whole audit or the other, whatever happens to the writer, and every byte read is checked.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unperturb.audit.remote import Remote, failures, is_url, open_remote, words
from unperturb.audit.result import AuditResult
from unperturb.audit.store import Store
from unperturb.errors import OutputError, RecordError
from unperturb.files import write_atomic, write_text

__all__ = ["fetch", "open_records", "publish", "read_records"]

_FORMAT, _VERSION = "unperturb-records", 1
_STREAMS = 16
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]*")


# -- publish --------------------------------------------------------------------------------------


def publish(folder: str | Path, url: str) -> dict[str, Any]:
    """Write an audit's folder to an object store; only what is not there yet is sent.

    Publishing again, after more units are done, replaces the manifest and nothing else.

    Args:
        folder: Folder of an audit, complete or not.
        url: Where, one place for each audit.

    Returns:
        The manifest.

    Raises:
        RecordError: The folder holds no audit, or the URL another one.
        OutputError: Another process writes into the folder, or the store cannot be written; what
            was published before is as it was.
        SpecError: The URL is none.
        MissingExtraError: The package for this kind of store is not there.
    """
    store = Store(Path(folder))
    plan = store.plan()
    remote = open_remote(url)
    with store.locked():
        there = _manifest(remote, missing=True)
        if there is not None and there["settings_hash"] != plan["settings_hash"]:
            raise RecordError(
                f"{url} holds another audit (settings {there['settings_hash'][:12]})",
                expected=f"nothing, or this audit ({plan['settings_hash'][:12]})",
                fix="choose another URL",
            )
        own = store.manifest()
        files = {
            path.relative_to(store.folder).as_posix(): path
            for path in sorted(store.folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        strange = [name for name in files if not _is_inside(name)]
        if strange:
            raise RecordError(
                f"{folder} holds a file that no audit wrote ({strange[0]})",
                expected="an audit's files alone",
                fix="move it out of that folder",
            )
        facts = {name: _facts(path) for name, path in files.items()}
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "settings_hash": plan["settings_hash"],
            "digest": None if own is None else own["digest"],
            "files": facts,
        }
        try:
            _send(remote, {facts[name]["sha256"]: path for name, path in files.items()})
            _put_manifest(remote, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        except failures() as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"{url} cannot be written ({words(error)})",
                expected="a store that may be written to; what stood there is as it was",
                fix="check the URL and the credentials, and publish again: what has arrived stays",
            ) from error
    return manifest


def _send(remote: Remote, objects: dict[str, Path]) -> None:
    """Put every object that is not there; return once all are."""
    sizes = {sha256: path.stat().st_size for sha256, path in objects.items()}
    there = _sizes(remote)
    todo = [sha256 for sha256, size in sizes.items() if there.get(sha256) != size]
    remote.files.makedirs(remote.path("objects"), exist_ok=True)

    def put(sha256: str) -> None:
        remote.files.put_file(str(objects[sha256]), remote.path(f"objects/{sha256}"))

    with ThreadPoolExecutor(_STREAMS) as pool:
        list(pool.map(put, todo))
    if todo:
        there = _sizes(remote)
    lost = [sha256 for sha256, size in sizes.items() if there.get(sha256) != size]
    if lost:
        raise OutputError(
            f"{len(lost)} of {len(todo)} objects did not arrive whole at {remote.url}",
            expected="all of them; the manifest was not written",
            fix="publish again",
        )


def _sizes(remote: Remote) -> dict[str, int]:
    """Size of every object there is, by its name."""
    remote.files.invalidate_cache()
    try:
        found = remote.files.ls(remote.path("objects"), detail=True)
    except FileNotFoundError:
        return {}
    return {str(entry["name"]).rpartition("/")[2]: int(entry["size"] or 0) for entry in found}


def _put_manifest(remote: Remote, text: str) -> None:
    path = remote.path("manifest.json")
    if remote.local:
        # A put is atomic in an object store, and is not in a folder.
        write_text(Path(path), text)
    else:
        remote.files.pipe_file(path, text.encode())


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
            "bytes": path.stat().st_size,
        }


# -- fetch ----------------------------------------------------------------------------------------


def fetch(url: str, folder: str | Path) -> Path:
    """Read a published audit into a folder, and check every byte of it.

    A fetch that was cut off goes on with the same call. The plan comes last: without it the
    folder is no audit.

    Args:
        url: Where it was published.
        folder: A new or empty folder, or one that an earlier fetch of it has begun.

    Returns:
        The folder.

    Raises:
        RecordError: Nothing is published there, an object is missing or is not what the manifest
            says, or the folder holds something else.
        OutputError: The folder cannot be written.
        SpecError: The URL is none.
        MissingExtraError: The package for this kind of store is not there.
    """
    remote = open_remote(url)
    manifest = _manifest(remote)
    assert manifest is not None
    files: dict[str, dict[str, Any]] = manifest["files"]
    store = Store(Path(folder))
    with store.locked():
        strangers = sorted(
            name
            for path in store.folder.rglob("*")
            if path.is_file()
            and not path.name.startswith(".")
            and (name := path.relative_to(store.folder).as_posix()) not in files
        )
        if strangers:
            raise RecordError(
                f"{folder} holds something else ({', '.join(strangers[:4])})",
                expected="an empty or new folder",
                fix="choose another folder",
            )
        todo = [
            name
            for name, fact in files.items()
            if not (path := store.folder / name).is_file() or _facts(path) != fact
        ]
        last = [name for name in todo if name == "plan.json"]
        get = _getter(remote, store.folder, files)
        # Files of equal content are one object, and not every store lets two read it at once.
        groups: dict[str, list[str]] = {}
        for name in todo:
            if name != "plan.json":
                groups.setdefault(files[name]["sha256"], []).append(name)

        def get_all(names: list[str]) -> None:
            for name in names:
                get(name)

        with ThreadPoolExecutor(_STREAMS) as pool:
            list(pool.map(get_all, groups.values()))
        for name in last:
            get(name)
    return store.folder


def _getter(
    remote: Remote, folder: Path, files: dict[str, dict[str, Any]]
) -> Callable[[str], None]:
    def get(name: str) -> None:
        fact = files[name]

        def write(temporary: Path) -> None:
            _download(remote, fact["sha256"], temporary)
            found = _facts(temporary)
            if found != fact:
                raise RecordError(
                    f"{name} of {remote.url} is not what its manifest says: SHA-256 "
                    f"{found['sha256'][:12]}, {found['bytes']} bytes",
                    expected=f"{fact['sha256'][:12]}, {fact['bytes']} bytes",
                    fix="do not trust it; delete that object and publish the audit again",
                )

        write_atomic(folder / name, write)

    return get


def _download(remote: Remote, sha256: str, target: Path) -> None:
    try:
        remote.files.get_file(remote.path(f"objects/{sha256}"), str(target))
    except FileNotFoundError as error:
        raise RecordError(
            f"The object {sha256[:12]} of {remote.url} is missing",
            expected="every object that the manifest names",
            fix="publish the audit again",
        ) from error
    except failures() as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _unreadable(remote, error) from error


def _manifest(remote: Remote, *, missing: bool = False) -> dict[str, Any] | None:
    """The manifest, checked; None where there is none and that may be."""
    try:
        raw = remote.files.cat_file(remote.path("manifest.json"))
    except FileNotFoundError as error:
        if missing:
            return None
        raise RecordError(
            f"{remote.url} holds no published audit: manifest.json is missing",
            expected="the URL of unperturb audit --publish URL",
            fix="check the URL",
        ) from error
    except failures() as error:
        raise _unreadable(remote, error) from error
    try:
        found = json.loads(raw)
        version = found["version"] if found["format"] == _FORMAT else None
        found["settings_hash"].encode()
        names = {**found["files"]}
        whole = "plan.json" in names and all(_is_fact(fact) for fact in names.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        version, names, whole = None, {}, False
    if version != _VERSION or not whole:
        raise RecordError(
            f"manifest.json of {remote.url} is not what unperturb {_FORMAT} {_VERSION} writes",
            expected="the manifest of a published audit",
            fix="check the URL, or use the version of unperturb that wrote it",
        )
    strange = [name for name in names if not _is_inside(name)]
    if strange:
        raise RecordError(
            f"manifest.json of {remote.url} names the file {strange[0]!r}",
            expected="paths below the audit's folder",
            fix="do not trust it",
        )
    return found  # type: ignore[no-any-return]


def _is_fact(fact: Any) -> bool:
    return (
        isinstance(fact, dict)
        and set(fact) == {"sha256", "bytes"}
        and isinstance(fact["bytes"], int)
        and isinstance(fact["sha256"], str)
        and re.fullmatch(r"[0-9a-f]{64}", fact["sha256"]) is not None
    )


def _is_inside(name: str) -> bool:
    return all(_PART.fullmatch(part) for part in name.split("/"))


def _unreadable(remote: Remote, error: BaseException) -> RecordError:
    return RecordError(
        f"{remote.url} cannot be read ({words(error)})",
        expected="a published audit that may be read",
        fix="check the URL and the credentials",
    )


# -- both -----------------------------------------------------------------------------------------


@contextmanager
def open_records(where: str | Path) -> Iterator[Path]:
    """Folder of an audit, whether it lies in a folder or in an object store.

    Args:
        where: A folder, which is yielded as it is, or a URL, which is fetched into a temporary
            folder that lives as long as the context.

    Raises:
        RecordError: Nothing is published at the URL, or it was tampered with.
    """
    if not is_url(where):
        yield Path(where)
        return
    with tempfile.TemporaryDirectory(prefix="unperturb-") as folder:
        yield fetch(str(where), folder)


def read_records(where: str | Path) -> AuditResult:
    """Read an audit from its folder or from an object store.

    What comes from a store lies in a temporary folder that lives as long as the result.

    Raises:
        RecordError: There is no audit, or it is damaged or was tampered with.
    """
    if not is_url(where):
        return AuditResult(Store(Path(where)))
    kept = tempfile.TemporaryDirectory(prefix="unperturb-")
    try:
        return AuditResult(Store(fetch(str(where), kept.name)), _keep=kept)
    except RecordError:
        kept.cleanup()
        raise
