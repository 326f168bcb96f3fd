"""Training of networks that restore images: pre-training, and fine-tuning for a classifier."""

from __future__ import annotations

from unperturb.restoration.config import FineTuneConfig, GANConfig, MAEConfig, RestorationConfig
from unperturb.restoration.folder import (
    RestorationNet,
    is_restoration,
    load_restoration,
    save_restoration,
)
from unperturb.restoration.heldout import restoration_errors
from unperturb.restoration.run import Plan, plan_finetune, plan_pretrain, train_restoration

__all__ = [
    "FineTuneConfig",
    "GANConfig",
    "MAEConfig",
    "Plan",
    "RestorationConfig",
    "RestorationNet",
    "is_restoration",
    "load_restoration",
    "plan_finetune",
    "plan_pretrain",
    "restoration_errors",
    "save_restoration",
    "train_restoration",
]
