"""Memory counted tensor by tensor, and an estimate that is right for every kind of attack."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import unperturb.audit.cost
from audit.doubles import digits, linear_net, random_defense
from unperturb import tpap
from unperturb.attacks import FirstOrder
from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import Batch
from unperturb.audit import audit
from unperturb.audit.cost import announcement, cost_ratio, kept_bytes, preview
from unperturb.audit.memory import peak_bytes
from unperturb.audit.work import Bench
from unperturb.threat import Linf

IMAGES = torch.zeros(10, 3, 8, 8)
BATCH = IMAGES.numel() * 4


class Doing(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class Holding(nn.Module):
    """Keeps what it computed from one call to the next."""

    def forward(self, images: Tensor) -> Tensor:
        self.kept = images + 1
        return self.kept


def _chain(images: Tensor) -> Tensor:
    first = images + 1
    second = first * 2
    del first
    third = second - 1
    del second
    return third


def _graph(images: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        # Each exp keeps its result for the backward pass.
        out = leaf.exp().exp().exp().exp()
        (gradient,) = torch.autograd.grad(out.sum(), leaf)
    return gradient


@pytest.mark.parametrize(
    ("function", "batches"),
    [
        (lambda x: x, 0),
        (lambda x: x.flatten(1).view(10, 3, 8, 8).permute(0, 2, 3, 1), 0),
        (lambda x: x + 1, 1),
        (lambda x: (x + 1).flatten(1)[:, :5], 1),
        (lambda x: torch.stack([x + n for n in range(3)]), 6),
        (lambda x: torch.relu_(x + 1), 1),
        (lambda x: (x + 1).double(), 3),
        (_chain, 2),
    ],
)
def test_peaks_that_can_be_counted_by_hand(
    function: Callable[[Tensor], Tensor], batches: int
) -> None:
    assert peak_bytes(Doing(function), IMAGES) == batches * BATCH


def test_a_backward_pass_within_an_answer_is_counted() -> None:
    # Four results are kept, and the sum (4 bytes); then gradients beside them.
    found = peak_bytes(Doing(_graph), IMAGES)
    assert 5 * BATCH <= found <= 7 * BATCH


def test_weights_are_not_counted_and_layers_are() -> None:
    conv = nn.utils.skip_init(nn.Conv2d, 3, 6, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten())
    assert peak_bytes(net, IMAGES) == 2 * BATCH


def test_what_a_module_keeps_is_counted_once_and_again_when_replaced() -> None:
    module = Holding()
    assert peak_bytes(module, IMAGES) == BATCH
    assert peak_bytes(module, IMAGES) == BATCH
    # Nothing that outlives the count may disturb it.
    del module
    gc.collect()


def test_cost_is_a_ratio_of_the_same_run(linear: Callable[..., nn.Module]) -> None:
    net = linear(classes=4, channels=3, side=8)
    found = cost_ratio(tpap(net), net, IMAGES)
    assert found["baseline_peak_mb"] == pytest.approx(4 * 4 / 1e6)
    assert found["target_peak_mb"] > found["baseline_peak_mb"]
    assert found["memory_ratio"] == found["target_peak_mb"] / found["baseline_peak_mb"]
    assert found["ratio"] == found["target_ms_per_image"] / found["baseline_ms_per_image"]
    assert found["batch_size"] == 10


def test_memory_that_cannot_be_counted_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise RuntimeError("no dispatch mode here")

    monkeypatch.setattr(unperturb.audit.cost, "peak_bytes", refuse)
    net = nn.Flatten()
    found = cost_ratio(net, net, IMAGES)
    assert (found["target_peak_mb"], found["memory_ratio"]) == (None, None)
    monkeypatch.setattr(unperturb.audit.cost, "peak_bytes", lambda *arguments: 0)
    found = cost_ratio(net, net, IMAGES)
    assert (found["target_peak_mb"], found["memory_ratio"]) == (0.0, None)


# -- the estimate -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Queries(BaseAttack):
    """Asks for scores, and moves nothing."""

    access: ClassVar[str] = "scores"

    steps: int = 30

    @property
    def gradients(self) -> int:
        return self.steps // 3

    def perturb(self, batch: Batch) -> None:
        pass


GRADIENT, FORWARD = 5.0, 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass takes a second, one with its gradient five."""

    def timed(run: Callable[[], object], device: object, repeats: int = 3) -> float:
        with torch.enable_grad():
            before = torch.autograd.grad
            seen = []

            def watched(*arguments: Any, **options: Any) -> Any:
                seen.append(1)
                return before(*arguments, **options)

            monkeypatch.setattr(torch.autograd, "grad", watched)
            run()
            monkeypatch.setattr(torch.autograd, "grad", before)
        return GRADIENT if seen else FORWARD

    monkeypatch.setattr(unperturb.audit.cost, "_seconds", timed)


def _bench(monkeypatch: pytest.MonkeyPatch, defense: nn.Module, attack: Any, **rest: Any) -> Any:
    """The bench and the units of an audit that is not run."""
    found: list[Any] = []

    def caught(bench: Bench, todo: Any, total: int, workers: int) -> str:
        found[:] = bench, todo, announcement(bench, todo, total, workers)
        raise KeyboardInterrupt

    monkeypatch.setattr("unperturb.audit.run.announcement", caught)
    images, labels = digits(20)
    with pytest.raises(KeyboardInterrupt):
        audit(
            defense, images, labels, threat=Linf(0.1), attacks=[attack], batch_size=8,
            announce=lambda words: None, **rest,
        )  # fmt: skip
    return found


def test_gradients_are_counted_with_restarts(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pgd = FirstOrder(name="pgd", steps=7, step_size=0.25, random_start=True, restarts=2)
    bench, units, _ = _bench(monkeypatch, linear_net(), pgd)
    # Three blocks: a clean pass; under either attacker 14 gradients, and two passes that score.
    assert preview(bench, units) == 3 * (FORWARD + 2 * (14 * GRADIENT + 2 * FORWARD))


def test_queries_are_forward_passes(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, units, _ = _bench(monkeypatch, linear_net(), Queries(name="queries"))
    assert preview(bench, units) == 3 * (FORWARD + 2 * (30 * FORWARD + 2 * FORWARD))


def test_draws_multiply(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    defense = random_defense()
    pgd = FirstOrder(name="pgd", steps=7, step_size=0.25, draws=4)
    bench, units, _ = _bench(
        monkeypatch, defense, pgd, attackers=("adaptive",), scoring_draws=3
    )  # fmt: skip
    attacked = [u for u in units if u.kind == "attack"]
    on_target = [u for u in attacked if u.subject == "target"]
    assert on_target
    scored = 2 * 3 * 2 * FORWARD  # selection and scoring draws, as it is and rounded
    one = [u for u in on_target if u.backward == "exact"][:1]
    assert preview(bench, one) == 7 * 4 * GRADIENT + scored
    baseline = [u for u in attacked if u.subject == "baseline"][:1]
    assert preview(bench, baseline) == 7 * GRADIENT + 2 * FORWARD
    noise = [u for u in units if u.kind == "benign"][:1]
    assert preview(bench, noise) == scored + 2 * FORWARD
    clean = [u for u in units if u.kind == "clean"][:1]
    assert preview(bench, clean) == 6 * FORWARD + FORWARD


def test_probes_are_counted(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fgsm = FirstOrder(name="fgsm", steps=1, step_size=1.0)
    bench, units, _ = _bench(monkeypatch, linear_net(), fgsm, probe_images=8)
    probes = [u for u in units if u.kind == "probe"]
    assert probes
    steps = {u.attack: bench.attacks[u.attack].gradients for u in probes}
    assert steps["probe-more-steps"] == 4 * steps["probe"]
    expected = sum(steps[u.attack] * GRADIENT + 2 * FORWARD for u in probes)
    assert preview(bench, probes) == expected


def test_the_size_of_kept_images_is_told_beforehand(
    clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fgsm = FirstOrder(name="fgsm", steps=1, step_size=1.0)
    bench, units, words = _bench(monkeypatch, linear_net(), fgsm, keep_images="all")
    # 20 images of 64 pixels, float32, under two attackers.
    size = 20 * 64 * 4 * 2
    assert kept_bytes(bench.plan, (1, 8, 8)) == size
    assert f"the adversarial images take {round(size / 1e3)} kB, and all are kept" in words
    assert re.match(rf"{len(units)} units of work; the rest takes at most about \d+ s", words)
    for keep in ("worst", "none"):
        bench, _, words = _bench(monkeypatch, linear_net(), fgsm, keep_images=keep)
        assert "adversarial images" not in words
    assert kept_bytes(bench.plan, (1, 8, 8)) == 0


def test_a_real_estimate_is_of_the_right_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pgd = FirstOrder(name="pgd", steps=40, step_size=0.25)
    bench, units, _ = _bench(monkeypatch, linear_net(), pgd)
    attacked = [u for u in units if u.attacker == "oblivious"]
    expected = preview(bench, attacked)
    taken = sum(bench.run(unit).seconds["unit"] for unit in attacked)
    assert taken / 10 < expected < taken * 10
