"""A whole training: the folder it leaves, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

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
from unperturb.classifiers import new_classifier
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, DataError, InputError, SpecError
from unperturb.purifiers import Restoration
from unperturb.restoration import (
    load_restoration,
    plan_finetune,
    plan_pretrain,
    save_restoration,
    train_restoration,
)
from unperturb.restoration.loop import fit

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
