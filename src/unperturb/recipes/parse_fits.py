"""Banks, fits, selected test sets and explanations of a recipe, from YAML, everything checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from unperturb.errors import ConfigError, unknown_name
from unperturb.recipes.fits import make_correction
from unperturb.recipes.reading import Section, number, overlay
from unperturb.recipes.schema import Dataset, Model, Select
from unperturb.recipes.schema_parts import DRAWINGS, PARTS, Bank, Explanation, Fit, Subject
from unperturb.threat import Threat, make_threat

__all__ = ["above", "parse_banks", "parse_explanation", "parse_fits", "parse_select", "threat"]


def threat(part: Section) -> Threat:
    """A threat model."""
    found = make_threat(part.text("norm", "linf"), part.number("eps"))
    part.end()
    return found


def parse_select(part: Section) -> Select | None:
    """Which test images of a data set are the selected ones; its model is checked later."""
    if "select" not in part:
        return None
    inner = part.section("select")
    found = Select(model=inner.text("model"), per_class=inner.whole("per_class"))
    inner.end()
    return found


def parse_banks(
    top: Section, models: Mapping[str, Model], datasets: Mapping[str, Dataset]
) -> dict[str, Bank]:
    """All banks: each with ``bank_settings`` below it."""
    from unperturb.banks.settings import DTYPES, LABELS, PRECISIONS

    found = {}
    for name, part in above(top, "banks", "bank_settings").items():
        bank = Bank(
            name=name,
            model=part.choice("model", models),
            attacks=part.texts("attacks"),
            threat=threat(part.section("threat")),
            part=part.choice("part", PARTS, "train"),
            limit=part.whole("limit", None),
            dtype=part.choice("dtype", DTYPES, "float32"),
            labels=part.choice("labels", LABELS, "true"),
            precision=part.choice("precision", PRECISIONS, "float32"),
        )
        part.end()
        if bank.part == "selected" and datasets[models[bank.model].dataset].select is None:
            raise ConfigError(
                f"{part.where} is of selected images",
                expected=f"select: in the data set {models[bank.model].dataset}",
            )
        _attacks(bank.attacks, part.where)
        found[name] = bank
    return found


def _attacks(specs: tuple[str, ...], where: str) -> list[str]:
    """Names of attacks, each of which must be one."""
    if not specs:
        raise ConfigError(f"{where} names no attack", expected="attacks: at least one")
    return list(_names(specs))


# Banks share few attacks, and looking an attack up goes through every installed package.
@lru_cache(maxsize=64)
def _names(specs: tuple[str, ...]) -> tuple[str, ...]:
    from unperturb.attacks import resolve_attacks

    return tuple(attack.name for attack in resolve_attacks(list(specs)))


def parse_fits(top: Section, banks: Mapping[str, Bank]) -> dict[str, Fit]:
    """All fits: each with ``fit_settings`` below it."""
    found = {}
    for name, part in above(top, "fits", "fit_settings").items():
        bank = part.choice("bank", banks)
        fit = Fit(name=name, bank=bank, config=part.rest())
        config = make_correction(fit.config, where=part.where)
        known = _attacks(banks[bank].attacks, part.where)
        for attack in config.attacks:
            if attack not in known:
                raise unknown_name(f"attack of the bank {bank} ({part.where})", attack, known)
        found[name] = fit
    return found


def above(top: Section, key: str, below: str) -> dict[str, Section]:
    """Sections with common settings below them."""
    common = top.any(below, {})
    Section(common, f"{top.where}: {below}")
    raw = top.any(key, {})
    Section(raw, f"{top.where}: {key}")
    found = {}
    for name, value in raw.items():
        where = f"{top.where}: {key}: {name}"
        Section(value, where)
        found[name] = Section(overlay(common, value), where)
    return found


def parse_explanation(
    part: Section, banks: Mapping[str, Bank], fits: Mapping[str, Fit]
) -> Explanation:
    """What an explanation explains, and how."""
    subjects = {
        name: _subject(name, inner, banks, fits)
        for name, inner in part.sections("subjects").items()
    }
    if not subjects:
        raise ConfigError(f"{part.where} has no subjects", expected="subjects: at least one")
    draw = part.texts("draw", ())
    for name in draw:
        if name not in DRAWINGS:
            raise unknown_name(f"picture ({part.where})", name, DRAWINGS)
    found = Explanation(
        subjects=subjects,
        top=part.whole("top", None),
        lower=part.number("lower", 20.0),
        controls=part.whole("controls", 20),
        draw=draw,
        watch=part.whole("watch", None, least=0),
        paper=_pairs(part, subjects),
    )
    part.end()
    return found


def _subject(
    name: str, part: Section, banks: Mapping[str, Bank], fits: Mapping[str, Fit]
) -> Subject:
    bank = part.choice("bank", banks)
    fit = part.choice("fit", fits, None)
    known = _attacks(banks[bank].attacks, part.where)
    named = part.text("attack", None)
    if named is None and len(known) > 1:
        raise ConfigError(
            f"{part.where} names no attack of the bank {bank}", expected=f"one of {known}"
        )
    attack = known[0] if named is None else _attacks((named,), part.where)[0]
    if attack not in known:
        raise unknown_name(f"attack of the bank {bank} ({part.where})", attack, known)
    part.end()
    if banks[bank].part == "train" and fit is not None and fits[fit].bank == bank:
        raise ConfigError(
            f"{part.where} explains {fit} on the bank it is fitted on",
            expected="a bank of test images",
        )
    return Subject(name=name, bank=bank, attack=attack, fit=fit)


def _pairs(part: Section, subjects: Mapping[str, Subject]) -> tuple[tuple[str, str, float], ...]:
    """The paper's coefficients: ``A / B`` to a number."""
    quoted = part.any("paper", {})
    Section(quoted, f"{part.where}: paper")
    found = []
    for pair, value in quoted.items():
        names = [name.strip() for name in pair.split(" / ")]
        for name in names:
            if name not in subjects:
                raise unknown_name(f"subject ({part.where}: paper)", name, subjects)
        if len(names) != 2:
            raise ConfigError(
                f"{part.where}: paper names {pair!r}", expected="two subjects, as in 'A / B'"
            )
        found.append((names[0], names[1], number(value, f"{part.where}: paper: {pair}")))
    return tuple(found)
