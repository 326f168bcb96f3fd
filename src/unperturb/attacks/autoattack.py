"""AutoAttack by its authors' package, with what it gets wrong kept away (Croce and Hein 2020).

``standard`` runs APGD on cross-entropy, APGD on the targeted DLR loss, targeted FAB and Square one
after the other, each on the images that the ones before it left; ``rand`` runs APGD on
cross-entropy and on DLR, each gradient a mean over 20 draws.

Deviations from what the package does when called as it is:

- It is always seeded, from the run's seed, the images' ids and the round (its own default is the
  clock); global generators, the trace function and loggers are put back; the count by which it
  tells dynamic defenses, which is global and never reset, starts from zero and is put back.
- Nothing is resumed: its resumed runs lose images.
- Below four classes the targeted DLR loss does not exist. The attacks that need it are dropped, and
  our APGD runs on the margin in their place; no more classes are aimed at than there are.
- It drops an image at the first draw that answers wrongly, and its APGD believes the loss of a
  single draw. Where the target is random, its images are scored again on fresh draws; those that
  not every one of these gets wrong are attacked again for up to ``rounds`` rounds, with the attacks
  in another order and on scores that are means over the draws, and the image is kept that most
  draws get wrong, by the greatest margin.
- What it returns is projected on the ball once more.

Its random starts follow the place in the batch, so results depend on batch mates. Queries are the
mean over the images of a call, which is all that can be counted from outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from unperturb.attacks.apgd import APGD
from unperturb.attacks.base import BaseAttack
from unperturb.attacks.batch import Batch
from unperturb.attacks.outside import SurfaceModule, fenced
from unperturb.attacks.surface import Surface
from unperturb.errors import AttackError, ConfigError, MissingExtraError, unknown_name
from unperturb.randomness import Keys
from unperturb.threat import Threat

__all__ = ["FEW_CLASSES", "AutoAttack", "make_autoattack", "make_autoattack_rand", "parts"]

_NORMS = {"linf": "Linf", "l2": "L2"}
_PARTS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
_NEED_DLR = ("apgd-t", "apgd-dlr")
_TARGETS = 9
_LEAST_SIDE = 5

FEW_CLASSES = (
    "AutoAttack's DLR losses need four classes; our APGD on the margin ran in the place of the "
    "attacks that use them."
)
"""What a report says of AutoAttack on fewer than four classes."""


def parts(version: str, classes: int) -> tuple[str, ...]:
    """The package's own attacks that are run.

    Example:
        >>> parts("standard", 10)
        ('apgd-ce', 'apgd-t', 'fab-t', 'square')
        >>> parts("standard", 3)
        ('apgd-ce', 'fab-t', 'square')
    """
    return tuple(part for part in _PARTS[version] if classes >= 4 or part not in _NEED_DLR)


@dataclass(frozen=True, kw_only=True)
class AutoAttack(BaseAttack):
    """AutoAttack, ``standard`` or ``rand``, under Linf or L2.

    Attributes:
        version: ``standard`` or ``rand``; ``draws`` count for ``rand`` only, and there only where
            the target is random (the mean of equal gradients is each of them).
        iterations: Steps of APGD and FAB.
        queries: Queries of Square.
        votes: Fresh draws, at least, that judge an image of a random target: most of them say
            whether it is broken, and it is done with when all of nine or more do.
        rounds: Most runs on images of a random target that are not done with.

    Raises:
        ConfigError: A number is out of range.
        SpecError: The version is unknown.

    Example:
        >>> make_autoattack(None).rules
        ('first-success',)
    """

    rules: ClassVar[tuple[str, ...]] = ("first-success",)
    goals: ClassVar[tuple[str, ...] | None] = ("wrong",)

    version: str = "standard"
    iterations: int = 100
    queries: int = 5000
    votes: int = 9
    rounds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("iterations", "queries", "votes", "rounds")
        if self.version not in _PARTS:
            raise unknown_name("version of AutoAttack", self.version, _PARTS)
        if self.votes % 2 == 0:
            raise ConfigError(
                f"votes of attack {self.name!r} is {self.votes}",
                expected="an odd number, so that there is a majority",
            )

    @property
    def gradients(self) -> int:
        """APGD once and against nine classes, FAB against nine (and two passes), Square."""
        if self.version == "rand":
            return 2 * (self.iterations + 1)
        apgd = (1 + _TARGETS) * (self.iterations + 1)
        return apgd + _TARGETS * self.iterations * 4 // 3 + self.queries // 3

    def check(self, surface: Surface, threat: Threat) -> None:
        """Refuse goals that scores alone cannot say, and a package that is not there.

        Raises:
            AttackError: The goal is not ``wrong``.
            MissingExtraError: The package cannot be imported.
        """
        super().check(surface, threat)
        if surface.goal != "wrong":
            raise AttackError(
                f"AutoAttack cannot pursue the goal {surface.goal!r}",
                expected="the goal 'wrong': it reads scores, and no flags or branches",
                fix="use apgd-ce and apgd-t for this goal",
            )
        _package()

    def perturb(self, batch: Batch) -> None:
        """Their attacks, then ours where theirs need more classes.

        Raises:
            AttackError: The images are too small for the package's Square.
        """
        self._check_size(batch)
        classes = batch.surface.count_classes(batch.origin[:1], batch.keys[:1])
        for number in range(self.rounds if batch.surface.stochastic else 1):
            rows = batch.left()
            if not len(rows):
                return
            found = self._theirs(batch, rows, classes, number)
            batch.offer(rows, found, draw=number, purpose="vote", votes=self.votes)
        if classes < 4:
            targets = min(_TARGETS, classes - 1) if self.version == "standard" else 0
            ours = APGD(
                name=self.name, draws=self.draws, steps=self.iterations, loss="margin",
                targets=targets,
            )  # fmt: skip
            ours.perturb(batch)

    def _check_size(self, batch: Batch) -> None:
        """Under L2 the package's Square divides by a fifth of the side, rounded down."""
        height, width = batch.origin.shape[2:]
        small = min(height, width) < _LEAST_SIDE
        if small and batch.threat.norm == "l2" and "square" in _PARTS[self.version]:
            raise AttackError(
                f"AutoAttack cannot run under L2 on images of {height} x {width} pixels",
                expected=f"{_LEAST_SIDE} x {_LEAST_SIDE} pixels or more, for its Square",
                fix="use square or apgd-t, which run on images of any size",
            )

    def _theirs(self, batch: Batch, rows: Tensor, classes: int, number: int) -> Tensor:
        """One run of the package on these rows: images (n, C, H, W) inside the ball."""
        threat, origin = batch.threat, batch.origin[rows]
        seed = _seed(batch.keys[rows], number)
        # Its APGD believes the last draw's loss and answer, so luck also misleads its search: from
        # the second round on it is shown means over the draws in place of its own.
        mean = max(batch.draws, self.votes) if number else 1
        module = SurfaceModule(batch.surface, seed=seed, draws=mean, layout=batch.layout)
        names = parts(self.version, classes)
        turn = number % len(names)
        with _guarded(seed):
            made = _package()(
                module, norm=_NORMS[threat.norm], eps=threat.eps, seed=seed, version=self.version,
                device=origin.device,
            )  # fmt: skip
            # An image that only luck has dropped meets another attack first.
            made.attacks_to_run = [*names[turn:], *names[:turn]]
            self._set(made, min(_TARGETS, classes - 1), 1 if number else batch.draws)
            images, _ = made.run_standard_evaluation(
                origin.float().contiguous(), batch.labels[rows], batch_size=len(rows)
            )
        batch.queries[rows] += -(-module.seen // len(rows))
        return threat.project(images.detach().to(origin.dtype), origin)

    def _set(self, made: Any, targets: int, draws: int) -> None:
        """Our settings, which are the package's own unless somebody has changed them."""
        for apgd in (made.apgd, made.apgd_targeted):
            steps = self.iterations
            apgd.n_iter = apgd.n_iter_orig = steps
            apgd.n_iter_2 = max(int(0.22 * steps), 1)
            apgd.n_iter_min = max(int(0.06 * steps), 1)
            apgd.size_decr = max(int(0.03 * steps), 1)
        if self.version == "rand":
            made.apgd.eot_iter = draws
        made.fab.n_iter = self.iterations
        made.square.n_queries = self.queries
        made.apgd_targeted.n_target_classes = made.fab.n_target_classes = targets


def _package() -> Any:
    """The package's class, imported where it is needed."""
    try:
        # Its checks import nothing heavy, but nothing global may leak from an import either.
        with fenced(0):
            from pyautoattack import AutoAttack as Theirs
    except ImportError as error:
        raise MissingExtraError(
            "pyautoattack", extra="attacks", purpose="AutoAttack", detail=str(error)
        ) from error
    return Theirs


@contextmanager
def _guarded(seed: int) -> Iterator[None]:
    """A fence that also keeps the package's global count of gradients taken in forward passes."""
    from pyautoattack import checks

    kept = dict(checks.funcs)
    try:
        checks.funcs.update(dict.fromkeys(kept, 0))
        with fenced(seed, "auto-attack"):
            yield
    finally:
        checks.funcs.update(kept)


def _seed(keys: Keys, number: int) -> int:
    """A seed of 32 bits (a torch CPU generator keeps no more) for these images and this round."""
    text = f"{keys.seed}\0{keys.domain}\0{number}\0".encode()
    digest = hashlib.blake2b(text, digest_size=4)
    digest.update(keys.images.cpu().numpy().tobytes())
    return int.from_bytes(digest.digest(), "big")


def _whole_thing(name: str, steps: int | None) -> None:
    """Refuse a number of steps."""
    if steps is not None:
        raise AttackError(
            f"{name}-{steps} does not exist: AutoAttack's attacks have steps of their own",
            expected=name,
            fix=f"{name}?iterations={steps} changes APGD and FAB; apgd-ce-{steps} is ours alone",
        )


def make_autoattack(steps: int | None) -> AutoAttack:
    """The family ``autoattack``: the standard version."""
    _whole_thing("autoattack", steps)
    return AutoAttack(name="autoattack")


def make_autoattack_rand(steps: int | None) -> AutoAttack:
    """The family ``autoattack-rand``: the version for random defenses, 20 draws a gradient."""
    _whole_thing("autoattack-rand", steps)
    return AutoAttack(name="autoattack-rand", version="rand", draws=20)
