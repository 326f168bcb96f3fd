"""Decisions: logits before and after purification to scores."""

from __future__ import annotations

from unperturb.decisions.base import Decision
from unperturb.decisions.logit_correction import LogitCorrection
from unperturb.decisions.logit_update import LogitUpdate
from unperturb.decisions.logits_after import LogitsAfter

__all__ = ["DECISIONS", "Decision", "LogitCorrection", "LogitUpdate", "LogitsAfter"]

DECISIONS: dict[str, type[Decision]] = {
    kind.name: kind for kind in (LogitsAfter, LogitCorrection, LogitUpdate)
}
"""Decisions by name."""
