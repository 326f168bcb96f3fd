"""Audits: plan, units of work, records, statistics, red flags and reports."""

from __future__ import annotations

from unperturb.audit.api import AuditResult, audit, compare_audits, merge, read_result

__all__ = ["AuditResult", "audit", "compare_audits", "merge", "read_result"]
