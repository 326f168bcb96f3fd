"""Records on disk: one file of rows and one of pixels for each unit, and a manifest last.

Layout of an audit's folder::

    plan.json                 settings, their hash, environment, image ids and labels
    rows/00007.parquet        one row for each (image, subject, draw): its presence ends the unit
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

from unperturb.audit.plan import SCHEMA_VERSION, Plan, Unit, differences
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
    "draw": "int32",
    "label": "int32",
    "prediction": "int32",
    "correct": "bool",
    "flagged": "bool",
    "correct_8bit": "bool",
    "margin": "float32",
    "linf": "float32",
    "l2": "float32",
    "queries": "int32",
    "zero_gradients": "int32",
    "nan_gradients": "int32",
    "pixels": "string",
}
"""Columns of a row and their types; ``pixels`` is the first half of the SHA-256 of the image's
float32 bytes, in C order."""

_REDO = "delete that file and run the same audit again: only its unit is redone"

_TEMPORARY = (
    ".plan.json.*.tmp",
    ".cost.json.*.tmp",
    ".manifest.json.*.tmp",
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

_SORT = ("subject", "attack", "attacker", "backward", "image_id", "draw")


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int32": pa.int32(),
        "bool": pa.bool_(),
        "float32": pa.float32(),
    }
    meta = {"schema_version": str(SCHEMA_VERSION)}
    return pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()], metadata=meta)


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
        if version != SCHEMA_VERSION:
            raise RecordError(
                f"{path} has schema version {version}",
                expected=f"schema version {SCHEMA_VERSION}",
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

    def rows(self, units: Sequence[Unit]) -> Rows:
        """All rows of these units, sorted canonically; unfinished units are left out.

        Raises:
            RecordError: A file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for unit in units:
            path = self._rows_path(unit)
            if not path.exists():
                continue
            try:
                # Not read_table(schema=...), which fills columns that are not there with nulls.
                table = pq.ParquetFile(path).read()
            except (pa.ArrowException, OSError) as error:
                raise RecordError(
                    f"{path} is damaged: {error}",
                    expected="the file that an audit wrote",
                    fix=_REDO,
                ) from error
            version = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
            if version != str(SCHEMA_VERSION):
                raise RecordError(
                    f"{path} has schema version {version}",
                    expected=f"schema version {SCHEMA_VERSION}",
                    fix="read it with the version of unperturb that wrote it",
                )
            if not table.schema.equals(_schema()):
                raise RecordError(
                    f"{path} is damaged: its columns are {', '.join(table.schema.names)}",
                    expected=", ".join(COLUMNS),
                    fix=_REDO,
                )
            tables.append(table)
        table = pa.concat_tables(tables) if tables else _schema().empty_table()
        table = table.sort_by([(name, "ascending") for name in _SORT])
        return {
            name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names
        }

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
        write_json(
            self.folder / "manifest.json",
            {
                "schema_version": SCHEMA_VERSION,
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
        (self.folder / "manifest.json").unlink(missing_ok=True)

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


def digest_rows(rows: Rows, settings_hash: str) -> str:
    """SHA-256 over the settings' hash and the canonical, sorted rows, pixel hashes among them.

    Example:
        >>> empty = {name: np.array([]) for name in COLUMNS}
        >>> len(digest_rows(empty, ""))
        64
    """
    found = hashlib.sha256(settings_hash.encode())
    for name, kind in COLUMNS.items():
        values = rows[name]
        found.update(name.encode() + b"\0")
        if kind == "string":
            found.update("\0".join(map(str, values.tolist())).encode())
        else:
            found.update(np.ascontiguousarray(values.astype(_little(kind))).tobytes())
    return found.hexdigest()


def _little(kind: str) -> str:
    return {"int32": "<i4", "bool": "u1", "float32": "<f4"}[kind]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
