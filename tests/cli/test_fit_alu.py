"""``unperturb fit vae | alu | denoiser`` and ``train --through``: one journey, and wrong use."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unperturb.classifiers import load_classifier, new_classifier, save_classifier
from unperturb.cli import main
from unperturb.cli import unperturb as program
from unperturb.cli.train import fractions
from unperturb.defense import Defense
from unperturb.errors import ConfigError
from unperturb.generative import load_denoiser, load_vae, vae_of
from unperturb.specs import option_pairs

Run = Callable[..., Any]

VAE = ("--data", "digits", "--limit", "200", "--holdout", "40", "--batch-size", "32",
       "--width", "4", "--downsample", "1", "--augment", "none", "--device", "cpu")  # fmt: skip
NET = ("--data", "digits", "--limit", "200", "--holdout", "40", "--monitor-images", "20",
       "--batch-size", "32", "--epochs", "1", "--augment", "none", "--device", "cpu")  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier and a VAE."""
    folder = tmp_path_factory.mktemp("parts")
    save_classifier(new_classifier("small-cnn", in_channels=1, seed=3), folder / "net")
    command = ("fit", "vae", *VAE, "--epochs", "2", "--out", str(folder / "vae"), "--quiet")
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    return folder


def test_a_vae(parts: Path) -> None:
    vae = load_vae(parts / "vae")
    assert vae.config()["image_shape"] == [1, 8, 8]
    record = json.loads((parts / "vae" / "training.json").read_text())
    assert len(record["epochs"]) == 2
    assert record["config"]["holdout"] == 40
    assert record["data"]["source"].startswith("digits")


def test_a_vae_in_parts_and_as_json(run: Run, tmp_path: Path, parts: Path) -> None:
    command = ("fit", "vae", *VAE, "--epochs", "2", "--out", tmp_path / "vae")
    said = run(*command, "--stop-after", "1").out
    assert "not finished: the same command without --stop-after goes on" in said
    found = run(*command, "--json").json
    assert found["finished"] is True
    assert set(found["card"]["last"]) == {"heldout_psnr", "heldout_mse"}
    name = "model.safetensors"
    assert (tmp_path / "vae" / name).read_bytes() == (parts / "vae" / name).read_bytes()
    assert "holds a finished training run" in run(*command, code=2).err


def test_alu_is_fitted_saved_and_used(run: Run, tmp_path: Path, parts: Path) -> None:
    out = tmp_path / "alu"
    done = run(
        "fit", "alu", "--classifier", parts / "net", "--vae", parts / "vae", "--data", "digits",
        "--limit", "100", "--steps", "2", "--quantile", "0.9", "--statistic", "max-change",
        "--out", out, "--device", "cpu",
    )  # fmt: skip
    assert "of max-change: 90.0% of 100 clean images are not above it" in done.out
    assert "100 images through latent-optimization: about" in done.err
    defense = Defense.from_pretrained(out)
    assert defense.decision.name == "logit-update"
    assert defense.purifier.config()["steps"] == 2
    assert defense.detector is not None
    assert defense.detector.config()["fitted_on"]["split"] == "train"
    labels = run(
        "audit", "--defense", out, "--data", "digits", "--limit", "4", "--attacks", "fgsm",
        "--out", tmp_path / "audit", "--json", "--device", "cpu",
    ).json  # fmt: skip
    goals = {(a["attacker"], a["backward"]) for a in labels["attacks"]}
    assert {("adaptive", rule) for rule in ("unrolled", "encoder-decoder", "identity")} <= goals
    again = (
        "fit", "alu", "--classifier", parts / "net", "--vae", parts / "vae", "--data", "digits",
        "--limit", "50", "--out", out, "--device", "cpu", "--json",
    )  # fmt: skip
    assert run(*again).json["detector"]["fitted_on"]["images"]["count"] == 50


def test_alu_on_another_purifier_and_on_a_denoiser(run: Run, tmp_path: Path, parts: Path) -> None:
    common = ("--classifier", parts / "net", "--data", "digits", "--limit", "60", "--device", "cpu")
    found = run(
        "fit", "alu", *common, "--purifier", "fgsm-step?radius=1/8", "--out", tmp_path / "f",
        "--json",
    ).json  # fmt: skip
    assert found["purifier"] == {"name": "fgsm-step", "radius": 0.125, "clip": True}
    run(
        "fit", "denoiser", *common, "--width", "4", "--depth", "1", "--epochs", "1", "--holdout",
        "20", "--batch-size", "20", "--attack-steps", "2", "--augment", "none", "--quiet",
        "--out", tmp_path / "unet",
    )  # fmt: skip
    assert load_denoiser(tmp_path / "unet").in_channels == 1
    toy = run(
        "fit", "alu", *common, "--denoiser", tmp_path / "unet", "--out", tmp_path / "toy", "--json"
    ).json
    assert toy["purifier"]["name"] == "unet-denoiser"


@pytest.mark.parametrize("level", [None, 0])
def test_training_through_a_vae(run: Run, tmp_path: Path, parts: Path, level: int | None) -> None:
    more = () if level is None else ("--level", level)
    out = tmp_path / "net"
    run("train", "--arch", "small-cnn", "--through", parts / "vae", *more, *NET, "--out", out)
    module = vae_of(load_classifier(str(out)))
    assert module is not None
    assert module.level == level
    found = run(
        "fit", "alu", "--classifier", out, "--data", "digits", "--limit", "60", "--out",
        tmp_path / "alu", "--json", "--device", "cpu",
    ).json  # fmt: skip
    assert found["purifier"]["unified"] is True
    assert found["purifier"]["level"] == level
    assert Defense.from_pretrained(tmp_path / "alu").fingerprint() == found["fingerprint"]
    again = tmp_path / "again"
    run("train", "--start", out, *NET, "--out", again)
    module = vae_of(load_classifier(str(again)))
    assert module is not None
    assert module.level == level


def test_wrong_use(run: Run, tmp_path: Path, parts: Path) -> None:
    common = ("--classifier", parts / "net", "--data", "digits", "--limit", "20", "--device", "cpu")
    for more, words in (
        ((), "alu has neither a VAE nor a denoiser"),
        (("--vae", parts / "net"), "has format 'unperturb-classifier'"),
        (("--purifier", "fgsm-stp"), "Unknown purifier 'fgsm-stp'"),
        (("--purifier", "fgsm-step", "--steps", "3"), "--purifier is given with --steps"),
        (("--purifier", "fgsm-step?radius=wide/3"), "radius is 'wide/3'"),
        (("--vae", parts / "vae", "--optimizer", "sgd"), "Unknown optimizer 'sgd'"),
        (("--vae", parts / "vae", "--quantile", "99.5"), "The quantile is 99.5"),
    ):
        assert words in run("fit", "alu", *common, *more, "--out", tmp_path / "x", code=2).err
    assert not (tmp_path / "x").exists()
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    command = ("fit", "alu", *common, "--vae", parts / "vae", "--out", folder)
    assert "holds no defense" in run(*command, code=1).err
    train = ("train", *NET, "--out", tmp_path / "y")
    assert "--level 0 is given without --through" in run(
        *train, "--arch", "small-cnn", "--level", "0", code=2
    ).err  # fmt: skip
    assert "multiples of 8" in run(
        "fit", "vae", "--data", "digits", "--limit", "60", "--downsample", "3",
        "--image-size", "12", "--out", tmp_path / "z", code=2,
    ).err  # fmt: skip


def test_options_behind_a_question_mark(tmp_path: Path) -> None:
    found = option_pairs(f"vae={tmp_path}&threshold=12.5&statistic=max-change")
    assert found == {"vae": str(tmp_path), "threshold": 12.5, "statistic": "max-change"}


@pytest.mark.parametrize("name", ["vae", "alu", "denoiser"])
def test_help_explains_every_option_and_shows_examples(run: Run, name: str) -> None:
    text = run("fit", name, "--help").out.replace("\\\n", " ")
    examples = [shlex.split(s)[1:3] for s in text.splitlines() if s.startswith("    unperturb ")]
    assert ["fit", name] in examples
    command = program.commands["fit"].commands[name]  # type: ignore[attr-defined]
    options = [p for p in command.params if p.param_type_name == "option"]
    assert all(getattr(option, "help", None) for option in options)
    assert not torch.is_inference_mode_enabled()


def test_milestones_may_be_fractions() -> None:
    assert fractions("2/3, 0.75") == (2 / 3, 0.75)
    for text in ("2/0", "1/3/4", "3/2", "soon"):
        with pytest.raises(ConfigError, match="--milestones is .*fractions of the epochs"):
            fractions(text)
