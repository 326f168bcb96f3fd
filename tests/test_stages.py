"""Stages: settings that build them again, fingerprints, third-party names."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb import plugins
from unperturb.decisions import DECISIONS, Decision, LogitsAfter
from unperturb.detectors import DETECTORS
from unperturb.errors import ConfigError, SpecError
from unperturb.purifiers import PURIFIERS, FGSMStep
from unperturb.stages import Stage, build_stage, registered


class Weighted(Stage):
    """A stage with weights."""

    name = "weighted"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=dtype))
        self.register_buffer("count", torch.tensor(3))


GROUPS: dict[str, dict[str, type[Stage]]] = {
    "purifiers": {**PURIFIERS},
    "detectors": {**DETECTORS},
    "decisions": {**DECISIONS},
}


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, own in GROUPS.items() for name in own]
)
def test_every_stage_builds_again_from_its_description(group: str, name: str) -> None:
    stage = GROUPS[group][name]()
    settings = json.loads(json.dumps(stage.describe()))
    assert settings["name"] == name == name.lower()
    again = build_stage(group, GROUPS[group], settings)
    assert type(again) is type(stage)
    assert again.fingerprint() == stage.fingerprint()


def test_fingerprint_sees_settings_and_weights() -> None:
    assert FGSMStep(radius=0.1).fingerprint() == FGSMStep(radius=0.1).fingerprint()
    assert FGSMStep(radius=0.1).fingerprint() != FGSMStep(radius=0.2).fingerprint()
    one, two = Weighted(), Weighted()
    assert one.fingerprint() == two.fingerprint()
    with torch.no_grad():
        two.weight[1] = 1e-7
    assert one.fingerprint() != two.fingerprint()
    assert one.fingerprint() != Weighted(torch.float64).fingerprint()


def test_fingerprint_of_half_precision() -> None:
    assert len(Weighted(torch.bfloat16).fingerprint()) == 64


def test_unknown_stage() -> None:
    with pytest.raises(SpecError, match="Unknown purifier 'fgsm-stp'.*did you mean 'fgsm-step'"):
        build_stage("purifiers", GROUPS["purifiers"], {"name": "fgsm-stp"})


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="do not fit 'fgsm-step'.*radios"):
        build_stage("purifiers", GROUPS["purifiers"], {"name": "fgsm-step", "radios": 0.1})


def _register(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    entry = SimpleNamespace(name=name, value="theirs:Stage", load=lambda: Weighted)

    def found(group: str) -> list[Any]:
        return [entry] if group == "unperturb.purifiers" else []

    monkeypatch.setattr(plugins, "entry_points", found)


def test_third_parties_register(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, "weighted")
    assert isinstance(build_stage("purifiers", GROUPS["purifiers"], {"name": "weighted"}), Weighted)
    assert "weighted" not in registered("detectors", GROUPS["detectors"])
    assert "weighted" not in PURIFIERS


def test_third_parties_cannot_take_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, "identity")
    with pytest.raises(
        ConfigError, match="'theirs:Stage' registers 'identity' among the purifiers"
    ):
        registered("purifiers", GROUPS["purifiers"])


def test_logits_after_is_the_logits_after() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    decision = LogitsAfter()
    assert decision(None, logits, torch.zeros(1, dtype=torch.bool)) is logits
    assert decision.branches(None, logits) == {}
    assert decision.reads == {"after"}


def test_the_base_class_says_what_is_missing() -> None:
    class Empty(Decision):
        name = "empty"

    nothing: Tensor = torch.zeros(1, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="Empty must implement forward"):
        Empty()(None, None, nothing)
