"""Bhattacharyya coefficients: closed forms, and their bootstrap intervals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.explain import Supporting, bhattacharyya, overlap
from unperturb.explain.supporting import TopClasses


def _set(
    lists: Tensor, *, classes: int = 20, given: int | None = None, rows: Tensor | None = None
) -> Supporting:
    """A set whose images have these lists."""
    count = len(lists)
    zeros = torch.zeros(count, dtype=torch.int64)
    listed = TopClasses(lists, torch.zeros(lists.shape))
    return Supporting(
        num_classes=classes, given=given or count, only="all",
        rows=torch.arange(count) if rows is None else rows, labels=zeros, adversarial=zeros,
        answers=zeros, pull=listed, push=listed, score=listed, flat=zeros.bool(),
    )  # fmt: skip


def _random(count: int, seed: int, *, low: int = 0, high: int = 20) -> Tensor:
    """Lists of three different classes each."""
    generator = torch.Generator().manual_seed(seed)
    return low + torch.rand(count, high - low, generator=generator).argsort(1)[:, :3]


def test_closed_forms() -> None:
    a, b = torch.tensor([3, 1, 0, 0]), torch.tensor([0, 0, 2, 7])
    assert bhattacharyya(a, a) == 1.0
    assert bhattacharyya(a, 17 * a) == pytest.approx(1.0, abs=1e-12)
    assert bhattacharyya(a, b) == 0.0
    assert bhattacharyya(torch.tensor([1, 1]), torch.tensor([1, 0])) == pytest.approx(
        math.sqrt(0.5)
    )
    # sum sqrt(p q) = (sqrt(3/4 1/4) + sqrt(1/4 3/4))
    assert bhattacharyya(torch.tensor([3, 1]), torch.tensor([1, 3])) == pytest.approx(
        math.sqrt(3) / 2
    )


def test_identical_and_disjoint_sets_are_certain() -> None:
    low, high = _random(40, 0, high=8), _random(40, 1, low=8)
    found = overlap({"a": _set(low), "b": _set(low), "c": _set(high)}, draws=50)
    expected = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    for each in (found.values, found.low, found.high):
        torch.testing.assert_close(each, expected)


def test_the_matrix_is_that_of_the_counts() -> None:
    sets = {name: _set(_random(30 + k, k)) for k, name in enumerate("abc")}
    found = overlap(sets, draws=20)
    assert found.names == ("a", "b", "c")
    for i, one in enumerate(sets.values()):
        for j, two in enumerate(sets.values()):
            p = one.counts() / one.counts().sum()
            q = two.counts() / two.counts().sum()
            assert float(found.values[i, j]) == pytest.approx(float((p * q).sqrt().sum()), abs=1e-6)
    assert torch.equal(found.values, found.values.T)
    assert bool((found.low <= found.values).all())
    assert bool((found.values <= found.high).all())


def test_the_interval_is_that_of_a_bootstrap_written_anew() -> None:
    one, two = _random(60, 1), _random(60, 2, high=14)
    found = overlap({"a": _set(one), "b": _set(two)}, draws=3000, seed=1)
    generator = torch.Generator().manual_seed(9)

    def value(rows: Tensor) -> float:
        p = one[rows].flatten().bincount(minlength=20)
        q = two[rows].flatten().bincount(minlength=20)
        return float((p.double() * q).sqrt().sum()) / 180

    center = value(torch.arange(60))
    off = [abs(value(torch.randint(60, (60,), generator=generator)) - center) for _ in range(3000)]
    reach = float(torch.tensor(off).quantile(0.95))
    assert float(found.values[0, 1]) == pytest.approx(center)
    assert float(found.low[0, 1]) == pytest.approx(center - reach, abs=0.004)
    assert float(found.high[0, 1]) == pytest.approx(min(1, center + reach), abs=0.004)


def test_more_images_narrow_the_interval_and_the_seed_decides() -> None:
    def width(count: int) -> float:
        found = overlap({"a": _set(_random(count, 1)), "b": _set(_random(count, 2))}, draws=200)
        return float(found.high[0, 1] - found.low[0, 1])

    assert width(800) < width(25) / 2
    sets = {"a": _set(_random(30, 1)), "b": _set(_random(30, 2))}
    one, same, other = (overlap(sets, draws=50, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.low, same.low)
    assert not torch.equal(one.low, other.low)


def test_rows_that_were_left_out_stay_out_of_every_draw() -> None:
    lists = _random(50, 5)
    kept = torch.arange(0, 50, 2)
    part = _set(lists[kept], given=50, rows=kept)
    found = overlap({"part": part, "whole": _set(lists[kept])}, draws=100)
    assert float(found.values[0, 1]) == pytest.approx(1.0, abs=1e-12)
    # Equal histograms, but drawn as other images: the interval is not empty.
    assert float(found.low[0, 1]) < 1


def test_what_is_written_can_be_read() -> None:
    found = overlap({"a": _set(_random(9, 0)), "b": _set(_random(8, 1))}, which="pull", draws=5)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["names"] == ["a", "b"]
    assert facts["values"][0][1] == float(found.values[0, 1])
    assert (facts["which"], facts["draws"], facts["n"]) == ("pull", 5, {"a": 9, "b": 8})


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.zeros(3), torch.ones(3), "not all of them 0"),
        (torch.ones(3), torch.tensor([1, -1, 3]), "none negative"),
        (torch.ones(2, 2), torch.ones(4), "counts"),
        (torch.tensor([1.0, math.inf]), torch.ones(2), "infinite"),
        (torch.tensor([1.0, math.nan]), torch.ones(2), "infinite"),
        (torch.ones(3), torch.ones(4), "3 and 4 classes"),
    ],
)
def test_other_histograms_are_refused(first: Tensor, second: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bhattacharyya(first, second)


def test_mistakes_are_named() -> None:
    a = _set(_random(5, 0))
    silent = _set(_random(5, 0))
    silent.flat.fill_(True)
    wrong: list[tuple[dict[str, Supporting], dict[str, Any], type[Exception], str]] = [
        ({}, {}, InputError, "There is no set"),
        ({"a": a, "b": _set(_random(5, 0), classes=21)}, {}, InputError, "same number of classes"),
        ({"a": a, "b": silent}, {}, InputError, "No image of 'b'"),
        ({"a": a}, {"draws": 0}, ConfigError, "draws is 0"),
        ({"a": a}, {"confidence": 1}, ConfigError, "confidence is 1"),
        ({"a": a}, {"which": "S"}, SpecError, "one of pull, push, score"),
    ]
    for sets, more, kind, words in wrong:
        with pytest.raises(kind, match=words):
            overlap(sets, **more)
