"""One real launch of two processes, and the command in two."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unperturb
from training.shared_out import (
    ROUNDING,
    RUNS,
    by_hand,
    close,
    config,
    digits,
    dropping,
    equal,
    plain,
    state,
)
from unperturb.training import train
from unperturb.training.checkpoint import CHECKPOINT

# -- a real launch ------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from training.shared_out import RUNS, config, digits, plain
from training.test_resume import Cut
from unperturb.classifiers import new_classifier
from unperturb.errors import ConfigError
from unperturb.training import loop, train, train_classifier
from unperturb.training.processes import launched

out = Path(sys.argv[1])
us = launched(torch.device("cpu"))
found = {"count": us.count, "rank": us.rank, "main": us.main, "told": us.tell(f"by {us.rank}")}
random = torch.get_rng_state()
for name, (build, changes) in RUNS.items():
    run = train(build(), digits(), config(**changes), show=False)
    found[name] = {"state": run.state, "losses": [epoch["loss"] for epoch in run.epochs]}
found["random"] = bool(torch.equal(random, torch.get_rng_state()))

# Cut in the middle of the second epoch, and gone on.
original, steps = loop._Loop.step, []
def step(self, *arguments):
    steps.append(arguments[:2])
    if len(steps) == 4:
        raise Cut
    return original(self, *arguments)
def pgd():
    return train(plain(), digits(), config(**RUNS["pgd"][1]), out=out / "cut",
                 checkpoint_seconds=0.0, show=False)
loop._Loop.step = step
try:
    pgd()
except Cut:
    us.wait()
found["cut"] = sorted(path.name for path in (out / "cut").iterdir())
us.wait()
found["resumed"] = pgd().state
found["steps"] = steps
loop._Loop.step = original

net = new_classifier("small-cnn", in_channels=1, seed=1)
train_classifier(net, digits(), config(objective="fgsm"), out=out / "saved", show=False)
found["saved"] = {k: v.clone() for k, v in net.module.state_dict().items()}

# Each begins with a network of its own.
other = plain()
with torch.no_grad():
    next(other.parameters()).add_(us.rank)
try:
    train(other, digits(), config(batch_size=15), show=False)
except ConfigError as error:
    found["error"] = str(error)
torch.save(found, out / f"rank{us.rank}.pt")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(*command: str, count: int = 2) -> subprocess.Popen[str]:
    """``accelerate launch`` of a script, or of a module after ``-m``."""
    paths = [str(Path(unperturb.__file__).parents[1]), str(Path(__file__).parents[1])]
    ours = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    return subprocess.Popen(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", str(free_port()), *command,
        ],
        env={**ours, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill(process: subprocess.Popen[str]) -> None:
    """``kill -9`` of the launcher and of all that it has launched, each in a session of its own."""
    import psutil  # a requirement of accelerate

    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Output and errors; nothing outlives the test."""
    try:
        return process.communicate(timeout=570)
    finally:
        if process.poll() is None:
            kill(process)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two launched processes found, and the folder they wrote into."""
    pytest.importorskip("accelerate")
    out = tmp_path_factory.mktemp("pair")
    script = out / "script.py"
    script.write_text(SCRIPT)
    process = launch(str(script), str(out))
    text, errors = finish(process)
    assert process.returncode == 0, text + errors
    return out, [torch.load(out / f"rank{rank}.pt") for rank in (0, 1)]


def test_two_processes_know_of_each_other(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank, found in enumerate(pair[1]):
        assert (found["count"], found["rank"], found["main"]) == (2, rank, rank == 0)
        assert found["told"] == "by 0"
        assert found["random"], "no global generator is left changed"


@pytest.mark.parametrize("name", [*RUNS, "saved"])
def test_both_hold_the_same_weights(name: str, pair: tuple[Path, list[dict[str, Any]]]) -> None:
    one, two = (found[name] for found in pair[1])
    if name != "saved":
        assert one["losses"] == two["losses"]
        one, two = one["state"], two["state"]
    assert equal(one, two)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "dropout"])
def test_two_processes_compute_what_is_computed_by_hand(
    name: str, pair: tuple[Path, list[dict[str, Any]]]
) -> None:
    build, changes = RUNS[name]
    expected, losses = by_hand(build(), config(**changes), 2)
    found = pair[1][0][name]
    close(found["state"], expected, ROUNDING.get(name, 2e-6))
    means = np.array(losses).reshape(2, 2).mean(1)
    assert found["losses"] == pytest.approx(means, rel=1e-5)
    start = state(build())
    moved = max(float((expected[k] - start[k]).abs().max()) for k in start if "num" not in k)
    assert moved > 0.01


def test_without_norms_two_processes_are_one(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    alone = train(plain(), digits(), config(**RUNS["plain"][1]), show=False)
    close(pair[1][0]["plain"]["state"], alone.state, 2e-6)


def test_processes_drop_apart(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    # Equal masks in both would be those of a run of one process on half of each batch.
    alone = train(dropping(), digits(), config(**RUNS["dropout"][1]), show=False)
    with pytest.raises(AssertionError):
        close(pair[1][0]["dropout"]["state"], alone.state, 1e-4)


def test_two_processes_go_on_within_an_epoch(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in pair[1]:
        assert found["cut"] == [CHECKPOINT]
        assert found["steps"] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 1)]
        assert equal(found["resumed"], found["pgd"]["state"])


def test_one_folder_is_written(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    out, (one, _) = pair
    assert sorted(p.name for p in (out / "saved").iterdir()) == [
        "config.json", "model.safetensors", "training.json",
    ]  # fmt: skip
    record = json.loads((out / "saved" / "training.json").read_text())
    assert record["environment"]["processes"] == 2
    assert len(record["epochs"]) == 2
    assert {"train_pgd", "heldout_fgsm"} <= record["epochs"][0].keys()
    from safetensors.torch import load_file

    saved = load_file(out / "saved" / "model.safetensors")
    assert equal(saved, one["saved"])


def test_two_processes_are_told_what_is_wrong(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in pair[1]:
        assert "A batch of 15 for 2 processes" in found["error"]


# -- the command --------------------------------------------------------------------------------

COMMAND = (
    "-m", "unperturb", "train", "--arch", "small-cnn", "--data", "digits", "--objective", "pgd",
    "--attack-steps", "2", "--epochs", "2", "--holdout", "200", "--monitor-images", "20",
    "--batch-size", "64",
)  # fmt: skip


@pytest.mark.slow
def test_the_command_in_two_processes_killed_and_gone_on(tmp_path: Path) -> None:
    ends = {}
    for name in ("whole", "killed"):
        out = tmp_path / name
        if name == "killed":
            process = launch(*COMMAND, "--out", str(out))
            try:
                end = time.monotonic() + 500
                while not (out / CHECKPOINT).exists() and process.poll() is None:
                    assert time.monotonic() < end
                    time.sleep(0.01)
            finally:
                kill(process)
            assert process.returncode == -signal.SIGKILL
            assert not (out / "training.json").exists()
        process = launch(*COMMAND, "--out", str(out))
        text, errors = finish(process)
        assert process.returncode == 0, text + errors
        assert text.count("kept epoch") == 1, "one of the two speaks"
        assert "not finished" not in text
        ends[name] = (out / "model.safetensors").read_bytes()
    assert ends["whole"] == ends["killed"]


@pytest.mark.slow
def test_the_command_tells_both_processes_mistakes(tmp_path: Path) -> None:
    process = launch(*COMMAND, "--accumulate", "3", "--out", str(tmp_path / "out"))
    _, errors = finish(process)
    assert process.returncode != 0
    assert "error: A batch of 64 for 2 processes, in 3 parts each" in errors
    assert "unperturb.errors.ConfigError" not in errors
