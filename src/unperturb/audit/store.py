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

from torch import Tensor

from unperturb.audit.plan import READABLE, SCHEMA_VERSION, Plan, Unit, differences
from unperturb.audit.schema import COLUMNS, Rows, arrays, digest_rows, schema, upgraded
from unperturb.errors import OutputError, RecordError
from unperturb.files import write_atomic, write_json, write_tensors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "WHOLE", "Rows", "Store", "digest_rows"]

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

        table = pa.table({name: rows[name] for name in COLUMNS}, schema=schema())
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
        table = pa.table({name: rows[name] for name in COLUMNS}, schema=schema())

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
        table = self._read(self.folder / WHOLE, SCHEMA_VERSION, schema())
        return arrays(table)

    def rows(self, units: Sequence[Unit]) -> Rows:
        """All rows of these units, sorted canonically; unfinished units are left out.

        Raises:
            RecordError: A file is damaged.
        """
        import pyarrow as pa

        if len(units) and (whole := self._whole()) is not None:
            return whole
        stored = self.plan()["settings"]
        known = schema(stored["schema_version"])
        tables = [
            self._read(path, stored["schema_version"], known)
            for path in map(self._rows_path, units)
            if path.exists()
        ]
        table = pa.concat_tables(tables) if tables else known.empty_table()
        if stored["schema_version"] != SCHEMA_VERSION:
            table = upgraded(table, stored["threat"]["eps"])
        return arrays(table.sort_by([(name, "ascending") for name in _SORT]))

    def _read(self, path: Path, version: int, known: pa.Schema) -> pa.Table:
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
        if not table.schema.equals(known):
            raise RecordError(
                f"{path} is damaged: its columns are {', '.join(table.schema.names)}",
                expected=", ".join(known.names),
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


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
