"""Interrupted, a run ends with the weights of an uninterrupted one; another run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import unperturb
from restoration.small import CASES, digits, equal, gan_config, state, train
from unperturb.errors import OutputError, RecordError
from unperturb.restoration import loop as loop_module
from unperturb.restoration import plan_pretrain, train_restoration
from unperturb.restoration.checkpoint import CHECKPOINT

STEPS = 3
"""Of an epoch: 30 images less 6, eight at a time."""


def meta(folder: Path) -> dict[str, Any]:
    """What the checkpoint in a folder says of itself."""
    with safe_open(folder / CHECKPOINT, framework="pt") as stored:
        return json.loads(stored.metadata()["run"])  # type: ignore[no-any-return]


class Cut(BaseException):
    """The end of a run that did not choose it; nothing in the package catches it."""


def cut_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = loop_module.Work.step, [steps]

    def step(self: Any, *arguments: Any) -> Any:
        if left[0] == 0:
            raise Cut
        left[0] -= 1
        return original(self, *arguments)

    monkeypatch.setattr(loop_module.Work, "step", step)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pieces", [[1], [2, 2], [3], [4, 1]])
def test_a_run_that_is_cut_off_ends_with_the_same_weights(
    case: str, pieces: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(CASES[case](tmp_path), tmp_path / "whole")
    done = 0
    for steps in pieces:
        with monkeypatch.context() as patch:
            cut_after(steps, patch)
            with pytest.raises(Cut):
                train(CASES[case](tmp_path), tmp_path / "out", checkpoint_seconds=0.0)
        done += steps
        assert (meta(tmp_path / "out")["step"], len(meta(tmp_path / "out")["epochs"])) == (
            done % STEPS,
            done // STEPS,
        )
    found = train(CASES[case](tmp_path), tmp_path / "out")
    assert equal(state(found.network), state(whole.network))
    if whole.discriminator is not None:
        assert equal(state(found.discriminator), state(whole.discriminator))
    records = [
        json.loads((tmp_path / name / "training.json").read_text())["epochs"]
        for name in ("whole", "out")
    ]
    for epoch in (*records[0], *records[1]):
        del epoch["seconds"]
    assert records[0] == records[1]
    for name in ("epoch-001.png", "epoch-002.png"):
        one, two = (tmp_path / out / "samples" / name for out in ("whole", "out"))
        assert one.read_bytes() == two.read_bytes()


def test_stopping_after_an_epoch_is_a_cut_too(tmp_path: Path) -> None:
    make = CASES["gan"]
    whole = train(make(tmp_path), tmp_path / "whole")
    train(make(tmp_path), tmp_path / "out", stop_after=1)
    assert not (tmp_path / "out" / "training.json").exists()
    found = train(make(tmp_path), tmp_path / "out")
    assert equal(state(found.network), state(whole.network))


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch: no handler runs, and the checkpoint is whole."""
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(unperturb.__file__).parents[1]), str(Path(__file__).parents[1])]!r}
import torch
torch.set_num_threads({torch.get_num_threads()})
from pathlib import Path
from restoration.small import digits, gan_config
from unperturb.restoration import loop, plan_pretrain, train_restoration
step, left = loop.Work.step, [6]
def dying(self, *arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments)
loop.Work.step = dying
plan = plan_pretrain(digits(), gan_config())
train_restoration(plan, digits(), out={str(tmp_path / "out")!r}, checkpoint_seconds=0.0)
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (meta(tmp_path / "out")["step"], len(meta(tmp_path / "out")["epochs"])) == (2, 1)
    found = train(CASES["gan"](tmp_path), tmp_path / "out")
    whole = train(CASES["gan"](tmp_path), tmp_path / "whole")
    assert equal(state(found.network), state(whole.network))


@pytest.mark.parametrize(
    ("changes", "images"), [({"lr": 2e-3}, 30), ({"seed": 1}, 30), ({"sigma": 0.2}, 30), ({}, 31)]
)
def test_the_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], images: int, tmp_path: Path
) -> None:
    train(CASES["gan"](tmp_path), tmp_path / "out", stop_after=1)
    data = digits(images)
    plan = plan_pretrain(data, gan_config(**changes))
    with pytest.raises(RecordError, match="belongs to another training run"):
        train_restoration(plan, data, out=tmp_path / "out", show=False)


def test_damaged_and_finished_folders_are_refused(tmp_path: Path) -> None:
    make = CASES["gan"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CHECKPOINT).write_bytes(b"no such thing")
    with pytest.raises(RecordError, match="is damaged.*delete that checkpoint"):
        train(make(tmp_path), tmp_path / "out")
    (tmp_path / "out" / CHECKPOINT).unlink()
    train(make(tmp_path), tmp_path / "out")
    with pytest.raises(RecordError, match="holds a finished training run"):
        train(make(tmp_path), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write into"):
        train(make(tmp_path), tmp_path / "file" / "out")
