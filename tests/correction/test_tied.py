"""Correctors whose classes share their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from correction.fakes import FakeBank
from unperturb.correction import CorrectionConfig, fit_correction
from unperturb.correction.tied import Residuals, TiedStep, measure_residuals
from unperturb.errors import ConfigError
from unperturb.networks.corrector import CorrectionNetwork


def config(**settings: Any) -> CorrectionConfig:
    plain = {"tied": True, "dropout": 0.0, "width": 60, "lr": 0.02, "epochs": 12, "batch_size": 64}
    return CorrectionConfig(**{**plain, **settings})


def mixing(classes: int) -> Tensor:
    return torch.randn(classes, classes, generator=torch.Generator().manual_seed(7))


def sunk(labels: Tensor, classes: int = 6, seed: int = 0) -> Any:
    """Correlated logits; clean ones have the true class on top, ``sink`` puts it below what the
    others lead one to expect, and lifts another class and the level of all."""
    generator = torch.Generator().manual_seed(seed)
    count, rows = len(labels), torch.arange(len(labels))
    base = torch.randn(count, 2, generator=generator) @ mixing(classes)[:2] * 3
    base += 0.2 * torch.randn(count, classes, generator=generator)
    clean, attacked = base.clone(), base + 8.0
    clean[rows, labels] += 12.0
    attacked[rows, labels] -= 3.0
    away = torch.randint(1, classes, (count,), generator=generator)
    attacked[rows, (labels + away) % classes] += 12.0
    return FakeBank({"clean": clean, "sink": attacked}, labels)


def step(classes: int = 6, **settings: Any) -> tuple[TiedStep, CorrectionNetwork]:
    chosen = config(**settings)
    network = CorrectionNetwork(num_classes=classes, width=chosen.width, dropout=0.0).eval()
    bank = sunk(torch.arange(200) % classes, classes)
    residuals = measure_residuals(bank, bank.attacks, torch.ones(200, dtype=torch.bool), chosen)
    return TiedStep(network, chosen, torch.device("cpu"), residuals), network


def test_residuals_are_those_of_a_regression_on_all_other_logits() -> None:
    logits = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)).double()
    logits = logits @ mixing(5).double() + 3.0
    centred = logits - logits.mean(0)
    found = Residuals.of(logits.mean(0), centred.t() @ centred / 500, 0.0)
    residuals, levels = found(logits)
    for label in range(5):
        others = np.delete(centred.numpy(), label, 1)
        fitted = others @ np.linalg.lstsq(others, centred[:, label].numpy(), rcond=None)[0]
        left = centred[:, label].numpy() - fitted
        np.testing.assert_allclose(residuals[:, label].numpy(), left / left.std(), atol=1e-8)
    np.testing.assert_allclose(
        levels.numpy(), (centred.mean(1) / centred.mean(1).std(correction=0))
    )
    assert float(residuals.square().mean()) == pytest.approx(1.0)


def test_mean_and_covariance_are_those_of_the_rows_and_shares_that_are_drawn() -> None:
    bank = sunk(torch.arange(120) % 6)
    trained = torch.arange(120) < 90
    found = measure_residuals(bank, bank.attacks, trained, config(clean_share=0.3, shrinkage=0.2))
    rows = torch.cat(
        [bank.logits("clean")[:90].repeat(3, 1), bank.logits("sink")[:90].repeat(7, 1)]
    )
    rows = rows.double()
    expected = Residuals.of(rows.mean(0), torch.cov(rows.t(), correction=0), 0.2)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.transform, expected.transform)
    assert found.spread == pytest.approx(expected.spread)


@pytest.mark.parametrize("width", [6, 64])
def test_what_is_written_is_a_network_of_two_layers_that_answers_the_same(width: int) -> None:
    trained, network = step(width=width)
    logits = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)) * 5
    for number in range(5):
        trained.run(logits, torch.arange(64) % 6, epoch=0, step=number)
    trained.export(network)
    residuals, levels = trained.residuals(logits.double())
    u, w, b, v = (value.double()[:, None, None] for value in trained.parameters)
    hidden = torch.relu(u * residuals + w * levels[:, None] + b)
    with torch.no_grad():
        torch.testing.assert_close(
            network(logits).double(), (v * hidden).sum(0), rtol=1e-4, atol=1e-4
        )
    assert bool((trained.parameters[1] != 0).all()), "the level is learnt from"


def test_what_is_learnt_of_some_classes_holds_for_those_that_were_never_right() -> None:
    some = 2 * (torch.arange(2000) % 20)
    corrector = fit_correction(sunk(some, 40), config(width=400, epochs=40), show=False)
    fresh = sunk(1 + 2 * (torch.arange(400) % 20), 40, seed=1)
    before = fresh.logits("sink").argmax(1) == fresh.labels
    after = corrector.correct(fresh.logits("sink")).labels == fresh.labels
    clean = corrector.correct(fresh.logits("clean")).labels == fresh.labels
    assert not bool(before.any())
    assert float(after.float().mean()) > 0.9
    assert float(clean.float().mean()) > 0.9
    free = fit_correction(
        sunk(some, 40), CorrectionConfig(width=400, lr=0.02, epochs=20, batch_size=64), show=False
    )
    other = free.correct(fresh.logits("sink")).labels == fresh.labels
    assert float(other.float().mean()) < 0.1, "weights of their own say nothing of such classes"


def test_a_fit_that_was_cut_off_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    bank = sunk(torch.arange(300) % 6)
    whole = fit_correction(bank, config(epochs=6), show=False)
    for done in (2, 4, 6):
        parts = fit_correction(
            bank, config(epochs=6), out=tmp_path / "out", stop_after=done, show=False
        )
    assert parts.fingerprint() == whole.fingerprint()
    assert parts.card["config"]["tied"] is True


def test_settings_that_contradict_sharing_are_refused() -> None:
    for wrong in ({"depth": 1}, {"depth": 3}, {"dropout": 0.5}):
        with pytest.raises(ConfigError, match=r"Classes share their weights.*two layers without"):
            config(**wrong)
    with pytest.raises(ConfigError, match="shrinkage is -1"):
        config(shrinkage=-1)
    with pytest.raises(ConfigError, match="tied is 1"):
        config(tied=1)
    with pytest.raises(ConfigError, match=r"width is 5, for 6 classes.*--width 60"):
        step(width=5)
