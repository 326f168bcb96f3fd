"""A fit that is cut off, killed or diverges: gone on with to the last bit, or refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import unperturb
from correction.fakes import config, epochs, fit, same, state, swapped
from unperturb.correction import fit as fit_module
from unperturb.correction.checkpoint import CHECKPOINT
from unperturb.correction.fit import RECORD
from unperturb.correction.step import TrainingStep
from unperturb.errors import ConfigError, OutputError, RecordError

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
    with pytest.raises(ConfigError, match=r"at the learning rate 1e\+38") as caught:
        fit(swapped(60), config(lr=1e38, dropout=0.0), out=tmp_path / "out", checkpoint_seconds=0.0)
    assert "in epoch 1, step 1," in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert "checkpoint" not in str(caught.value), "there is none to go on from"
