"""Small images, small networks and short settings for the training of restoration networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unperturb.classifiers import Classifier, new_classifier
from unperturb.data import ImageSet, load_images
from unperturb.restoration import (
    FineTuneConfig,
    GANConfig,
    MAEConfig,
    Plan,
    plan_finetune,
    plan_pretrain,
    save_restoration,
    train_restoration,
)

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
