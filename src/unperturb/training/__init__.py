"""Training: objectives, one loop for all of them, and the robust-overfitting monitor."""

from __future__ import annotations

from unperturb.training.config import TrainConfig
from unperturb.training.cost import Cost, CostTable, measure_costs, training_step
from unperturb.training.examples import fgsm_examples, pgd_examples
from unperturb.training.loop import Trained, train
from unperturb.training.monitor import make_monitor, measure
from unperturb.training.objectives import OBJECTIVES, Step
from unperturb.training.run import train_classifier

__all__ = [
    "OBJECTIVES",
    "Cost",
    "CostTable",
    "Step",
    "TrainConfig",
    "Trained",
    "fgsm_examples",
    "make_monitor",
    "measure",
    "measure_costs",
    "pgd_examples",
    "train",
    "train_classifier",
    "training_step",
]
