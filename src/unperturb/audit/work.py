"""Doing one work unit: attack a fixed block of images, score everyone, make the rows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unperturb.attacks import Attack, Attacked, Judged, Surface
from unperturb.audit.benign import benign
from unperturb.audit.plan import Plan, Unit
from unperturb.audit.store import COLUMNS, Rows
from unperturb.defense import Defense
from unperturb.randomness import Keys
from unperturb.threat import make_threat

__all__ = ["CASES", "Bench", "Done", "Given"]

CASES = 12
"""The first images of the plan, of which everything is kept that a picture needs."""


# Adversarial images that are kept for a unit that would find the same ones.
_KNOWN_BYTES = 1 << 28


@dataclass(frozen=True)
class Done:
    """A finished unit."""

    rows: Rows
    pixels: dict[str, Tensor]
    seconds: dict[str, float]


class Given(NamedTuple):
    """Adversarial images made elsewhere, in the plan's order."""

    images: Tensor  # (N, C, H, W); anything where there is none
    present: Tensor  # (N,) bool


class Bench:
    """All that units share: the two subjects, the images and the plan.

    Args:
        target: What is audited.
        baseline: What it is compared with.
        images: Clean images (N, C, H, W) in [0, 1].
        labels: True labels (N,).
        plan: The settings.
        attacks: The attacks by name, the probes among them.
        outside: Adversarial images made elsewhere, by name.
    """

    def __init__(
        self,
        target: nn.Module,
        baseline: nn.Module,
        images: Tensor,
        labels: Tensor,
        plan: Plan,
        attacks: dict[str, Attack],
        outside: Mapping[str, Given] | None = None,
    ) -> None:
        self.subjects = {"target": target, "baseline": baseline}
        if not plan.has_defense:
            del self.subjects["baseline"]
        self.baseline = baseline
        self.images, self.labels, self.plan, self.attacks = images, labels, plan, attacks
        self.outside = dict(outside or {})
        self.threat = make_threat(plan.norm, plan.eps)
        self.keys = Keys.of(plan.seed, plan.ids)
        self._known: dict[tuple[object, ...], Attacked] = {}

    def victim(self, unit: Unit) -> nn.Module:
        """What the attacker of a unit attacks: the oblivious one knows no defense."""
        module = self.subjects["target"] if unit.subject == "target" else self.baseline
        if unit.attacker == "oblivious" and isinstance(module, Defense):
            return module.classifier
        return module

    def surface(self, unit: Unit) -> Surface:
        """What the attacker of a unit sees."""
        goal = "wrong" if unit.goal in ("predicted-label", "none") else unit.goal
        backward = "exact" if unit.backward == "none" else unit.backward
        return Surface(self.victim(unit), backward=backward, goal=goal)

    def run(self, unit: Unit) -> Done:
        """Do a unit. Short blocks are padded, so that all are judged in the plan's batch size.

        What is padding is judged, and never attacked.
        """
        began = time.perf_counter()
        rows = np.arange(unit.start, unit.stop)
        if unit.kind == "outside":
            rows = rows[self.outside[unit.attack].present[rows].cpu().numpy()]
            if not len(rows):
                return Done({name: _empty(kind) for name, kind in COLUMNS.items()}, {}, {})
        index = torch.full((self.plan.batch_size,), int(rows[0]))
        index[: len(rows)] = torch.from_numpy(rows)
        block = _Block(
            rows,
            self.images[index].contiguous(memory_format=torch.channels_last),
            self.labels[index],
            self.keys[index],
        )
        made = self._make(unit, block, index)
        scored, seconds = self._score(unit, block, made)
        pixels = self._pixels(unit, made.images, block)
        timing = {"attack": made.seconds, "scoring": seconds}
        return Done(scored, pixels, {"unit": time.perf_counter() - began, **timing})

    def _make(self, unit: Unit, block: _Block, index: Tensor) -> _Made:
        """The images of a unit, and what the attack has counted."""
        nothing = torch.zeros((4, len(index)), dtype=torch.int64)
        if unit.kind == "clean":
            return _Made(block.images, nothing)
        if unit.kind == "outside":
            given = self.outside[unit.attack].images
            return _Made(given[index.to(given.device)].to(block.images), nothing)
        if unit.kind == "benign" and unit.attack != "small-eps":
            keys = block.keys.within(f"benign/{unit.attack}")
            return _Made(benign(unit.attack, block.images, keys, self.threat), nothing)
        surface = self.surface(unit)
        labels = block.labels
        if unit.goal == "predicted-label":
            # A network that says NaN predicts nothing to step away from.
            said = surface.judge(block.images, labels, block.keys).predictions
            labels = torch.where(said < 0, labels, said)
        domain = f"attack/{unit.attack}/{unit.attacker}/{unit.subject}/{unit.backward}"
        if unit.goal not in ("wrong", "none"):
            domain += f"/{unit.goal}"
        threat = self.threat
        if unit.eps != self.plan.eps:
            domain += f"/{unit.eps!r}"
            threat = make_threat(self.plan.norm, unit.eps)
        before = time.perf_counter()
        same = self._same(unit, surface)
        # Only one other unit can ask for it, so its memory is free again then.
        found = self._known.pop(same, None) if same is not None else None
        if found is None:
            # Padding would cost as much as images: AutoAttack would spend hours on its copies.
            own = slice(0, len(block.rows))
            found = self.attacks[unit.attack].run(
                surface, block.images[own], labels[own], threat=threat,
                keys=block.keys.within(domain)[own],
                stop="fixed" if unit.rule == "none" else unit.rule,
            )  # fmt: skip
            found = _padded(found, len(index))
            self._keep(same, found)
        seconds = time.perf_counter() - before
        evaluated = getattr(found, "gradients", None)
        counts = torch.stack(
            (
                found.queries,
                found.zero_gradients,
                found.nan_gradients,
                torch.full_like(found.queries, -1) if evaluated is None else evaluated,
            )
        ).cpu()
        judged: dict[str, Judged] = {}
        if not surface.stochastic and unit.goal in ("wrong", "none"):
            victim = self.victim(unit)
            judged = {n: found.judged for n, s in self.subjects.items() if s is victim}
        return _Made(found.images, counts, found.measure, judged, seconds)

    def _same(self, unit: Unit, surface: Surface) -> tuple[object, ...] | None:
        """What names the result of a unit that another may have as well; None where none may.

        An attack without random numbers and with one stopping rule finds the same images of a bare
        classifier for the attacker who ignores a defense and for the one who knows that there is
        none.
        """
        attack = self.attacks[unit.attack]
        alone = getattr(attack, "seeded", True) or surface.stochastic or unit.goal == "none"
        if alone or len(self.plan.attackers) < 2 or unit.backward != "exact":
            return None
        return unit.attack, unit.rule, unit.goal, unit.eps, id(self.victim(unit)), unit.start

    def _keep(self, same: tuple[object, ...] | None, found: Attacked) -> None:
        """Keep a result for another unit, as long as all of them are small."""
        size = found.images.numel() * found.images.element_size()
        if same is not None and (len(self._known) + 1) * size <= _KNOWN_BYTES:
            self._known[same] = found

    def _draws(self, surface: Surface) -> list[tuple[str, int]]:
        """Purpose and number of every draw a subject is judged on."""
        if not surface.stochastic:
            return [("score", 0)]
        draws = range(self.plan.scoring_draws)
        return [(purpose, draw) for purpose in ("select", "score") for draw in draws]

    def _score(self, unit: Unit, block: _Block, made: _Made) -> tuple[Rows, float]:
        """Rows of every subject that this unit says something about."""
        began = time.perf_counter()
        count, images, labels = len(block.rows), made.images, block.labels
        names = [unit.scores] if unit.scores in self.subjects else list(self.subjects)
        attacked = unit.kind != "clean"
        rounded = (images * 255).round().div(255) if attacked else images
        moved = (images - block.images).flatten(1)
        linf, l2 = moved.abs().amax(1), moved.norm(dim=1)
        inside = self.threat.contains(images, block.images)
        measure = linf.new_full(linf.shape, float("nan")) if made.measure is None else made.measure
        hashes = np.array(_hashes(images[:count]), dtype=object)
        ids = np.array([self.plan.ids[i] for i in block.rows], dtype=object)
        parts: list[dict[str, Any]] = []
        for name in names:
            surface = Surface(self.subjects[name])
            for purpose, draw in self._draws(surface):
                fresh = block.keys.within(purpose).draw(draw)
                verdict = made.judged.get(name) or surface.judge(images, labels, fresh)
                right8 = verdict.predictions == labels
                if attacked:
                    right8 = surface.judge(rounded, labels, fresh).predictions == labels
                parts.append(
                    {
                        "image_id": ids,
                        "subject": _repeat(name, count),
                        "attack": _repeat(unit.attack, count),
                        "attacker": _repeat(unit.attacker, count),
                        "backward": _repeat(unit.backward, count),
                        "rule": _repeat(unit.rule, count),
                        "goal": _repeat(unit.goal, count),
                        "eps": np.full(count, unit.eps, dtype=np.float64),
                        "purpose": _repeat(purpose, count),
                        "draw": np.full(count, draw, dtype=np.int32),
                        "label": _array(labels, count, np.int32),
                        "prediction": _array(verdict.predictions, count, np.int32),
                        "correct": _array(verdict.predictions == labels, count, np.bool_),
                        "flagged": _array(verdict.flagged, count, np.bool_),
                        "correct_8bit": _array(right8, count, np.bool_),
                        "inside": _array(inside, count, np.bool_),
                        "margin": _array(verdict.margins, count, np.float32),
                        "detector": _detected(self.subjects[name], verdict, count),
                        "linf": _array(linf, count, np.float32),
                        "l2": _array(l2, count, np.float32),
                        "measure": _array(measure, count, np.float32),
                        "queries": _array(made.counts[0], count, np.int32),
                        "gradients": _array(made.counts[3], count, np.int32),
                        "zero_gradients": _array(made.counts[1], count, np.int32),
                        "nan_gradients": _array(made.counts[2], count, np.int32),
                        "pixels": hashes,
                    }
                )
        rows = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        return rows, time.perf_counter() - began

    def _pixels(self, unit: Unit, images: Tensor, block: _Block) -> dict[str, Tensor]:
        """Adversarial images of the unit, and of the first images what pictures need."""
        count = len(block.rows)
        kept: dict[str, Tensor] = {}
        if unit.kind == "attack" and self.plan.keep_images != "none":
            kept["images"] = images[:count].float()
        pictured = unit.kind in ("clean", "attack") and unit.start == 0
        shown = min(CASES, count) if pictured else 0
        if not shown:
            return kept
        some, keys = images[:shown], block.keys[:shown].within("score")
        kept["case_images"] = some.float()
        with torch.no_grad():
            kept["case_logits"] = Surface(self.baseline).terms(some, keys).scores.float()
            target = self.subjects["target"]
            if isinstance(target, Defense):
                answer = target.predict(some, keys=keys)
                kept["case_scores"] = answer.scores.float()
                if answer.purified is not None:
                    kept["case_purified"] = answer.purified.float()
            else:
                kept["case_scores"] = target(some).float()
        return kept


@dataclass(frozen=True)
class _Block:
    """Images of a unit, padded to the plan's batch size with copies of the first."""

    rows: np.ndarray[Any, Any]  # places in the plan, without the padding
    images: Tensor
    labels: Tensor
    keys: Keys


@dataclass(frozen=True)
class _Made:
    """Images to be scored, and what an attack has counted on the way."""

    images: Tensor
    counts: Tensor  # (4, N): queries, zero gradients, gradients not finite, all gradients
    measure: Tensor | None = None
    judged: Mapping[str, Judged] = field(default_factory=dict)
    seconds: float = 0.0


def _padded(found: Attacked, size: int) -> Attacked:
    """What an attack leaves, padded to ``size`` rows with copies of the first."""

    def longer(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        rest = values[:1].expand(size - len(values), *values.shape[1:])
        return torch.cat((values, rest))

    if len(found.images) == size:
        return found
    judged = Judged(*map(longer, found.judged))  # type: ignore[arg-type]
    rest = {name: longer(part) for name, part in found._asdict().items() if name != "judged"}
    return found._replace(judged=judged, **rest)  # type: ignore[arg-type]


def _detected(subject: nn.Module, verdict: Judged, count: int) -> np.ndarray[Any, Any]:
    """The detector's score: its threshold less the slack."""
    threshold = getattr(getattr(subject, "detector", None), "threshold", None)
    if verdict.slack is None or threshold is None:
        return np.full(count, np.nan, dtype=np.float32)
    return _array(threshold - verdict.slack, count, np.float32)


def _empty(kind: str) -> np.ndarray[Any, Any]:
    return np.array([], dtype=object if kind == "string" else kind)


def _hashes(images: Tensor) -> list[str]:
    """128 bits of each image: no two meet, and hashes are most of what records weigh."""
    # One copy out of channels_last for the batch rather than one for each image.
    pixels = images.detach().to("cpu", torch.float32).contiguous().numpy()
    return [hashlib.sha256(image.data).hexdigest()[:32] for image in pixels]


def _repeat(text: str, count: int) -> np.ndarray[Any, Any]:
    return np.full(count, text, dtype=object)


def _array(values: Tensor, count: int, dtype: Any) -> np.ndarray[Any, Any]:
    return values[:count].detach().cpu().numpy().astype(dtype)
