"""Adversarial images made elsewhere, read and checked for an audit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unperturb.audit.outside import check_outside, read_outside
from unperturb.audit.work import Given
from unperturb.threat import Threat

__all__ = ["read_given"]


def read_given(
    outside: Mapping[str, str | Path | Tensor],
    ids: Sequence[str],
    images: Tensor,
    threat: Threat,
) -> dict[str, tuple[dict[str, Any], Given]]:
    """Facts for the plan and images in the plan's order, by the name they have in the records.

    Args:
        outside: Name to a folder, a file or a tensor.
        ids: Ids of the clean images, in order.
        images: The clean images (N, C, H, W).
        threat: The threat model they are checked against.

    Raises:
        ConfigError: A name cannot stand in records.
        InputError: The images are not what the contract says.
        DataError: A file cannot be read, or names unknown images.
    """
    found = {}
    for name, source in outside.items():
        read = read_outside(source, ids, images.shape[1:], name=name)
        whole = torch.zeros_like(images)
        whole[read.rows] = read.images.to(images)
        present = torch.zeros(len(images), dtype=torch.bool)
        present[read.rows] = True
        check = check_outside(read, images, threat)
        counted = int(check.inside.sum())
        digest = hashlib.sha256(read.images.detach().cpu().contiguous().numpy().tobytes())
        digest.update(read.rows.numpy().tobytes())
        key = f"import:{name}"
        facts = {
            **read.facts,
            "name": key,
            "fingerprint": digest.hexdigest(),
            "inside": counted,
            "rejected": len(read) - counted,
            "excess": check.excess,
            "note": check.note,
        }
        found[key] = (facts, Given(whole, present))
    return found
