"""Presets by name."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest

from unperturb import plugins
from unperturb.errors import ConfigError, SpecError
from unperturb.presets import make_preset, preset_names, tpap
from unperturb.purifiers import CWStep, FGSMStep, PGDStep


def test_tpap_is_one_step_and_the_logits_after(conv: Any) -> None:
    defense = tpap(conv(), radius=0.1, clip=False)
    assert defense.purifier.describe() == {"name": "fgsm-step", "radius": 0.1, "clip": False}
    assert defense.detector is None
    assert defense.decision.name == "logits-after"
    assert tpap(conv()).purifier.config() == {"radius": 8 / 255, "clip": True}


def test_by_name(conv: Any) -> None:
    assert make_preset("tpap", conv(), radius=0.1).purifier.config()["radius"] == 0.1


def test_unknown_preset(conv: Any) -> None:
    with pytest.raises(SpecError, match="Unknown preset 'tpab'.*did you mean 'tpap'"):
        make_preset("tpab", conv())


def test_unknown_option(conv: Any) -> None:
    with pytest.raises(SpecError, match="option of the preset 'tpap' 'radios'.*'radius'"):
        make_preset("tpap", conv(), radios=0.1)


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (
            {"step": "pgd", "radius": 0.1, "steps": 3, "step_size": 0.5, "clip": False},
            {"name": "pgd-step", "radius": 0.1, "steps": 3, "step_size": 0.5, "clip": False},
        ),
        (
            {"step": "cw", "constant": 2, "confidence": 0, "steps": 4, "lr": 0.1},
            {"name": "cw-step", "constant": 2.0, "confidence": 0.0, "steps": 4, "lr": 0.1},
        ),
    ],
)
def test_the_steps_of_table_7(conv: Any, options: Any, config: Any) -> None:
    assert make_preset("tpap", conv(), **options).purifier.describe() == config
    plain = make_preset("tpap", conv(), step=options["step"]).purifier
    assert plain.describe() == type(plain)().describe()


def test_every_setting_of_every_step_is_an_option() -> None:
    taken = set(signature(tpap).parameters) - {"classifier", "step"}
    settings = {name for kind in (FGSMStep, PGDStep, CWStep) for name in kind().config()}
    assert taken == settings


@pytest.mark.parametrize(
    ("step", "option", "fix"),
    [
        ("fgsm", "steps", "step='pgd' or step='cw'"),
        ("fgsm", "step_size", "step='pgd'"),
        ("pgd", "lr", "step='cw'"),
        ("cw", "radius", "step='fgsm' or step='pgd'"),
        ("cw", "clip", "step='fgsm' or step='pgd'"),
    ],
)
def test_an_option_of_another_step(conv: Any, step: str, option: str, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_preset("tpap", conv(), step=step, **{option: False})
    assert f"The option '{option}' of tpap does not belong to step='{step}'" in str(caught.value)
    assert caught.value.fix == f"leave it out, or use {fix}"


@pytest.mark.parametrize("step", ["pdg", 3.0, ["pgd"]])
def test_unknown_step(conv: Any, step: Any) -> None:
    with pytest.raises(SpecError, match="Unknown step of tpap.*one of cw, fgsm, pgd"):
        tpap(conv(), step=step)


def test_an_option_that_is_needed(conv: Any) -> None:
    with pytest.raises(SpecError, match="'atop' lacks its option 'purifier'.*atop.purifier=..."):
        make_preset("atop", conv(), transform="rt1")


def test_third_parties(monkeypatch: pytest.MonkeyPatch, conv: Any) -> None:
    made = tpap(conv())
    entry = SimpleNamespace(name="theirs", value="theirs:preset", load=lambda: lambda net: made)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    assert preset_names() == ["atop", "theirs", "tpap"]
    assert make_preset("theirs", conv()) is made
    entry.name = "tpap"
    with pytest.raises(ConfigError, match="'theirs:preset' registers 'tpap' among the presets"):
        preset_names()
