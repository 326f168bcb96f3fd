"""What an audit returns: a view of its records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from unperturb.audit.images import load_cases
from unperturb.audit.plan import plan_units
from unperturb.audit.store import WHOLE, Store, digest_rows
from unperturb.audit.summary import summarize

__all__ = ["AuditResult", "read_result"]


class AuditResult:
    """Figures, records and reports of an audit; everything is read from its folder.

    Args:
        store: The records.
    """

    def __init__(self, store: Store, *, _keep: Any = None) -> None:
        self.store = store
        self._keep = _keep
        self.plan = store.plan()
        self.units = plan_units(self.plan)
        self.rows = store.rows(self.units)
        self.summary = self._summarize()

    def _summarize(self) -> dict[str, Any]:
        cost_path = self.store.folder / "cost.json"
        cost = json.loads(cost_path.read_text(encoding="utf-8")) if cost_path.exists() else None
        finished = [u for u in self.units if self.store.has(u)]
        digest = None
        if len(finished) == len(self.units):
            digest = digest_rows(
                self.rows, self.plan["settings_hash"], self.plan["settings"]["schema_version"]
            )
            self.store.check(digest)
        timings = self.store.timings(finished)
        return summarize(
            self.plan,
            self.rows,
            self.units,
            # Rows end a unit, not timings.
            {u.index: timings.get(u.index, {"unit": 0.0}) for u in finished},
            digest=digest,
            cost=cost,
        )

    @property
    def complete(self) -> bool:
        """Whether every unit of the plan is done."""
        return bool(self.summary["complete"])

    @property
    def digest(self) -> str | None:
        """SHA-256 over the canonical rows; None while the audit is not complete."""
        return self.summary["digest"]  # type: ignore[no-any-return]

    @property
    def clean_accuracy(self) -> float | None:
        """Accuracy of the target on unperturbed images."""
        return _of(self.summary["target"]["clean"])

    @property
    def worst_case_accuracy(self) -> float | None:
        """Share of images that the target answers correctly clean and under every attack."""
        return _of(self.summary["target"]["worst_case"])

    def to_json(self) -> dict[str, Any]:
        """The short object that ``unperturb audit --json`` prints."""
        baseline = self.summary["baseline"]
        keys = (
            "name", "attacker", "backward", "eps", "norm", "n", "robust_accuracy", "interval",
            "median_distance", "seconds",
        )  # fmt: skip
        return {
            "clean_accuracy": self.clean_accuracy,
            "worst_case_accuracy": self.worst_case_accuracy,
            "baseline": {
                "clean_accuracy": _of(baseline["clean"]),
                "worst_case_accuracy": _of(baseline["worst_case"]),
            },
            "attacks": [
                {key: attack[key] for key in keys}
                for attack in self.summary["attacks"]
                if attack["subject"] == "target"
            ],
            "complete": self.complete,
            "left_out": self.summary["left_out"],
            "digest": self.digest,
        }

    def save_report(self, folder: str | Path | None = None) -> list[Path]:
        """Write ``report.html``, ``report.md``, ``report.json`` and ``records.parquet``.

        Args:
            folder: Where; the records' own folder by default.
        """
        from unperturb.audit.report import write_reports

        cases = load_cases(self.store, self.plan, self.units, self.rows)
        return write_reports(
            self.summary, cases, Path(folder or self.store.folder), self._records()
        )

    def _records(self) -> bytes:
        """All rows as one Parquet file: the store's own, if it is still what was written."""
        from unperturb.audit.report import records_bytes

        whole, manifest = self.store.folder / WHOLE, self.store.manifest()
        if manifest is not None and whole.exists():
            content = whole.read_bytes()
            if hashlib.sha256(content).hexdigest() == manifest["files"].get(WHOLE):
                return content
        facts = {"settings_hash": self.plan["settings_hash"], "digest": self.digest or "none"}
        return records_bytes(self.rows, facts)


def _of(acc: dict[str, Any] | None) -> float | None:
    return None if acc is None else float(acc["accuracy"])


def read_result(folder: str | Path) -> AuditResult:
    """Read an audit's folder.

    Raises:
        RecordError: It holds no audit, or a damaged one.
    """
    return AuditResult(Store(Path(folder)))
