"""The declarative test table: one row for each registered purifier, detector, decision, attack.

A row says how to build the part and what is true of it; ``test_house.py`` brings the general
contract to every row, and fails for a part without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One part.

    Attributes:
        name: Its registered id.
        options: Keyword arguments that build it, some of them off their defaults.
        wrong: Keyword arguments it must refuse, each alone; empty where it takes none.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    wrong: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class AttackRow:
    """One attack family.

    Attributes:
        name: Its registered id.
        specs: Specifications whose contract is tested, the default first.
        steps: The default's ``steps``; None where it has no such setting.
        random: Whether another seed gives other images; None where that depends.
        one_step: Whether that is asked of its one-step form.
        access: What it needs: gradients, scores or labels.
        bound: What bounds its images: threat, minimal or own.
        moves: Whether it moves every image of the test's network, broken or not.
    """

    name: str
    specs: tuple[str, ...]
    steps: int | None
    random: bool | None = False
    one_step: bool = True
    access: str = "gradients"
    bound: str = "threat"
    moves: bool = True


PURIFIER_ROWS = (
    Row("identity"),
    Row(
        "fgsm-step",
        options={"radius": 4 / 255, "clip": False},
        wrong=({"radius": 8.0}, {"radius": 0.0}),
    ),
    Row(
        "pgd-step",
        options={"radius": 4 / 255, "steps": 3, "step_size": 0.5, "clip": False},
        wrong=({"radius": 8.0}, {"steps": 0}, {"steps": 2.5}, {"step_size": 3.0}, {"clip": 1}),
    ),
    Row(
        "cw-step",
        options={"constant": 0.5, "confidence": 0.25, "steps": 3, "lr": 0.02},
        wrong=({"constant": 0.0}, {"confidence": -1.0}, {"steps": 1001}, {"lr": "fast"}),
    ),
    Row(
        "latent-optimization",
        options={
            "vae": {
                "image_shape": [3, 8, 8],
                "width": 4,
                "downsample": 1,
                "latent_channels": 2,
                "pixel_range": [0.0, 1.0],
            },
            "steps": 3,
            "lr": 0.1,
            "optimizer": "gd",
            "start": "random",
            "tolerance": 0.001,
            "reference": True,
        },
        wrong=(
            {"steps": -1},
            {"lr": 0.0},
            {"optimizer": "sgd"},
            {"start": "zero"},
            {"tolerance": 0.75},
            {"level": 3},
            {"unified": 1},
        ),
    ),
    Row(
        "unet-denoiser",
        options={
            "unet": {"in_channels": 3, "width": 4, "depth": 1, "convolutions": 1},
            "clip": False,
        },
        wrong=({"clip": "yes"},),
    ),
    Row(
        "restoration",
        options={
            "network": "masked-autoencoder",
            "options": {
                "channels": 3,
                "token": 2,
                "width": 16,
                "depth": 1,
                "heads": 2,
                "decoder_width": 16,
                "decoder_depth": 1,
            },
            "transform": "rt3",
            "patch": 2,
            "sigma": 0.1,
            "passes": 3,
            "image_shape": [3, 8, 8],
            "clip": True,
        },
        wrong=(
            {"network": "unet"},
            {"transform": "rt4"},
            {"rate": 1.5},
            {"sigma": -1.0},
            {"patch": 0},
            {"passes": 2},
            {"clip": 1},
            {"image_shape": [8, 8]},
        ),
    ),
)

DETECTOR_ROWS = (
    Row(
        "threshold",
        options={"statistic": "signed-change", "threshold": 0.25, "action": "reject"},
        wrong=({"statistic": "entropy"}, {"action": "warn"}),
    ),
)

DECISION_ROWS = (
    Row("logits-after"),
    Row("logit-update"),
    Row(
        "logit-correction",
        options={
            "num_classes": 4,
            "width": 16,
            "depth": 3,
            "dropout": 0.25,
            "reads": "before",
            "fitted_on": "f" * 64,
            "any_classifier": True,
        },
        wrong=(
            {"num_classes": 1},
            {"width": 0},
            {"depth": 0},
            {"dropout": 1.0},
            {"reads": "during"},
            {"any_classifier": "no"},
        ),
    ),
)

ATTACK_ROWS = (
    AttackRow("fgsm", specs=("fgsm", "fgsm?loss=margin"), steps=1),
    AttackRow("bim", specs=("bim", "bim-3?loss=dlr"), steps=10),
    AttackRow("pgd", specs=("pgd", "pgd-4?restarts=2&loss=margin"), steps=20, random=True),
    AttackRow("mim", specs=("mim", "mim-4?momentum=0.5"), steps=10),
    AttackRow("ti-dim", specs=("ti-dim", "ti-dim-4?kernel=3&smallest=0.5"), steps=10, random=True),
    AttackRow("cw-linf", specs=("cw-linf", "cw-linf-4"), steps=100, random=True),
    AttackRow("deepfool", specs=("deepfool", "deepfool-30?form=l2"), steps=50, bound="minimal"),
    AttackRow("cw-l2", specs=("cw-l2-20?search=2",), steps=100, bound="minimal"),
    AttackRow("ddn", specs=("ddn", "ddn-20?gamma=0.1&refine=0"), steps=100, bound="minimal"),
    # The first step of APGD is twice the ball: it may end in one corner from every start.
    AttackRow("apgd-ce", specs=("apgd-ce-20", "apgd-ce-5?restarts=2"), steps=100, random=None),
    AttackRow("apgd-dlr", specs=("apgd-dlr-20",), steps=100, random=None),
    AttackRow("apgd-t", specs=("apgd-t-20?targets=3",), steps=100, random=None),
    AttackRow("logit-matching", specs=("logit-matching",), steps=40, random=True),
    AttackRow("square", specs=("square-40",), steps=1000, random=True, access="scores"),
    AttackRow(
        "autoattack",
        specs=("autoattack?queries=20&iterations=5",),
        steps=None,
        random=None,
        one_step=False,
        moves=False,
    ),
    AttackRow(
        "autoattack-rand",
        specs=("autoattack-rand?iterations=5",),
        steps=None,
        random=None,
        one_step=False,
        moves=False,
    ),
    AttackRow(
        "stadv", specs=("stadv-20", "stadv-5?tau=0.05&loss=ce"), steps=100, random=True, bound="own"
    ),
    AttackRow("fwa", specs=("fwa-20", "fwa-3?method=dual-projection"), steps=100, bound="own"),
    AttackRow(
        "hopskipjump",
        specs=("hopskipjump-2?evaluations=10",),
        steps=10,
        random=True,
        access="labels",
        bound="minimal",
        moves=False,
    ),
)
