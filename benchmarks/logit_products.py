"""What the benchmarks of logit correction share: sizes, and what a step is compared with."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor

from common import interleave
from unperturb.networks.corrector import CorrectionNetwork

__all__ = [
    "SIZES",
    "bound",
    "classes_of",
    "fastest",
    "layouts",
    "numbers",
    "shape_of",
    "stepper",
]

# Full size, and a dry run's.
SIZES = {
    "classes": (1000, 50), "width": (10_000, 400), "batch": (256, 32), "rows": (200_000, 5000),
    "steps": (100, 5), "images": (128, 2), "side": (224, 64),
}  # fmt: skip


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes_of(count: int, classes: int) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(1))


def products(batch: int, classes: int, width: int, *, wide_last: bool) -> Callable[[], None]:
    """The five products of a step into memory that is there: two forward, three backward.

    Nothing else of the step is computed. ``wide_last`` lays the first weights out as (K, D) and
    the second as (K, D); otherwise they lie as those of `nn.Linear` do, (D, K) and (K, D).
    """
    logits, hidden, scores = numbers(batch, classes), numbers(batch, width), numbers(batch, classes)
    first = numbers(classes, width) if wide_last else numbers(width, classes)
    second = numbers(classes, width)
    of_first, of_second = torch.empty_like(first), torch.empty_like(second)
    of_hidden, out = torch.empty_like(hidden), torch.empty_like(scores)
    forward = first if wide_last else first.t()

    def run() -> None:
        torch.mm(logits, forward, out=of_hidden)
        torch.mm(hidden, second.t(), out=out)
        torch.mm(scores.t(), hidden, out=of_second)
        torch.mm(scores, second, out=of_hidden)
        if wide_last:
            torch.mm(logits.t(), hidden, out=of_first)
        else:
            torch.mm(hidden.t(), logits, out=of_first)

    return run


def stepper(batch: int, classes: int, width: int) -> Callable[[Tensor, Tensor, int], object]:
    """Our own step of logits, labels and its number."""
    from unperturb.correction.config import CorrectionConfig
    from unperturb.correction.step import make_step

    config = CorrectionConfig(batch_size=batch, width=width)
    net = CorrectionNetwork(num_classes=classes, width=width).train()
    step = make_step(net, config, torch.device("cpu"))
    return lambda logits, labels, number: step.run(logits, labels, epoch=0, step=number)


def fastest(jobs: dict[str, Callable[[], None]], clock: str) -> tuple[str, Callable[[], None]]:
    """The job that takes least, of three runs each."""
    seconds = interleave(jobs, repeats=3, clock=clock)
    name = min(jobs, key=lambda job: min(seconds[job]))
    return name, jobs[name]


def layouts(args: Namespace) -> dict[str, Callable[[], None]]:
    shape = (args.batch, args.classes, args.width)
    return {
        "wide dimension last": products(*shape, wide_last=True),
        "as nn.Linear": products(*shape, wide_last=False),
    }


def bound(args: Namespace, value: float, *names: str) -> float | None:
    """What is promised at full size is not at another.

    Args:
        args: Sizes of the run.
        value: The promise.
        names: Sizes on which it hangs, beside K and D.
    """
    full = all(getattr(args, name) == SIZES[name][0] for name in ("classes", "width", *names))
    return value if full else None


def shape_of(args: Namespace) -> str:
    return f"K = {args.classes:,}, D = {args.width:,}"
