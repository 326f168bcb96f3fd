"""Doing one work unit: attack a fixed block of images, score everyone, make the rows."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unperturb.attacks import Attack, Judged, Surface
from unperturb.audit.plan import Plan, Unit
from unperturb.audit.store import COLUMNS, Rows
from unperturb.defense import Defense
from unperturb.randomness import Keys
from unperturb.threat import make_threat

__all__ = ["CASES", "Bench", "Done"]

CASES = 12
"""The first images of the plan, of which everything is kept that a picture needs."""


@dataclass(frozen=True)
class Done:
    """A finished unit."""

    rows: Rows
    pixels: dict[str, Tensor]
    seconds: dict[str, float]


class Bench:
    """All that units share: the two subjects, the images and the plan.

    Args:
        target: What is audited.
        baseline: What it is compared with, and what an oblivious attacker sees.
        images: Clean images (N, C, H, W) in [0, 1].
        labels: True labels (N,).
        plan: The settings.
        attacks: The attacks by name.
    """

    def __init__(
        self,
        target: nn.Module,
        baseline: nn.Module,
        images: Tensor,
        labels: Tensor,
        plan: Plan,
        attacks: dict[str, Attack],
    ) -> None:
        self.subjects = {"target": target, "baseline": baseline}
        if not plan.has_defense:
            del self.subjects["baseline"]
        self.victim = baseline
        self.images, self.labels, self.plan, self.attacks = images, labels, plan, attacks
        self.threat = make_threat(plan.norm, plan.eps)
        self.keys = Keys.of(plan.seed, plan.ids)

    def run(self, unit: Unit) -> Done:
        """Do a unit. Short blocks are padded, so that shapes follow from the plan alone."""
        began = time.perf_counter()
        count = unit.stop - unit.start
        index = torch.arange(unit.start, unit.start + self.plan.batch_size)
        index[count:] = unit.start
        images = self.images[index].contiguous(memory_format=torch.channels_last)
        labels, keys = self.labels[index], self.keys[index]
        counts = torch.zeros((3, len(index)), dtype=torch.int64)
        judged: dict[str, Judged] = {}
        adversarial = images
        attacking = 0.0
        if unit.kind == "attack":
            victim = self._victim(unit)
            surface = Surface(victim, backward=unit.backward)
            domain = f"attack/{unit.attack}/{unit.attacker}/{unit.subject}/{unit.backward}"
            before = time.perf_counter()
            result = self.attacks[unit.attack].run(
                surface, images, labels, threat=self.threat, keys=keys.within(domain),
                stop=unit.rule,
            )  # fmt: skip
            attacking = time.perf_counter() - before
            adversarial = result.images
            counts = torch.stack((result.queries, result.zero_gradients, result.nan_gradients))
            counts = counts.cpu()
            if not surface.stochastic:
                judged = {n: result.judged for n, s in self.subjects.items() if s is victim}
        rows, scored = self._score(unit, images, adversarial, labels, keys, counts, judged)
        pixels = self._pixels(unit, adversarial, keys) if unit.kind == "attack" else {}
        if unit.kind == "clean" and unit.start == 0:
            pixels = self._pixels(unit, images, keys)
        seconds = {"unit": time.perf_counter() - began, "attack": attacking, "scoring": scored}
        return Done(rows, pixels, seconds)

    def _victim(self, unit: Unit) -> nn.Module:
        return self.subjects["target"] if unit.subject == "target" else self.victim

    def _score(
        self,
        unit: Unit,
        images: Tensor,
        adversarial: Tensor,
        labels: Tensor,
        keys: Keys,
        counts: Tensor,
        judged: dict[str, Judged],
    ) -> tuple[Rows, float]:
        """Rows of every subject that this unit says something about."""
        began = time.perf_counter()
        count = unit.stop - unit.start
        names = [unit.subject] if unit.attacker == "adaptive" else list(self.subjects)
        rounded = (adversarial * 255).round().div(255) if unit.kind == "attack" else adversarial
        linf = (adversarial - images).flatten(1).abs().amax(1)
        l2 = (adversarial - images).flatten(1).norm(dim=1)
        hashes = _hashes(adversarial[:count])
        parts: list[dict[str, Any]] = []
        for name in names:
            surface = Surface(self.subjects[name])
            for draw in range(self.plan.scoring_draws if surface.stochastic else 1):
                fresh = keys.within("score").draw(draw)
                verdict = judged.get(name) or surface.judge(adversarial, labels, fresh)
                right8 = verdict.predictions == labels
                if unit.kind == "attack":
                    right8 = surface.judge(rounded, labels, fresh).predictions == labels
                parts.append(
                    {
                        "image_id": np.array(self.plan.ids[unit.start : unit.stop], dtype=object),
                        "subject": _repeat(name, count),
                        "attack": _repeat(unit.attack, count),
                        "attacker": _repeat(unit.attacker, count),
                        "backward": _repeat(unit.backward, count),
                        "rule": _repeat(unit.rule, count),
                        "draw": np.full(count, draw, dtype=np.int32),
                        "label": _array(labels, count, np.int32),
                        "prediction": _array(verdict.predictions, count, np.int32),
                        "correct": _array(verdict.predictions == labels, count, np.bool_),
                        "flagged": _array(verdict.flagged, count, np.bool_),
                        "correct_8bit": _array(right8, count, np.bool_),
                        "margin": _array(verdict.margins, count, np.float32),
                        "linf": _array(linf, count, np.float32),
                        "l2": _array(l2, count, np.float32),
                        "queries": _array(counts[0], count, np.int32),
                        "zero_gradients": _array(counts[1], count, np.int32),
                        "nan_gradients": _array(counts[2], count, np.int32),
                        "pixels": np.array(hashes, dtype=object),
                    }
                )
        rows = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        return rows, time.perf_counter() - began

    def _pixels(self, unit: Unit, adversarial: Tensor, keys: Keys) -> dict[str, Tensor]:
        """Adversarial images of the unit, and of the first images what pictures need."""
        count = unit.stop - unit.start
        kept: dict[str, Tensor] = {}
        if unit.kind == "attack" and self.plan.keep_images != "none":
            kept["images"] = adversarial[:count].float()
        shown = min(CASES, count) if unit.start == 0 else 0
        if not shown:
            return kept
        some = adversarial[:shown]
        kept["case_images"] = some.float()
        with torch.no_grad():
            kept["case_logits"] = self.victim(some).float()
            target = self.subjects["target"]
            if isinstance(target, Defense):
                answer = target.predict(some, keys=keys[:shown].within("score"))
                kept["case_scores"] = answer.scores.float()
                if answer.purified is not None:
                    kept["case_purified"] = answer.purified.float()
            else:
                kept["case_scores"] = target(some).float()
        return kept


def _hashes(images: Tensor) -> list[str]:
    """128 bits of each image: no two meet, and hashes are most of what records weigh."""
    # One copy out of channels_last for the batch rather than one for each image.
    pixels = images.detach().to("cpu", torch.float32).contiguous().numpy()
    return [hashlib.sha256(image.data).hexdigest()[:32] for image in pixels]


def _repeat(text: str, count: int) -> np.ndarray[Any, Any]:
    return np.full(count, text, dtype=object)


def _array(values: Tensor, count: int, dtype: Any) -> np.ndarray[Any, Any]:
    return values[:count].detach().cpu().numpy().astype(dtype)
