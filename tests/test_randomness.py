"""Counter-based random numbers: known answers, independence, distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unperturb.randomness import Keys, hash_ids, philox


def _words(values: str) -> list[int]:
    return [int(v, 16) for v in values.split()]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_random123(counter: str, key: str, answer: str) -> None:
    k0, k1 = _words(key)
    found = philox((k0, k1), [torch.tensor(w) for w in _words(counter)])
    assert [int(w) for w in found] == _words(answer)


def _plain_philox(key: tuple[int, int], counter: list[int]) -> list[int]:
    """The same cipher in Python's integers of any size, written from the paper."""
    mask, (k0, k1) = 0xFFFFFFFF, key
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (b >> 32) ^ counter[1] ^ k0,
            b & mask,
            (a >> 32) ^ counter[3] ^ k1,
            a & mask,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return counter


word = st.integers(0, 2**32 - 1)


@given(key=st.tuples(word, word), counter=st.lists(word, min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_equals_plain_integer_arithmetic(key: tuple[int, int], counter: list[int]) -> None:
    found = philox(key, [torch.tensor(w) for w in counter])
    assert [int(w) for w in found] == _plain_philox(key, counter)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_neither_order_nor_batch_matters(kind: str) -> None:
    ids = [f"image-{i}" for i in range(9)]
    every: Tensor = getattr(Keys.of(3, ids), kind)("noise", (3, 5))
    order = [4, 0, 8, 2]
    some: Tensor = getattr(Keys.of(3, [ids[i] for i in order]), kind)("noise", (3, 5))
    assert torch.equal(some, every[order])
    assert torch.equal(getattr(Keys.of(3, ids)[4:5], kind)("noise", (3, 5)), every[4:5])


def test_a_longer_shape_begins_with_the_shorter_one() -> None:
    keys = Keys.of(0, ["a"])
    assert torch.equal(keys.uniform("s", (3,)), keys.uniform("s", (50,))[:, :3])


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_every_part_of_the_name_matters(kind: str) -> None:
    def numbers(keys: Keys, stage: str = "noise") -> Tensor:
        return getattr(keys, kind)(stage, (4096,))[0]  # type: ignore[no-any-return]

    keys = Keys.of(0, ["a"])
    other = {
        "seed": numbers(Keys.of(1, ["a"])),
        "stage": numbers(keys, "other"),
        "image": numbers(Keys.of(0, ["b"])),
        "draw": numbers(keys.draw(1)),
        "domain": numbers(keys.within("check")),
    }
    base = numbers(keys)
    assert torch.equal(base, numbers(Keys.of(0, ["a"])))
    names = list(other)
    for i, name in enumerate(names):
        for found in [base, *(other[n] for n in names[i + 1 :])]:
            pair = torch.stack((other[name], found))
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.08, name
            assert not torch.equal(*pair), name


def test_seed_and_domain_are_not_run_together() -> None:
    one = Keys.of(1, ["a"], domain="1x").uniform("s", (4,))
    assert not torch.equal(one, Keys.of(11, ["a"], domain="x").uniform("s", (4,)))
    two = Keys.of(1, ["a"], domain="x").uniform("ys", (4,))
    assert not torch.equal(two, Keys.of(1, ["a"], domain="xy").uniform("s", (4,)))


def test_distributions() -> None:
    from scipy.stats import kstest

    keys = Keys.of(7, [str(i) for i in range(64)])
    uniform, normal = keys.uniform("u", (3, 625)), keys.normal("n", (3, 625))
    assert uniform.dtype == normal.dtype == torch.float32
    assert float(uniform.min()) >= 0.0
    assert float(uniform.max()) < 1.0
    count = uniform.numel()
    assert abs(float(uniform.mean()) - 0.5) < 4 / math.sqrt(12 * count)
    assert abs(float(uniform.var()) - 1 / 12) < 1e-3
    assert abs(float(normal.mean())) < 4 / math.sqrt(count)
    assert abs(float(normal.var()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((normal**4).mean()) - 3) < 0.1
    assert kstest(uniform.double().flatten().numpy(), "uniform").pvalue > 1e-3
    assert kstest(normal.double().flatten().numpy(), "norm").pvalue > 1e-3
    # The two outputs of one Box-Muller pair, and neighbors in general, are uncorrelated.
    flat = normal.flatten()
    assert abs(float(torch.corrcoef(torch.stack((flat[:-1], flat[1:])))[0, 1])) < 0.015


def test_copies_number_the_draws() -> None:
    keys = Keys.of(0, ["a", "b"]).draw(2).copies(3)
    assert keys.draws.tolist() == [6, 7, 8, 6, 7, 8]
    assert keys.images.tolist() == hash_ids(["a", "a", "a", "b", "b", "b"]).tolist()
    numbers = keys.uniform("s", (4,))
    assert len({tuple(row.tolist()) for row in numbers}) == 6
    again = Keys.of(0, ["b"]).draw(7).uniform("s", (4,))
    assert torch.equal(numbers[4], again[0])


def test_copies_of_consecutive_draws_do_not_meet() -> None:
    keys = Keys.of(0, ["a"])
    drawn = [int(d) for n in range(5) for d in keys.draw(n).copies(4).draws]
    assert sorted(drawn) == list(range(20))


def test_fresh_keys_differ() -> None:
    one, two = Keys.fresh(2), Keys.fresh(2)
    assert not torch.equal(one.uniform("s", (4,)), two.uniform("s", (4,)))
    assert len(one) == 2


def test_hashed_ids_are_the_same_everywhere() -> None:
    from hashlib import blake2b

    found = hash_ids(["a", "é"])
    wanted = [
        int.from_bytes(blake2b(i.encode(), digest_size=8).digest(), "big") >> 1 for i in ("a", "é")
    ]
    assert found.tolist() == wanted
    assert bool((found >= 0).all())


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    keys = Keys.of(5, ["a", "b"])
    assert torch.equal(
        keys.uniform("u", (3, 7)), keys.to("cuda").uniform("u", (3, 7), device="cuda").cpu()
    )
    torch.testing.assert_close(
        keys.normal("u", (3, 7)), keys.normal("u", (3, 7), device="cuda").cpu()
    )
