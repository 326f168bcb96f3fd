"""What an answer costs, and what an audit will cost, measured on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.attacks import Attack, FirstOrder, Surface
from unperturb.audit.plan import Plan, Unit
from unperturb.randomness import Keys

__all__ = ["cost_ratio", "preview"]


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
    """Time of an answer, with and without the defense, in one run and on one batch.

    Args:
        target: The defended classifier.
        baseline: The undefended one.
        images: One batch (N, C, H, W).
    """
    with torch.no_grad():
        one = _seconds(lambda: target(images), images.device)
        two = _seconds(lambda: baseline(images), images.device)
    return {
        "target_ms_per_image": one / len(images) * 1e3,
        "baseline_ms_per_image": two / len(images) * 1e3,
        "ratio": one / two,
        "batch_size": len(images),
        "note": f"least of 3 timings of one batch, {torch.get_num_threads()} threads",
    }


def preview(
    surfaces: dict[tuple[str, str], Surface],
    images: Tensor,
    labels: Tensor,
    keys: Keys,
    plan: Plan,
    attacks: dict[str, Attack],
    units: list[Unit],
) -> float:
    """Upper estimate of the seconds these units take: gradients counted, one of each kind timed.

    Args:
        surfaces: ``(subject, backward)`` to what is attacked.
        images: One batch of the plan's size.
        labels: Its labels.
        keys: Its keys.
        plan: The plan.
        attacks: The attacks by name.
        units: The units still to be done.
    """
    one_step = FirstOrder(name="probe", steps=1, step_size=1.0)
    from unperturb.threat import make_threat

    threat = make_threat(plan.norm, plan.eps)
    gradient: dict[tuple[str, str], float] = {}
    total = 0.0
    for unit in units:
        if unit.kind != "attack":
            continue
        kind = (unit.subject, unit.backward)
        if kind not in gradient:
            surface = surfaces[kind]
            gradient[kind] = _seconds(
                lambda s=surface: one_step.run(  # type: ignore[misc]
                    s, images, labels, threat=threat, keys=keys, stop="fixed"
                ),
                images.device,
                repeats=1,
            )
        attack = attacks[unit.attack]
        draws = attack.draws if surfaces[kind].stochastic else 1
        total += gradient[kind] * attack.gradients * draws
    return total
