"""Logit correction as a decision and a preset: whose logits, whose classifier, whose gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unperturb as up
from unperturb.attacks import Surface, make_attack
from unperturb.attacks.logit_matching import exchange
from unperturb.classifiers import as_classifier, new_classifier, save_classifier
from unperturb.correction import Corrector, load_corrector
from unperturb.decisions import DECISIONS, LogitCorrection
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import ConfigError, SpecError, WeightsError
from unperturb.networks.corrector import CorrectionNetwork
from unperturb.presets import logit_correction, make_preset
from unperturb.purifiers import FGSMStep
from unperturb.randomness import Keys
from unperturb.saving import load_defense
from unperturb.stages import build_stage
from unperturb.threat import Linf


@pytest.fixture
def net(conv: Any) -> nn.Module:
    return conv(classes=4, smooth=True)  # type: ignore[no-any-return]


def corrector(net: nn.Module | None = None, classes: int = 4, **options: Any) -> Corrector:
    """An untrained corrector, fitted, as it says, on this classifier."""
    network = CorrectionNetwork(num_classes=classes, width=16, seed=5, **options)
    return Corrector(network, classifier=as_classifier(net).fingerprint() if net else "")


def small(seed: int = 0) -> Any:
    return new_classifier("small-cnn", in_channels=1, seed=seed)


# --- what it answers ------------------------------------------------------------------------


def test_scores_are_the_corrected_logits(net: nn.Module, pixels: Any) -> None:
    images, ours = pixels(20), corrector(net)
    found = logit_correction(net, corrector=ours).predict(images)
    wanted = ours.correct(net(images).detach())
    torch.testing.assert_close(found.scores, wanted.logits)
    assert torch.equal(found.labels, wanted.labels)
    assert torch.equal(found.changed, wanted.changed)
    assert 0 < int(found.changed.sum()) < 20, "choose a network of which this says something"


def test_dropout_never_acts_and_weights_take_no_gradient(net: nn.Module, pixels: Any) -> None:
    decision = LogitCorrection.of(corrector(dropout=0.9))
    assert not decision.train(True).network.training
    defense = Defense(net, decision=decision).train(True)
    images = pixels(3)
    assert torch.equal(defense(images), defense(images))
    assert not any(p.requires_grad for p in decision.parameters())


def test_it_reads_before_or_after_the_purifier(net: nn.Module, pixels: Any, counted: Any) -> None:
    images, ours = pixels(6), corrector()
    module = counted(net)
    after = Defense(module, purifier=FGSMStep(radius=0.1), decision=LogitCorrection.of(ours))
    before = Defense(
        module, purifier=FGSMStep(radius=0.1), decision=LogitCorrection.of(ours, reads="before")
    )
    torch.testing.assert_close(before(images), ours.network(net(images)))
    purified = after.predict(images).purified
    assert purified is not None
    torch.testing.assert_close(after(images), ours.network(net(purified)))
    module.calls.clear()
    before(images)
    assert module.calls == [6], "nothing reads the purified images"


def test_changed_compares_with_the_logits_there_are(net: nn.Module, pixels: Any) -> None:
    images, decision = pixels(30), LogitCorrection.of(corrector(), reads="before")
    found = Defense(net, decision=decision).predict(images)
    assert found.after is None
    assert torch.equal(found.changed, found.labels != net(images).argmax(1))
    both = Defense(net, decision=decision, detector=ThresholdDetector(threshold=1.0))
    assert torch.equal(both.predict(images).changed, found.changed)
    assert not bool(up.tpap(net).predict(images).changed.any())


def test_half_precision_logits_are_corrected_in_the_networks_precision() -> None:
    decision = LogitCorrection.of(corrector())
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = decision(None, logits, torch.zeros(5, dtype=torch.bool))
    assert torch.equal(found, decision.network(logits.float()))


# --- what an attacker gets ------------------------------------------------------------------


def test_the_gradient_is_that_through_both_networks(
    net: nn.Module, pixels: Any, untouched: Any
) -> None:
    ours, images = corrector(net), pixels(5)
    defense = logit_correction(net, corrector=ours)
    x = images.clone().requires_grad_()
    with untouched(net), untouched(defense.decision):
        scores = defense.terms(x).scores
        (found,) = torch.autograd.grad(F.cross_entropy(scores, scores.argmax(1)), x)
    first, last = ours.network.layers
    y = images.clone().requires_grad_()
    by_hand = torch.relu(net(y) @ first.weight.T + first.bias) @ last.weight.T + last.bias
    (wanted,) = torch.autograd.grad(F.cross_entropy(by_hand, by_hand.argmax(1)), y)
    torch.testing.assert_close(found, wanted)
    assert bool((found.flatten(1).abs().amax(1) > 0).all())


def attacked(
    name: str, defense: Defense, images: Tensor, labels: Tensor, *, eps: float = 0.2
) -> Any:
    keys = Keys.of(0, [str(i) for i in range(len(images))])
    surface = Surface(defense)
    return make_attack(name).run(surface, images, labels, threat=Linf(eps), keys=keys, stop="fixed")


def test_an_attack_on_the_whole_defense_moves_its_answer(
    net: nn.Module, pixels: Any, untouched: Any
) -> None:
    defense, images = logit_correction(net, corrector=corrector(net)), pixels(8)
    labels = defense.predict(images).labels
    with untouched(net):
        found = attacked("pgd-5", defense, images, labels)
    assert torch.equal(found.success, defense.predict(found.images).labels != labels)
    assert bool(found.success.any())


def test_logit_matching_matches_the_logits_that_are_corrected(conv: Any, pixels: Any) -> None:
    assert LogitCorrection.attacks == ("logit-matching",)
    net, images = conv(classes=4, smooth=True, scale=1.0), pixels(8)
    defense = logit_correction(net, corrector=corrector(net))
    torch.testing.assert_close(defense.terms(images).logits, net(images))
    labels = net(images).argmax(1)
    goal = exchange(net(images), labels)

    def distance(x: Tensor) -> Tensor:
        return (net(x) - goal).square().mean(1)

    found = attacked("logit-matching-20", defense, images, labels, eps=0.05)
    far = distance(images) > 0.1
    assert int(far.sum()) > 3
    assert bool((distance(found.images) < 0.6 * distance(images))[far].all())


# --- whose classifier -----------------------------------------------------------------------


def test_another_classifier_is_refused_with_both_named(conv: Any, net: nn.Module) -> None:
    ours, other = corrector(net), as_classifier(conv(classes=4, seed=8))
    words = rf"another classifier \({ours.classifier[:12]}\).*{other.fingerprint()[:12]}.*any_class"
    with pytest.raises(WeightsError, match=words):
        logit_correction(other, corrector=ours)
    with pytest.raises(WeightsError, match=words):
        Defense(other, decision=LogitCorrection.of(ours))
    defense = logit_correction(other, corrector=ours, any_classifier=True)
    assert defense.decision.config()["any_classifier"] is True
    assert defense.decision.config()["fitted_on"] == ours.classifier
    # Nobody knows what this one was fitted on.
    logit_correction(other, corrector=corrector())


def test_another_number_of_classes_is_refused_whatever_is_allowed(conv: Any) -> None:
    other = conv(classes=5)
    for allowed in (False, True):
        with pytest.raises(WeightsError, match="reads 4 classes, the classifier has 5"):
            logit_correction(other, corrector=corrector(), any_classifier=allowed)


# --- settings, weights, folders -------------------------------------------------------------


def test_settings_and_weights_bring_the_decision_back(net: nn.Module) -> None:
    ours = corrector(net, depth=3, dropout=0.2)
    decision = LogitCorrection.of(ours, reads="before", any_classifier=True)
    written = json.loads(json.dumps(decision.describe()))
    assert written == {
        "name": "logit-correction", "num_classes": 4, "width": 16, "depth": 3, "dropout": 0.2,
        "reads": "before", "fitted_on": ours.classifier, "any_classifier": True,
    }  # fmt: skip
    again = build_stage("decisions", DECISIONS, written)
    assert again.fingerprint() != decision.fingerprint(), "weights are in the fingerprint"
    again.load_state_dict(decision.state_dict())
    assert again.fingerprint() == decision.fingerprint()
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    flagged = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(again(logits, None, flagged), decision(logits, None, flagged))


def test_a_decision_has_weights_of_its_own() -> None:
    ours = corrector()
    decision = LogitCorrection.of(ours)
    before = decision.fingerprint()
    with torch.no_grad():
        ours.network.layers[0].weight.zero_()
    assert decision.fingerprint() == before


@pytest.mark.parametrize("embed", [True, False])
def test_a_saved_defense_comes_back_equal(tmp_path: Path, embed: bool) -> None:
    save_classifier(small(), tmp_path / "classifier")
    net = up.load_classifier(str(tmp_path / "classifier"))
    ours = corrector(net, classes=10)
    defense = logit_correction(net, corrector=ours, reads="before")
    defense.save_pretrained(tmp_path / "defense", embed=embed)
    found = Defense.from_pretrained(tmp_path / "defense")
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(images), defense(images))
    assert found.fingerprint() == defense.fingerprint()
    assert isinstance(found.decision, LogitCorrection)
    assert found.decision.fitted_on == net.fingerprint()
    with pytest.raises(WeightsError, match="The classifier has the fingerprint"):
        load_defense(tmp_path / "defense", classifier=small(seed=1))
    path = tmp_path / "defense" / "config.json"
    config = json.loads(path.read_text())
    config["decision"]["fitted_on"] = "d" * 64
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="fitted on the logits of another classifier"):
        Defense.from_pretrained(tmp_path / "defense")


def test_a_corrector_is_named_in_every_way_there_is(net: nn.Module, tmp_path: Path) -> None:
    ours = corrector(net)
    folder = ours.save(tmp_path / "corrector")
    given: list[Any] = [ours, folder, str(folder), load_corrector(folder), LogitCorrection.of(ours)]
    defenses = [make_preset("logit-correction", net, corrector=one) for one in given]
    assert len({defense.fingerprint() for defense in defenses}) == 1
    assert up.logit_correction is logit_correction
    assert up.LogitCorrection is LogitCorrection


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, SpecError, r"No corrector is named.*unperturb fit logit-correction --bank"),
        ({"corrector": "nowhere"}, SpecError,
         r"There is no corrector in 'nowhere'.*unperturb fit logit-correction --bank"),
        ({"corrector": 3}, ConfigError, "The corrector is of the type int.*a folder"),
        ({"corrector": "x", "raeds": "after"}, SpecError, "'raeds'.*did you mean 'reads'"),
    ],
)  # fmt: skip
def test_a_corrector_that_is_not_there_names_the_command(
    net: nn.Module, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_preset("logit-correction", net, **options)


def test_wrong_options_are_named(net: nn.Module, tmp_path: Path) -> None:
    ours = corrector(net)
    with pytest.raises(SpecError, match="Unknown kind of logits 'afer'.*did you mean 'after'"):
        logit_correction(net, corrector=ours, reads="afer")
    with pytest.raises(ConfigError, match="any_classifier of logit-correction is 'yes'"):
        logit_correction(net, corrector=ours, any_classifier="yes")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="for a decision that is built already"):
        logit_correction(net, corrector=LogitCorrection.of(ours), reads="before")
    save_classifier(small(), tmp_path / "classifier")
    with pytest.raises(SpecError, match=r"'unperturb-\w+'|has format"):
        logit_correction(net, corrector=tmp_path / "classifier")


def test_the_corrector_follows_the_classifiers_device_and_precision(conv: Any, pixels: Any) -> None:
    net = conv(classes=4).double()
    defense = logit_correction(net, corrector=corrector(net))
    x: Tensor = pixels(3).double().requires_grad_()
    (gradient,) = torch.autograd.grad(defense(x).sum(), x)
    assert gradient.dtype == torch.float64
    assert bool(gradient.any())
    torch.testing.assert_close(defense.double()(x), defense(x))
