"""Interrupted anywhere, a run ends with the weights of an uninterrupted one, to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import unperturb
from unperturb.classifiers import new_classifier
from unperturb.data import ImageSet, load_images
from unperturb.errors import RecordError
from unperturb.networks import build_network
from unperturb.training import TrainConfig, Trained, train, train_classifier
from unperturb.training import loop as loop_module
from unperturb.training.checkpoint import CHECKPOINT, Checkpoint

STEPS, EPOCHS = 3, 2


def config(**changes: Any) -> TrainConfig:
    """Three steps an epoch: 52 images, of which 4 are held out."""
    found: dict[str, Any] = {
        "objective": "pgd", "eps": 0.1, "epochs": EPOCHS, "batch_size": 16, "lr": 0.05,
        "schedule": "one-cycle", "holdout": 4, "attack_steps": 1, "monitor_images": 4,
    }  # fmt: skip
    return TrainConfig(**{**found, **changes})


def digits(count: int = 52) -> ImageSet:
    return load_images("digits", split="train").take(slice(0, count))


def network(**options: Any) -> nn.Module:
    return build_network("small-cnn", in_channels=1, seed=1, **options)


def dropping() -> nn.Module:
    """A network that draws from the global generator in training."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(288, 10),
        )  # fmt: skip


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def without_times(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in epochs]


def meta(folder: Path) -> dict[str, Any]:
    """What the checkpoint in a folder says of itself."""
    with safe_open(folder / CHECKPOINT, framework="pt") as stored:
        return json.loads(stored.metadata()["run"])  # type: ignore[no-any-return]


class Cut(BaseException):
    """The end of a run that did not choose it; nothing in the package catches it."""


def cut_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run die at the beginning of the step after so many."""
    original, left = loop_module._Loop.step, [steps]

    def step(self: Any, *arguments: Any) -> float:
        if left[0] == 0:
            raise Cut
        left[0] -= 1
        return original(self, *arguments)

    monkeypatch.setattr(loop_module._Loop, "step", step)


def in_pieces(
    pieces: list[int],
    run: Callable[[], Trained],
    monkeypatch: pytest.MonkeyPatch,
) -> Trained:
    """Let a run die after each of so many steps, and then go on to its end."""
    for steps in pieces:
        with monkeypatch.context() as patch:
            cut_after(steps, patch)
            with pytest.raises(Cut):
                run()
    return run()


CASES: dict[str, dict[str, Any]] = {
    "random starts": {"augment": "crop-flip"},
    "parts": {"accumulate": 4, "augment": "flip"},
    "half precision": {"objective": "fgsm", "precision": "bfloat16"},
    # The patience of FAT and the weights of GAIRAT hang on how much of the run is over.
    "fat": {"objective": "fat"},
    "gairat": {"objective": "gairat", "gairat_burn_in": 0.5},
    "fgsm": {"objective": "fgsm", "clean_pass": True},
    "trades": {"objective": "trades", "weight_decay": 1e-2},
    "average": {"ema_decay": 0.8},
    "no momentum": {"objective": "standard", "momentum": 0.0},
}
LONG = ("gairat", "fgsm", "trades", "no momentum")


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("case", [slow(name) if name in LONG else name for name in CASES])
def test_a_run_cut_at_any_step_is_the_whole_run(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(**CASES[case])

    def run(out: Path) -> tuple[Trained, nn.Module]:
        net = network()
        found = train(net, digits(), settings, out=out, checkpoint_seconds=0.0, show=False)
        return found, net

    whole, expected = run(tmp_path / "whole")
    assert [epoch["epoch"] for epoch in whole.epochs] == [1, 2]
    # In the first epoch before any is done, right after one, within the second, at its last step.
    cuts = [[k] for k in range(1, 2 * STEPS)] if case == "random starts" else [[1], [4]]
    for cut in [*cuts, [1, 1, 2, 1]]:
        out = tmp_path / "-".join(map(str, cut))
        with monkeypatch.context() as patch:
            found = in_pieces(cut, lambda out=out: run(out)[0], patch)
        after, net = run(out)
        assert equal(found.state, whole.state), cut
        assert without_times(found.epochs) == without_times(whole.epochs)
        assert found.kept_epoch == whole.kept_epoch == 2
        assert equal(state(net), state(expected)), "a finished run is read back"
        assert after.epochs == found.epochs


def test_what_a_checkpoint_within_an_epoch_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Trained:
        return train(
            network(), digits(), config(), out=tmp_path, checkpoint_seconds=0.0, show=False
        )

    for cut, step, epochs in ((2, 2, 0), (2, 1, 1), (1, 2, 1)):
        with monkeypatch.context() as patch:
            cut_after(cut, patch)
            with pytest.raises(Cut):
                run()
        said = meta(tmp_path)
        assert (said["step"], len(said["epochs"]), said["best_epoch"]) == (step, epochs, epochs)
        assert said["loss"] > 0
        assert said["seconds"] > 0
    # The time of an epoch is that of all its parts, of which the last takes none here.
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: 5.0)
    assert run().epochs[1]["seconds"] == said["seconds"]


def test_without_a_checkpoint_in_time_the_epoch_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: Path | None, seconds: float = 3600.0) -> Trained:
        return train(network(), digits(), config(), out=out, checkpoint_seconds=seconds, show=False)

    whole = run(None)
    with monkeypatch.context() as patch:
        cut_after(2, patch)
        with pytest.raises(Cut):
            run(tmp_path)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        cut_after(5, patch)
        with pytest.raises(Cut):
            run(tmp_path)
    assert meta(tmp_path)["step"] == 0
    # How often a checkpoint is written is no part of what is computed.
    assert equal(run(tmp_path, 0.0).state, whole.state)


def test_checkpoints_are_written_when_they_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], []
    original = Checkpoint.write

    def write(self: Checkpoint) -> None:
        written.append((len(self.epochs), self.step))
        original(self)

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(Checkpoint, "write", write)
    monkeypatch.setattr(loop_module.time, "perf_counter", clock)
    train(
        network(), digits(), config(objective="standard", batch_size=6), out=tmp_path,
        checkpoint_seconds=3.0, show=False,
    )  # fmt: skip
    # Eight steps an epoch, a second each: after every third, and after the epoch.
    assert written == [(0, 3), (0, 6), (1, 0), (1, 3), (1, 6), (2, 0)]


def test_a_network_that_draws_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws anew at each step, alike in a resumed run, and disturbs nobody."""
    settings = config(objective="fgsm", accumulate=2)
    inputs: list[Tensor] = []

    def run(out: Path) -> Trained:
        net = dropping()

        def note(module: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            if module.training:
                inputs.append(out == 0)

        net[4].register_forward_hook(note)
        return train(net, digits(), settings, out=out, checkpoint_seconds=0.0, show=False)

    whole = run(tmp_path / "whole")
    assert len(inputs) == 2 * STEPS * EPOCHS
    assert len({tuple(mask.flatten().tolist()) for mask in inputs}) == len(inputs)
    with monkeypatch.context() as patch:
        found = in_pieces([1, 1, 2], lambda: run(tmp_path / "pieces"), patch)
    assert equal(found.state, whole.state)
    assert without_times(found.epochs) == without_times(whole.epochs)
    # Whatever was drawn before does not matter.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(123)
        assert equal(run(tmp_path / "later").state, whole.state)
    other = train(dropping(), digits(), config(**CASES["fgsm"], seed=1), show=False)
    assert not equal(other.state, whole.state)


def test_the_kept_epoch_outlives_a_cut_in_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, depths = config(epochs=4), {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2}
    states: dict[int, dict[str, Tensor]] = {}

    def run(out: Path) -> Trained:
        net = network()

        # It sees each epoch's weights once, also if the run is cut in pieces.
        def monitor(module: nn.Module) -> dict[str, Any]:
            states[len(states) + 1] = state(module)
            return {"depth": depths[len(states)]}

        return train(
            net, digits(), settings, out=out, monitor=monitor, show=False,
            depth=lambda record: record["depth"], checkpoint_seconds=0.0,
        )  # fmt: skip

    # In the epoch right after the best one, and in the one after that.
    with monkeypatch.context() as patch:
        found = in_pieces([7, 3, 1], lambda: run(tmp_path / "pieces"), patch)
    assert found.kept_epoch == 2
    assert [epoch["depth"] for epoch in found.epochs] == list(depths.values())
    assert equal(found.state, states[2])
    assert not equal(found.state, states[4])
    pieces = dict(states)
    states.clear()
    whole = run(tmp_path / "whole")
    assert equal(whole.state, found.state)
    assert all(equal(states[epoch], pieces[epoch]) for epoch in depths)


@pytest.mark.parametrize("keep", ["robust", slow("deepest"), slow("last")])
def test_a_saved_classifier_is_the_same_after_a_cut(
    keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(objective="fgsm", keep=keep, epochs=3)
    # The command's own runs write once a minute; these take less.
    monkeypatch.setattr(train, "__kwdefaults__", {**train.__kwdefaults__, "checkpoint_seconds": 0})

    def run(out: Path) -> Trained:
        net = new_classifier("small-cnn", in_channels=1, seed=1)
        train_classifier(net, digits(), settings, out=out, show=False)
        return Trained({}, 0, [])

    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        in_pieces([1, 4, 2], lambda: run(tmp_path / "pieces"), patch)
    for name in ("model.safetensors", "training.json"):
        files = [tmp_path / folder / name for folder in ("whole", "pieces")]
        if name == "training.json":
            records = [json.loads(file.read_text()) for file in files]
            assert without_times(records[0].pop("epochs")) == without_times(
                records[1].pop("epochs")
            )
            kept = [{k: v for k, v in r["monitor"].items() if k != "seconds"} for r in records]
            assert kept[0] == kept[1]
            assert records[0]["kept_epoch"] == records[1]["kept_epoch"]
        else:
            assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "pieces" / CHECKPOINT).exists()


@pytest.mark.parametrize("change", ["seed", "accumulate", "beta"])
def test_a_checkpoint_within_an_epoch_is_not_another_runs(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(settings: TrainConfig) -> Trained:
        return train(
            network(), digits(), settings, out=tmp_path, checkpoint_seconds=0.0, show=False
        )

    with monkeypatch.context() as patch:
        cut_after(1, patch)
        with pytest.raises(Cut):
            run(config())
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(RecordError, match="belongs to another training run"):
        run(config(**{change: 2}))
    assert (tmp_path / CHECKPOINT).read_bytes() == before


# -- kill -9 ------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from pathlib import Path
import torch
from training.test_resume import config, digits, network
from unperturb.training import loop, train

out, threads, place = sys.argv[1:]
torch.set_num_threads(int(threads))
step, replace = loop._Loop.step, Path.replace

def wait():
    print("here", flush=True)
    time.sleep(600)

def stepping(self, epoch, number, *rest):
    if place == "step" and (epoch, number) == (1, 2):
        wait()
    return step(self, epoch, number, *rest)

def replacing(self, target):
    # The fifth checkpoint is whole but not yet in place: that of the second step of epoch 2.
    replacing.count += 1
    if place == "write" and replacing.count == 5:
        wait()
    return replace(self, target)

replacing.count = 0
loop._Loop.step, Path.replace = stepping, replacing
train(network(), digits(), config(), out=Path(out), checkpoint_seconds=0.0, show=False)
"""


@pytest.mark.parametrize(("place", "step"), [("step", 2), slow("write", 1)])
def test_a_run_killed_within_an_epoch(place: str, step: int, tmp_path: Path) -> None:
    paths = [str(Path(unperturb.__file__).parents[1]), str(Path(__file__).parents[1])]
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), str(torch.get_num_threads()), place],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert line == "here\n", errors
    assert process.returncode == -signal.SIGKILL
    said = meta(out)
    assert (said["step"], len(said["epochs"])) == (step, 1)

    ends = []
    for folder in (out, tmp_path / "whole"):
        net = network()
        found = train(net, digits(), config(), out=folder, checkpoint_seconds=0.0, show=False)
        ends.append((state(net), found.state, without_times(found.epochs)))
    assert equal(ends[0][0], ends[1][0])
    assert equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
