"""Fabricated but realistic summaries and cases for the tests of the report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unperturb.audit.cases import Case, CaseView
from unperturb.audit.statistics import wilson

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def acc(correct: int, n: int = 1000) -> dict[str, Any]:
    return {
        "accuracy": correct / n,
        "correct": correct,
        "n": n,
        "interval": list(wilson(correct, n)),
    }


def _attack(
    name: str, subject: str, attacker: str, backward: str, correct: int, **more: Any
) -> dict[str, Any]:
    steps = {"fgsm": 1, "pgd-20": 20, "mim-10": 10}[name]
    found = acc(correct)
    return {
        "subject": subject,
        "name": name,
        "attacker": attacker,
        "backward": backward,
        "stop": "fixed" if attacker == "oblivious" else "first-success",
        "eps": 8 / 255,
        "norm": "linf",
        "n": 1000,
        "robust_accuracy": found["accuracy"],
        "interval": found["interval"],
        "median_distance": 8 / 255 if correct < 1000 else None,
        "seconds": 1.7 * steps,
        "accuracy_8bit": found["accuracy"],
        "queries_per_image": float(steps + 1),
        "zero_gradient_share": 0.0,
        "wrong_when_clean_accuracy": 0.31 if attacker == "oblivious" else None,
        "settings": {
            "name": name,
            "steps": steps,
            "step_size": {"fgsm": 1.0, "pgd-20": 0.25, "mim-10": 0.1}[name],
            "momentum": 1.0 if name == "mim-10" else 0.0,
            "random_start": name == "pgd-20",
            "restarts": 1,
            "loss": "ce",
            "draws": 1,
        },
        **more,
    }


def make_summary() -> dict[str, Any]:
    """TPAP around a network in robust overfitting: 80 % as published, nothing when known."""
    table = []
    for name, (base_o, target_o, base_a, target_a) in {
        "fgsm": (803, 318, 803, 305),
        "pgd-20": (0, 821, 0, 2),
        "mim-10": (4, 792, 3, 11),
    }.items():
        cells = {
            "baseline": {"oblivious": acc(base_o), "adaptive": acc(base_a)},
            "target": {"oblivious": acc(target_o), "adaptive": acc(target_a)},
        }
        table.append({"attack": name, "cells": cells})
    attacks = []
    for row in table:
        name, cells = row["attack"], row["cells"]
        for subject in ("baseline", "target"):
            correct = cells[subject]["oblivious"]["correct"]
            attacks.append(_attack(name, subject, "oblivious", "exact", correct))
        correct = cells["target"]["adaptive"]["correct"]
        attacks.append(_attack(name, "target", "adaptive", "identity", correct + 3))
        attacks.append(
            _attack(name, "target", "adaptive", "smoothed-sign", correct, zero_gradient_share=0.013)
        )
        correct = cells["baseline"]["adaptive"]["correct"]
        attacks.append(_attack(name, "baseline", "adaptive", "exact", correct))
    return {
        "schema_version": 1,
        "complete": True,
        "left_out": [],
        "title": "tpap around cifar-resnet20 (resnet20-overfit.safetensors)",
        "digest": "3f7a91c0d2e45b68" * 4,
        "settings_hash": "90ab12cd34ef5678" * 4,
        "threat": {"norm": "linf", "eps": 8 / 255, "eps_text": "8/255"},
        "seed": 0,
        "batch_size": 128,
        "data": {
            "source": "cifar10/test.parquet",
            "split": "test",
            "n": 1000,
            "classes": list(CLASSES),
            "fingerprint": "ab" * 32,
        },
        "environment": {
            "unperturb": "0.1.0",
            "torch": "2.13.0",
            "device": "cpu",
            "cpu": "AMD EPYC",
            "threads": 2,
            "deterministic": False,
        },
        "has_defense": True,
        "target": {
            "name": "tpap",
            "describe": {
                "name": "tpap",
                "purifier": {"name": "fgsm-step", "radius": 8 / 255, "clip": True},
                "detector": None,
                "decision": {"name": "after"},
                "classifier": {"arch": "cifar-resnet20", "sha256": "cd" * 32},
            },
            "clean": acc(800),
            "worst_case": acc(2),
            "worst_by_attacker": {"oblivious": acc(276), "adaptive": acc(2)},
        },
        "baseline": {
            "name": "undefended classifier",
            "describe": {"arch": "cifar-resnet20", "sha256": "cd" * 32},
            "clean": acc(551),
            "worst_case": acc(0),
            "worst_by_attacker": {"oblivious": acc(0), "adaptive": acc(0)},
        },
        "attackers": ["oblivious", "adaptive"],
        "table": table,
        "attacks": attacks,
        "gains": [
            _gain("clean", 800, 551, 280, 31, 1e-40),
            _gain("worst case, oblivious", 276, 0, 276, 0, 1e-60),
            _gain("worst case, adaptive", 2, 0, 2, 0, 0.5),
            _gain("worst case", 2, 0, 2, 0, 0.5),
        ],
        "flags": [
            {
                "id": "one-step-beats-iterative",
                "title": "A one-step attack beats an iterative one",
                "evidence": "Oblivious: 31.8% are right under fgsm and 82.1% under pgd-20; "
                "McNemar p < 0.001 on 1,000 images.",
                "meaning": "The iterative attack follows gradients that the defended classifier "
                "does not have; the oblivious figures say little about its robustness.",
            }
        ],
        "notes": [
            "The oblivious figures follow the protocol under which this defense was published.",
        ],
        "cost": {
            "target_ms_per_image": 1.92,
            "baseline_ms_per_image": 0.57,
            "ratio": 3.37,
            "batch_size": 128,
            "note": "least of 3 timings of one batch, 2 threads",
        },
        "lesson": "Under the published protocol the defense keeps 27.6% of the images right. An "
        "attacker who knows it leaves 0.2%: the defense does not stop this attacker.",
    }


def _gain(what: str, target: int, base: int, only_t: int, only_b: int, p: float) -> dict[str, Any]:
    return {
        "what": what,
        "target": acc(target),
        "baseline": acc(base),
        "difference": (target - base) / 1000,
        "only_target": only_t,
        "only_baseline": only_b,
        "mcnemar_p": p,
    }


def without_defense(summary: dict[str, Any]) -> dict[str, Any]:
    """The same audit of the classifier alone."""
    table = [
        {"attack": row["attack"], "cells": dict.fromkeys(row["cells"], row["cells"]["baseline"])}
        for row in summary["table"]
    ]
    attacks = [{**a, "subject": "target"} for a in summary["attacks"] if a["subject"] == "baseline"]
    return {
        **summary,
        "title": "cifar-resnet20",
        "has_defense": False,
        "target": summary["baseline"],
        "table": table,
        "attacks": attacks,
        "gains": [],
        "flags": [],
        "lesson": "",
    }


def only_oblivious(summary: dict[str, Any]) -> dict[str, Any]:
    """The same audit without the adaptive attacker."""
    found = {**summary, "attackers": ["oblivious"]}
    for subject in ("target", "baseline"):
        worst = {"oblivious": summary[subject]["worst_by_attacker"]["oblivious"]}
        found[subject] = {**summary[subject], "worst_by_attacker": worst}
    found["table"] = [
        {
            "attack": row["attack"],
            "cells": {
                s: {"oblivious": cell["oblivious"], "adaptive": None}
                for s, cell in row["cells"].items()
            },
        }
        for row in summary["table"]
    ]
    found["attacks"] = [a for a in summary["attacks"] if a["attacker"] == "oblivious"]
    return found


def make_cases(
    shape: tuple[int, int, int] = (3, 32, 32),
    *,
    purified: bool = True,
    images: Tensor | None = None,
) -> list[Case]:
    """Two cases with a clean, an oblivious and an adaptive view each."""
    random = torch.Generator().manual_seed(3)
    if images is None:
        images = torch.rand((2, *shape), generator=random) * 0.8 + 0.1
    cases = []
    for index, clean in enumerate(images):
        label = (3, 8, 1, 6)[index % 4]
        views = []
        for title, eps, told, fooled in (
            ("clean", 0.0, label, label),
            ("oblivious pgd-20", 8 / 255, (label + 2) % 10, label),
            ("adaptive pgd-20 (identity)", 8 / 255, label, (label + 4) % 10),
        ):
            sign = torch.rand(clean.shape, generator=random).sub(0.5).sign()
            image = (clean + eps * sign).clamp(0, 1)
            moved = (image - 8 / 255 * sign).clamp(0, 1) if purified else None
            before = torch.randn(10, generator=random).add(0.0)
            after = torch.randn(10, generator=random)
            before[told] += 5
            after[fooled] += 4
            views.append(
                CaseView(title, image, moved, before.tolist(), after.tolist(), told, fooled)
            )
        cases.append(Case(f"{index:05d}", label, CLASSES[label], clean, views))
    return cases
