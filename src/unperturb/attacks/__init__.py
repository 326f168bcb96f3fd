"""Attacks: one first-order engine, a registry of names and suites, and the surface they see."""

from __future__ import annotations

from unperturb.attacks.base import STOPPING, Attack, Attacked, BaseAttack, describe_attack
from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.losses import LOSSES
from unperturb.attacks.registry import (
    ATTACKS,
    SUITES,
    Suite,
    attack_names,
    make_attack,
    resolve_attacks,
)
from unperturb.attacks.surface import GOALS, Judged, Surface

__all__ = [
    "ATTACKS",
    "GOALS",
    "LOSSES",
    "STOPPING",
    "SUITES",
    "Attack",
    "Attacked",
    "BaseAttack",
    "FirstOrder",
    "Judged",
    "Suite",
    "Surface",
    "attack_names",
    "describe_attack",
    "make_attack",
    "resolve_attacks",
]
