"""Derivatives of correction networks in closed form, against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from unperturb.correction import Corrector
from unperturb.errors import InputError
from unperturb.explain import contributions, vector_jacobian_product
from unperturb.networks.corrector import CorrectionNetwork


def _net(depth: int = 2, *, classes: int = 7, width: int = 19) -> CorrectionNetwork:
    return CorrectionNetwork(num_classes=classes, width=width, depth=depth, seed=depth).eval()


def _rows(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=generator)


def _jacobians(network: nn.Module, logits: Tensor) -> Tensor:
    """All Jacobians (N, K, K) by autograd."""

    def one(row: Tensor) -> Tensor:
        return network(row[None])[0]  # type: ignore[no-any-return]

    return torch.stack([torch.autograd.functional.jacobian(one, row) for row in logits])  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_products_are_those_of_the_jacobian(depth: int, untouched: Any) -> None:
    network = _net(depth).double()
    logits, labels = _rows(23, 7)
    full = _jacobians(network, logits)
    with untouched(network):
        found = contributions(network, logits, labels)
    torch.testing.assert_close(found.pull, full[torch.arange(23), labels])
    torch.testing.assert_close(found.mean, full.mean(1))
    torch.testing.assert_close(found.score, full[torch.arange(23), labels] - full.mean(1))
    torch.testing.assert_close(found.corrected, network(logits))
    assert not any(part.requires_grad for part in found)
    vectors, _ = _rows(23, 7, seed=5)
    expected = torch.einsum("nl,nlk->nk", vectors, full)
    torch.testing.assert_close(vector_jacobian_product(network, logits, vectors), expected)
    shared = vector_jacobian_product(Corrector(network), logits, vectors[0])
    torch.testing.assert_close(shared, torch.einsum("l,nlk->nk", vectors[0], full))
    if depth > 1:
        assert not torch.allclose(full[0], full[1]), "the test needs different masks"


def test_dropout_is_off_and_the_mode_stays(untouched: Any) -> None:
    network = _net().double()
    logits, labels = _rows(5, 7)
    expected = contributions(network, logits, labels)
    network.train()
    with untouched(network):
        found = contributions(network, logits, labels)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_an_inactive_unit_at_exactly_zero_has_no_derivative() -> None:
    network = _net(2, classes=3, width=2)
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
        network.layers[0].bias.zero_()
    logits, label = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([2])
    expected = _jacobians(network, logits)[0]
    found = contributions(network, logits, label)
    torch.testing.assert_close(found.pull[0], expected[2])
    assert float(found.pull[0, 0]) == 0
    assert float(found.pull[0, 1]) != 0


def test_logits_of_another_dtype_are_read_as_the_network_is() -> None:
    network = _net()
    logits, labels = _rows(4, 7)
    found = contributions(network, logits.to(torch.bfloat16), labels.to(torch.int32))
    assert found.pull.dtype == torch.float32
    again = contributions(network, logits.to(torch.bfloat16).float(), labels)
    assert torch.equal(found.pull, again.pull)


class _Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives."""

    most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.most = max(self.most, found.numel())
        return found


def test_no_full_jacobian_is_ever_formed() -> None:
    classes, width, count = 300, 30, 5
    network = _net(classes=classes, width=width)
    logits, labels = _rows(count, classes)
    with _Largest() as mode:
        contributions(network, logits.float(), labels)
        vector_jacobian_product(network, logits.float(), logits)
    # The weights themselves; one Jacobian has K x K, those of all rows five times as many.
    assert mode.most == classes * width < classes * classes
    with _Largest() as mode:
        _jacobians(network, logits[:1].float())
    assert mode.most >= classes * classes, "the mode sees what it is there to see"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_it_costs_no_more_than_two_products_of_autograd(depth: int) -> None:
    network = _net(depth, classes=40, width=60)
    logits, labels = _rows(16, 40)
    logits, weights = logits.float(), [layer.weight.detach() for layer in network.layers]

    def twice() -> None:
        given = logits.clone().requires_grad_()
        out: Tensor = given
        for number, weight in enumerate(weights):
            # No module is called: the counter's hooks of modules and autograd.grad do not mix.
            out = nn.functional.linear(out.relu() if number else out, weight)
        pull = out.gather(1, labels[:, None]).sum()
        torch.autograd.grad(pull, given, retain_graph=True)
        torch.autograd.grad(out.mean(1).sum(), given)

    def flops(call: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return int(counter.get_total_flops())

    ours = flops(lambda: contributions(network, logits, labels))
    assert 0 < ours <= flops(twice)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": torch.zeros(2, 6)}, "6 classes"),
        ({"logits": torch.zeros(2, 7, dtype=torch.int64)}, "a float tensor"),
        ({"logits": torch.full((2, 7), torch.nan)}, "NaN"),
        ({"labels": torch.tensor([0, 7])}, "labels from 0 to 6"),
        ({"labels": torch.tensor([0])}, "one label for each"),
        ({"network": nn.Linear(7, 7)}, "The corrector is a Linear"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], words: str) -> None:
    given = {"network": _net(), "logits": torch.zeros(2, 7), "labels": torch.tensor([0, 1])}
    given.update(changes)
    with pytest.raises(InputError, match=words):
        contributions(given["network"], given["logits"], given["labels"])


def test_vectors_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 7\), one for each row"):
        vector_jacobian_product(_net(), torch.zeros(2, 7), torch.zeros(3, 7))
