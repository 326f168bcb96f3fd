"""Attack losses against loops written from their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unperturb.attacks.losses import LOSSES, both_up, cross_entropy, dlr, margin, resolve_loss


def _scores(classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(50, classes, generator=generator) * 4
    return scores, torch.randint(0, classes, (50,), generator=generator)


def _ce(row: list[float], label: int) -> float:
    return math.log(sum(math.exp(z) for z in row)) - row[label]


def _margin(row: list[float], label: int) -> float:
    return max(z for j, z in enumerate(row) if j != label) - row[label]


def _dlr(row: list[float], label: int) -> float:
    ordered = sorted(row, reverse=True)
    return _margin(row, label) / (ordered[0] - ordered[2] + 1e-12)


def _both_up(row: list[float], label: int) -> float:
    return min(_margin(row, label), 1.0) + row[label]


@pytest.mark.parametrize("classes", [4, 10])
@pytest.mark.parametrize(
    ("loss", "naive"),
    [(cross_entropy, _ce), (margin, _margin), (dlr, _dlr), (both_up, _both_up)],
)
def test_against_a_loop(loss: object, naive: object, classes: int) -> None:
    scores, labels = _scores(classes)
    wanted = [naive(r, y) for r, y in zip(scores.tolist(), labels.tolist(), strict=True)]  # type: ignore[operator]
    torch.testing.assert_close(loss(scores, labels), torch.tensor(wanted), rtol=1e-4, atol=1e-4)  # type: ignore[operator]


def test_margin_with_two_classes_and_its_sign() -> None:
    scores = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    assert margin(scores, torch.tensor([0, 0])).tolist() == [2.0, -2.0]


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_dlr_does_not_see_the_scale(factor: float) -> None:
    scores, labels = _scores(6)
    torch.testing.assert_close(
        dlr(scores * factor + 5, labels), dlr(scores, labels), rtol=1e-3, atol=1e-4
    )


def test_dlr_of_a_wrong_answer_is_at_most_one() -> None:
    scores, labels = _scores(10, seed=2)
    value = dlr(scores, labels)
    wrong = scores.argmax(1) != labels
    assert bool((value[wrong] > 0).all())
    assert bool((value[~wrong] < 0).all())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    scores, labels = _scores(5)
    leaf = scores[:6].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, labels[:6]), (leaf,))


def test_dlr_falls_back_below_four_classes() -> None:
    used = {(n, k): resolve_loss(n, k) for n in LOSSES for k in (2, 3, 4, 10)}
    assert {k: v for k, v in used.items() if k[0] != v} == {
        ("dlr", 2): "margin",
        ("dlr", 3): "margin",
    }
