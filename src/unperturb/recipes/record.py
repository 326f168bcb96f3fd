"""The record of a reproduced table or figure: one JSON file that the page is written from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unperturb.errors import OutputError, RecordError
from unperturb.files import write_json
from unperturb.recipes.needs import (
    needed,
    needed_banks,
    needed_fits,
    needed_networks,
    needed_thresholds,
    subjects,
)
from unperturb.recipes.schema import Recipe

__all__ = ["RECORD", "begin", "head", "locked", "read_record"]

RECORD = "record.json"
BEGUN = "recipe.json"
SCHEMA_VERSION = 1


def head(recipe: Recipe, seed: int) -> dict[str, Any]:
    """What a record says before anything has been run."""
    used = _defenses(recipe)
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.name,
        "title": recipe.title,
        "kind": recipe.kind,
        "scale": recipe.scale,
        "seed": seed,
        "paper": {
            "source": recipe.paper.source,
            "item": recipe.paper.item,
            "settings": recipe.paper.settings,
            "notes": list(recipe.paper.notes),
        },
        "threat": recipe.threat.to_dict(),
        "attackers": list(recipe.attackers),
        **({} if recipe.side_effects else {"side_effects": False}),
        "rows": [
            {
                "name": row.name,
                "model": row.model,
                "defense": row.defense,
                "note": row.note,
                **({"attack": row.attack} if row.attack else {}),
                **({"attacks": dict(row.attacks)} if row.attacks else {}),
                "threat": row.threat.to_dict() if row.threat else None,
            }
            for row in recipe.rows.values()
        ],
        "columns": [
            {
                "name": column.name,
                "attack": column.attack,
                "n": column.n,
                **({"selected": True} if column.selected else {}),
                **({"gradients": list(column.gradients)} if column.gradients else {}),
                **({"only": column.only} if column.only else {}),
                "note": column.note,
                "threat": column.threat.to_dict() if column.threat else None,
            }
            for column in recipe.columns.values()
        ],
        # Lists, here and elsewhere: keys of a JSON object are sorted, and lose their order.
        "panels": [
            {
                "title": panel.title,
                "lines": [
                    *([label, *line] for label, line in panel.lines.items()),
                    *([label, f"network {n}", key] for label, (n, key) in panel.networks.items()),
                ],
            }
            for panel in recipe.panels
        ],
        "defenses": {
            name: {"preset": preset, **options}
            for name, (preset, options) in recipe.defenses.items()
            if name in used
        },
        "settings": _settings(recipe),
        "complete": False,
        "left_out": [],
    }


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it was read, without what other recipes need."""
    used = [recipe.models[name] for name in needed(recipe)]
    names = {"models": {m.name for m in used}, "datasets": {m.dataset for m in used}}
    names["models"] |= {sweep.model for sweep in recipe.sweeps}
    names |= {
        "banks": set(needed_banks(recipe)),
        "fits": set(needed_fits(recipe)),
        "networks": set(needed_networks(recipe)),
        "thresholds": {name for name, _ in needed_thresholds(recipe)},
        "defenses": _defenses(recipe),
    }
    names["datasets"] |= {recipe.networks[name].dataset for name in names["networks"]}
    kept = {
        key: {name: part for name, part in recipe.body[key].items() if name in names[key]}
        for key in names
        if key in recipe.body
    }
    found: dict[str, Any] = json.loads(json.dumps({**recipe.body, **kept}))
    return found


def _defenses(recipe: Recipe) -> set[str]:
    """Defenses that something of the recipe names; a paper's file may hold those of others."""
    named = [defense for _, defense in subjects(recipe)]
    named += [sweep.defense for sweep in recipe.sweeps]
    named += [measured.defense for measured in recipe.measured]
    return {name for name in named if name is not None}


def begin(folder: Path, recipe: Recipe, seed: int) -> None:
    """Mark a folder as this recipe's, or check that it is.

    Raises:
        RecordError: It holds another recipe, scale or seed, or something else.
        OutputError: It cannot be written.
    """
    ours = {"recipe": recipe.name, "scale": recipe.scale, "seed": seed}
    path = folder / BEGUN
    if not path.is_file():
        strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if strangers:
            raise RecordError(
                f"{folder} is not empty and holds no reproduction ({', '.join(strangers[:4])})",
                expected="a new or empty folder, or that of the same recipe",
                fix="choose another --out",
            )
        write_json(path, ours)
        return
    theirs = _json(path)
    if theirs != ours:
        changed = [f"{k}: {theirs.get(k)} there, {v} here" for k, v in ours.items()
                   if theirs.get(k) != v]  # fmt: skip
        raise RecordError(
            f"{folder} holds another reproduction ({'; '.join(changed)})",
            expected="the same recipe, scale and seed, or a new folder",
            fix="choose another --out",
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder: two runs never write into one.

    Raises:
        OutputError: It cannot be written, or another process holds it.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"Another process is writing into {folder}",
            expected="one run at a time in a folder",
            fix="wait for it, or choose another --out",
        ) from None
    except OSError as error:
        raise OutputError(
            f"Cannot write into {folder}: {error.strerror or error}",
            expected="a folder that can be written to",
            fix="choose another --out",
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_record(folder: str | Path) -> dict[str, Any]:
    """Read a reproduction's record.

    Raises:
        RecordError: There is none, or it is damaged or of another version.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise RecordError(
            f"{folder} holds no {RECORD}",
            expected="the --out folder of 'unperturb reproduce'",
            fix="run the recipe first",
        )
    found = _json(path)
    if found.get("schema_version") != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {found.get('schema_version')}",
            expected=f"schema version {SCHEMA_VERSION}",
            fix="read it with the version of unperturb that wrote it",
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{path} is damaged: {error}", expected="the file that a run wrote"
        ) from error
    if not isinstance(found, dict):
        raise RecordError(f"{path} is damaged", expected="one JSON object")
    return found
