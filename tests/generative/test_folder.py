"""Folders of VAEs and denoisers: what comes back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from small_vae import tiny
from unperturb.classifiers import new_classifier, save_classifier
from unperturb.errors import ConfigError, OutputError, SpecError, WeightsError
from unperturb.generative import (
    fingerprint,
    load_denoiser,
    load_vae,
    read_card,
    save_generative,
)
from unperturb.networks.unet import DenoisingUNet


def test_both_kinds_come_back(tmp_path: Path) -> None:
    vae, unet = tiny(sharp=2.0), DenoisingUNet(width=4)
    with torch.no_grad():
        unet.last.bias.fill_(0.25)
    save_generative(vae, tmp_path / "vae", card={"made": "here"})
    save_generative(unet, tmp_path / "unet")
    again = load_vae(tmp_path / "vae")
    assert fingerprint(again) == fingerprint(vae) != fingerprint(tiny())
    assert again.config() == vae.config()
    other = load_denoiser(tmp_path / "unet")
    assert fingerprint(other) == fingerprint(unet)
    assert not other.training
    assert not any(p.requires_grad for p in (*again.parameters(), *other.parameters()))
    assert read_card(tmp_path / "vae") == {"made": "here"}
    assert read_card(tmp_path) == {}


def test_loaded_under_inference_mode_it_can_be_differentiated(tmp_path: Path) -> None:
    save_generative(tiny(), tmp_path / "vae")
    with torch.inference_mode():
        vae = load_vae(tmp_path / "vae")
    leaf = torch.full((1, 3, 8, 8), 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(vae(leaf).sum(), leaf)
    assert bool(gradient.any())


def test_what_is_not_there_or_something_else(tmp_path: Path) -> None:
    save_generative(tiny(), tmp_path / "vae")
    with pytest.raises(SpecError, match=r"There is no VAE in .*vea'.*did you mean .*vae'"):
        load_vae(tmp_path / "vea")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="There is no denoiser.*unperturb fit denoiser makes one"):
        load_denoiser(tmp_path / "empty")
    with pytest.raises(SpecError, match="has format 'unperturb-vae'.*a saved denoiser"):
        load_denoiser(tmp_path / "vae")
    save_classifier(new_classifier("small-cnn"), tmp_path / "net")
    with pytest.raises(SpecError, match="has format 'unperturb-classifier'.*a saved VAE"):
        load_vae(tmp_path / "net")
    with pytest.raises(OutputError, match="config.json of something else"):
        save_generative(tiny(), tmp_path / "net")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        save_generative(tiny(), tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"schema_version": 9}, ConfigError, "schema version 9"),
        ({"network": {"with": 3}}, ConfigError, "is damaged"),
        ({"network": None}, ConfigError, "is damaged"),
        ({"fingerprint": "0" * 64}, WeightsError, "000000000000, as config.json says"),
    ],
)
def test_a_damaged_folder(
    tmp_path: Path, change: dict[str, object], kind: type[Exception], words: str
) -> None:
    save_generative(tiny(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(kind, match=words):
        load_vae(tmp_path)


def test_broken_or_missing_files(tmp_path: Path) -> None:
    save_generative(tiny(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_vae(tmp_path)
    save_generative(tiny(width=5), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="There is no weights file"):
        load_vae(tmp_path / "other")
    save_generative(tiny(width=5), tmp_path / "other")
    config = (tmp_path / "other" / "config.json").read_text()
    save_generative(tiny(width=6), tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(config)
    with pytest.raises(WeightsError, match="do not fit the network VAE"):
        load_vae(tmp_path / "other")
