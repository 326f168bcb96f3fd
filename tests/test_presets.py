"""Presets by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unperturb import plugins
from unperturb.errors import ConfigError, SpecError
from unperturb.presets import make_preset, preset_names, tpap


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


def test_third_parties(monkeypatch: pytest.MonkeyPatch, conv: Any) -> None:
    made = tpap(conv())
    entry = SimpleNamespace(name="theirs", value="theirs:preset", load=lambda: lambda net: made)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    assert preset_names() == ["theirs", "tpap"]
    assert make_preset("theirs", conv()) is made
    entry.name = "tpap"
    with pytest.raises(ConfigError, match="'theirs:preset' registers 'tpap' among the presets"):
        preset_names()
