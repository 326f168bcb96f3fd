"""Putting the shards of one audit together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from unperturb.audit.plan import differences, plan_units
from unperturb.audit.result import AuditResult
from unperturb.audit.run import complete
from unperturb.audit.store import Store
from unperturb.errors import RecordError
from unperturb.files import write_atomic, write_json

__all__ = ["merge"]


def merge(folders: Sequence[str | Path], out: str | Path) -> AuditResult:
    """Merge audits that did parts (``shard``) of one plan; the digest is that of a whole run.

    Args:
        folders: The shards' folders.
        out: A new folder, or one that an earlier ``merge`` of the same audit began.

    Raises:
        RecordError: The folders do not belong to one audit.
        OutputError: ``out`` cannot be written.
    """
    stores = [Store(Path(folder)) for folder in folders]
    if not stores:
        raise RecordError("No folder is named", expected="the folders of an audit's shards")
    plans = [store.plan() for store in stores]
    for store, plan in zip(stores, plans, strict=True):
        for key in ("settings_hash", "environment", "keep_images"):
            kind = "environment" if key == "environment" else "settings"
            one, two = (p["settings"] if key == "keep_images" else p for p in (plans[0], plan))
            if one[key] != two[key]:
                changed = differences(plans[0][kind], plan[kind])
                raise RecordError(
                    f"{store.folder} and {stores[0].folder} are not shards of one audit "
                    f"({'; '.join(changed[:6])})",
                    expected="the same settings and environment",
                )
    target = Store(Path(out))
    units = plan_units(plans[0])
    with target.locked():
        if (target.folder / "plan.json").exists():
            if target.plan()["settings_hash"] != plans[0]["settings_hash"]:
                raise RecordError(
                    f"{target.folder} holds another audit",
                    expected="a new folder",
                    fix="choose another --out",
                )
        else:
            target.refuse_strangers()
            write_json(target.folder / "plan.json", plans[0])
        for unit in units:
            source = next((s for s in stores if s.has(unit)), None)
            if source is None or target.has(unit):
                continue
            # Rows go last: their presence ends a unit, here as in a run.
            for part in ("pixels", "timings", "rows"):
                for path in (source.folder / part).glob(f"{unit.name}.*"):
                    write_atomic(target.folder / part / path.name, _copier(path))
        # A shard that was whole already has dropped what its worst images were chosen from.
        for store in stores:
            for path in (store.folder / "images").glob("*.safetensors"):
                write_atomic(target.folder / "images" / path.name, _copier(path))
        cost = stores[0].folder / "cost.json"
        if cost.exists():
            write_atomic(target.folder / "cost.json", _copier(cost))
        complete(target)
    return AuditResult(target)


def _copier(source: Path) -> Callable[[Path], None]:
    def copy(path: Path) -> None:
        shutil.copyfile(source, path)

    return copy
