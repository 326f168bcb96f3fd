"""Fitting: what is learnt, which epoch is kept, and what is left behind."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from correction.fakes import FLIP, SWAP, FakeBank, config, epochs, fit, same, state, swapped
from unperturb.correction import load_corrector
from unperturb.correction.checkpoint import CHECKPOINT
from unperturb.correction.fit import RECORD
from unperturb.correction.held_out import HeldOut, score
from unperturb.correction.stream import split_rows
from unperturb.errors import ConfigError, DataError, InputError, SpecError

# --- what is learnt -------------------------------------------------------------------------


def test_a_rule_is_learnt_far_above_the_uncorrected_accuracy() -> None:
    corrector = fit(swapped(1500), config(epochs=12, width=96, dropout=0.2))
    held = corrector.card["held_out"]
    assert held["uncorrected"]["clean"] > 0.99
    assert max(held["uncorrected"]["adversarial"].values()) < 0.02
    assert held["corrected"]["clean"] > 0.97
    assert min(held["corrected"]["adversarial"].values()) > 0.95
    # On logits that neither training nor the choice of the epoch has seen.
    fresh = swapped(300, seed=9)
    for source in ("clean", SWAP, FLIP):
        found = corrector.correct(fresh.logits(source))
        assert float((found.labels == fresh.labels).float().mean()) > 0.95
        assert float(found.changed.float().mean()) < 0.05 or source != "clean"


def test_one_attack_alone_is_learnt_from_and_judged_by() -> None:
    bank = swapped()
    corrector = fit(bank, config(attacks=(SWAP,), epochs=6))
    assert FLIP not in {name for name, _, _ in bank.reads}
    assert list(corrector.card["held_out"]["corrected"]["adversarial"]) == [SWAP]
    assert corrector.card["bank"]["attacks"] == [SWAP]
    flipped = corrector.correct(bank.logits(FLIP)).labels == bank.labels
    assert float(flipped.float().mean()) < 0.5, "what it was not trained on it should not know"


def test_held_out_rows_are_never_trained_on() -> None:
    settings = config(epochs=2)
    bank = swapped(300)
    trained = split_rows(bank.ids, settings).trained
    other = {name: bank.logits(name) for name in ("clean", *bank.attacks)}
    for value in other.values():
        value[~trained] = value[~trained].flip(1) * 3
    labels = bank.labels.clone()
    labels[~trained] = (labels[~trained] + 1) % 5
    one = fit(bank, config(keep="last"))
    two = fit(FakeBank(other, labels), config(keep="last"))
    assert same(state(one), state(two))
    assert one.card["held_out"] != two.card["held_out"]


def test_figures_are_those_of_the_corrector_on_the_held_out_rows(tmp_path: Path) -> None:
    bank, settings = swapped(200), config(epochs=3)
    corrector = fit(bank, settings, out=tmp_path / "out")
    held = ~split_rows(bank.ids, settings).trained
    labels = bank.labels[held]
    told = corrector.card["held_out"]["corrected"]
    for source in ("clean", SWAP, FLIP):
        right = corrector.correct(bank.logits(source)[held]).labels == labels
        found = told["clean"] if source == "clean" else told["adversarial"][source]
        assert found == pytest.approx(float(right.double().mean()))
    mixed = 0.3 * told["clean"] + 0.7 * (told["adversarial"][SWAP] + told["adversarial"][FLIP]) / 2
    assert told["score"] == pytest.approx(mixed)
    kept = epochs(tmp_path / "out")[corrector.card["kept_epoch"] - 1]
    assert {key: kept[key] for key in told} == told
    assert corrector.card["rows"] == {"trained": 160, "held_out": 40}


def test_answers_in_the_place_of_labels_are_learnt_and_judged_by() -> None:
    bank = swapped()
    wrong = FakeBank({n: bank.logits(n) for n in ("clean", *bank.attacks)}, bank.labels.roll(1))
    by_label, by_answer = (fit(wrong, config(epochs=6, target=t)) for t in ("label", "answer"))
    one = fit(bank, config(epochs=6))
    assert bool((bank.logits("clean").argmax(1) == bank.labels).all())
    assert same(state(by_answer), state(one)), "the labels of the bank must not matter"
    assert by_answer.card["held_out"] == one.card["held_out"]
    assert not same(state(by_label), state(one))


def test_held_out_rows_that_do_not_fit_into_memory_are_read_again() -> None:
    bank = swapped(100)
    trained = split_rows(bank.ids, config()).trained
    inside, outside = (HeldOut(bank, bank.attacks, trained, keep=size) for size in (2**20, 0))
    device = torch.device("cpu")
    bank.reads.clear()
    assert inside.accuracies(None, device) == outside.accuracies(None, device)
    assert len(bank.reads) == 3 * len(bank.shards)
    found = outside.accuracies(None, device)
    assert score(found, 1.0) == found["clean"]
    assert score(found, 0.0) == pytest.approx((found[SWAP] + found[FLIP]) / 2)


@pytest.mark.parametrize(("loss", "depth"), [("label-smoothing", 2), ("margin", 2), ("ce", 3)])
def test_every_loss_and_depth_learns(loss: str, depth: int) -> None:
    corrector = fit(swapped(600), config(loss=loss, depth=depth, epochs=5))
    held = corrector.card["held_out"]
    assert held["corrected"]["score"] > held["uncorrected"]["score"] + 0.3
    assert corrector.network.depth == depth


def test_one_layer_learns_what_is_linear_and_nothing_else() -> None:
    plain = swapped(600)
    clean = plain.logits("clean")
    # A permutation of the classes, which is a matrix; the label-dependent swap is not.
    bank = FakeBank({"clean": clean, "roll": clean.roll(1, 1)}, plain.labels)
    settings = config(depth=1, clean_share=0.0, epochs=8, lr=0.02)
    assert fit(bank, settings).card["held_out"]["corrected"]["adversarial"]["roll"] > 0.95
    both = fit(plain, config(depth=1, epochs=8, lr=0.02)).card["held_out"]["corrected"]
    assert both["score"] < 0.6


# --- which epoch ----------------------------------------------------------------------------


def scored(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the epochs have these accuracies, whatever they are."""
    left = iter(values)
    real = HeldOut.accuracies

    def accuracies(self: HeldOut, network: Any, device: Any) -> dict[str, float]:
        if network is None:
            return real(self, network, device)
        return dict.fromkeys(self.sources, next(left))

    monkeypatch.setattr(HeldOut, "accuracies", accuracies)


def test_the_best_epoch_is_kept_and_the_first_of_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = swapped(100)
    two = fit(bank, config(epochs=2, keep="last"))
    scored([0.2, 0.6, 0.5, 0.6], monkeypatch)
    best = fit(bank, config(epochs=4), out=tmp_path / "best")
    assert best.card["kept_epoch"] == 2
    assert same(state(best), state(two))
    assert same(state(load_corrector(tmp_path / "best")), state(two))
    scored([0.2, 0.6, 0.5, 0.6], monkeypatch)
    last = fit(bank, config(epochs=4, keep="last"))
    assert last.card["kept_epoch"] == 4
    assert not same(state(last), state(two))


def test_patience_ends_a_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored([0.2, 0.6, 0.5, 0.6, 0.9], monkeypatch)
    corrector = fit(swapped(100), config(epochs=9, patience=2), out=tmp_path / "out")
    assert corrector.card["epochs_done"] == 4
    assert corrector.card["kept_epoch"] == 2
    assert len(epochs(tmp_path / "out")) == 4
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_without_held_out_rows_the_last_epoch_is_kept() -> None:
    corrector = fit(swapped(100), config(holdout=0.0, keep="last", epochs=2))
    assert corrector.card["held_out"] is None
    assert corrector.card["kept_epoch"] == 2
    assert corrector.card["rows"] == {"trained": 100, "held_out": 0}


# --- what is left behind --------------------------------------------------------------------


def test_the_folder_holds_the_corrector_and_its_record(tmp_path: Path) -> None:
    bank, out = swapped(100), tmp_path / "out"
    corrector = fit(bank, config(), out=out)
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", RECORD}
    loaded = load_corrector(out)
    logits = bank.logits(SWAP)
    assert torch.equal(loaded.correct(logits).logits, corrector.correct(logits).logits)
    assert loaded.fingerprint() == corrector.fingerprint()
    assert (loaded.classifier, loaded.arch, loaded.classes) == ("c" * 64, "a net", bank.classes)
    card = json.loads((out / RECORD).read_text())
    assert card["config"] == config().to_dict()
    assert card["bank"]["digest"] == bank.digest
    assert card["bank"]["source"] == "images", "where it lay says nothing to anybody else"
    assert str(tmp_path) not in (out / RECORD).read_text() + (out / "config.json").read_text()
    assert [epoch["epoch"] for epoch in card["epochs"]] == [1, 2]
    assert all(math.isfinite(epoch["loss"]) for epoch in card["epochs"])
    assert loaded.card == {k: v for k, v in card.items() if k != "epochs"}


def test_weak_attacks_are_warned_of_and_recorded() -> None:
    words = "pgd leaves 80.0 % of the images right"
    with pytest.warns(UserWarning, match=words):
        corrector = fit(swapped(100, weak=(words,)), config(epochs=1))
    assert corrector.card["weak"] == [words]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(swapped(100), config(epochs=1))


def test_a_fit_runs_whatever_the_mode_and_the_default_dtype() -> None:
    plain = state(fit(swapped(100), config(epochs=1)))
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert same(state(fit(swapped(100), config(epochs=1))), plain)
    torch.set_default_dtype(torch.float64)
    try:
        bank = swapped(100)
        for name, value in bank._logits.items():
            bank._logits[name] = value.float()
        assert next(iter(state(fit(bank, config(epochs=1))).values())).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# --- mistakes -------------------------------------------------------------------------------


def test_wrong_input_is_named() -> None:
    bank = swapped(60)
    with pytest.raises(ConfigError, match="stop_after is 0. Expected: at least 1"):
        fit(bank, config(), stop_after=0)
    with pytest.raises(SpecError, match="Unknown attack of the bank 'mim'"):
        fit(bank, config(attacks=("mim",)))
    with pytest.raises(DataError, match="A bank of 1 images"):
        fit(swapped(1), config())
    bank.labels[3] = 7
    with pytest.raises(InputError, match="7"):
        fit(bank, config())


# --- on a GPU -------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [2, 3])
def test_a_gpu_learns_the_same_and_goes_on(depth: int, tmp_path: Path) -> None:
    bank, settings = swapped(600), config(depth=depth, epochs=4)
    cpu = fit(bank, settings).card["held_out"]["corrected"]
    whole = fit(bank, settings, device="cuda")
    assert whole.card["held_out"]["corrected"]["score"] == pytest.approx(cpu["score"], abs=0.05)
    for epoch in range(1, 5):
        found = fit(bank, settings, device="cuda", out=tmp_path / "out", stop_after=epoch)
    for name, value in state(found).items():
        torch.testing.assert_close(value, state(whole)[name], rtol=1e-3, atol=1e-4)
    assert load_corrector(tmp_path / "out").card["environment"]["device"] == "cuda"
