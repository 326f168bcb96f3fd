"""Losses, gradients and discriminators that go wrong stop a run; the last good state is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from restoration.small import (
    CASES,
    classifier_of_digits,
    digits,
    equal,
    gan_config,
    mae_config,
    start,
    state,
    train,
    tune_config,
)
from unperturb.errors import ConfigError
from unperturb.networks.inpainting_gan import PatchDiscriminator
from unperturb.restoration import gan as gan_module
from unperturb.restoration import plan_finetune, plan_pretrain
from unperturb.restoration.finetune import FineTuneWork
from unperturb.restoration.watch import Diverged, Watch


def test_losses_that_are_no_numbers_stop_the_run_and_leave_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A look at the first step, three steps, a look at the one that comes next, one more step.
    original, left = gan_module.GANWork.losses, [6]

    def losses(self: Any, *arguments: Any) -> dict[str, Tensor]:
        left[0] -= 1
        found = original(self, *arguments)
        return {name: v * float("nan") for name, v in found.items()} if left[0] < 0 else found

    with monkeypatch.context() as patch:
        patch.setattr(gan_module.GANWork, "losses", losses)
        with pytest.raises(ConfigError) as caught:
            train(CASES["gan"](tmp_path), tmp_path / "out")
    for word in ("diverged in epoch 2, step 2: the l1 loss is nan", "lower lr", "last good"):
        assert word in str(caught.value)
    assert not (tmp_path / "out" / "training.json").exists()
    whole = train(CASES["gan"](tmp_path), tmp_path / "whole", stop_after=1)
    kept = plan_pretrain(digits(), gan_config(lr=1e-4), start=tmp_path / "out")
    assert equal(state(kept.net.network), state(whole.network))
    assert kept.facts["start"] == "out"
    train(kept, tmp_path / "again")


def test_a_rate_that_is_far_too_great_stops_the_run(tmp_path: Path) -> None:
    plan = plan_pretrain(digits(), gan_config(lr=1e30, schedule="multistep"))
    with pytest.raises(ConfigError, match="diverged in epoch 1"):
        train(plan, tmp_path / "out")
    kept = plan_pretrain(digits(), gan_config(), start=tmp_path / "out")
    for value in state(kept.net.network).values():
        assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize("rate", [1e10, 1e30])
@pytest.mark.parametrize("epochs", [1, 3])
def test_weights_that_an_update_ruined_are_not_kept(
    rate: float, epochs: int, tmp_path: Path
) -> None:
    # One step an epoch: losses and gradients before it are fine, and those after it come later.
    settings = {"schedule": "multistep", "epochs": epochs, "batch_size": 24}
    plan = plan_pretrain(digits(), gan_config(lr=rate, **settings))
    begun = state(plan.net.network)
    with pytest.raises(ConfigError, match="diverged after epoch 1: .*last good checkpoint"):
        train(plan, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))
    kept = plan_pretrain(digits(), gan_config(**settings), start=tmp_path / "out")
    assert equal(state(kept.net.network), begun)


def test_errors_that_no_image_can_have_stop_the_run_though_they_are_finite(tmp_path: Path) -> None:
    settings = {"schedule": "multistep", "epochs": 3, "batch_size": 24}
    plan = plan_pretrain(digits(), mae_config(lr=1e3, **settings))
    begun = state(plan.net.network)
    with pytest.raises(ConfigError, match="after epoch 1: the error on dropped pixels"):
        train(plan, tmp_path / "out")
    kept = plan_pretrain(digits(), mae_config(**settings), start=tmp_path / "out" / "last-good")
    assert equal(state(kept.net.network), begun)


def test_a_start_that_is_ruined_already_is_nothing_to_keep(tmp_path: Path) -> None:
    plan = CASES["mae"](tmp_path)
    with torch.no_grad():
        next(iter(plan.net.network.parameters())).fill_(float("nan"))
    with pytest.raises(ConfigError, match="diverged before its first step") as caught:
        train(plan, tmp_path / "out")
    assert "last good" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_figures_that_are_no_numbers_stop_the_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "unperturb.restoration.run.restoration_errors", lambda *_: {"masked_l1": float("nan")}
    )
    with pytest.raises(ConfigError, match="after epoch 1: masked_l1 of the held-out images is nan"):
        train(CASES["gan"](tmp_path), tmp_path / "out")


@pytest.mark.parametrize("case", ["gan", "atop", "mae"])
def test_the_look_ahead_changes_nothing(case: str, tmp_path: Path) -> None:
    often = CASES[case](tmp_path)
    train(often, tmp_path / "often", checkpoint_seconds=0.0)
    seldom = CASES[case](tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unperturb.restoration.loop._Loop.try_next", lambda *_: None)
        train(seldom, tmp_path / "seldom")
    for name, module in often.work.modules.items():
        assert equal(state(module), state(seldom.work.modules[name])), name


def test_a_gradient_that_is_no_number_is_never_taken(tmp_path: Path) -> None:
    plan = CASES["mae"](tmp_path)
    begun = state(plan.net.network)

    def losses(*arguments: Any) -> dict[str, Tensor]:
        for parameter in plan.net.network.parameters():
            parameter.grad = torch.full_like(parameter, float("inf"))
        return {"mse": torch.tensor(1.0)}

    plan.work.losses = losses  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="a gradient of the network is not finite"):
        train(plan, tmp_path / "out")
    assert equal(state(plan.net.network), begun)


@pytest.mark.parametrize("case", ["atop", "atop mae whole"])
def test_a_fine_tuning_that_diverges_leaves_the_network_it_had(case: str, tmp_path: Path) -> None:
    plan = CASES[case](tmp_path)
    # A look ahead before each of three steps, and two of them.
    original, left = plan.work.losses, [5]

    def losses(*arguments: Any) -> dict[str, Tensor]:
        left[0] -= 1
        found = original(*arguments)
        return {**found, "classifier": found["classifier"] * (1 if left[0] >= 0 else float("nan"))}

    plan.work.losses = losses  # type: ignore[method-assign]
    told = "epoch 1, step 3: the classifier loss is nan.*last good"
    with pytest.raises(ConfigError, match=told) as caught:
        train(plan, tmp_path / "out", checkpoint_seconds=0.0)
    found = plan_pretrain(
        digits(), gan_config() if case == "atop" else mae_config(), start=tmp_path / "out"
    )
    kept = state(found.net.network)
    assert equal(kept, state(plan.net.network)), "the two good steps are in the checkpoint"
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())
    # From there a fine-tuning goes on, which needs more than a checkpoint's weights.
    last = tmp_path / "out" / "last-good"
    assert f"its network in {last}: --start takes it" in str(caught.value)
    again = plan_finetune(classifier_of_digits(), last, digits(), tune_config(transform="rt2"))
    assert equal(state(again.net.network), kept)
    train(again, tmp_path / "again")


class Blind(PatchDiscriminator):
    """Gives all images one score."""

    def forward(self, images: Tensor) -> Tensor:
        return 0.0 * super().forward(images)


def test_a_collapsed_discriminator_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unperturb.restoration.run.PatchDiscriminator", Blind)
    plan = plan_pretrain(digits(), gan_config())
    begun = state(plan.net.network)
    assert isinstance(plan.work, gan_module.GANWork)
    plan.work.watch = Watch(patience=4)
    with pytest.raises(ConfigError) as caught:
        train(plan, tmp_path / "out", checkpoint_seconds=0.0)
    for word in ("the discriminator collapsed", "one score", "for 4 steps", "epoch 2, step 1"):
        assert word in str(caught.value)
    # Three steps and an epoch were done meanwhile; none of them was worth keeping.
    kept = plan_pretrain(digits(), gan_config(), start=tmp_path / "out")
    assert equal(state(kept.net.network), begun)


@pytest.mark.parametrize("stop_after", [1, None])
def test_a_run_that_ends_with_a_collapsed_discriminator_is_not_finished(
    stop_after: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer steps than it takes to be sure of a collapse.
    monkeypatch.setattr("unperturb.restoration.run.PatchDiscriminator", Blind)
    plan = plan_pretrain(digits(), gan_config())
    begun = state(plan.net.network)
    told = f"after epoch {stop_after or 2}: .* no longer tells images apart"
    with pytest.raises(ConfigError, match=told):
        train(plan, tmp_path / "out", stop_after=stop_after)
    assert not (tmp_path / "out" / "training.json").exists()
    kept = plan_pretrain(digits(), gan_config(), start=tmp_path / "out" / "last-good")
    assert equal(state(kept.net.network), begun)


@pytest.mark.parametrize("flat", [8, 9])
def test_one_batch_at_the_end_is_no_collapse(
    flat: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A look at the first step, twice three steps and a look ahead: the last step is the 8th pass.
    passes = [0]
    original = Watch.see

    def see(self: Watch, scores: Tensor) -> None:
        passes[0] += 1
        original(self, scores * (passes[0] != flat))

    monkeypatch.setattr(Watch, "see", see)
    train(CASES["gan"](tmp_path), tmp_path / "out")
    assert passes[0] == 9
    assert (tmp_path / "out" / "training.json").exists()


def test_a_discriminator_that_collapses_in_fine_tuning_stops_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = start(tmp_path)
    monkeypatch.setattr("unperturb.restoration.folder.PatchDiscriminator", Blind)
    plan = plan_finetune(classifier_of_digits(), folder, digits(), tune_config())
    begun = state(plan.net.network)
    assert isinstance(plan.work, FineTuneWork)
    plan.work.watch = Watch(patience=2)
    with pytest.raises(ConfigError, match="epoch 1, step 2: the discriminator collapsed"):
        train(plan, tmp_path / "out", checkpoint_seconds=0.0)
    kept = plan_pretrain(digits(), gan_config(), start=tmp_path / "out")
    assert equal(state(kept.net.network), begun)


def test_what_counts_as_a_collapse() -> None:
    watch = Watch(patience=3)
    flat, fine = torch.zeros(8), torch.linspace(-1, 1, 8)
    for scores in (flat, flat, fine, flat, flat):
        watch.see(scores)
    assert not watch.healthy
    with pytest.raises(Diverged, match="gives all images one score"):
        watch.see(flat)
    watch = Watch(patience=1)
    with pytest.raises(Diverged, match="scores run away"):
        watch.see(1e6 * fine)
