"""Training a denoiser: its loss, what it learns, exact resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_vae import digit_set
from unperturb.classifiers import Classifier, as_classifier, new_classifier
from unperturb.defense import Defense
from unperturb.errors import ConfigError, DataError, InputError, RecordError, SpecError
from unperturb.generative import DenoiserConfig, load_denoiser, train_denoiser
from unperturb.generative.denoiser import guided_loss
from unperturb.networks.unet import DenoisingUNet
from unperturb.purifiers import UNetDenoiser


def config(**changes: Any) -> DenoiserConfig:
    found = {
        "epochs": 2, "batch_size": 32, "holdout": 50, "milestones": (0.5,), "lr": 0.05,
        "eps": 0.2, "attack_steps": 3, "attack_step_size": 0.5, "augment": "none",
    }  # fmt: skip
    return DenoiserConfig(**{**found, **changes})


def fresh() -> DenoisingUNet:
    return DenoisingUNet(in_channels=1, width=4, depth=1)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def net(digits_net: nn.Module) -> Classifier:
    """A trained classifier of digits."""
    return as_classifier(digits_net, input_shape=(1, 8, 8))


def test_the_loss_by_hand(conv: Any, pixels: Any) -> None:
    net, clean, attacked = conv(), pixels(3), pixels(3, seed=9)
    unet = DenoisingUNet(width=4, depth=1).eval()
    with torch.no_grad():
        unet.last.weight.fill_(0.3)
    denoised = attacked - unet(attacked)
    found = guided_loss(unet, net, clean, attacked, "pixels")
    torch.testing.assert_close(found, (denoised - clean).abs().mean())
    found = guided_loss(unet, net, clean, attacked, "logits")
    torch.testing.assert_close(found, (net(denoised) - net(clean)).abs().mean())


@pytest.mark.parametrize("guide", ["logits", "pixels"])
def test_it_learns_and_leaves_the_classifier_alone(
    net: Classifier, digits_net: nn.Module, tmp_path: Path, untouched: Any, guide: str
) -> None:
    data = digit_set(450)
    with untouched(digits_net):
        # The mean of absolute pixels has a small slope.
        settings = config(epochs=6, guide=guide, lr=0.05 if guide == "logits" else 1.0)
        train_denoiser(fresh(), net, data, settings, out=tmp_path, show=False)
    record = json.loads((tmp_path / "training.json").read_text())
    first, last = record["epochs"][0], record["last"]
    assert last["heldout_attacked"] < last["heldout_clean"] - 0.3
    # Pixels alone say little about answers, which is what Liao et al. show.
    better = 0.1 if guide == "logits" else 0.0
    assert last["heldout_denoised"] > last["heldout_attacked"] + better
    assert last["heldout_clean_denoised"] > last["heldout_clean"] - 0.15
    assert record["epochs"][-1]["loss"] < first["loss"]
    assert record["classifier"]["fingerprint"] == net.fingerprint()
    unet = load_denoiser(tmp_path)
    images = data.images(slice(400, 450))
    shown = Defense(net, purifier=UNetDenoiser(unet=unet)).predict(images).purified
    assert shown is not None
    torch.testing.assert_close(shown, (images - unet(images)).clamp(0, 1))
    assert float((shown - images).abs().max()) > 0.01


def test_a_run_in_parts_is_the_whole_run(net: Classifier, tmp_path: Path) -> None:
    data, ends = digit_set(200), []
    for stops in ((None,), (1, None)):
        for stop in stops:
            unet = train_denoiser(
                fresh(), net, data, config(), out=tmp_path / str(len(stops)), stop_after=stop,
                show=False,
            )  # fmt: skip
        ends.append(state(unet))
    assert equal(*ends)


def test_refusals(net: Classifier, tmp_path: Path) -> None:
    data = digit_set(200)
    with pytest.raises(DataError, match="The images have 1 channels.*3, which the denoiser"):
        train_denoiser(DenoisingUNet(width=4), net, data, config(), show=False)
    few = new_classifier("small-cnn", num_classes=3)
    with pytest.raises(InputError, match="labels lie outside the classes"):
        train_denoiser(fresh(), few, data, config(), show=False)
    train_denoiser(fresh(), net, data, config(), out=tmp_path, stop_after=1, show=False)
    other = new_classifier("small-cnn", num_classes=10)
    with pytest.raises(RecordError, match="belongs to another training run"):
        train_denoiser(fresh(), other, data, config(), out=tmp_path, show=False)
    assert all(p.requires_grad for p in other.parameters()), "flags are put back"


def test_a_loss_that_is_not_a_number_is_told_and_flags_come_back(net: Classifier) -> None:
    net.requires_grad_(True)
    with pytest.raises(ConfigError, match="(loss is (nan|inf)|is nan after).*lower lr"):
        train_denoiser(fresh(), net, digit_set(200), config(lr=1e30), show=False)
    assert all(p.requires_grad for p in net.parameters())


def test_wrong_settings() -> None:
    with pytest.raises(SpecError, match="Unknown guide 'features'"):
        config(guide="features")
    with pytest.raises(ConfigError, match="eps is 8.*8/255"):
        config(eps=8)
    with pytest.raises(ConfigError, match="attack_steps is 0"):
        config(attack_steps=0)
    assert DenoiserConfig.from_dict(config().to_dict()) == config()


def test_a_denoiser_of_other_channels_is_refused(conv: Any) -> None:
    words = "The denoiser is for images of 1 channels, and the classifier reads 3"
    with pytest.raises(ConfigError, match=words):
        Defense(conv(), purifier=UNetDenoiser(unet=fresh()))
