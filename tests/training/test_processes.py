"""Several processes: one that is alone, what is averaged, what each computes by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.shared_out import (
    ROUNDING,
    RUNS,
    by_hand,
    close,
    config,
    digits,
    equal,
    normed,
    plain,
    state,
)
from unperturb.cli import main
from unperturb.errors import ConfigError
from unperturb.training import loop as loop_module
from unperturb.training import train
from unperturb.training.processes import Alone, Processes, launched, statistics

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
