"""Rows and plans written down by hand, for figures that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unperturb.audit.store import COLUMNS, Rows
from unperturb.audit.summary import summarize

EPS = 8 / 255

_DEFAULTS: dict[str, Any] = {
    "subject": "target",
    "attack": "pgd-20",
    "attacker": "adaptive",
    "backward": "exact",
    "rule": "first-success",
    "goal": "wrong",
    "eps": EPS,
    "purpose": "score",
    "label": 0,
    "prediction": 0,
    "flagged": False,
    "inside": True,
    "margin": -1.0,
    "detector": np.nan,
    "linf": EPS,
    "l2": 1.0,
    "measure": np.nan,
    "queries": 21,
    "gradients": -1,
    "zero_gradients": 0,
    "nan_gradients": 0,
    "pixels": "",
}


def cell(correct: Any, **values: Any) -> Rows:
    """Rows of one attack: which images are right, (N,) or (N, draws), and other columns alike."""
    right = np.asarray(correct, dtype=bool)
    right = right[:, None] if right.ndim == 1 else right
    count, draws = right.shape
    start = values.pop("start", 0)
    found: Rows = {}
    for name, kind in COLUMNS.items():
        dtype = object if kind == "string" else kind
        if name == "image_id":
            value: Any = np.array([str(start + i) for i in range(count)], dtype=object)[:, None]
        elif name == "draw":
            value = np.arange(draws)[None]
        elif name in ("correct", "correct_8bit"):
            value = values.get(name, right)
        else:
            value = values.get(name, _DEFAULTS[name])
        value = np.asarray(value, dtype=dtype)
        value = value[:, None] if value.ndim == 1 else value
        found[name] = np.broadcast_to(value, (count, draws)).reshape(-1)
    return found


def clean(correct: Any, subject: str = "target", **values: Any) -> Rows:
    """Rows of the unperturbed images."""
    return cell(
        correct, subject=subject, attack="clean", attacker="none", backward="none", rule="none",
        goal="none", eps=0.0, linf=0.0, l2=0.0, queries=1, **values,
    )  # fmt: skip


def together(*cells: Rows) -> Rows:
    """One table."""
    return {name: np.concatenate([part[name] for part in cells]) for name in COLUMNS}


def attack(name: str, **facts: Any) -> dict[str, Any]:
    """An attack as a plan describes it."""
    return {
        "name": name, "access": "gradients", "bound": "threat", "gradients": 20, "steps": 20,
        "restarts": 1, "loss": "ce", "rules": ["fixed", "first-success"], **facts,
    }  # fmt: skip


def plan(count: int, attacks: Sequence[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """A stored plan."""
    net = {"arch": "net", "num_classes": 10}
    random = settings.get("scoring_draws", 1) > 1
    describe = {"name": "defense", "purifier": {"name": "identity"}, "detector": None,
                "decision": {"name": "logits-after"}, "classifier": net,
                "stochastic": random}  # fmt: skip
    defended = settings.pop("has_defense", True)
    detector = settings.pop("detector", None)
    return {
        "settings": {
            "schema_version": 2,
            "attacks": list(attacks),
            "attackers": ["oblivious", "adaptive"],
            "threat": {"norm": "linf", "eps": EPS},
            "seed": 0,
            "batch_size": 128,
            "scoring_draws": 1,
            "images": count,
            "target": {"name": "defense", "title": "defense around net",
                       "describe": {**describe, "detector": detector} if defended or random
                       else net},
            "baseline": {"name": "undefended classifier", "describe": net},
            "has_defense": defended,
            "data": {"source": "hand", "split": None, "classes": []},
            **settings,
        },
        "settings_hash": "0" * 64,
        "environment": {},
        "ids": [str(i) for i in range(count)],
        "labels": [0] * count,
    }  # fmt: skip


def summary(plan: dict[str, Any], *cells: Rows) -> dict[str, Any]:
    """The figures of these rows; nothing is missing."""
    return summarize(plan, together(*cells), [], {}, digest=None, cost=None)
