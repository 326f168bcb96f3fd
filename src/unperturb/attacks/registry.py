"""Attacks and suites by name: the same ids in Python, on the command line and in records."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

from unperturb.attacks.apgd import make_apgd_ce, make_apgd_dlr, make_apgd_t
from unperturb.attacks.autoattack import make_autoattack, make_autoattack_rand
from unperturb.attacks.base import Attack
from unperturb.attacks.carlini_wagner import make_cw_l2
from unperturb.attacks.cw_linf import make_cw_linf
from unperturb.attacks.ddn import make_ddn
from unperturb.attacks.deepfool import make_deepfool
from unperturb.attacks.diversity import make_ti_dim
from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.hopskipjump import make_hopskipjump
from unperturb.attacks.logit_matching import make_logit_matching
from unperturb.attacks.square import make_square
from unperturb.attacks.stadv import make_stadv
from unperturb.attacks.wasserstein import make_fwa
from unperturb.errors import AttackError, ConfigError, unknown_name
from unperturb.plugins import with_plugins

__all__ = ["ATTACKS", "SUITES", "Suite", "attack_names", "make_attack", "resolve_attacks"]


def _fgsm(steps: int | None) -> FirstOrder:
    if steps is not None:
        raise AttackError(
            f"fgsm-{steps} does not exist: FGSM has one step",
            expected="fgsm",
            fix=f"bim-{steps} is its iterated form",
        )
    return FirstOrder(name="fgsm", steps=1, step_size=1.0)


def _bim(steps: int | None) -> FirstOrder:
    count = 10 if steps is None else steps
    return FirstOrder(name=f"bim-{count}", steps=count, step_size=0.25)


def _pgd(steps: int | None) -> FirstOrder:
    count = 20 if steps is None else steps
    return FirstOrder(name=f"pgd-{count}", steps=count, step_size=0.25, random_start=True)


def _mim(steps: int | None) -> FirstOrder:
    count = 10 if steps is None else steps
    return FirstOrder(name=f"mim-{count}", steps=count, step_size=1 / max(count, 1), momentum=1.0)


Family = Callable[[int | None], Attack]

ATTACKS: dict[str, Family] = {
    "fgsm": _fgsm,
    "bim": _bim,
    "pgd": _pgd,
    "mim": _mim,
    "ti-dim": make_ti_dim,
    "cw-linf": make_cw_linf,
    "deepfool": make_deepfool,
    "cw-l2": make_cw_l2,
    "ddn": make_ddn,
    "apgd-ce": make_apgd_ce,
    "apgd-dlr": make_apgd_dlr,
    "apgd-t": make_apgd_t,
    "logit-matching": make_logit_matching,
    "square": make_square,
    "hopskipjump": make_hopskipjump,
    "stadv": make_stadv,
    "fwa": make_fwa,
    "autoattack": make_autoattack,
    "autoattack-rand": make_autoattack_rand,
}
"""Attack families by name; ``NAME-STEPS`` sets the steps, ``?restarts=5&loss=dlr`` the rest.

- ``fgsm``: one step of size eps (Goodfellow et al. 2015).
- ``bim``: steps of eps/4 without a random start, 10 by default (Kurakin et al. 2017).
- ``pgd``: steps of eps/4 (2/255 at 8/255) from a random start, 20 by default (Madry et al. 2018).
- ``mim``: steps of eps/steps with momentum 1, 10 by default (Dong et al. 2018).
- ``ti-dim``: MIM with input diversity and smoothed gradients, for transfer (Dong et al. 2019).
- ``cw-linf``: PGD on the margin, 100 steps (the bounded form of Carlini and Wagner's loss).
- ``apgd-ce``, ``apgd-dlr``, ``apgd-t``: Auto-PGD (Croce and Hein 2020); the last has nine targets.
- ``logit-matching``: logits of a clean image of another class (after Tramer et al. 2020).
- ``deepfool``, ``cw-l2``, ``ddn``: the nearest image that is wrong (bound ``minimal``).
- ``square``: random search on scores (Andriushchenko et al. 2020); steps are queries.
- ``hopskipjump``: on labels alone (Chen et al. 2020).
- ``stadv``, ``fwa``: spatial and Wasserstein, bounded in measures of their own.
- ``autoattack``, ``autoattack-rand``: by the authors' package.
"""


class Suite(NamedTuple):
    """A named list of attacks.

    Attributes:
        attacks: Specifications.
        about: One line.
        threat: ``(norm, eps)`` that a paper states for them; None where the suite has no own.
        adapts: Whether attacks that a stage of the defense declares are added; a paper's suite
            stays what the paper ran.
        probe: The attack whose strength is varied, and on how many images.
    """

    attacks: tuple[str, ...]
    about: str
    threat: tuple[str, float] | None = None
    adapts: bool = True
    probe: tuple[str, int] | None = None


_STANDARD = ("fgsm", "pgd-20", "apgd-ce", "apgd-t", "square-500")

SUITES: dict[str, Suite] = {
    "quick": Suite(
        ("fgsm", "pgd-20", "mim"),
        "A first look: three first-order attacks.",
        probe=("pgd-10", 64),
    ),
    "first-order": Suite(
        ("fgsm", "bim", "pgd-20", "mim", "pgd-100?loss=margin", "pgd-40?restarts=3"),
        "The signed-gradient attacks.",
        probe=("pgd-20", 128),
    ),
    "standard": Suite(
        _STANDARD,
        "What a claim should rest on: our APGD on two losses, and a black-box attack beside it.",
        probe=("apgd-ce-50", 256),
    ),
    "exhaustive": Suite(
        (
            *_STANDARD,
            "pgd-100?restarts=5",
            "mim",
            "ti-dim",
            "apgd-dlr?restarts=5",
            "cw-linf",
            "logit-matching",
            "square-5000",
            "deepfool",
            "cw-l2",
            "ddn",
            "hopskipjump",
            "stadv",
            "fwa",
            "autoattack",
        ),
        "Everything there is; hours where standard takes minutes.",
        probe=("apgd-ce-100", 512),
    ),
    "autoattack": Suite(
        ("autoattack",), "AutoAttack's standard version, by its authors' package.", adapts=False
    ),
    "autoattack-rand": Suite(
        ("autoattack-rand",), "AutoAttack's version for random defenses.", adapts=False
    ),
    "tpap-paper": Suite(
        (
            "fgsm",
            "pgd-20",
            "pgd-100",
            "cw-l2",
            "ddn",
            "autoattack",
            "stadv",
            "fwa",
            "ti-dim",
        ),
        "Tang et al. 2024, Table 1.",
        threat=("linf", 8 / 255),
        adapts=False,
    ),
    "atop-paper": Suite(
        ("fgsm", "pgd-10", "pgd-20", "pgd-1000", "cw-linf", "autoattack", "stadv"),
        "Lin et al. 2024, Tables 2, 6 and 7.",
        threat=("linf", 8 / 255),
        adapts=False,
    ),
    "alu-paper": Suite(
        ("pgd-20", "autoattack"),
        "ALU, Tables 2 and 3.",
        threat=("linf", 8 / 255),
        adapts=False,
    ),
    "logit-correction-paper": Suite(
        (
            "pgd-10?step_size=0.125",
            "mim-10",
            "deepfool-100?form=l2",
            "cw-l2-25?search=4&constant=10&lr=0.01&anneal=false&refine=0",
        ),
        "Logit correction, Section 3.",
        threat=("linf", 16 / 255),
        adapts=False,
    ),
}
"""Named lists of attacks."""


def _families() -> dict[str, Family]:
    return with_plugins("attacks", ATTACKS)


def attack_names() -> list[str]:
    """All attack families there are, third-party ones included."""
    return sorted(_families())


def make_attack(spec: str, *, draws: int | None = None) -> Attack:
    """Build an attack from its name.

    Args:
        spec: ``NAME``, ``NAME-STEPS``, either with ``?option=value&...`` behind it; options are
            restarts, loss, draws, step_size (a fraction of eps) and momentum.
        draws: Default number of draws averaged in each gradient.

    Raises:
        SpecError: The name or an option is unknown.
        ConfigError: A value is out of range.

    Example:
        >>> make_attack("pgd-40?restarts=3&loss=margin").restarts
        3
    """
    return _make(spec, _families(), draws)


def _make(spec: str, families: dict[str, Family], draws: int | None) -> Attack:
    name, _, query = spec.strip().lower().partition("?")
    match = re.fullmatch(r"(.+?)(?:-(\d+))?", name)
    family, steps = (name, None) if match is None or name in families else match.groups()
    if family not in families:
        raise unknown_name("attack", family, dict.fromkeys([*families, *SUITES]))
    attack = families[family](None if steps is None else int(steps))
    changes: dict[str, object] = {} if draws is None else {"draws": draws}
    has = _options(attack)
    for pair in filter(None, query.split("&")):
        option, _, text = pair.partition("=")
        if option not in has:
            raise unknown_name(f"option of attack {name!r}", option, has)
        changes[option] = _parse(option, text, has[option], name)
    if query:
        changes["name"] = f"{attack.name}?{query}"
    changes = {k: v for k, v in changes.items() if k == "name" or k in has}
    return replace(attack, **changes) if changes else attack  # type: ignore[type-var]


def _options(attack: Attack) -> dict[str, object]:
    """Settings that a specification may change, with their present values."""
    found = {field.name: getattr(attack, field.name) for field in fields(attack)}  # type: ignore[arg-type]
    return {
        name: value
        for name, value in found.items()
        if name not in ("name", "steps") and isinstance(value, str | bool | int | float)
    }


def _parse(option: str, text: str, now: object, name: str) -> object:
    """A setting's value from text, of the type it has now."""
    kind = type(now)
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text]
        return kind(text)  # type: ignore[call-arg]
    except (ValueError, KeyError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ConfigError(
            f"Option {option} of attack {name!r} is {text!r}",
            expected=words.get(kind, "another value"),
        ) from None


def _add(found: dict[str, Attack], attack: object) -> None:
    """Each attack once; two that differ must not share a name, or one would be dropped unseen."""
    if not (hasattr(attack, "run") and hasattr(attack, "to_dict")):
        raise AttackError(
            f"An attack is {attack!r}", expected="a name such as pgd-20, or an attack object"
        )
    known: Attack = attack  # type: ignore[assignment]
    if found.setdefault(known.name, known).to_dict() != known.to_dict():
        raise AttackError(
            f"Two attacks with different settings are named {known.name!r}",
            expected="a name of its own for each",
        )


def _named(item: str) -> tuple[str, ...]:
    suite = SUITES.get(item.strip().lower())
    return (item,) if suite is None else suite.attacks


def resolve_attacks(
    attacks: str | Sequence[str | Attack], *, draws: int | None = None
) -> list[Attack]:
    """Attacks of a suite's name, a comma-separated list, or a sequence; each once, in order.

    Raises:
        SpecError: A name is unknown.
        AttackError: There is no attack at all.

    Example:
        >>> [attack.name for attack in resolve_attacks("fgsm,pgd-20")]
        ['fgsm', 'pgd-20']
    """
    if not isinstance(attacks, Sequence):
        raise AttackError(
            f"The attacks are {attacks!r}",
            expected="a suite, a comma-separated list of names, or a list of attacks",
        )
    names = attacks.split(",") if isinstance(attacks, str) else list(attacks)
    found: dict[str, Attack] = {}
    # Once for all names: looking through every installed package takes tens of milliseconds.
    families = _families() if any(isinstance(item, str) for item in names) else {}
    for item in names:
        if not isinstance(item, str):
            _add(found, item)
            continue
        if not item.strip():
            continue
        for name in _named(item):
            attack = _make(name, families, draws)
            _add(found, attack)
    if not found:
        raise AttackError(
            "No attack is named", expected="a suite or attacks, such as quick or fgsm,pgd-20"
        )
    return list(found.values())
