"""The audit's public functions."""

from __future__ import annotations

from unperturb.audit.merge import merge
from unperturb.audit.result import AuditResult, read_result
from unperturb.audit.run import audit

__all__ = ["AuditResult", "audit", "merge", "read_result"]
