"""Checkpoints of training runs: reading them back, and refusing those of other runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unperturb.errors import RecordError

__all__ = ["CHECKPOINT", "Epoch", "check_run", "read_state", "under"]

CHECKPOINT = "checkpoint.safetensors"

Epoch = dict[str, Any]
"""What is recorded of one epoch: number, losses, rate, seconds, held-out figures."""


def read_state(
    path: Path,
    *,
    key: str = "run",
    required: str = "fingerprint",
    words: str = "training run",
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint says of its run, and its tensors by name.

    Args:
        path: The file.
        key: Where its metadata are.
        required: What they must name: the run that it is of.
        words: What wrote it, for messages.

    Raises:
        RecordError: It is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            meta = json.loads((stored.metadata() or {})[key])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if not isinstance(meta, dict):
            raise ValueError(f"its metadata are {type(meta).__name__}, no object")
        meta[required]
    except (SafetensorError, KeyError, ValueError) as error:
        raise RecordError(
            f"{path} is damaged: {error}",
            expected=f"the checkpoint that a {words} wrote",
            fix="choose another --out, or delete that checkpoint and begin anew",
        ) from error
    return meta, tensors


def check_run(path: Path, theirs: str, ours: str, expected: str) -> None:
    """Refuse the checkpoint of another training run.

    Args:
        path: The file.
        theirs: Fingerprint that it names.
        ours: Fingerprint of this run.
        expected: What must be the same, in words.

    Raises:
        RecordError: It is another run's.
    """
    if theirs != ours:
        raise RecordError(
            f"{path} belongs to another training run ({theirs[:12]}, this one is {ours[:12]})",
            expected=expected,
            fix="choose another --out, or delete that checkpoint",
        )


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
