"""Several processes: what each computes, by hand, and one real launch of two."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unperturb
from unperturb.cli import main
from unperturb.data import ImageSet, load_images
from unperturb.errors import ConfigError
from unperturb.networks import build_network
from unperturb.training import OBJECTIVES, Step, TrainConfig, train
from unperturb.training import loop as loop_module
from unperturb.training.augment import augment, epoch_generator, step_generator
from unperturb.training.checkpoint import CHECKPOINT
from unperturb.training.processes import Alone, Processes, launched, statistics

State = dict[str, Tensor]


def config(**changes: Any) -> TrainConfig:
    """Two steps an epoch: 36 images, of which 4 are held out."""
    found: dict[str, Any] = {
        "objective": "standard", "eps": 0.1, "epochs": 2, "batch_size": 16, "lr": 0.05,
        "holdout": 4, "attack_steps": 1, "attack_step_size": 1.0, "monitor_images": 4,
        "schedule": "one-cycle",
    }  # fmt: skip
    return TrainConfig(**{**found, **changes})


def digits() -> ImageSet:
    return load_images("digits", split="train").take(slice(0, 36))


def plain() -> nn.Module:
    """A network without batch norms, so that parts of a batch know nothing of each other."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 10)
        )  # fmt: skip


def normed() -> nn.Module:
    return build_network("small-cnn", in_channels=1, seed=1)


def dropping() -> nn.Module:
    return nn.Sequential(*plain()[:3], nn.Dropout(0.5), plain()[3])  # type: ignore[index]


# What the two processes train, each a network and the settings.
RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (plain, {"augment": "none"}),
    "normed": (normed, {"augment": "crop-flip"}),
    "parts": (normed, {"augment": "flip", "accumulate": 2, "weight_decay": 1e-2}),
    "pgd": (plain, {"objective": "pgd"}),
    "trades": (plain, {"objective": "trades", "accumulate": 4}),
    "dropout": (dropping, {"augment": "none"}),
}

# Next to the image the divergence has hardly a slope, and its sign may round to either side.
ROUNDING = {"trades": 2e-4}


def state(module: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def close(one: State, two: State, tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], two[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# -- one process --------------------------------------------------------------------------------


def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
                 "ACCELERATE_USE_CPU", "MASTER_ADDR"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"ACCELERATE_USE_CPU": "True"}])
def test_one_process_is_alone(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    no_launcher(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = launched(torch.device("cpu"))
    assert type(found) is Alone
    assert (found.count, found.rank, found.main) == (1, 0, True)
    numbers = torch.arange(3.0)
    found.average([numbers])
    found.wait()
    assert torch.equal(numbers, torch.arange(3.0))
    assert found.tell("word") == "word"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_need_accelerate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_launcher(monkeypatch)
    monkeypatch.setenv(name, "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    words = r'accelerate is not installed.*pip install "unperturb\[processes\]"'
    with pytest.raises(ConfigError, match=words):
        launched(torch.device("cpu"))


def test_a_launch_of_several_that_started_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    no_launcher(monkeypatch)
    # What ``accelerate launch --cpu --num_processes 2`` hands to its one process.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match="started one.*--multi_gpu --num_processes N"):
        launched(torch.device("cpu"))


class Pair:
    """Stands for an accelerator: the other process holds what this one does, times a factor."""

    num_processes, process_index, is_main_process = 2, 1, False

    def __init__(self, factor: float) -> None:
        self.factor, self.messages = factor, 0

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "mean"
        self.messages += 1
        return (tensor + self.factor * tensor) / 2


def test_tensors_of_all_kinds_are_averaged_in_one_message() -> None:
    pair = Pair(3.0)
    found = Processes(pair)
    assert (found.count, found.rank, found.main) == (2, 1, False)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 3, 2, 2, generator=generator)
    tensors = [
        weights.contiguous(memory_format=torch.channels_last),
        torch.tensor(2.0),
        torch.randn(5, generator=generator).bfloat16(),
        torch.randn(2, 3, generator=generator).t(),
    ]
    before = [(t.clone(), t.stride(), t.dtype, t.data_ptr()) for t in tensors]
    found.average(iter(tensors))
    for tensor, (was, stride, dtype, place) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, 2 * was)
        assert (tensor.stride(), tensor.dtype, tensor.data_ptr()) == (stride, dtype, place)
    assert pair.messages == 1
    found.average([])
    assert pair.messages == 1


def test_statistics_are_those_that_have_a_mean() -> None:
    net = normed()
    named = {id(buffer): name for name, buffer in net.named_buffers()}
    found = [named[id(buffer)] for buffer in statistics(net)]
    assert found == [f"bn{i}.running_{kind}" for i in (1, 2, 3) for kind in ("mean", "var")]


@pytest.mark.parametrize(("batch", "accumulate", "count"), [(15, 1, 2), (18, 2, 2), (16, 3, 1)])
def test_a_batch_that_cannot_be_shared_out(
    batch: int, accumulate: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    class Several(Alone):
        pass

    Several.count = count
    monkeypatch.setattr(loop_module, "launched", lambda device: Several())
    net = plain()
    before = state(net)
    words = f"batch of {batch} for {count} processes.*a multiple of {count * accumulate}"
    with pytest.raises(ConfigError, match=words):
        train(net, digits(), config(batch_size=batch, accumulate=accumulate), show=False)
    assert equal(state(net), before)
    with pytest.raises(SystemExit) as caught:
        main(["train", "--arch", "small-cnn", "--data", "digits", "--holdout", "200", "--quiet",
              "--batch-size", str(batch), "--accumulate", str(accumulate),
              "--out", str(tmp_path / "out")])  # fmt: skip
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert f"A batch of {batch} for {count} processes" in err
    assert "change --batch-size" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("batch", "accumulate"), [(16, 1), (16, 2), (20, 5)])
def test_processes_that_begin_apart_are_told(
    batch: int, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Alone):
        def tell(self, value: Any) -> Any:
            return f"not {value}"

    monkeypatch.setattr(loop_module, "launched", lambda device: Other())
    with pytest.raises(ConfigError, match="begin with different weights.*from one seed"):
        train(plain(), digits(), config(batch_size=batch, accumulate=accumulate), show=False)


# -- two processes by hand ----------------------------------------------------------------------


def by_hand(net: nn.Module, settings: TrainConfig, count: int) -> tuple[State, list[float]]:
    """A run of several processes, one process after the other; end state and loss of each step."""
    data, losses = digits(), []
    steps = (len(data) - settings.holdout) // settings.batch_size
    optimizer = torch.optim.SGD(
        net.parameters(), momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    for epoch in range(settings.epochs):
        order = epoch_generator(settings.seed, epoch).permutation(len(data) - settings.holdout)
        for step in range(steps):
            batch = order[step * settings.batch_size :][: settings.batch_size]
            done = (epoch * steps + step) / (steps * settings.epochs)
            replicas, total = [], 0.0
            for rank in range(count):
                replica = copy.deepcopy(net).train()
                replica.zero_grad()
                for part, rows in enumerate(np.split(batch[rank::count], settings.accumulate)):
                    generator = step_generator(settings.seed, epoch, step, process=rank, part=part)
                    index = torch.from_numpy(rows)
                    images = augment(data.images(index), settings.augment, generator)
                    loss = OBJECTIVES[settings.objective](
                        Step(
                            network=replica, attacked=replica, images=images,
                            labels=data.labels[index], settings=settings, generator=generator,
                            done=done,
                        )
                    )  # fmt: skip
                    (loss / settings.accumulate).backward()
                    total += float(loss.detach()) / settings.accumulate / count
                replicas.append(replica)
            losses.append(total)
            with torch.no_grad():
                for mine, *theirs in zip(
                    net.parameters(), *(r.parameters() for r in replicas), strict=True
                ):
                    mine.grad = sum(p.grad for p in theirs) / count
                for mine, *theirs in zip(
                    net.buffers(), *(r.buffers() for r in replicas), strict=True
                ):
                    mine.copy_(torch.stack(theirs).float().mean(0))
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(epoch * steps + step, steps * settings.epochs)
            optimizer.step()
    return state(net), losses


def test_by_hand_one_process_is_the_loop() -> None:
    """The yardstick of the launch below, itself measured where no launch is needed."""
    for name in ("normed", "parts", "trades"):
        build, changes = RUNS[name]
        settings = config(**changes)
        expected, losses = by_hand(build(), settings, 1)
        found = train(build(), digits(), settings, show=False)
        close(found.state, expected, ROUNDING.get(name, 2e-6))
        assert found.epochs[0]["loss"] == pytest.approx(np.mean(losses[:2]), rel=1e-5)


def test_a_network_without_norms_does_not_know_how_many_train_it() -> None:
    settings = config(**RUNS["plain"][1])
    close(by_hand(plain(), settings, 2)[0], by_hand(plain(), settings, 1)[0], 2e-6)
    settings = config(**RUNS["normed"][1])
    one, two = (by_hand(normed(), settings, count)[0] for count in (1, 2))
    with pytest.raises(AssertionError):
        close(one, two, 1e-4)


# -- a real launch ------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from training.test_processes import RUNS, config, digits, plain
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
