"""What the tests of recipes check of every record and page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unperturb.audit import read_result
from unperturb.audit.statistics import wilson

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
HASH = re.compile(r"\b[0-9a-f]{16,64}\b")


def leaves(value: Any) -> Iterator[Any]:
    """Numbers and texts of a record, wherever they stand; keys are texts too."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    elif value is not None:
        yield value


def known_numbers(record: dict[str, Any]) -> set[str]:
    """Every number of a record as a page may write it."""
    # The one number that no record holds: the coverage of the intervals.
    found = {"95"}
    for leaf in leaves(record):
        if isinstance(leaf, str):
            found |= set(NUMBER.findall(leaf))
        elif not isinstance(leaf, bool):
            forms = (f"{leaf:.1%}", f"{leaf:g}", f"{leaf:,}", f"{leaf:.2f}", f"{leaf:.3f}",
                     f"{leaf:.3g}", f"{leaf * 255:g}", f"{leaf}")  # fmt: skip
            found |= {number for form in forms for number in NUMBER.findall(form)}
    # Lengths of curves are counted, not stored.
    found |= {str(len(c["epochs"])) for c in record.get("curves", {}).values()}
    return found


def check_page(record: dict[str, Any], page: str) -> None:
    """Every number on a page stands in its record."""
    hashes = {leaf for leaf in leaves(record) if isinstance(leaf, str) and HASH.fullmatch(leaf)}
    for found in HASH.findall(page):
        assert any(known.startswith(found) for known in hashes), found
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|/255|L2", " ", HASH.sub(" ", page))
    strange = set(NUMBER.findall(text)) - known_numbers(record)
    assert not strange, f"numbers that the record does not hold: {sorted(strange)}"


def check_cells(record: dict[str, Any], out: Path) -> None:
    """Every cell is whole, and agrees with the audit that it names."""
    rows = [row["name"] for row in record["rows"]]
    columns = [column["name"] for column in record["columns"]]
    assert {(c["row"], c["column"]) for c in record["cells"]} == {
        (row, column) for row in rows for column in columns
    }
    for cell in record["cells"]:
        if cell["status"] != "done":
            assert cell["reason"]
            assert "accuracy" not in cell
            continue
        assert cell["accuracy"] == cell["correct"] / cell["n"]
        assert tuple(cell["interval"]) == wilson(cell["correct"], cell["n"])
        audit = record["audits"][cell["audit"]]
        assert (cell["seed"], cell["threat"]) == (record["seed"], audit["threat"])
        row = next(row for row in record["rows"] if row["name"] == cell["row"])
        assert audit["classifier"] == record["models"][row["model"]]["fingerprint"]
        assert cell["attack"] is None or cell["stops"]
    for key, audit in record["audits"].items():
        found = read_result(out / "audits" / key)
        assert (found.digest, found.plan["settings_hash"]) == (
            audit["digest"],
            audit["settings_hash"],
        )
        assert audit["environment"] == found.plan["environment"]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what differs between equal runs."""
    found = json.loads(json.dumps(record))
    for cell in found["cells"]:
        cell.pop("seconds", None)
    for audit in found["audits"].values():
        audit.pop("cost")
    return found  # type: ignore[no-any-return]
