"""The moving average of the weights: what is watched and kept, without a trace on the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.data import load_images
from unperturb.networks import build_network
from unperturb.training import TrainConfig, Trained, train
from unperturb.training import loop as loop_module

State = dict[str, Tensor]


def state(network: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def run(decay: float, **options: Any) -> tuple[Trained, nn.Module]:
    network = build_network("small-cnn", in_channels=1, seed=1)
    config = TrainConfig(
        objective="fgsm", eps=0.1, epochs=2, batch_size=16, lr=0.05, holdout=4, ema_decay=decay
    )
    data = load_images("digits", split="train").take(slice(0, 52))
    return train(network, data, config, show=False, **options), network


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The network's own state after each step."""
    found: list[State] = []
    original = loop_module._Loop.step

    def step(self: loop_module._Loop, *args: Any) -> float:
        loss = original(self, *args)
        found.append(state(self.network))
        return loss

    monkeypatch.setattr(loop_module._Loop, "step", step)
    return found


def test_what_is_kept_is_the_recurrence_over_the_steps(after_steps: list[State]) -> None:
    kept, _ = run(0.7)
    assert len(after_steps) == 6
    assert any("running_mean" in name for name in kept.state), "statistics are averaged too"
    for name, tensor in kept.state.items():
        if not tensor.is_floating_point():
            continue
        expected = after_steps[0][name].double()
        for later in after_steps[1:]:
            expected = 0.7 * expected + 0.3 * later[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(tensor, after_steps[-1][name]), name


def test_averaging_changes_nothing_of_the_training() -> None:
    (_, averaged), (plain, network) = run(0.7), run(0.0)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, averaged.state_dict()[name]), name
        assert torch.equal(tensor, plain.state[name]), name


def test_the_monitor_sees_the_average(after_steps: list[State]) -> None:
    seen: list[State] = []

    def monitor(network: nn.Module) -> dict[str, Any]:
        assert not any(module.training for module in network.modules())
        seen.append(state(network))
        return {"epoch_number": len(seen)}

    kept, _ = run(0.7, monitor=monitor)
    assert len(seen) == 2
    for name, tensor in kept.state.items():
        assert torch.equal(tensor, seen[-1][name]), name
    weight = next(name for name in seen[0] if name.endswith("weight"))
    assert not torch.equal(seen[0][weight], after_steps[2][weight])
    first, second, third = (after_steps[k][weight] for k in range(3))
    expected = 0.7 * (0.7 * first + 0.3 * second) + 0.3 * third
    torch.testing.assert_close(seen[0][weight], expected, rtol=1e-5, atol=1e-7)
