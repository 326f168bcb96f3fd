"""The plan of an audit: settings, their hash, and the list of work units they imply."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from unperturb.attacks.surface import UNDEFENDED
from unperturb.errors import ConfigError, InputError, unknown_name

__all__ = [
    "ATTACKERS",
    "KEEP_IMAGES",
    "READABLE",
    "SCHEMA_VERSION",
    "Plan",
    "Unit",
    "environment",
    "plan_units",
]

SCHEMA_VERSION = 2
READABLE = (1, 2)

SMALL = 0.25
"""An oblivious attack of this part of eps mostly fails: what does a defense make of its images?"""
ATTACKERS = ("oblivious", "adaptive")
KEEP_IMAGES = ("worst", "all", "none")


@dataclass(frozen=True)
class Unit:
    """One piece of work: an attack on a fixed list of images.

    Attributes:
        index: Place in the plan.
        kind: ``clean``, ``benign``, ``attack``, ``outside`` or ``probe``.
        start: First image.
        stop: One past the last image.
        attack: Name of the attack, ``clean`` for none.
        attacker: ``none``, ``oblivious`` (sees the undefended classifier), ``adaptive``,
            ``benign`` or ``outside`` (images made elsewhere).
        subject: Whom the attack is aimed at: ``target``, ``baseline`` or ``both`` (nobody).
        scores: Whom it says something about: ``target``, ``baseline`` or ``both``. Where the
            baseline is the defense's own classifier, an oblivious unit attacks it and scores both.
        backward: Gradient taken through the purifier; ``none`` for attacks that take none.
        rule: Stopping rule: ``fixed``, ``first-success`` or ``minimal``.
        goal: What the attacker wants; see ``Surface``. ``predicted-label``: an oblivious attack
            that steps away from the predicted label, the control for label leaking.
        eps: Size of the attack in pixel units.
    """

    index: int
    kind: str
    start: int
    stop: int
    attack: str = "clean"
    attacker: str = "none"
    subject: str = "both"
    scores: str = "both"
    backward: str = "none"
    rule: str = "none"
    goal: str = "none"
    eps: float = 0.0

    @property
    def name(self) -> str:
        """File name of the unit's records."""
        return f"{self.index:05d}"


@dataclass(frozen=True)
class Plan:
    """Settings of an audit. Everything here enters the settings' hash.

    Attributes:
        attacks: Settings and facts of the attacks, in order (``describe_attack``); with
            ``"only": "adaptive"`` where just that attacker runs it.
        attackers: Some of ``oblivious`` and ``adaptive``.
        norm: Name of the threat model's norm.
        eps: Its size in pixel units.
        seed: Seed of all random numbers.
        batch_size: Images in a unit; every tensor shape follows from it.
        scoring_draws: Fresh draws on which a random defense is scored, and as many others on which
            its worst attack is selected; 1 where nothing is random.
        backwards: Gradients an adaptive attacker tries on the target.
        keep_images: ``worst`` (per image and attacker), ``all`` or ``none``.
        ids: Image ids, in order.
        target: Description and fingerprint of what is audited.
        baseline: Description and fingerprint of what it is compared with.
        has_defense: Whether the target is more than the baseline.
        data: Source, split and fingerprint of the images.
        own_baseline: Whether the baseline is the defense's own classifier.
        goals: Goals an adaptive attacker has beside a wrong answer.
        baseline_backwards: Gradients he tries on the baseline: more than one where that is a
            defense, too.
        baseline_goals: His goals there.
        benign: Changes that are no attack, for what the defense does to images that need none.
        control: Attack that is also run away from the predicted label; None for none.
        probe: The attack whose strength is varied, the number of images, and the sizes: security
            curve, a huge eps, more steps, more draws; None for none.
        outside: Adversarial images made elsewhere: name, fingerprint, facts.
        suite: Name of the suite of attacks, if it is one.
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
    own_baseline: bool = True
    goals: tuple[str, ...] = ()
    baseline_backwards: tuple[str, ...] = ("exact",)
    baseline_goals: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    control: str | None = None
    probe: dict[str, Any] | None = None
    outside: tuple[dict[str, Any], ...] = ()
    suite: str | None = None

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
            "own_baseline": self.own_baseline,
            "goals": list(self.goals),
            "baseline_backwards": list(self.baseline_backwards),
            "baseline_goals": list(self.baseline_goals),
            "benign": list(self.benign),
            "control": self.control,
            "probe": self.probe,
            "outside": list(self.outside),
            "suite": self.suite,
        }

    def settings_hash(self) -> str:
        """SHA-256 of all settings that decide a result (where weights lie does not)."""
        values = self.to_dict()
        for subject in ("target", "baseline"):
            values[subject] = values[subject]["fingerprint"]
        values["data"] = values["data"]["fingerprint"]
        values["outside"] = [[given["name"], given["fingerprint"]] for given in self.outside]
        del values["keep_images"], values["suite"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def units(self) -> list[Unit]:
        """The work, image block by image block, so that a cut leaves whole rows of attacks."""
        found: list[Unit] = []
        for start in range(0, len(self.ids), self.batch_size):
            stop = min(start + self.batch_size, len(self.ids))
            for job in self._jobs(start):
                found.append(Unit(len(found), start=start, stop=stop, **job))
        return found

    def _jobs(self, start: int) -> Iterator[dict[str, Any]]:
        """Everything that is done to the block of images at ``start``."""
        yield {"kind": "clean"}
        for name in self.benign:
            eps = self.eps * SMALL if name == "small-eps" else self.eps
            yield {"kind": "benign", "attack": name, "attacker": "benign", "eps": eps}
        for attack in self.attacks:
            if "oblivious" in self.attackers and attack.get("only") != "adaptive":
                yield from self._oblivious(attack, "wrong")
                if attack["name"] == self.control:
                    yield from self._oblivious(attack, "predicted-label")
            if "adaptive" in self.attackers:
                yield from self._adaptive(attack)
        for given in self.outside:
            yield {
                "kind": "outside", "attack": given["name"], "attacker": "outside",
                "goal": "wrong", "eps": self.eps,
            }  # fmt: skip
        if self.probe is not None and start < self.probe["images"]:
            yield from self._probes(self.probe)

    def _attack(self, attack: dict[str, Any], wanted: str, **rest: Any) -> dict[str, Any]:
        rules = attack.get("rules", ("fixed", "first-success"))
        rule = wanted if wanted in rules else rules[0]
        if attack.get("access", "gradients") != "gradients":
            rest["backward"] = "none"
        return {
            "kind": "attack", "attack": str(attack["name"]), "rule": rule, "goal": "wrong",
            "eps": self.eps, **rest,
        }  # fmt: skip

    def _oblivious(self, attack: dict[str, Any], goal: str) -> Iterator[dict[str, Any]]:
        facts = {"attacker": "oblivious", "backward": "exact", "goal": goal}
        if self.own_baseline:
            yield self._attack(attack, "fixed", subject="baseline", **facts)
            return
        # Images made on another network say nothing: each is attacked where it is undefended.
        for subject in ("target", "baseline"):
            yield self._attack(attack, "fixed", subject=subject, scores=subject, **facts)

    def _adaptive(self, attack: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Every gradient with the plain goal; every further goal with each of the stages' own."""
        subjects = [("target", self.backwards, self.goals)]
        if self.has_defense:
            subjects.append(("baseline", self.baseline_backwards, self.baseline_goals))
        blind = attack.get("access", "gradients") != "gradients"
        able = attack.get("goals")
        for subject, backwards, goals in subjects:
            facts = {"attacker": "adaptive", "subject": subject, "scores": subject}
            for backward in backwards[:1] if blind else backwards:
                yield self._attack(attack, "first-success", backward=backward, **facts)
            # The bare classifier's gradient knows no flags and no branches.
            own = [b for b in backwards if b != UNDEFENDED]
            for goal in goals:
                if able is not None and goal not in able:
                    continue
                for backward in own[:1] if blind else own:
                    yield self._attack(
                        attack, "first-success", backward=backward, **facts, goal=goal
                    )

    def _probes(self, probe: dict[str, Any]) -> Iterator[dict[str, Any]]:
        subjects = ("target", "baseline") if self.has_defense else ("target",)
        for subject in subjects:
            backward = (self.backwards if subject == "target" else self.baseline_backwards)[0]
            sizes = [("probe", eps) for eps in (*probe["eps"], probe["huge"])]
            more = [(name, self.eps) for name in probe["more"][subject]]
            for name, eps in (*sizes, *more):
                yield self._attack(
                    {**probe["attack"], "name": name}, "first-success", kind="probe",
                    attacker="adaptive", subject=subject, scores=subject, backward=backward,
                    eps=eps,
                )  # fmt: skip


def _versions(*names: str) -> dict[str, str | None]:
    """Versions of packages that decide rows, where they are installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
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
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "packages": _versions("foolbox", "pillow", "pyautoattack", "scipy"),
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
        # What the first schema did not have is empty there.
        own_baseline=settings.get("own_baseline", True),
        goals=tuple(settings.get("goals", ())),
        baseline_backwards=tuple(settings.get("baseline_backwards", ("exact",))),
        baseline_goals=tuple(settings.get("baseline_goals", ())),
        benign=tuple(settings.get("benign", ())),
        control=settings.get("control"),
        probe=settings.get("probe"),
        outside=tuple(settings.get("outside", ())),
        suite=settings.get("suite"),
    ).units()
