"""What answers and training steps cost, in operations and in time: Table 5 of Tang et al. 2024."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.classifiers import Classifier
from unperturb.defense import Defense
from unperturb.errors import ConfigError, InputError, UnperturbError
from unperturb.flops import count_flops
from unperturb.gradients import InputGradients
from unperturb.progress import progress
from unperturb.training.config import TrainConfig
from unperturb.training.objectives import OBJECTIVES, Step
from unperturb.training.twin import make_twin

__all__ = ["Cost", "CostTable", "measure_costs", "training_step"]

# Batch norms in training mode cannot read one image, and operations grow with the batch.
_COUNTED = 2
_SIDE = 32
_PART = 128
_LATE = 1.0 - 1e-9
_RATE = 1e-6

Run = Callable[[Tensor, Tensor], object]
"""What is done with images (N, C, H, W) and labels (N,)."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One row: a pass or a step, with all figures for one image.

    Attributes:
        name: What is done.
        kind: ``answer``, ``gradient`` (of the loss, to the images) or ``training``.
        flops: Operations; one multiply-add is two. See ``count_flops`` for what is counted.
        forwards: Operations in forward passes of the classifier; None where that has none.
        seconds: Measured time; None where nothing was timed.
        epoch: Images of an epoch: those of the test for answers, else those trained on.
    """

    name: str
    kind: str
    flops: float
    forwards: float | None
    seconds: float | None
    epoch: int

    @property
    def flops_per_epoch(self) -> float:
        """Operations of all images of an epoch."""
        return self.flops * self.epoch

    @property
    def seconds_per_epoch(self) -> float | None:
        """Estimated seconds of an epoch, without reading and augmenting its images."""
        return None if self.seconds is None else self.seconds * self.epoch

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "name": self.name,
            "kind": self.kind,
            "flops_per_image": self.flops,
            "forwards": self.forwards,
            "seconds_per_image": self.seconds,
            "images_per_epoch": self.epoch,
            "flops_per_epoch": self.flops_per_epoch,
            "seconds_per_epoch": self.seconds_per_epoch,
        }


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """All rows, and what they were counted and measured on.

    Attributes:
        rows: One for each answer, gradient and training step.
        facts: Parameters, shape of the images, batch, settings of the training attack, machine.
    """

    rows: tuple[Cost, ...]
    facts: dict[str, Any]

    def __getitem__(self, name: str) -> Cost:
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {**self.facts, "rows": [row.to_dict() for row in self.rows]}


def measure_costs(
    classifier: Classifier,
    *,
    defense: Defense | None = None,
    objectives: Sequence[str] = ("standard", "fgsm", "pgd"),
    config: TrainConfig | None = None,
    image_size: tuple[int, int] | None = None,
    train_images: int = 50_000,
    test_images: int = 10_000,
    repeats: int = 3,
    show: bool = False,
) -> CostTable:
    """Count the operations, and measure the time, of answers and of training steps.

    With ``F`` the operations of a forward pass, a gradient to the images alone costs ``2 F``, a
    standard training step ``3 F`` (less the first layer's gradient to the images), FGSM adversarial
    training ``5 F``, PGD of k steps ``(2 k + 3) F``, and TPAP's answer ``3 F``. The paper's Table 5
    holds 6, 33 (k = 10) and 4: there every gradient is counted with those of the weights.

    Images are random, and labels are the classifier's own answers, so that attacks that stop early
    on mistakes begin with none; what such an attack (``fat``) costs depends on the images. A timed
    step is the update of the weights too, but neither reading nor augmenting the images. Timings
    are the least of a few, on this machine, now.

    Args:
        classifier: Nothing of it changes: training steps are taken on copies.
        defense: A defense around it, whose answer is measured beside the plain one.
        objectives: Names of training objectives; none: no training step.
        config: Batch size, precision and training attack; its objective is not read. Answers are
            always computed as the classifier does, whatever the precision.
        image_size: (height, width) of the images where the classifier reads any size; None: 32x32.
        train_images: Images of a training epoch.
        test_images: Images of a test epoch.
        repeats: Timings of each, after one that warms up; 0 counts operations only.
        show: Show a progress bar.

    Raises:
        ConfigError: A count below 1, or ``repeats`` below 0.
        SpecError: An unknown objective.
        InputError: The classifier cannot read such images, or cannot take a training step.

    Example:
        >>> from unperturb import tpap
        >>> from unperturb.classifiers import new_classifier
        >>> net = new_classifier("small-cnn", in_channels=1)
        >>> table = measure_costs(net, defense=tpap(net), image_size=(8, 8), repeats=0,
        ...                       config=TrainConfig(attack_steps=10))
        >>> for row in table.rows:
        ...     print(f"{row.name}: {row.forwards:.2f} forward passes")
        plain answer: 1.00 forward passes
        gradient to the image: 2.00 forward passes
        defended answer: 3.00 forward passes
        training step, standard: 2.98 forward passes
        training step, fgsm: 4.98 forward passes
        training step, pgd: 22.98 forward passes
    """
    for name, value, least in (
        ("train_images", train_images, 1),
        ("test_images", test_images, 1),
        ("repeats", repeats, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}", expected=f"at least {least}")
    base = config or TrainConfig()
    # Names are checked before anything is run.
    settings = [_of(base, name) for name in dict.fromkeys(objectives)]
    like = next(classifier.buffers())
    count = base.batch_size if repeats else _COUNTED
    images = _images(classifier, count, image_size).to(like.device, like.dtype)
    classifier.check(images[:_COUNTED])
    jobs: list[_Job] = [
        _Job("plain answer", "answer", lambda: _answer(classifier)),
        _Job("gradient to the image", "gradient", lambda: _gradient(classifier)),
    ]
    if defense is not None:
        jobs.append(_Job("defended answer", "answer", lambda: _answer(defense)))
    for one in settings:
        jobs.append(
            _Job(
                f"training step, {one.objective}",
                "training",
                partial(training_step, classifier, one, images),
            )
        )
    devices = [like.device] if like.device.type == "cuda" else []
    # Dropout and its kind draw from the global generators.
    with torch.inference_mode(False), torch.random.fork_rng(devices=devices):
        with torch.no_grad():
            labels = torch.cat([classifier(part).argmax(1) for part in images.split(_PART)])
        counts = [_count(job, images[:_COUNTED], labels[:_COUNTED]) for job in jobs]
        whole = images[: base.batch_size], labels[: base.batch_size]
        seconds = _timings(jobs, counts, *whole, repeats=repeats, show=show)
    rows = [
        Cost(
            name=job.name,
            kind=job.kind,
            flops=count,
            forwards=count / counts[0] if counts[0] else None,
            seconds=taken,
            epoch=test_images if job.kind == "answer" else train_images,
        )
        for job, count, taken in zip(jobs, counts, seconds, strict=True)
    ]
    return CostTable(rows=tuple(rows), facts=_facts(classifier, base, images, repeats))


@dataclass(frozen=True)
class _Job:
    name: str
    kind: str
    make: Callable[[], Run]


def _of(base: TrainConfig, objective: str) -> TrainConfig:
    """The settings for one objective; what only another one knows is left out."""
    own = objective == base.objective
    return replace(
        base, objective=objective, keep="last", mixture=base.mixture if own else (), accumulate=1
    )


def _images(classifier: Classifier, batch: int, image_size: tuple[int, int] | None) -> Tensor:
    channels, height, width = classifier.input_shape
    size = image_size or (height or _SIDE, width or _SIDE)
    generator = torch.Generator().manual_seed(0)
    found = torch.rand((max(batch, _COUNTED), channels or 3, *size), generator=generator)
    return found.contiguous(memory_format=torch.channels_last)


def _answer(module: nn.Module) -> Run:
    def run(images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            module(images)

    return run


def _gradient(classifier: Classifier) -> Run:
    def run(images: Tensor, labels: Tensor) -> None:
        with torch.enable_grad(), InputGradients():
            point = images.detach().requires_grad_()
            loss = F.cross_entropy(classifier(point), labels, reduction="sum")
            torch.autograd.grad(loss, point)

    return run


class _Network(nn.Module):
    """A trainable copy of a classifier's network, with its normalization in front."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self._classifier = [copy.deepcopy(classifier)]
        self.module = self._classifier[0].module.requires_grad_(True).train()

    def forward(self, images: Tensor) -> Tensor:
        return self.module(self._classifier[0].prepare(images))  # type: ignore[no-any-return]


def training_step(
    classifier: Classifier, settings: TrainConfig, images: Tensor, *, channels_last: bool = True
) -> Run:
    """A function that takes one training step on a copy of the classifier's network.

    The step is that of ``train``: adversarial examples against the folded twin, the loss, its
    gradient and the update of the weights, without reading and augmenting images. It is one late in
    a run, where ``fat`` takes the most steps, at a rate that leaves the network nearly as it is.

    Args:
        classifier: Nothing of it changes.
        settings: Objective, precision, momentum and training attack.
        images: A few images such as will come, at least two.
        channels_last: Lay images and weights out as ``train`` does; False for PyTorch's default.

    Example:
        >>> from unperturb.classifiers import new_classifier
        >>> net = new_classifier("small-cnn", in_channels=1)
        >>> images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> step = training_step(net, TrainConfig(objective="fgsm"), images)
        >>> step(images, torch.tensor([0, 1, 2, 3]))
    """
    network = _Network(classifier)
    like = next(classifier.buffers())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=_RATE,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    generator = np.random.default_rng(0)
    half = settings.precision == "bfloat16"
    twin = make_twin(network, images[:_COUNTED]) if settings.objective != "standard" else None

    def run(images: Tensor, labels: Tensor) -> None:
        images = images.contiguous(memory_format=layout)
        if twin is not None:
            twin.refresh()
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            with torch.autocast(like.device.type, dtype=torch.bfloat16, enabled=half):
                loss = OBJECTIVES[settings.objective](
                    Step(
                        network=network,
                        attacked=network if twin is None else twin,
                        images=images,
                        labels=labels,
                        settings=settings,
                        generator=generator,
                        done=_LATE,
                    )
                )
            loss.backward()
        optimizer.step()

    return run


def _count(job: _Job, images: Tensor, labels: Tensor) -> float:
    """Operations for each image."""
    try:
        run = job.make()
        return count_flops(lambda: run(images, labels)) / len(images)
    except UnperturbError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        if job.kind != "training":
            raise
        raise InputError(
            f"A {job.name}, fails: {str(error).splitlines()[0]}",
            expected="a network that can be trained",
            fix="name no objective, to count its answers only",
        ) from error


def _timings(
    jobs: Sequence[_Job],
    counts: Sequence[float],
    images: Tensor,
    labels: Tensor,
    *,
    repeats: int,
    show: bool,
) -> list[float | None]:
    """Seconds for each image; all of one job come together, since ratios are not promised here."""
    if not repeats:
        return [None] * len(jobs)
    shares = [max(1, round(count / counts[0])) if counts[0] else 1 for count in counts]
    found: list[float | None] = []
    total = sum(shares) * (repeats + 1)
    with progress(total=total, desc="timing", show=show, unit="pass") as bar:
        for job, share in zip(jobs, shares, strict=True):
            run, taken = job.make(), []
            for turn in range(repeats + 1):
                began = time.perf_counter()
                run(images, labels)
                if images.is_cuda:
                    torch.cuda.synchronize(images.device)
                ended = time.perf_counter()
                if turn:
                    taken.append(ended - began)
                bar.update(share)
            found.append(min(taken) / len(images))
    return found


def _facts(
    classifier: Classifier, config: TrainConfig, images: Tensor, repeats: int
) -> dict[str, Any]:
    return {
        "arch": classifier.origin.arch,
        "parameters": sum(p.numel() for p in classifier.module.parameters()),
        "image_shape": list(images.shape[1:]),
        "attack_steps": config.attack_steps,
        "clean_pass": config.clean_pass,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "repeats": repeats,
        "device": str(images.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "note": "one multiply-add is two operations; convolutions, matrix products and attention "
        "are counted",
    }
