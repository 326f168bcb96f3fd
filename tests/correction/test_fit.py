"""Fitting: what is learnt, what is left behind, and resumption to the last bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import unperturb
from correction.fakes import FLIP, SWAP, FakeBank, config, swapped
from unperturb.correction import Corrector, load_corrector
from unperturb.correction import fit as fit_module
from unperturb.correction.checkpoint import CHECKPOINT
from unperturb.correction.fit import RECORD, fit_correction
from unperturb.correction.held_out import HeldOut, score
from unperturb.correction.step import TrainingStep
from unperturb.correction.stream import split_rows
from unperturb.errors import ConfigError, DataError, InputError, OutputError, RecordError, SpecError


def fit(bank: Any, settings: Any, **options: Any) -> Corrector:
    return fit_correction(bank, settings, **{"show": False, **options})


def state(corrector: Corrector) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in corrector.network.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def epochs(folder: Path) -> list[dict[str, Any]]:
    """Records of the epochs without their times."""
    listed = json.loads((folder / RECORD).read_text())["epochs"]
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in listed]


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


# --- resumption -----------------------------------------------------------------------------


class Cut(BaseException):
    """The end of a fit that did not choose it."""


def cut_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fit die at the beginning of the step after so many."""
    original, left = fit_module.make_step, [steps]

    def make(*arguments: Any) -> TrainingStep:
        step = original(*arguments)
        run = step.run

        def once(*values: Any, **more: Any) -> Tensor:
            if left[0] == 0:
                raise Cut
            left[0] -= 1
            return run(*values, **more)

        step.run = once  # type: ignore[method-assign]
        return step

    monkeypatch.setattr(fit_module, "make_step", make)


CASES: dict[str, dict[str, Any]] = {
    "two layers": {},
    "no dropout": {"dropout": 0.0},
    "three layers": {"depth": 3, "dropout": 0.2},
    "last": {"keep": "last"},
    "patience": {"patience": 1, "lr": 0.5},
}


@pytest.mark.parametrize("name", CASES)
def test_cut_after_every_step_a_fit_ends_as_if_nothing_had_been(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(epochs=3, batch_size=16, **CASES[name])
    bank = swapped(60)
    whole = fit(bank, settings, out=tmp_path / "whole")
    for size in (1, 2):
        out = tmp_path / f"pieces of {size}"
        for _ in range(40):
            with monkeypatch.context() as patch:
                cut_after(size, patch)
                try:
                    found = fit(bank, settings, out=out, checkpoint_seconds=0.0)
                except Cut:
                    continue
                break
        assert same(state(found), state(whole))
        assert epochs(out) == epochs(tmp_path / "whole")
        for file in ("model.safetensors",):
            assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    # Nine steps of which each began anew at most once.
    assert whole.card["epochs_done"] == 3 or CASES[name].get("patience")


def test_stopped_between_epochs_a_fit_goes_on(tmp_path: Path) -> None:
    bank, settings = swapped(60), config(epochs=3)
    whole = fit(bank, settings)
    for epoch in (1, 2, 3):
        found = fit(bank, settings, out=tmp_path / "out", stop_after=epoch)
        assert found.card["epochs_done"] == epoch
        assert (tmp_path / "out" / CHECKPOINT).exists() == (epoch < 3)
        assert (tmp_path / "out" / "config.json").exists() == (epoch == 3)
    assert same(state(found), state(whole))


def test_the_time_since_the_last_checkpoint_counts(tmp_path: Path, monkeypatch: Any) -> None:
    written = []
    real = fit_module.FitCheckpoint.write

    def write(self: Any) -> None:
        written.append((len(self.epochs), self.steps))
        real(self)

    monkeypatch.setattr(fit_module.FitCheckpoint, "write", write)
    settings = config(epochs=2, batch_size=16)
    fit(swapped(60), settings, out=tmp_path / "often", checkpoint_seconds=0.0)
    assert written == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    written.clear()
    fit(swapped(60), settings, out=tmp_path / "seldom", checkpoint_seconds=1e9)
    assert written == [(1, 0), (2, 0)]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from correction.fakes import config, swapped
from unperturb.correction.fit import fit_correction
fit_correction(swapped(2000), config(epochs=4, width=200, batch_size=16), out=Path(sys.argv[1]),
               checkpoint_seconds=0.0, show=False)
"""


def test_killed_in_the_middle_a_fit_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    source = str(Path(unperturb.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "out"), str(Path(__file__).parents[1])]
    child = subprocess.Popen(command, env=environment)
    path, seen = tmp_path / "out" / CHECKPOINT, 0
    end = time.monotonic() + 60
    while seen < 30 and time.monotonic() < end:
        # Each write replaces the file.
        if path.exists():
            seen += 1
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with safe_open(path, framework="pt") as stored:
        meta = json.loads(stored.metadata()["fit"])
    assert meta["steps"] or meta["epochs"]
    assert len(meta["epochs"]) < 4, "the fit was through before it was killed"
    settings = config(epochs=4, width=200, batch_size=16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = fit(swapped(2000), settings, out=tmp_path / "out")
        whole = fit(swapped(2000), settings, out=tmp_path / "whole")
    finally:
        torch.set_num_threads(before)
    assert same(state(found), state(whole))
    assert epochs(tmp_path / "out") == epochs(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "out").iterdir() if p.name[0] != "."} == {
        "config.json", "model.safetensors", RECORD,
    }  # fmt: skip


# --- mistakes -------------------------------------------------------------------------------


def test_another_fit_is_refused_with_what_differs(tmp_path: Path) -> None:
    bank, out = swapped(60), tmp_path / "out"
    fit(bank, config(), out=out, stop_after=1)
    before = (out / CHECKPOINT).read_bytes()
    with pytest.raises(RecordError, match=r"another fit \(lr: 0.005 there, 0.1 here\)"):
        fit(bank, config(lr=0.1), out=out)
    other = swapped(60, seed=5)
    words = rf"another fit \(bank: {bank.digest[:12]} there, {other.digest[:12]} here\)"
    with pytest.raises(RecordError, match=words):
        fit(other, config(), out=out)
    renamed = swapped(60)
    renamed.classifier = "d" * 64
    with pytest.raises(RecordError, match=r"classifier: c{12} there, d{12} here"):
        fit(renamed, config(), out=out)
    assert (out / CHECKPOINT).read_bytes() == before
    (out / CHECKPOINT).write_bytes(before[:500])
    with pytest.raises(RecordError, match="is damaged"):
        fit(bank, config(), out=out)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    bank, out = swapped(60), tmp_path / "out"
    fit(bank, config(epochs=1), out=out)
    with pytest.raises(RecordError, match="holds a finished fit"):
        fit(bank, config(epochs=1), out=out)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("")
    with pytest.raises(RecordError, match=r"is not empty and holds no fit \(cat.png\)"):
        fit(bank, config(), out=tmp_path / "photos")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        fit(bank, config(), out=tmp_path / "file")
    with pytest.raises(OutputError, match="Cannot write into"):
        fit(bank, config(), out=tmp_path / "file" / "inside")
    assert {p.name for p in tmp_path.iterdir()} == {"out", "photos", "file"}


def test_a_loss_that_is_nan_stops_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, settings, out = swapped(60), config(epochs=3, batch_size=16), tmp_path / "out"
    original = fit_module.make_step

    def make(*arguments: Any) -> TrainingStep:
        step = original(*arguments)
        run = step.run

        def broken(*values: Any, **place: Any) -> Tensor:
            loss = run(*values, **place)
            return loss * float("nan") if place == {"epoch": 1, "step": 2} else loss

        step.run = broken  # type: ignore[method-assign]
        return step

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "make_step", make)
        words = (
            r"The training loss is nan in epoch 2, step 3, at the learning rate 0.005\. "
            r"Expected: a finite loss.*Fix: lower lr; the last good checkpoint is kept"
        )
        with pytest.raises(ConfigError, match=words):
            fit(bank, settings, out=out, checkpoint_seconds=0.0)
        with pytest.raises(ConfigError, match=r"learning rate 0.005\. .*Fix: lower lr\.$"):
            fit(bank, settings)
    with safe_open(out / CHECKPOINT, framework="pt") as stored:
        meta = json.loads(stored.metadata()["fit"])
    assert (len(meta["epochs"]), meta["steps"]) == (1, 2)
    assert same(state(fit(bank, settings, out=out)), state(fit(bank, settings)))


def test_weights_that_are_nan_are_not_written(tmp_path: Path) -> None:
    # The steps of Adam are of the size of its rate: 1e38 of them is infinite with the next.
    with pytest.raises(ConfigError, match=r"in epoch 1, step \d, at the learning rate 1e\+38"):
        fit(swapped(60), config(lr=1e38, dropout=0.0), out=tmp_path / "out", checkpoint_seconds=0.0)
    for path in (tmp_path / "out").glob(CHECKPOINT):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if "parameter" in name:
                    assert bool(torch.isfinite(stored.get_tensor(name)).all())


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
