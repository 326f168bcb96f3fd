"""Records on disk: one file of rows and one of pixels for each unit, and a manifest last.

Layout of an audit's folder::

    plan.json                 settings, their hash, environment, image ids and labels
    rows/00007.parquet        one row for each (image, subject, draw): its presence ends the unit
    rows.parquet              the same rows in one file, sorted: quick to read (once all is done)
    pixels/00007.safetensors  adversarial images of the unit, and what the pictures need
    timings/00007.json        seconds: kept apart, they are not part of the digest
    images/ATTACKER.safetensors  worst image for each image and attacker (once all is done)
    manifest.json             digest and hashes of all files of rows

Every file is written beside its place, flushed and renamed. A kill loses the units in flight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from unperturb.audit.plan import READABLE, SCHEMA_VERSION, Plan, Unit, differences
from unperturb.errors import OutputError, RecordError
from unperturb.files import write_atomic, write_json, write_tensors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "Rows", "Store"]

Rows = dict[str, np.ndarray[Any, Any]]

COLUMNS: dict[str, str] = {
    "image_id": "string",
    "subject": "string",
    "attack": "string",
    "attacker": "string",
    "backward": "string",
    "rule": "string",
    "goal": "string",
    "eps": "float64",
    "purpose": "string",
    "draw": "int32",
    "label": "int32",
    "prediction": "int32",
    "correct": "bool",
    "flagged": "bool",
    "correct_8bit": "bool",
    "inside": "bool",
    "margin": "float32",
    "detector": "float32",
    "linf": "float32",
    "l2": "float32",
    "measure": "float32",
    "queries": "int32",
    "gradients": "int32",
    "zero_gradients": "int32",
    "nan_gradients": "int32",
    "pixels": "string",
}
"""Columns of a row and their types.

``eps`` is the size the attack was run at; ``purpose`` is ``score`` or, for a random subject, also
``select`` (draws on which its worst attack is selected, none of which it is scored on); ``inside``
says whether the image lies in the ball of the threat model; ``detector`` is the detector's score
and ``measure`` the attack's own measure, NaN where there is none; ``gradients`` are the gradient
evaluations spent on the image (-1: not known), of which ``zero_gradients`` were zero; ``pixels`` is
the first half of the SHA-256 of the image's float32 bytes, in C order.
"""

_NEW = ("goal", "eps", "purpose", "inside", "detector", "measure", "gradients")
_VERSIONS = {1: {n: kind for n, kind in COLUMNS.items() if n not in _NEW}, 2: COLUMNS}

WHOLE = "rows.parquet"

_REDO = "delete that file and run the same audit again: only its unit is redone"

_TEMPORARY = (
    ".plan.json.*.tmp",
    ".cost.json.*.tmp",
    ".manifest.json.*.tmp",
    f".{WHOLE}.*.tmp",
    *(f"{part}/.*.tmp" for part in ("rows", "pixels", "timings", "images")),
)

# Files are many and short: what Parquet adds to each of them weighs as much as the rows.
_PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 9,
    "write_statistics": False,
    "store_schema": False,
    "use_dictionary": [n for n, kind in COLUMNS.items() if kind == "string"],
}

_SORT = (
    "subject", "attack", "attacker", "backward", "goal", "eps", "image_id", "purpose", "draw"
)  # fmt: skip


def _schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int32": pa.int32(),
        "bool": pa.bool_(),
        "float32": pa.float32(),
        "float64": pa.float64(),
    }
    columns = _VERSIONS[version]
    meta = {"schema_version": str(version)}
    return pa.schema([(name, types[kind]) for name, kind in columns.items()], metadata=meta)


def _arrays(table: pa.Table) -> Rows:
    """Columns as arrays; texts, of which few differ, are made once each."""
    import pyarrow as pa

    found: Rows = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_string(column.type) and name != "pixels":
            coded = column.combine_chunks().dictionary_encode()
            words = np.array(coded.dictionary.to_pylist(), dtype=object)
            codes = coded.indices.to_numpy(zero_copy_only=False)
            found[name] = words[codes] if len(words) else np.array([], dtype=object)
        else:
            found[name] = column.to_numpy(zero_copy_only=False)
    return found


def _upgraded(table: pa.Table, eps: float) -> pa.Table:
    """Rows of the first schema in the columns of this one: what it had no word for is constant."""
    import pyarrow as pa

    none = [attack == "clean" for attack in table.column("attack").to_pylist()]
    count = len(none)
    fresh = {
        "goal": ["none" if clean else "wrong" for clean in none],
        "eps": [0.0 if clean else eps for clean in none],
        "purpose": ["score"] * count,
        "inside": [True] * count,
        "detector": [float("nan")] * count,
        "measure": [float("nan")] * count,
        "gradients": [-1] * count,
    }
    schema = _schema()
    columns = [fresh[n] if n in fresh else table.column(n) for n in COLUMNS]
    columns = [
        pa.array(column, field.type) if isinstance(column, list) else column
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.table(columns, schema=schema)


class Store:
    """The records of one audit, in a folder.

    Args:
        folder: Where they are, or shall be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # -- opening ------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: two audits never write into one.

        Raises:
            OutputError: The folder cannot be written, or another process holds it.
        """
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise OutputError(
                f"Another process is writing into {self.folder}",
                expected="one audit at a time in a folder",
                fix="wait for it, or choose another --out",
            ) from None
        except OSError as error:
            raise OutputError(
                f"Cannot write into {self.folder}: {error.strerror or error}",
                expected="a folder that can be written to",
                fix="choose another --out",
            ) from error
        try:
            self._sweep()
            yield
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Remove what a killed writer left: nobody else writes while the lock is held."""
        for part in _TEMPORARY:
            for path in self.folder.glob(part):
                path.unlink(missing_ok=True)

    def begin(self, plan: Plan, labels: Sequence[int], environment: dict[str, Any]) -> None:
        """Write the plan, or check that the folder holds this very plan.

        Raises:
            RecordError: The folder holds another audit, or something else.
        """
        path = self.folder / "plan.json"
        ours = {
            "settings": plan.to_dict(),
            "settings_hash": plan.settings_hash(),
            "environment": environment,
        }
        if path.exists():
            theirs = self.plan()
            if theirs["settings"]["schema_version"] != SCHEMA_VERSION:
                raise RecordError(
                    f"{path} has schema version {theirs['settings']['schema_version']}: it can be "
                    "read, and not gone on with",
                    expected=f"schema version {SCHEMA_VERSION}",
                    fix="choose another --out",
                )
            # Which images are kept decides no result, but half of them cannot be kept.
            kept = plan.keep_images != theirs["settings"]["keep_images"]
            if theirs["settings_hash"] != ours["settings_hash"] or kept:
                changed = differences(plan.to_dict(), theirs["settings"])
                raise RecordError(
                    f"{self.folder} holds another audit ({'; '.join(changed[:6])})",
                    expected="the same settings, or a new folder",
                    fix="choose another --out, or delete that folder",
                )
            if theirs["environment"] != environment:
                changed = differences(environment, theirs["environment"])
                raise RecordError(
                    f"{self.folder} was begun in another environment ({'; '.join(changed[:6])})",
                    expected="the same versions, device and threads",
                    fix="go on there, or choose another --out",
                )
            return
        self.refuse_strangers()
        write_json(path, {**ours, "ids": list(plan.ids), "labels": list(labels)})

    def refuse_strangers(self) -> None:
        """Raise ``RecordError`` where the folder holds anything but the lock."""
        strangers = [p.name for p in self.folder.iterdir() if p.name != ".lock"]
        if strangers:
            raise RecordError(
                f"{self.folder} is not empty and holds no audit "
                f"({', '.join(sorted(strangers)[:4])})",
                expected="an empty or new folder",
                fix="choose another --out",
            )

    def plan(self) -> dict[str, Any]:
        """What ``begin`` wrote.

        Raises:
            RecordError: The folder holds no audit, a damaged one, or one of another schema.
        """
        path = self.folder / "plan.json"
        if not path.is_file():
            raise RecordError(
                f"{self.folder} holds no audit: plan.json is missing",
                expected="the --out folder of an audit",
                fix="run unperturb audit --out FOLDER first",
            )
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version = found["settings"]["schema_version"]
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise RecordError(
                f"{path} is damaged: {error}", expected="the file that an audit wrote"
            ) from error
        if version not in READABLE:
            raise RecordError(
                f"{path} has schema version {version}",
                expected=f"schema version {' or '.join(map(str, READABLE))}",
                fix="read it with the version of unperturb that wrote it",
            )
        return found  # type: ignore[no-any-return]

    # -- units --------------------------------------------------------------------------------

    def _rows_path(self, unit: Unit) -> Path:
        return self.folder / "rows" / f"{unit.name}.parquet"

    def pixels_path(self, unit: Unit) -> Path:
        """Where a unit's images are, as long as they are kept."""
        return self.folder / "pixels" / f"{unit.name}.safetensors"

    def has(self, unit: Unit) -> bool:
        """Whether a unit is finished."""
        return self._rows_path(unit).exists()

    def write(
        self, unit: Unit, rows: Rows, pixels: dict[str, Tensor], seconds: dict[str, float]
    ) -> None:
        """Write a finished unit; its rows last, since their presence ends it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: rows[name] for name in COLUMNS}, schema=_schema())
        if pixels:
            write_tensors(self.pixels_path(unit), pixels)
        write_json(self.folder / "timings" / f"{unit.name}.json", seconds)

        def write(path: Path) -> None:
            with pq.ParquetWriter(path, table.schema, **_PARQUET) as writer:
                writer.write_table(table)
                # Arrow's own copy of the schema, which would carry this, is left out.
                writer.add_key_value_metadata({"schema_version": str(SCHEMA_VERSION)})

        write_atomic(self._rows_path(unit), write)

    def write_whole(self, rows: Rows) -> None:
        """Write all rows into one file: thousands of small ones take long to open."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.plan()["settings"]["schema_version"] != SCHEMA_VERSION:
            return
        table = pa.table({name: rows[name] for name in COLUMNS}, schema=_schema())

        def write(path: Path) -> None:
            with pq.ParquetWriter(path, table.schema, **_PARQUET) as writer:
                writer.write_table(table)
                writer.add_key_value_metadata({"schema_version": str(SCHEMA_VERSION)})

        write_atomic(self.folder / WHOLE, write)

    def _whole(self) -> Rows | None:
        """All rows from the one file, if that and every unit's are still what was written."""
        manifest = self.manifest()
        if manifest is None or WHOLE not in manifest["files"]:
            return None
        try:
            if any(_sha256(self.folder / n) != sha for n, sha in manifest["files"].items()):
                return None
        except OSError:
            return None
        table = self._read(self.folder / WHOLE, SCHEMA_VERSION, _schema())
        return _arrays(table)

    def rows(self, units: Sequence[Unit]) -> Rows:
        """All rows of these units, sorted canonically; unfinished units are left out.

        Raises:
            RecordError: A file is damaged.
        """
        import pyarrow as pa

        if len(units) and (whole := self._whole()) is not None:
            return whole
        stored = self.plan()["settings"]
        schema = _schema(stored["schema_version"])
        tables = [
            self._read(path, stored["schema_version"], schema)
            for path in map(self._rows_path, units)
            if path.exists()
        ]
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        if stored["schema_version"] != SCHEMA_VERSION:
            table = _upgraded(table, stored["threat"]["eps"])
        return _arrays(table.sort_by([(name, "ascending") for name in _SORT]))

    def _read(self, path: Path, version: int, schema: pa.Schema) -> pa.Table:
        """One unit's rows, checked."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Not read_table(schema=...), which fills columns that are not there with nulls.
            table = pq.ParquetFile(path).read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise RecordError(
                f"{path} is damaged: {error}",
                expected="the file that an audit wrote",
                fix=_REDO,
            ) from error
        found = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
        if found != str(version):
            raise RecordError(
                f"{path} has schema version {found}",
                expected=f"schema version {version}",
                fix="read it with the version of unperturb that wrote it",
            )
        if not table.schema.equals(schema):
            raise RecordError(
                f"{path} is damaged: its columns are {', '.join(table.schema.names)}",
                expected=", ".join(schema.names),
                fix=_REDO,
            )
        return table

    def timings(self, units: Sequence[Unit]) -> dict[int, dict[str, float]]:
        """Seconds of each finished unit, by its index."""
        found = {}
        for unit in units:
            path = self.folder / "timings" / f"{unit.name}.json"
            if path.exists():
                found[unit.index] = json.loads(path.read_text(encoding="utf-8"))
        return found

    # -- the end ------------------------------------------------------------------------------

    def finish(self, units: Sequence[Unit], digest: str) -> None:
        """Write the manifest: the last file of a complete audit."""
        names = [f"rows/{unit.name}.parquet" for unit in units]
        if (self.folder / WHOLE).exists():
            names.append(WHOLE)
        write_json(
            self.folder / "manifest.json",
            {
                "schema_version": self.plan()["settings"]["schema_version"],
                "settings_hash": self.plan()["settings_hash"],
                "digest": digest,
                "files": {name: _sha256(self.folder / name) for name in names},
            },
        )

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None while the audit is not complete."""
        path = self.folder / "manifest.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def reopen(self) -> None:
        """Take the manifest away: units of a complete audit are to be done again."""
        for name in ("manifest.json", WHOLE):
            (self.folder / name).unlink(missing_ok=True)

    def check(self, digest: str) -> None:
        """Compare a digest of the rows with the manifest, if there is one.

        Raises:
            RecordError: The rows are not those of which the manifest was written.
        """
        manifest = self.manifest()
        if manifest is None or manifest["digest"] == digest:
            return
        changed = [
            name
            for name, sha256 in manifest["files"].items()
            if _sha256(self.folder / name) != sha256
        ]
        raise RecordError(
            f"{self.folder} was changed after it was complete: the digest is {digest[:12]} "
            f"({', '.join(changed[:4]) or 'plan.json'})",
            expected=f"{manifest['digest'][:12]}, as manifest.json says",
            fix="delete these files and run the same audit again: only their units are redone",
        )


def digest_rows(rows: Rows, settings_hash: str, version: int = SCHEMA_VERSION) -> str:
    """SHA-256 over the settings' hash and the canonical, sorted rows, pixel hashes among them.

    Args:
        rows: What ``Store.rows`` reads.
        settings_hash: Hash of the plan's settings.
        version: Schema the rows were written in: its columns alone are digested.

    Example:
        >>> empty = {name: np.array([]) for name in COLUMNS}
        >>> len(digest_rows(empty, ""))
        64
    """
    found = hashlib.sha256(settings_hash.encode())
    for name, kind in _VERSIONS[version].items():
        values = rows[name]
        found.update(name.encode() + b"\0")
        if kind == "string":
            found.update("\0".join(map(str, values.tolist())).encode())
        else:
            plain = values.astype(_little(kind))
            if kind.startswith("float"):
                plain[np.isnan(plain)] = np.nan  # one NaN of many
            found.update(np.ascontiguousarray(plain).tobytes())
    return found.hexdigest()


def _little(kind: str) -> str:
    return {"int32": "<i4", "bool": "u1", "float32": "<f4", "float64": "<f8"}[kind]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
