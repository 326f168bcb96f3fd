"""Attacks by name, and what is said of a wrong one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from unperturb import plugins
from unperturb.attacks.engine import FirstOrder
from unperturb.attacks.registry import SUITES, attack_names, make_attack, resolve_attacks
from unperturb.errors import AttackError, ConfigError, SpecError, UnperturbError

ROWS = {
    "fgsm": {"steps": 1, "step_size": 1.0, "random_start": False, "momentum": 0.0},
    "bim": {"name": "bim-10", "steps": 10, "step_size": 0.25, "random_start": False},
    "bim-7": {"steps": 7, "step_size": 0.25},
    "pgd": {"name": "pgd-20", "steps": 20, "step_size": 0.25, "random_start": True},
    "pgd-100?loss=margin": {"steps": 100, "loss": "margin", "name": "pgd-100?loss=margin"},
    "PGD-40?restarts=3&draws=4": {"restarts": 3, "draws": 4, "steps": 40},
    "pgd-5?step_size=0.5&loss=dlr": {"step_size": 0.5, "loss": "dlr"},
    "mim": {"name": "mim-10", "steps": 10, "step_size": 0.1, "momentum": 1.0},
    "mim-4?momentum=0.5": {"steps": 4, "step_size": 0.25, "momentum": 0.5},
}


@pytest.mark.parametrize("spec", ROWS)
def test_names(spec: str) -> None:
    attack = make_attack(spec)
    assert {k: getattr(attack, k) for k in ROWS[spec]} == ROWS[spec]
    assert FirstOrder(**json.loads(json.dumps(attack.to_dict()))) == attack


def test_draws_are_a_default() -> None:
    assert make_attack("pgd", draws=8).draws == 8
    assert make_attack("pgd?draws=2", draws=8).draws == 2


WRONG = {
    "pdg-20": (SpecError, "Unknown attack 'pdg'", "'pgd'"),
    "pgd-x": (SpecError, "Unknown attack 'pgd-x'", "'pgd'"),
    "": (SpecError, "Unknown attack ''", "fgsm"),
    "fgsm-3": (AttackError, "FGSM has one step", "bim-3"),
    "pgd-0": (ConfigError, "steps of attack 'pgd-0' is 0", "at least 1"),
    "mim-0": (ConfigError, "steps of attack 'mim-0' is 0", "at least 1"),
    "pgd?restart=5": (SpecError, "Unknown option of attack 'pgd' 'restart'", "'restarts'"),
    "pgd?restarts=two": (ConfigError, "Option restarts of attack 'pgd' is 'two'", "a whole number"),
    "pgd?restarts=0": (ConfigError, "restarts of attack", "at least 1"),
    "pgd?draws=-1": (ConfigError, "draws of attack", "at least 1"),
    "pgd?step_size=0": (ConfigError, "step_size of attack", "a fraction of eps"),
    "pgd?step_size=nan": (ConfigError, "step_size of attack", "a fraction of eps"),
    "pgd?momentum=-1": (ConfigError, "momentum of attack", "0 or more"),
    "pgd?loss=crossentropy": (SpecError, "Unknown loss 'crossentropy'", "ce"),
    "bim?restarts=2": (ConfigError, "2 restarts and no random start", "random_start=True"),
}


@pytest.mark.parametrize("spec", WRONG)
def test_wrong_names(spec: str) -> None:
    kind, problem, fix = WRONG[spec]
    with pytest.raises(UnperturbError) as caught:
        make_attack(spec)
    assert type(caught.value) is kind
    assert problem in str(caught.value)
    assert fix in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("steps", 2.5), ("draws", "3"), ("restarts", None)])
def test_counts_are_whole_numbers(field: str, value: object) -> None:
    settings = {"name": "x", "steps": 1, "step_size": 1.0, field: value}
    with pytest.raises(ConfigError, match=f"{field} of attack 'x' is .*whole number"):
        FirstOrder(**settings)  # type: ignore[arg-type]


def test_suites_and_lists() -> None:
    assert [a.name for a in resolve_attacks("quick")] == ["fgsm", "pgd-20", "mim-10"]
    assert [a.name for a in resolve_attacks("fgsm, quick,fgsm")] == ["fgsm", "pgd-20", "mim-10"]
    own = FirstOrder(name="own", steps=2, step_size=0.5)
    assert resolve_attacks([own, "fgsm"])[0] is own
    for suite in SUITES:
        assert len(resolve_attacks(suite)) == len(SUITES[suite].attacks)


def test_no_attack_at_all() -> None:
    with pytest.raises(AttackError, match="No attack is named"):
        resolve_attacks(" , ")


def test_unknown_suite_names_the_suites() -> None:
    with pytest.raises(SpecError, match="did you mean 'quick'"):
        resolve_attacks("qiuck")


def _entry(name: str) -> SimpleNamespace:
    made = FirstOrder(name="theirs", steps=3, step_size=0.1)
    return SimpleNamespace(name=name, value="theirs:attack", load=lambda: lambda steps: made)


def test_third_parties_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: [_entry("their-attack-2")])
    assert "their-attack-2" in attack_names()
    assert make_attack("their-attack-2").name == "theirs"


def test_third_parties_cannot_take_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: [_entry("pgd")])
    with pytest.raises(ConfigError, match="'theirs:attack' registers 'pgd' among the attacks"):
        make_attack("fgsm")
