"""Small images, small networks and short settings for the training of restoration networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unperturb.data import ImageSet, load_images
from unperturb.restoration import FineTuneConfig, GANConfig, MAEConfig

SHORT: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "holdout": 6, "monitor_images": 4, "samples": 2, "sigma": 0.1,
}  # fmt: skip


def gan_config(**changes: Any) -> GANConfig:
    small = {"width": 4, "coarse_width": 2, "discriminator_width": 4}
    return GANConfig(**{**SHORT, **small, **changes})


def mae_config(**changes: Any) -> MAEConfig:
    small = {"width": 8, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1}
    return MAEConfig(**{**SHORT, **small, **changes})


def tune_config(**changes: Any) -> FineTuneConfig:
    return FineTuneConfig(**{**SHORT, "eps": 0.1, **changes})


def digits(count: int = 30) -> ImageSet:
    return load_images("digits", split="train").take(slice(0, count))


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
