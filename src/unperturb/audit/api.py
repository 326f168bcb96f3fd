"""The audit's public functions."""

from __future__ import annotations

from unperturb.audit.compare import compare_audits
from unperturb.audit.merge import merge
from unperturb.audit.result import AuditResult, read_result
from unperturb.audit.run import audit

__all__ = ["AuditResult", "audit", "compare_audits", "merge", "read_result"]
