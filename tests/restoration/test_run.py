"""A whole training: the folder it leaves, exact resume, and runs that go wrong."""

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
from torch import Tensor

import unperturb
from restoration.small import digits, equal, gan_config, mae_config, state, tune_config
from unperturb.classifiers import Classifier, new_classifier
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, DataError, InputError, OutputError, RecordError, SpecError
from unperturb.networks.inpainting_gan import PatchDiscriminator
from unperturb.purifiers import Restoration
from unperturb.restoration import (
    Plan,
    load_restoration,
    plan_finetune,
    plan_pretrain,
    save_restoration,
    train_restoration,
)
from unperturb.restoration import gan as gan_module
from unperturb.restoration import loop as loop_module
from unperturb.restoration.checkpoint import CHECKPOINT
from unperturb.restoration.finetune import FineTuneWork
from unperturb.restoration.gan import Watch
from unperturb.restoration.loop import Diverged, fit

STEPS = 3
"""Of an epoch: 30 images less 6, eight at a time."""


def start(tmp_path: Path, kind: str = "gan") -> Path:
    """The folder of a pre-trained network that was never trained."""
    folder = tmp_path / f"start-{kind}"
    if not folder.exists():
        config = gan_config() if kind == "gan" else mae_config()
        save_restoration(plan_pretrain(digits(), config).net, folder)
    return folder


def classifier_of_digits() -> Classifier:
    return new_classifier("small-cnn", in_channels=1, seed=2)


CASES: dict[str, Callable[[Path], Plan]] = {
    "gan": lambda folder: plan_pretrain(digits(), gan_config()),
    "gan hinge": lambda folder: plan_pretrain(
        digits(), gan_config(form="hinge", precision="bfloat16", augment="crop-flip")
    ),
    "mae": lambda folder: plan_pretrain(digits(), mae_config(schedule="multistep")),
    "atop": lambda folder: plan_finetune(
        classifier_of_digits(), start(folder), digits(), tune_config()
    ),
    "atop mae whole": lambda folder: plan_finetune(
        classifier_of_digits(),
        start(folder, "mae"),
        digits(),
        tune_config(against="whole", transform="rt3"),
    ),
}


def train(plan: Plan, out: Path | None, **options: Any) -> Any:
    assert out is not None
    return train_restoration(plan, digits(), out=out, show=False, **options)


# -- what a run leaves ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_run_leaves_a_folder_that_purifies(case: str, tmp_path: Path, pixels: Any) -> None:
    plan = CASES[case](tmp_path)
    begun = state(plan.net.network)
    found = train(plan, tmp_path / "out")
    assert not equal(begun, state(found.network)), "nothing was trained"
    folder = tmp_path / "out"
    names = {path.name for path in folder.iterdir()}
    gan = {"discriminator.safetensors"} if "mae" not in case else set()
    assert names == {"config.json", "model.safetensors", "training.json", "samples"} | gan
    assert {path.name for path in (folder / "samples").iterdir()} == {
        "epoch-001.png", "epoch-002.png"
    }  # fmt: skip
    record = json.loads((folder / "training.json").read_text())
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    assert record["config"] == plan.config.to_dict()
    last = record["epochs"][-1]
    assert record["heldout"]["masked_l1"] == last["masked_l1"]
    assert {"mean_l1", "bilinear_l1", "mean_rmse"} <= set(last)
    assert all(value == value for value in last["losses"].values())
    assert ("clean" in last) is ("atop" in case)
    # A fine-tuning begins somewhere: the same figures before its first step.
    before = record["epochs"][0].get("before")
    assert (before is not None) is ("atop" in case)
    assert before is None or set(before) == {k for k, v in last.items() if isinstance(v, float)} - {
        "lr", "seconds"
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(record), "a path of this machine is in the record"
    again = load_restoration(folder)
    assert equal(state(again.network), state(found.network))
    assert again.transform == plan.config.make_transform()
    assert again.card["config"] == record["config"]
    purifier = Restoration.from_folder(folder)
    assert purifier.transform == plan.config.make_transform()
    assert equal(state(purifier.network), state(found.network))


def test_fine_tuning_names_what_it_was_done_for(tmp_path: Path) -> None:
    found = train(CASES["atop"](tmp_path), tmp_path / "out")
    net = classifier_of_digits()
    assert found.card["classifier"]["fingerprint"] == net.fingerprint()
    assert found.card["start"]["folder"] == "start-gan"
    begun, ended = load_restoration(start(tmp_path)), load_restoration(tmp_path / "out")
    assert begun.discriminator is not None
    assert ended.discriminator is not None
    assert not equal(state(begun.discriminator), state(ended.discriminator))


def test_the_classifier_stays_as_it_is(tmp_path: Path, untouched: Any) -> None:
    net = classifier_of_digits()
    net.module.requires_grad_(True)
    plan = plan_finetune(net, start(tmp_path), digits(), tune_config())
    with untouched(net.module):
        train(plan, tmp_path / "out")


def test_training_restores_better_than_it_did(tmp_path: Path) -> None:
    """Digits in a few seconds: far below the mean of the visible pixels."""
    from unperturb.data import load_images

    data = load_images("digits", split="train")
    config = gan_config(
        transform="rt1", sigma=None, patch=2, epochs=4, batch_size=16, lr=5e-3, holdout=200,
        monitor_images=200, samples=0, width=8,
    )  # fmt: skip
    plan = plan_pretrain(data, config)
    train_restoration(plan, data, out=tmp_path / "out", show=False)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    first, last = record["epochs"][0], record["epochs"][-1]
    assert last["masked_l1"] < first["masked_l1"]
    assert last["masked_l1"] < 0.8 * last["mean_l1"]
    assert not (tmp_path / "out" / "samples").exists()


# -- resume ---------------------------------------------------------------------------------------


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


# -- divergence -----------------------------------------------------------------------------------


def test_losses_that_are_no_numbers_stop_the_run_and_leave_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, left = gan_module.GANWork.losses, [4]

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
    original, left = plan.work.losses, [2]

    def losses(*arguments: Any) -> dict[str, Tensor]:
        left[0] -= 1
        found = original(*arguments)
        return {**found, "classifier": found["classifier"] * (1 if left[0] >= 0 else float("nan"))}

    plan.work.losses = losses  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="epoch 1, step 3: the classifier loss is nan.*last good"):
        train(plan, tmp_path / "out", checkpoint_seconds=0.0)
    found = plan_pretrain(
        digits(), gan_config() if case == "atop" else mae_config(), start=tmp_path / "out"
    )
    kept = state(found.net.network)
    assert equal(kept, state(plan.net.network)), "the two good steps are in the checkpoint"
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())


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


# -- what does not go together --------------------------------------------------------------------


def test_images_that_do_not_go_with_the_network(tmp_path: Path, data: ImageSet) -> None:
    with pytest.raises(InputError, match="dropped in part"):
        plan_pretrain(data, mae_config(token=2))
    with pytest.raises(InputError, match="8x8 have 1 patch of 8x8"):
        plan_pretrain(data, gan_config(patch=8))
    from dataclasses import replace

    wide = replace(data, pixels=data.pixels.repeat(1, 1, 1, 2))
    net = classifier_of_digits()
    with pytest.raises(InputError, match="8x16"):
        plan_finetune(net, start(tmp_path), wide, tune_config())
    wrong = replace(data, labels=data.labels + 5)
    with pytest.raises(InputError, match="outside the classes"):
        plan_finetune(net, start(tmp_path), wrong, tune_config())
    color = new_classifier("small-cnn", in_channels=3)
    with pytest.raises(InputError, match="1 channel"):
        plan_finetune(color, start(tmp_path), data, tune_config())
    with pytest.raises(DataError, match="30 training images less 25 held out leave 5"):
        train_restoration(
            plan_pretrain(data, gan_config(holdout=25)), data, out=tmp_path / "out", show=False
        )


def test_a_gan_without_a_discriminator_needs_no_weight_for_it(
    tmp_path: Path, data: ImageSet
) -> None:
    plan = plan_pretrain(data, gan_config(adversarial_weight=0.0))
    save_restoration(plan.net, tmp_path / "bare")
    net = classifier_of_digits()
    with pytest.raises(ConfigError, match="adversarial_weight is 0.01, and the GAN has no"):
        plan_finetune(net, tmp_path / "bare", data, tune_config())
    found = plan_finetune(net, tmp_path / "bare", data, tune_config(adversarial_weight=0.0))
    assert found.net.discriminator is None


def test_a_start_that_is_none(tmp_path: Path, data: ImageSet) -> None:
    with pytest.raises(SpecError, match="no weights to start from in.*nowhere"):
        plan_pretrain(data, gan_config(), start=tmp_path / "nowhere")
    with pytest.raises(SpecError, match="no restoration network in"):
        plan_finetune(classifier_of_digits(), tmp_path / "nowhere", data, tune_config())
    found = plan_pretrain(data, gan_config(seed=7), start=start(tmp_path))
    assert equal(state(found.net.network), state(load_restoration(start(tmp_path)).network))


def test_no_folder_and_no_monitor(data: ImageSet) -> None:
    plan = plan_pretrain(data, gan_config())
    epochs = fit(plan.work, data, plan.config, show=False)
    assert [set(epoch) for epoch in epochs] == [{"epoch", "losses", "lr", "seconds"}] * 2
    assert plan.step_seconds(data, "cpu") > 0


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("kind", ["gan", "mae"])
def test_color_images_of_classes_that_a_classifier_knows(
    tmp_path: Path, side: int, kind: str
) -> None:
    """The whole way at 32x32 and at 64x64, a step each: pre-train, fine-tune, defend."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(12) % 10
    names = tuple(str(i) for i in range(12))
    data = ImageSet(pixels, labels, names, tuple("abcdefghij"), "made", "train")
    short: dict[str, Any] = {"epochs": 1, "batch_size": 4, "holdout": 4}
    config = gan_config(**short) if kind == "gan" else mae_config(**short)
    train_restoration(plan_pretrain(data, config), data, out=tmp_path / "first", show=False)
    net = new_classifier("cifar-resnet20")
    plan = plan_finetune(net, tmp_path / "first", data, tune_config(**short))
    train_restoration(plan, data, out=tmp_path / "atop", show=False)
    from unperturb.presets import atop

    defense = atop(net, purifier=tmp_path / "atop")
    assert defense(data.images()).shape == (12, 10)
    with pytest.raises(InputError, match=f"3 channels and {side}x{side}, on which"):
        defense(data.images()[..., :16, :16])
