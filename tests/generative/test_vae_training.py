"""Training a VAE: it learns, resumes exactly, and stops where numbers break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small_vae import digit_set, digits_vae, tiny
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, DataError, OutputError, RecordError, SpecError
from unperturb.generative import VAEConfig, load_vae, psnr, reconstruction, train_vae
from unperturb.generative.vae import evidence_loss
from unperturb.networks.vae import VAE
from unperturb.training.checkpoint import CHECKPOINT, Checkpoint


def config(**changes: Any) -> VAEConfig:
    found = {"epochs": 3, "batch_size": 32, "holdout": 20, "milestones": (0.5,), "lr": 5e-3}
    return VAEConfig(**{**found, **changes})


def data(count: int = 150) -> ImageSet:
    return digit_set(count)


def fresh() -> VAE:
    return tiny(channels=1)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def without_times(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k != "seconds"} for e in record["epochs"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VAE]:
    """A run without any interruption."""
    out = tmp_path_factory.mktemp("whole")
    return out, train_vae(fresh(), data(), config(), out=out, show=False)


def test_it_learns_digits() -> None:
    held = digit_set().take(slice(500, 600))
    trained = reconstruction(digits_vae(), held)
    untrained = reconstruction(tiny(channels=1, width=8, latent_channels=4), held)
    assert trained["psnr"] > 17 > untrained["psnr"] + 4
    assert trained["mse"] < 0.3 * untrained["mse"]


def test_the_evidence_by_hand() -> None:
    vae = tiny(channels=1).double()
    images = data().images(slice(0, 5)).double()
    noise = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    mean, log_variance = vae.encode(images)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    kl = torch.distributions.kl_divergence(posterior, prior).sum() / 5
    found = vae.decode(mean + posterior.scale * noise)
    error = (found - images).square().sum() / 5
    for got, want in zip(
        evidence_loss(vae, images, noise, 0.3), (error + 0.3 * kl, error, kl), strict=True
    ):
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-5, atol=1e-6)


def test_psnr_and_reconstruction_by_hand() -> None:
    vae, some = fresh(), data(30)
    images = some.images()
    error = (vae(images) - images).square().flatten(1).mean(1).double()
    torch.testing.assert_close(
        psnr(images, vae(images)).double(), -10 * error.log10(), rtol=1e-5, atol=1e-5
    )
    found = reconstruction(vae, some, batch_size=7)
    assert found["mse"] == pytest.approx(float(error.mean()))
    assert found["psnr"] == pytest.approx(float((-10 * error.log10()).mean()))


# Resumption


def test_a_run_in_parts_is_the_whole_run(tmp_path: Path, whole: tuple[Path, VAE]) -> None:
    for stop in (1, 2, None):
        vae = train_vae(fresh(), data(), config(), out=tmp_path, stop_after=stop, show=False)
        assert (tmp_path / CHECKPOINT).exists() == (stop is not None)
        assert (tmp_path / "training.json").exists() == (stop is None)
    assert equal(state(vae), state(whole[1]))
    ours, theirs = (
        json.loads((folder / "training.json").read_text()) for folder in (tmp_path, whole[0])
    )
    assert without_times(ours) == without_times(theirs)
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.parametrize("most", [1, 5, 6, 10])
def test_cut_off_in_the_middle_of_an_epoch_it_goes_on_exactly(
    tmp_path: Path, whole: tuple[Path, VAE], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    write = Checkpoint.write
    written = []

    def some(self: Checkpoint) -> None:
        write(self)
        written.append(self.step)
        if len(written) == most:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", some)
        with pytest.raises(KeyboardInterrupt):
            train_vae(fresh(), data(), config(), out=tmp_path, checkpoint_seconds=0.0, show=False)
    # Four steps an epoch: three checkpoints within it, and one after it.
    assert written == ([1, 2, 3, 0] * 3)[:most]
    assert equal(state(train_vae(fresh(), data(), config(), out=tmp_path, show=False)),
                 state(whole[1]))  # fmt: skip


def test_adams_averages_are_in_the_checkpoint(tmp_path: Path) -> None:
    from safetensors import safe_open

    train_vae(fresh(), data(), config(), out=tmp_path, stop_after=1, show=False)
    with safe_open(tmp_path / CHECKPOINT, framework="pt") as stored:
        names = set(stored.keys())
        assert float(stored.get_tensor("optimizer.0.step")) == 4
    assert {"optimizer.0.exp_avg", "optimizer.0.exp_avg_sq"} <= names


@pytest.mark.parametrize("change", ["seed", "beta", "data", "weights", "network"])
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, change: str) -> None:
    train_vae(fresh(), data(), config(), out=tmp_path, stop_after=1, show=False)
    before = (tmp_path / CHECKPOINT).read_bytes()
    vae, some, settings = fresh(), data(), config()
    if change == "data":
        some = data(149)
    elif change == "weights":
        with torch.no_grad():
            vae.decoder[0].weight.mul_(1.01)  # type: ignore[operator,union-attr]
    elif change == "network":
        vae = tiny(channels=1, width=5)
    else:
        settings = config(**{change: 7})
    with pytest.raises(RecordError, match="belongs to another training run"):
        train_vae(vae, some, settings, out=tmp_path, show=False)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


# What is left


def test_the_folder_brings_the_vae_back(whole: tuple[Path, VAE]) -> None:
    out, trained = whole
    found = load_vae(out)
    assert equal(state(found), state(trained))
    assert not any(p.requires_grad for p in (*found.parameters(), *trained.parameters()))
    assert not found.training
    record = json.loads((out / "training.json").read_text())
    assert VAEConfig.from_dict(record["config"]) == config()
    assert record["data"]["fingerprint"] == data().fingerprint()
    held = data().take(slice(130, 150))
    assert record["last"]["heldout_psnr"] == pytest.approx(reconstruction(found, held)["psnr"])
    assert [epoch["lr"] for epoch in record["epochs"]] == pytest.approx([5e-3, 1e-3, 1e-3])
    assert str(out) not in (out / "config.json").read_text() + json.dumps(record)
    with pytest.raises(RecordError, match="holds a finished training run"):
        train_vae(fresh(), data(), config(), out=out, show=False)


def test_without_held_out_images_training_ones_are_measured() -> None:
    vae = fresh()
    train_vae(vae, data(64), config(epochs=1, holdout=0), show=False)
    assert reconstruction(vae, data(64))["psnr"] > 0


def test_held_out_images_are_not_trained_on() -> None:
    """The noise and the order do not depend on them: other ones give equal weights."""
    ends = []
    for other in (False, True):
        some = data()
        pixels = some.pixels.clone()
        if other:
            pixels[130:] = 1 - pixels[130:]
        changed = ImageSet(pixels, some.labels, some.ids, some.classes, some.source, some.split)
        ends.append(state(train_vae(fresh(), changed, config(epochs=1), show=False)))
    assert equal(*ends)


def test_bfloat16_trains_and_stays_single_precision() -> None:
    vae = fresh()
    before = reconstruction(vae, data())["mse"]
    train_vae(vae, data(), config(precision="bfloat16"), show=False)
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert reconstruction(vae, data())["mse"] < before


# Refusals


def test_a_loss_that_is_not_a_number_is_told(tmp_path: Path) -> None:
    words = r"(The training loss is (nan|inf) in epoch \d, step \d|heldout_\w+ is nan).*lower lr"
    with pytest.raises(ConfigError, match=words):
        train_vae(fresh(), data(), config(lr=1e20), out=tmp_path, show=False)
    assert not (tmp_path / "training.json").exists()


def test_other_images_and_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The images are 1x8x8.*3x8x8, which the VAE was made for"):
        train_vae(tiny(), data(), config(), show=False)
    with pytest.raises(DataError, match="40 training images less 20 held out leave 20"):
        train_vae(fresh(), data(40), config(), show=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        train_vae(fresh(), data(), config(), out=tmp_path / "file" / "out", show=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"holdout": -1}, "holdout is -1"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"beta": -1}, "beta is -1"),
        ({"milestones": (1.5,)}, "fractions of the epochs"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**changes)


def test_unknown_words() -> None:
    for changes, words in (
        ({"augment": "mirror"}, "Unknown augment 'mirror'"),
        ({"precision": "float8"}, "Unknown precision 'float8'"),
    ):
        with pytest.raises(SpecError, match=words):
            config(**changes)
    with pytest.raises(SpecError, match="Unknown training setting 'betas'"):
        VAEConfig.from_dict({"betas": 1})


def test_the_papers_schedule() -> None:
    """x0.2 at epoch 80 and x0.04 at 100, of 120, at whatever number of steps an epoch has."""
    paper = VAEConfig()
    for steps in (1, 7, 382):
        rates = [paper.rate(epoch * steps, 120 * steps) for epoch in range(120)]
        assert rates == pytest.approx([1e-3] * 80 + [2e-4] * 20 + [4e-5] * 20)
