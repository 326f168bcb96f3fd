"""Looking into an audit: a column by image, and the images that were kept."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from unperturb.audit import AuditResult

SMALL = 0.07


def column(result: AuditResult, name: str, **where: Any) -> dict[str, Any]:
    """Image id to the value of a column, of the one row that ``where`` leaves."""
    rows = result.rows
    if where.get("attacker") == "oblivious":
        where = {"goal": "wrong", **where}  # and not the control for label leaking
    mask = np.logical_and.reduce([rows[key] == value for key, value in where.items()])
    found = dict(zip(rows["image_id"][mask], rows[name][mask], strict=True))
    assert len(found) == mask.sum() == len(result.plan["ids"])
    return found


def kept(result: AuditResult, **where: Any) -> Tensor:
    """All images of an attack, in the plan's order."""
    where = {"goal": "wrong", **where}
    units = [u for u in result.units if all(getattr(u, k) == v for k, v in where.items())]
    parts = [load_file(result.store.pixels_path(unit))["images"] for unit in units]
    found = torch.cat(parts)
    assert len(found) == len(result.plan["ids"])
    return found


def sha(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:32]
