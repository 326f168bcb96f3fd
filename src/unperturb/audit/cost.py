"""What an answer costs, and what an audit will cost, measured on the machine at hand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unperturb.attacks import FirstOrder, Surface
from unperturb.audit.memory import peak_bytes
from unperturb.audit.plan import Plan, Unit
from unperturb.defense import Defense

if TYPE_CHECKING:
    from unperturb.audit.work import Bench

__all__ = ["announcement", "cost_ratio", "kept_bytes", "preview"]

# What an attack without gradients calls one, so that all count in one unit.
_FORWARD_PASSES = 3


def _seconds(run: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Least of a few timings, after one that warms up."""

    def once() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(repeats))


def cost_ratio(target: nn.Module, baseline: nn.Module, images: Tensor) -> dict[str, Any]:
    """Time and memory of an answer, with and without the defense, in one run and on one batch.

    Args:
        target: The defended classifier.
        baseline: The undefended one.
        images: One batch (N, C, H, W).

    Returns:
        JSON-able: milliseconds and megabytes for each image, ``ratio`` (of the times) and
        ``memory_ratio``; megabytes are None for a module whose operations cannot be watched.
    """
    with torch.no_grad():
        one = _seconds(lambda: target(images), images.device)
        two = _seconds(lambda: baseline(images), images.device)
    held = {name: _peak(m, images) for name, m in (("target", target), ("baseline", baseline))}
    known = held["target"] is not None and held["baseline"]
    return {
        "target_ms_per_image": one / len(images) * 1e3,
        "baseline_ms_per_image": two / len(images) * 1e3,
        "ratio": one / two,
        "target_peak_mb": held["target"],
        "baseline_peak_mb": held["baseline"],
        "memory_ratio": held["target"] / held["baseline"] if known else None,  # type: ignore[operator]
        "batch_size": len(images),
        "note": f"least of 3 timings of one batch, {torch.get_num_threads()} threads",
        "memory_note": "most bytes of tensors held at once during one answer, without weights "
        "and images",
    }


def _peak(module: nn.Module, images: Tensor) -> float | None:
    """Megabytes for each image."""
    try:
        return peak_bytes(module, images) / len(images) / 1e6
    except (RuntimeError, NotImplementedError, TypeError):
        # Compiled modules and tensors of other kinds do not run under a dispatch mode.
        return None


def kept_bytes(plan: Plan, shape: Sequence[int]) -> int:
    """Bytes that the adversarial images of an audit take while they are kept.

    Args:
        plan: Says what is kept: nothing, or a float32 image for each attack on each image (of
            which ``worst`` drops the rest once all is done).
        shape: (C, H, W).
    """
    if plan.keep_images == "none":
        return 0
    count = sum(unit.stop - unit.start for unit in plan.units() if unit.kind == "attack")
    return count * math.prod(shape) * 4


def preview(bench: Bench, units: Sequence[Unit]) -> float:
    """Upper estimate of the seconds these units take: one pass of each kind is timed.

    An attack costs ``attack.gradients`` forward and backward passes, times the draws of each if
    its victim is random; where it reads scores or labels alone, each is counted as three forward
    passes. Every image is then scored on all draws, as it is and rounded to 8 bits. Nothing is
    taken off for images that leave at their first success.

    Args:
        bench: Subjects, images, plan and attacks.
        units: The units still to be done.
    """
    timed: dict[tuple[object, ...], float] = {}

    def once(kind: tuple[object, ...], run: Callable[[], object]) -> float:
        if kind not in timed:
            timed[kind] = _seconds(run, bench.images.device, repeats=1)
        return timed[kind]

    total = 0.0
    for unit in units:
        total += _scoring(bench, unit, once)
        if unit.kind not in ("attack", "probe"):
            continue
        surface, attack = bench.surface(unit), bench.attacks[unit.attack]
        gradients = getattr(attack, "access", "gradients") == "gradients"
        kind = (id(surface.target), unit.subject, unit.backward, gradients)
        seconds = once(kind, lambda s=surface, g=gradients: _pass(bench, s, g))  # type: ignore[misc]
        passes = attack.gradients * (1 if gradients else _FORWARD_PASSES)
        total += seconds * passes * (attack.draws if surface.stochastic else 1)
    return total


Once = Callable[[tuple[object, ...], Callable[[], object]], float]


def _scoring(bench: Bench, unit: Unit, once: Once) -> float:
    """Seconds to score what a unit says something about."""
    names = [unit.scores] if unit.scores in bench.subjects else list(bench.subjects)
    total = 0.0
    for name in names:
        module = bench.subjects[name]
        random = isinstance(module, Defense) and module.stochastic
        # A random subject is judged on draws that select and on as many that score.
        passes = 2 * bench.plan.scoring_draws if random else 1
        seconds = once(("score", name), lambda m=module: _pass(bench, Surface(m), False))  # type: ignore[misc]
        total += seconds * passes * (1 if unit.kind == "clean" else 2)
    return total


def _pass(bench: Bench, surface: Surface, gradient: bool) -> None:
    """One forward pass of a batch of the plan's size, with the backward pass if asked for."""
    size = bench.plan.batch_size
    index = torch.arange(size) % len(bench.images)
    images, labels, keys = bench.images[index], bench.labels[index], bench.keys[index]
    if gradient:
        one_step = FirstOrder(name="preview", steps=1, step_size=1.0)
        one_step.run(surface, images, labels, threat=bench.threat, keys=keys, stop="fixed")
    else:
        surface.judge(images, labels, keys)


def announcement(bench: Bench, todo: Sequence[Unit], total: int, workers: int) -> str:
    """What an audit will cost, in words, before it starts.

    Args:
        bench: Subjects, images, plan and attacks.
        todo: Units still to be done.
        total: Units of this run, the finished ones among them.
        workers: Processes that share the work.
    """
    done = f", {total - len(todo)} are done" if total > len(todo) else ""
    shown = max(1, math.ceil(preview(bench, todo) / workers))
    spelled = f"{shown} s" if shown < 90 else f"{math.ceil(shown / 60)} min"
    if shown >= 5400:
        spelled = f"{shown / 3600:.1f} h"
    words = f"{total} units of work{done}; the rest takes at most about {spelled}"
    size = kept_bytes(bench.plan, bench.images.shape[1:])
    if bench.plan.keep_images == "all":
        words += f"; the adversarial images take {_size(size)}, and all are kept"
    elif size >= 1e9:
        words += f"; adversarial images take up to {_size(size)} until the worst are chosen"
    return words


def _size(count: float) -> str:
    """Bytes in words.

    Example:
        >>> _size(2_500_000), _size(3e9)
        ('2.5 MB', '3.0 GB')
    """
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(1, round(count / 1e3))} kB"
