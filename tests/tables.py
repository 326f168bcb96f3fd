"""The declarative test table: one row for each registered purifier, detector, decision, attack.

A row says how to build the part and what is true of it; ``test_house.py`` brings the general
contract to every row, and fails for a part without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One part.

    Attributes:
        name: Its registered id.
        options: Keyword arguments that build it, some of them off their defaults.
        wrong: Keyword arguments it must refuse, each alone; empty where it takes none.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    wrong: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class AttackRow:
    """One attack family.

    Attributes:
        name: Its registered id.
        specs: Specifications whose contract is tested, the default first.
        steps: The default's ``steps``; None where it has no such setting.
        random: Whether another seed gives other images; None where that depends.
        one_step: Whether that is asked of its one-step form.
        access: What it needs: gradients, scores or labels.
        bound: What bounds its images: threat, minimal or own.
        moves: Whether it moves every image of the test's network, broken or not.
    """

    name: str
    specs: tuple[str, ...]
    steps: int | None
    random: bool | None = False
    one_step: bool = True
    access: str = "gradients"
    bound: str = "threat"
    moves: bool = True


PURIFIER_ROWS = (
    Row("identity"),
    Row(
        "fgsm-step",
        options={"radius": 4 / 255, "clip": False},
        wrong=({"radius": 8.0}, {"radius": 0.0}),
    ),
)

DETECTOR_ROWS = (
    Row(
        "threshold",
        options={"statistic": "signed-change", "threshold": 0.25, "action": "reject"},
        wrong=({"statistic": "entropy"}, {"action": "warn"}),
    ),
)

DECISION_ROWS = (Row("logits-after"),)

ATTACK_ROWS = (
    AttackRow("fgsm", specs=("fgsm", "fgsm?loss=margin"), steps=1),
    AttackRow("bim", specs=("bim", "bim-3?loss=dlr"), steps=10),
    AttackRow("pgd", specs=("pgd", "pgd-4?restarts=2&loss=margin"), steps=20, random=True),
    AttackRow("mim", specs=("mim", "mim-4?momentum=0.5"), steps=10),
)
