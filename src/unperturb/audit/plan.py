"""The plan of an audit: settings, their hash, and the list of work units they imply."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from unperturb.errors import ConfigError, InputError, unknown_name

__all__ = [
    "ATTACKERS",
    "KEEP_IMAGES",
    "SCHEMA_VERSION",
    "Plan",
    "Unit",
    "environment",
    "plan_units",
]

SCHEMA_VERSION = 1
ATTACKERS = ("oblivious", "adaptive")
KEEP_IMAGES = ("worst", "all", "none")


@dataclass(frozen=True)
class Unit:
    """One piece of work: an attack on a fixed list of images.

    Attributes:
        index: Place in the plan.
        kind: ``clean`` or ``attack``.
        start: First image.
        stop: One past the last image.
        attack: Name of the attack, ``clean`` for none.
        attacker: ``none``, ``oblivious`` (sees the undefended classifier) or ``adaptive``.
        subject: Whom the attack is aimed at: ``target`` or ``baseline``. Oblivious units attack
            the baseline and score both.
        backward: Gradient taken through the purifier.
        rule: Stopping rule, ``fixed`` or ``first-success``.
    """

    index: int
    kind: str
    start: int
    stop: int
    attack: str = "clean"
    attacker: str = "none"
    subject: str = "both"
    backward: str = "none"
    rule: str = "none"

    @property
    def name(self) -> str:
        """File name of the unit's records."""
        return f"{self.index:05d}"


@dataclass(frozen=True)
class Plan:
    """Settings of an audit. Everything here enters the settings' hash.

    Attributes:
        attacks: Settings of the attacks, in order.
        attackers: Some of ``oblivious`` and ``adaptive``.
        norm: Name of the threat model's norm.
        eps: Its size in pixel units.
        seed: Seed of all random numbers.
        batch_size: Images in a unit; every tensor shape follows from it.
        scoring_draws: Fresh draws on which a random defense is scored; 1 where nothing is random.
        backwards: Gradients an adaptive attacker tries on the target.
        keep_images: ``worst`` (per image and attacker), ``all`` or ``none``.
        ids: Image ids, in order.
        target: Description and fingerprint of what is audited.
        baseline: Description and fingerprint of what it is compared with.
        has_defense: Whether the target is more than the baseline.
        data: Source, split and fingerprint of the images.
    """

    attacks: tuple[dict[str, Any], ...]
    attackers: tuple[str, ...]
    norm: str
    eps: float
    seed: int
    batch_size: int
    scoring_draws: int
    backwards: tuple[str, ...]
    keep_images: str
    ids: tuple[str, ...] = field(repr=False)
    target: dict[str, Any]
    baseline: dict[str, Any]
    has_defense: bool
    data: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.attackers:
            raise ConfigError("No attacker is named", expected="some of oblivious and adaptive")
        for attacker in self.attackers:
            if attacker not in ATTACKERS:
                raise unknown_name("attacker", attacker, ATTACKERS)
        if self.keep_images not in KEEP_IMAGES:
            raise unknown_name("keep_images", self.keep_images, KEEP_IMAGES)
        for name in ("batch_size", "scoring_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", expected="at least 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"The seed is {self.seed}", expected="0 to 2**63 - 1")
        if len(set(self.ids)) != len(self.ids):
            raise InputError("Image ids repeat", expected="one id for each image")

    def to_dict(self) -> dict[str, Any]:
        """All settings, JSON-able; ids are hashed apart."""
        return {
            "schema_version": SCHEMA_VERSION,
            "attacks": list(self.attacks),
            "attackers": list(self.attackers),
            "threat": {"norm": self.norm, "eps": self.eps},
            "seed": self.seed,
            "batch_size": self.batch_size,
            "scoring_draws": self.scoring_draws,
            "backwards": list(self.backwards),
            "keep_images": self.keep_images,
            "images": len(self.ids),
            "ids_sha256": hashlib.sha256("\n".join(self.ids).encode()).hexdigest(),
            "target": self.target,
            "baseline": self.baseline,
            "has_defense": self.has_defense,
            "data": self.data,
        }

    def settings_hash(self) -> str:
        """SHA-256 of all settings that decide a result (where weights lie does not)."""
        values = self.to_dict()
        for subject in ("target", "baseline"):
            values[subject] = values[subject]["fingerprint"]
        values["data"] = values["data"]["fingerprint"]
        del values["keep_images"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def units(self) -> list[Unit]:
        """The work, image block by image block, so that a cut leaves whole rows of attacks."""
        found: list[Unit] = []

        def add(kind: str, start: int, **rest: str) -> None:
            stop = min(start + self.batch_size, len(self.ids))
            found.append(Unit(len(found), kind, start, stop, **rest))

        for start in range(0, len(self.ids), self.batch_size):
            add("clean", start)
            for attack in self.attacks:
                name = {"attack": str(attack["name"])}
                if "oblivious" in self.attackers:
                    add(
                        "attack", start, **name, attacker="oblivious", subject="baseline",
                        backward="exact", rule="fixed",
                    )  # fmt: skip
                if "adaptive" not in self.attackers:
                    continue
                for backward in self.backwards:
                    add(
                        "attack", start, **name, attacker="adaptive", subject="target",
                        backward=backward, rule="first-success",
                    )  # fmt: skip
                if self.has_defense:
                    add(
                        "attack", start, **name, attacker="adaptive", subject="baseline",
                        backward="exact", rule="first-success",
                    )  # fmt: skip
        return found


def environment(device: torch.device) -> dict[str, Any]:
    """What, beside the plan, decides the bits of a result: the fingerprint of G1."""
    from unperturb import __version__

    return {
        "unperturb": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Sequence[str]:
    """Human-readable list of what differs between two nested dictionaries."""
    found: list[str] = []
    # What a thing is made of says less than that it is another one, and comes last.
    for key in sorted({*ours, *theirs}, key=lambda name: (name == "describe", name)):
        one, two = ours.get(key), theirs.get(key)
        names = _names(one), _names(two)
        if None not in names:
            # Which attacks there are says more than all their settings.
            one, two = names if names[0] != names[1] else (_by_name(one), _by_name(two))
        if isinstance(one, dict) and isinstance(two, dict):
            found.extend(differences(one, two, f"{prefix}{key}."))
        elif one != two:
            found.append(f"{prefix}{key}: {_short(two)} there, {_short(one)} here")
    return found


def _names(value: Any) -> list[Any] | None:
    """Names of a list of attacks; None of anything else."""
    if isinstance(value, list | tuple) and all(isinstance(v, dict) and "name" in v for v in value):
        return [v["name"] for v in value]
    return None


def _by_name(attacks: Any) -> dict[str, Any]:
    return {attack["name"]: attack for attack in attacks}


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def plan_units(stored: dict[str, Any]) -> list[Unit]:
    """The units of a stored plan."""
    settings = stored["settings"]
    return Plan(
        attacks=tuple(settings["attacks"]),
        attackers=tuple(settings["attackers"]),
        norm=settings["threat"]["norm"],
        eps=settings["threat"]["eps"],
        seed=settings["seed"],
        batch_size=settings["batch_size"],
        scoring_draws=settings["scoring_draws"],
        backwards=tuple(settings["backwards"]),
        keep_images=settings["keep_images"],
        ids=tuple(stored["ids"]),
        target=settings["target"],
        baseline=settings["baseline"],
        has_defense=settings["has_defense"],
        data=settings["data"],
    ).units()
