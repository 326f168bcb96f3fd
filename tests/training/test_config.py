"""Settings of the objectives: what is refused, and that they come back from a file as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unperturb.errors import ConfigError, SpecError
from unperturb.training import TrainConfig

NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accumulate": 0}, "accumulate is 0.*at least 1"),
        ({"accumulate": 9, "batch_size": 8}, "accumulate is 9.*at most the batch size, 8"),
        ({"attack_steps": 0}, "attack_steps is 0.*at least 1"),
        ({"attack_step_size": 0.0}, "attack_step_size is 0.0.*above 0"),
        ({"attack_step_size": NAN}, "attack_step_size is nan"),
        ({"cw_weight": -1.0}, "cw_weight is -1.0.*above 0"),
        ({"cw_rate": 0.0}, "cw_rate is 0.0.*above 0"),
        ({"flow": 0.0}, "flow is 0.0.*above 0"),
        ({"beta": -0.1}, "beta is -0.1.*0 or more"),
        ({"beta": NAN}, "beta is nan"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0.*below 1"),
        ({"ema_decay": -0.1}, "ema_decay is -0.1.*at least 0"),
        ({"ema_decay": NAN}, "ema_decay is nan"),
        ({"gairat_burn_in": 1.1}, "gairat_burn_in is 1.1.*from 0 to 1"),
        ({"gairat_burn_in": NAN}, "gairat_burn_in is nan"),
        ({"fat_tau": ()}, r"fat_tau is \(\).*one or more"),
        ({"fat_tau": (0, -1)}, r"fat_tau is \(0, -1\).*0 or more"),
        ({"objective": "fgsm", "mixture": (8 / 255, 8.0)}, "mixture is 8.*8/255"),
        ({"objective": "fgsm", "mixture": (-0.1,)}, "mixture is -0.1.*from 0 to 1"),
        ({"objective": "fgsm", "mixture": (NAN,)}, "mixture is nan"),
        ({"objective": "pgd", "mixture": (0.1,)}, "mixture is .0.1,. with the objective 'pgd'"),
        ({"objective": "fgsm", "mixture": (0.1,), "clean_pass": True}, "clean_pass.*one of"),
        ({"keep": "robust"}, "keep is 'robust'.*an adversarial objective and held-out"),
        ({"keep": "robust", "objective": "pgd", "holdout": 0}, "keep is 'robust'.*hold images out"),
        ({"objective": "trade"}, "Unknown objective 'trade'.*did you mean 'trades'"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001"),
    ],
)  # fmt: skip
def test_settings_out_of_range(change: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, SpecError), match=words):
        TrainConfig(**change)


def test_settings_at_their_bounds() -> None:
    for change in (
        {"accumulate": 128}, {"attack_steps": 1}, {"beta": 0.0}, {"gairat_burn_in": 0.0},
        {"gairat_burn_in": 1.0}, {"fat_tau": (0,)}, {"objective": "fgsm", "mixture": (0.0, 1.0)},
        {"objective": "pgd", "keep": "robust"}, {"momentum": 0.0, "weight_decay": 0.0},
    ):  # fmt: skip
        config = TrainConfig(**change)  # type: ignore[arg-type]
        for name, value in change.items():
            assert getattr(config, name) == value


def test_settings_round_trip_with_every_value_changed() -> None:
    config = TrainConfig(
        objective="fgsm", eps=0.05, mixture=(0.0, 8 / 255, 16 / 255), epochs=3, batch_size=96,
        accumulate=4, lr=0.02, momentum=0.8, weight_decay=1e-3, ema_decay=0.9, schedule="one-cycle",
        milestones=(0.3,), gamma=0.2, augment="flip", precision="bfloat16", attack_steps=10,
        attack_step_size=0.3, beta=5.0, fat_tau=(0, 2), gairat_lambda=0.0, gairat_burn_in=0.4,
        cw_weight=2.0, cw_rate=0.05, flow=0.02, keep="robust", holdout=500, monitor_images=64,
        monitor_eps=0.02, seed=9,
    )  # fmt: skip
    values = json.loads(json.dumps(config.to_dict()))
    again = TrainConfig.from_dict(values)
    assert again == config
    assert hash(again) == hash(config), "tuples come back as tuples"
    default = TrainConfig().to_dict()
    unchanged = {name for name, value in values.items() if value == default[name]}
    assert unchanged == {"clean_pass"}, "which excludes a mixture"


@pytest.mark.parametrize(
    ("change", "known"),
    [({"eps": 0.1}, 0.1), ({"mixture": (0.0, 0.03, 0.06)}, 0.06), ({"mixture": (0.0,)}, 8 / 255)],
)
def test_the_size_that_should_be_known(change: dict[str, Any], known: float) -> None:
    assert TrainConfig(objective="fgsm", **change).known_eps == known
