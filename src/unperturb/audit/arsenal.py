"""Which attacks an audit runs on this defense: the named ones, and what each stage asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from unperturb.attacks import (
    SUITES,
    Attack,
    Suite,
    describe_attack,
    make_attack,
    resolve_attacks,
)
from unperturb.attacks.surface import UNDEFENDED
from unperturb.defense import Defense
from unperturb.errors import ConfigError, unknown_name
from unperturb.threat import Threat

__all__ = [
    "CURVE",
    "HUGE",
    "Arsenal",
    "adaptive_backwards",
    "adaptive_goals",
    "arsenal",
    "suites_of",
]

CURVE = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Sizes of the security curve, as fractions of the threat model's eps."""

HUGE = 0.5
"""At this Linf distance (or this much a pixel in L2) every image can be made one grey."""

_MORE = 4


@dataclass(frozen=True)
class Arsenal:
    """The attacks of an audit.

    Attributes:
        attacks: By name, the probes among them.
        facts: What the plan says of each, in order, without the probes.
        suite: The suite's name, if it is one.
        control: The attack that is also run away from the predicted label; None for none.
        probing: What the plan says of the probe; None for none.
    """

    attacks: dict[str, Attack]
    facts: tuple[dict[str, Any], ...]
    suite: str | None
    control: str | None
    probing: dict[str, Any] | None


def adaptive_backwards(target: nn.Module, chosen: Sequence[str] | None = None) -> tuple[str, ...]:
    """Gradients an attacker who knows the defense tries: its purifier's, and the bare net's.

    Args:
        target: What is attacked.
        chosen: Others in their place; None for these.

    Raises:
        SpecError: The target has no such gradient.
        ConfigError: None is chosen, or one twice.
    """
    if not isinstance(target, Defense):
        return ("exact",)
    if chosen is None:
        return (*target.purifier.adaptive, UNDEFENDED)
    known = (*target.backwards, UNDEFENDED)
    for rule in chosen:
        if rule not in known:
            raise unknown_name(f"gradient of {target.purifier.name}", str(rule), known)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ConfigError(
            f"backwards is {list(chosen)!r}", expected=f"some of {', '.join(known)}, each once"
        )
    return tuple(chosen)


def adaptive_goals(target: nn.Module) -> tuple[str, ...]:
    """Goals beside a wrong answer: past a detector that rejects, and by way of each branch."""
    if not isinstance(target, Defense):
        return ()
    goals = [f"branch:{name}" for name in target.decision.routes]
    return (*(["wrong-unflagged"] if target.rejects else []), *goals)


def arsenal(
    attacks: str | Sequence[str | Attack],
    target: nn.Module,
    threat: Threat,
    *,
    attackers: Sequence[str],
    gradient_draws: int,
    probe_images: int | None,
    shape: tuple[int, ...],
    baseline: nn.Module | None = None,
) -> Arsenal:
    """The attacks of an audit, with those that the stages of the defense declare.

    Args:
        attacks: A suite, a comma-separated list of names, or attacks.
        target: What is audited.
        threat: The threat model.
        attackers: Some of ``oblivious`` and ``adaptive``.
        gradient_draws: Draws averaged in each gradient of a random defense.
        probe_images: Images of the probes; None for what the suite says.
        shape: Shape of the images (N, C, H, W).
        baseline: What it is compared with.

    Raises:
        ConfigError: ``probe_images`` is negative, or given without the adaptive attacker.
    """
    named = resolve_attacks(attacks, draws=gradient_draws)
    suites = suites_of(attacks)
    name = next(iter(suites)) if len(suites) == 1 and _alone(attacks) else None
    facts = [describe_attack(attack) for attack in named]
    if any(suite.adapts for suite in suites.values()) and "adaptive" in attackers:
        have = {attack.name for attack in named}
        for spec in (*_declared(target), *_declared(baseline)):
            extra = make_attack(spec, draws=gradient_draws)
            if extra.name not in have:
                have.add(extra.name)
                named.append(extra)
                facts.append({**describe_attack(extra), "only": "adaptive"})
    chosen = {attack.name: attack for attack in named}
    probing = None
    if "adaptive" in attackers:
        probing = _probe(
            chosen, _strongest(suites), threat, gradient_draws=gradient_draws,
            probe_images=probe_images, shape=shape,
            random=[isinstance(m, Defense) and m.stochastic for m in (target, baseline)],
        )  # fmt: skip
    elif probe_images:
        raise ConfigError(
            f"probe_images is {probe_images}, and no adaptive attacker is named",
            expected="the adaptive attacker, whose attack the probes make stronger and weaker",
            fix="name the adaptive attacker too, or leave the probes out",
        )
    control = _control(facts) if "oblivious" in attackers else None
    if control is not None:
        chosen["small-eps"] = replace(chosen[control], name="small-eps")  # type: ignore[type-var]
    return Arsenal(chosen, tuple(facts), name, control, probing)


def suites_of(attacks: str | Sequence[str | Attack]) -> dict[str, Suite]:
    """Suites among the named attacks, by name.

    Example:
        >>> list(suites_of("standard,deepfool"))
        ['standard']
    """
    names = attacks.split(",") if isinstance(attacks, str) else attacks
    plain = [name.strip().lower() for name in names if isinstance(name, str)]
    return {name: SUITES[name] for name in plain if name in SUITES}


def _alone(attacks: str | Sequence[str | Attack]) -> bool:
    """Whether just one thing is named."""
    names = attacks.split(",") if isinstance(attacks, str) else attacks
    return len([name for name in names if not isinstance(name, str) or name.strip()]) == 1


def _strongest(suites: Mapping[str, Suite]) -> tuple[str, int] | None:
    """The probe on the most images."""
    probes = [suite.probe for suite in suites.values() if suite.probe is not None]
    return max(probes, key=lambda probe: probe[1], default=None)


def _declared(target: nn.Module | None) -> list[str]:
    """Attacks made for the stages of this defense."""
    if not isinstance(target, Defense):
        return []
    stages = (target.purifier, target.detector, target.decision)
    return [spec for stage in stages if stage is not None for spec in stage.attacks]


def _control(facts: Sequence[dict[str, Any]]) -> str | None:
    """The first attack of several steps that stays in the ball, else the first that does."""
    able = [
        fact
        for fact in facts
        if fact["access"] == "gradients" and fact["bound"] == "threat" and "fixed" in fact["rules"]
    ]
    iterated = [fact for fact in able if int(fact.get("steps", 1)) > 1]
    return next((str(fact["name"]) for fact in (*iterated, *able)), None)


def _probe(
    chosen: dict[str, Attack],
    default: tuple[str, int] | None,
    threat: Threat,
    *,
    gradient_draws: int,
    probe_images: int | None,
    shape: tuple[int, ...],
    random: Sequence[bool],
) -> dict[str, Any] | None:
    """Add the probes to the attacks, and say what they are.

    Args:
        chosen: Attacks by name; the probes are added.
        default: The suite's probe and its number of images.
        threat: The threat model.
        gradient_draws: Draws averaged in each gradient of a random defense.
        probe_images: Images of the probes; None for the default.
        shape: Shape of the images (N, C, H, W).
        random: Whether the target and the baseline are random.
    """
    if probe_images is not None and probe_images < 0:
        raise ConfigError(f"probe_images is {probe_images}", expected="0 or more")
    spec, count = default or ("pgd-20", 0)
    if probe_images is not None:
        count = probe_images
    elif any(random):
        # Each gradient is a mean over many draws, and more draws multiply it again.
        count = math.ceil(count / 4)
    if count == 0:
        return None
    base = make_attack(spec, draws=gradient_draws)
    steps = int(getattr(base, "steps", 1))
    made: dict[str, Any] = {"probe": replace(base, name="probe")}  # type: ignore[type-var]
    made["probe-more-steps"] = replace(  # type: ignore[type-var]
        base, name="probe-more-steps", steps=steps * _MORE
    )
    if any(random):
        made["probe-more-draws"] = replace(  # type: ignore[type-var]
            base, name="probe-more-draws", draws=gradient_draws * _MORE
        )
    chosen.update(made)
    more = [["probe-more-steps", *(["probe-more-draws"] if drawn else [])] for drawn in random]
    huge = _huge(threat, shape)
    return {
        "attack": {**describe_attack(base), "spec": base.name},
        "images": min(count, shape[0]),
        "eps": [threat.eps * part for part in CURVE if threat.eps * part < huge],
        "huge": huge,
        "more": {"target": more[0], "baseline": more[1]},
    }


def _huge(threat: Threat, shape: tuple[int, ...]) -> float:
    """A size at which nothing withstands an attack, above that of the threat model if there is."""
    if threat.norm == "linf":
        return HUGE if threat.eps < HUGE else min(1.0, 2 * threat.eps)
    huge = HUGE * math.sqrt(math.prod(shape[1:]))
    return huge if threat.eps < huge else 2 * threat.eps
