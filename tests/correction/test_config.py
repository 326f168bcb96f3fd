"""Settings of a fit: the paper's by default, checked, and the same after a round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unperturb.correction.config import CorrectionConfig
from unperturb.errors import ConfigError, SpecError


def test_the_defaults_are_the_papers() -> None:
    found = CorrectionConfig()
    assert (found.width, found.depth, found.dropout) == (10_000, 2, 0.5)
    assert (found.lr, found.weight_decay, found.batch_size, found.epochs) == (5e-5, 1e-4, 256, 50)
    assert (found.clean_share, found.loss) == (0.3, "ce")


def test_settings_round_trip_through_json() -> None:
    config = CorrectionConfig(
        width=7, depth=3, dropout=0.1, clean_share=0.2, loss="margin", lr=0.01, weight_decay=0.0,
        batch_size=3, epochs=4, attacks=("a", "b?c=1"), holdout=0.0, patience=0, keep="last",
        seed=9, target="answer", shrinkage=0.5,
    )  # fmt: skip
    plain = CorrectionConfig().to_dict()
    written = json.loads(json.dumps(config.to_dict()))
    assert [name for name in plain if plain[name] == written[name]] == ["patience", "tied"]
    assert CorrectionConfig.from_dict(written) == config


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("width", 0, "width is 0. Expected: a whole number from 1"),
        ("width", 10.0, "width is 10.0"),
        ("depth", 0, "depth is 0"),
        ("epochs", True, "epochs is True"),
        ("batch_size", -1, "batch_size is -1"),
        ("patience", -1, "patience is -1. Expected: a whole number from 0"),
        ("seed", -1, "seed is -1"),
        ("dropout", 1.0, "dropout is 1.0. Expected: at least 0 and below 1"),
        ("clean_share", 30, "clean_share is 30. Expected: a share from 0 to 1, such as 0.3"),
        ("clean_share", float("nan"), "clean_share is nan"),
        ("holdout", 1.0, "holdout is 1.0. Expected: a share of the rows"),
        ("lr", 0.0, "lr is 0.0. Expected: above 0, such as 5e-5"),
        ("lr", "fast", "lr is 'fast'"),
        ("lr", float("inf"), "lr is inf"),
        ("weight_decay", -1e-4, "weight_decay is -0.0001. Expected: 0 or more"),
        ("attacks", "pgd", "attacks is 'pgd'. Expected: names"),
        ("attacks", (3,), r"attacks is \(3,\)"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".0.", r"\.0\.")):
        CorrectionConfig(**{name: value})


def test_unknown_words_name_the_nearest() -> None:
    with pytest.raises(SpecError, match="Unknown loss 'margn'.*did you mean 'margin'"):
        CorrectionConfig(loss="margn")
    with pytest.raises(SpecError, match="Unknown keep 'lst'.*did you mean 'last'"):
        CorrectionConfig(keep="lst")
    with pytest.raises(SpecError, match="Unknown setting of a corrector 'hidden'"):
        CorrectionConfig.from_dict({"hidden": 3})


def test_an_epoch_is_chosen_by_held_out_rows_only() -> None:
    with pytest.raises(ConfigError, match=r"keep is 'best', and holdout is 0.*keep to 'last'"):
        CorrectionConfig(holdout=0.0)
    with pytest.raises(ConfigError, match="patience is 3, and holdout is 0"):
        CorrectionConfig(holdout=0.0, keep="last", patience=3)
    assert CorrectionConfig(holdout=0.0, keep="last").holdout == 0
