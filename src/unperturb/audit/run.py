"""Running an audit: units in, records out, resumable at any moment."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.attacks import Attack
from unperturb.audit.arguments import check_arguments
from unperturb.audit.arsenal import (
    Arsenal,
    adaptive_backwards,
    adaptive_goals,
    arsenal,
)
from unperturb.audit.benign import BENIGN
from unperturb.audit.cost import announcement, cost_ratio
from unperturb.audit.given import read_given
from unperturb.audit.numerics import Numerics, deterministic
from unperturb.audit.plan import ATTACKERS, Plan, Unit, environment, plan_units
from unperturb.audit.result import AuditResult
from unperturb.audit.store import Store, digest_rows
from unperturb.audit.subjects import check_repeatable, data_facts, subject_facts
from unperturb.audit.work import Bench
from unperturb.checks import check_device, check_labels
from unperturb.classifiers import Classifier, as_classifier
from unperturb.defense import Defense
from unperturb.errors import ConfigError, InputError, UnperturbError
from unperturb.files import write_json
from unperturb.progress import progress
from unperturb.threat import Threat

__all__ = ["audit", "complete"]


@dataclass(frozen=True)
class _Cut:
    """A part of the plan's units, one shard of several."""

    index: int
    count: int

    def of(self, units: list[Unit]) -> list[Unit]:
        return units[self.index - 1 :: self.count]


def audit(
    defense: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: Threat,
    attacks: str | Sequence[str | Attack] = "quick",
    attackers: Sequence[str] = ATTACKERS,
    ids: Sequence[str] | None = None,
    baseline: nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 128,
    scoring_draws: int = 10,
    gradient_draws: int = 20,
    backwards: Sequence[str] | None = None,
    keep_images: str = "worst",
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    workers: int = 1,
    time_budget: float | None = None,
    device: torch.device | str | None = None,
    name: str | None = None,
    data: dict[str, Any] | None = None,
    probe_images: int | None = None,
    side_effects: bool = True,
    outside: Mapping[str, str | Path | Tensor] | None = None,
    show: bool = False,
    announce: Callable[[str], None] | None = None,
) -> AuditResult:
    """Find out how much robustness a defense adds, for attackers who ignore it and who know it.

    The headline is the per-image worst case over all attacks and attackers, the unperturbed image
    included, beside the same of the undefended classifier. An oblivious attacker runs all steps on
    the undefended classifier and his images are then shown to the defense (the published
    protocol); an adaptive one attacks the defense itself with every gradient its purifier
    declares, and stops at the first success.

    Args:
        defense: A ``Defense``, or a classifier (any module) to be audited by itself.
        images: Clean images (N, C, H, W) in [0, 1].
        labels: True labels (N,).
        threat: ``Linf(eps)`` or ``L2(eps)``, eps in pixel units.
        attacks: A suite, a comma-separated list of names, or attacks.
        attackers: Some of ``oblivious`` and ``adaptive``.
        ids: Names of the images; random numbers are keyed by them. Positions by default.
        baseline: What gains are measured against, a classifier or a defense; the defense's own
            classifier by default.
        seed: Seed of all random numbers.
        batch_size: Images in a unit; part of the plan.
        scoring_draws: Fresh draws on which a random defense is scored; its worst attack per image
            is selected on as many others.
        gradient_draws: Draws averaged in each gradient of a random defense (EOT).
        backwards: Gradients that an adaptive attacker takes of the defense, the strongest first,
            such as ``("exact",)`` where each one costs hours; all that its purifier declares and
            the bare classifier's by default.
        keep_images: ``worst`` (per image and attacker), ``all`` or ``none``.
        out: Folder of the records. An audit that finds its own records there goes on from them.
            None keeps them in a temporary folder that lives as long as the result.
        shard: ``(i, n)``: do only the i-th of n parts; see ``merge``.
        workers: Processes. The digest does not depend on it, as long as each has as many threads.
        time_budget: Start no further unit after this many seconds.
        device: Where to compute; where the defense is by default.
        name: Name of the target in the report.
        data: Source, split, classes and fingerprint of the images, for the record.
        probe_images: Images, from the first, on which the strength of one attack is varied: the
            security curve, a huge eps, more steps, more draws. What the suite says by default (a
            list of attacks has none); 0 for none.
        side_effects: Whether to look at what is no attack, too: benign changes of the images, an
            attack too small to matter, and the control that steps away from the predicted label.
            They answer other questions, and cost a random defense much of its scoring.
        outside: Adversarial images made by any other tool, by name: a folder, a file or a tensor
            in the order of the images; see ``unperturb.audit.outside``.
        show: Show a progress bar with the time left.
        announce: Is told, in words, what the audit will cost before it starts.

    Returns:
        Figures, records and reports.

    Raises:
        InputError: Images or labels are not what the contract says.
        ConfigError: A setting is out of range.
        SpecError: A name is unknown.
        RecordError: ``out`` holds another audit, or one begun in another environment.
        OutputError: ``out`` cannot be written.

    Example:
        >>> from unperturb import Linf, tpap
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> found = audit(tpap(net), torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.long),
        ...               threat=Linf(8 / 255), attacks="fgsm")
        >>> found.worst_case_accuracy <= found.clean_accuracy
        True
    """
    if not isinstance(threat, Threat):
        raise ConfigError(
            f"The threat is {threat!r}", expected="a threat model", fix="Linf(8 / 255) or L2(0.5)"
        )
    check_arguments(
        attackers=attackers, backwards=backwards, ids=ids, outside=outside,
        probe_images=probe_images, shard=shard,
    )  # fmt: skip
    if device is not None:
        check_device(device)
    target = defense if isinstance(defense, Defense) else as_classifier(defense)
    classifier = target.classifier if isinstance(target, Defense) else target
    compared: Defense | Classifier = classifier
    if baseline is not None:
        compared = baseline if isinstance(baseline, Defense) else as_classifier(baseline)
    has_defense = compared is not target
    own_baseline = compared.fingerprint() == classifier.fingerprint()
    if device is not None:
        target, compared = target.to(device), compared.to(device)
    for module in (classifier, compared.classifier if isinstance(compared, Defense) else compared):
        module.check(images)
    for subject in (target, compared):
        if isinstance(subject, Defense) and subject.detector is not None:
            # A detector without a threshold is refused before anything is written.
            subject.detector.slack(images.new_zeros(1))
    check_labels(labels, count=len(images), num_classes=classifier.num_classes)
    for subject in (target, compared):
        check_repeatable(subject, images[:64])
    if workers < 1:
        raise ConfigError(f"workers is {workers}", expected="at least 1")
    if time_budget is not None and not time_budget > 0:
        raise ConfigError(f"time_budget is {time_budget}", expected="seconds above 0")
    named = (
        tuple(str(i) for i in ids) if ids is not None else tuple(str(i) for i in range(len(images)))
    )
    if len(named) != len(images):
        raise InputError(f"{len(named)} ids for {len(images)} images", expected="one for each")
    chosen = arsenal(
        attacks, target, threat, attackers=attackers, gradient_draws=gradient_draws,
        probe_images=probe_images, shape=tuple(images.shape), baseline=compared,
    )  # fmt: skip
    stochastic = any(isinstance(m, Defense) and m.stochastic for m in (target, compared))
    given = read_given(outside or {}, named, images, threat)
    plan = Plan(
        attacks=chosen.facts,
        attackers=_attackers(attackers),
        norm=threat.norm,
        eps=threat.eps,
        seed=seed,
        batch_size=min(batch_size, len(images)) if batch_size > 0 else batch_size,
        scoring_draws=scoring_draws if stochastic else 1,
        backwards=adaptive_backwards(target, backwards),
        keep_images=keep_images,
        ids=named,
        target=subject_facts(target, name),
        baseline=subject_facts(compared, "undefended classifier" if own_baseline else "baseline"),
        has_defense=has_defense,
        data=data_facts(data, images, labels),
        own_baseline=own_baseline,
        goals=adaptive_goals(target),
        baseline_backwards=adaptive_backwards(compared),
        baseline_goals=adaptive_goals(compared),
        benign=_benign(chosen, own_baseline=own_baseline) if has_defense and side_effects else (),
        control=chosen.control if has_defense and side_effects else None,
        probe=chosen.probing,
        outside=tuple(facts for facts, _ in given.values()),
        suite=chosen.suite,
    )
    where = next(compared.parameters(), images).device
    bench = Bench(
        target, compared, images.to(where), labels.to(where), plan, chosen.attacks,
        {name: images for name, (_, images) in given.items()},
    )  # fmt: skip
    temporary = None
    if out is None:
        temporary = tempfile.TemporaryDirectory(prefix="unperturb-")
        out = temporary.name
    store = Store(Path(out))
    everything = plan.units()
    for surface, attack in {
        (u.subject, u.backward, u.goal, u.attack): (bench.surface(u), u.attack)
        for u in everything
        if u.kind in ("attack", "probe")
    }.values():
        check = getattr(chosen.attacks[attack], "check", None)
        if check is not None:
            check(surface, threat)
    mine = everything if shard is None else _cut(shard).of(everything)
    with store.locked(), deterministic(where):
        store.begin(plan, labels.tolist(), environment(where))
        todo = [unit for unit in mine if not store.has(unit)]
        if todo:
            store.reopen()
        if todo and announce is not None:
            announce(announcement(bench, todo, len(mine), workers))
        _run_units(bench, store, todo, workers, time_budget, show)
        if has_defense and not (store.folder / "cost.json").exists():
            batch = bench.images[: plan.batch_size]
            write_json(store.folder / "cost.json", cost_ratio(target, compared, batch))
        complete(store)
    return AuditResult(store, _keep=temporary)


def _benign(chosen: Arsenal, *, own_baseline: bool) -> tuple[str, ...]:
    """Changes that are no attack; a small one is made on the classifier that both share."""
    small = chosen.control is not None and own_baseline
    return (*BENIGN, *(["small-eps"] if small else []))


def _attackers(named: Sequence[str]) -> tuple[str, ...]:
    """The attackers once each, in canonical order; ``Plan`` refuses unknown ones."""
    given = (named,) if isinstance(named, str) else tuple(named)
    return tuple(sorted(set(given), key=[*ATTACKERS, *given].index))


def _cut(shard: tuple[int, int]) -> _Cut:
    index, count = shard
    if not 1 <= index <= count:
        raise ConfigError(
            f"The shard is {index}/{count}", expected="i/n with 1 <= i <= n, such as 1/4"
        )
    return _Cut(index, count)


def _run_units(
    bench: Bench,
    store: Store,
    todo: list[Unit],
    workers: int,
    time_budget: float | None,
    show: bool,
) -> None:
    ends = None if time_budget is None else time.monotonic() + time_budget
    bar = progress(total=len(todo), desc="audit", show=show, unit="unit")
    with bar:
        if workers == 1 or len(todo) < 2:
            _run_here(bench, store, todo, ends, bar)
            return
        _run_parallel(bench, store, todo, workers, ends, bar)


def _run_here(bench: Bench, store: Store, todo: list[Unit], ends: float | None, bar: Any) -> None:
    """Unit after unit; while one is computed, the one before is written."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for unit in todo:
            if ends is not None and time.monotonic() > ends:
                break
            following = _do(bench, store, unit, writer)
            if writing is not None:
                writing.result()
            writing = following
            bar.update(1)
        if writing is not None:
            writing.result()


def _do(
    bench: Bench, store: Store, unit: Unit, writer: ThreadPoolExecutor | None = None
) -> Future[None] | None:
    """Do a unit and write it; with a writer, let that one write it."""
    done = bench.run(unit)
    if writer is not None:
        return writer.submit(store.write, unit, done.rows, done.pixels, done.seconds)
    store.write(unit, done.rows, done.pixels, done.seconds)
    return None


# A worker process has one bench for its lifetime.
_WORKER: tuple[Bench, Store] | None = None


def _begin_worker(bench: Bench, store: Store, numerics: Numerics) -> None:
    global _WORKER
    numerics.apply()
    _WORKER = (bench, store)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the audit is killed; the pool by itself would leave it waiting."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(unit: Unit) -> None:
    assert _WORKER is not None
    _do(*_WORKER, unit)


def _run_parallel(
    bench: Bench, store: Store, todo: list[Unit], workers: int, ends: float | None, bar: Any
) -> None:
    """Hand units to processes one at a time, so that a time budget can stop between them."""
    try:
        pickle.dumps((bench.subjects, bench.baseline))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"The defense cannot be sent to {workers} worker processes: {error}",
            expected="modules whose classes and functions can be imported",
            fix="use workers=1, or move them out of __main__ and out of functions",
        ) from error
    context = multiprocessing.get_context("spawn")
    arguments = (bench, store, Numerics.here())
    try:
        with ProcessPoolExecutor(workers, context, _begin_worker, arguments) as pool:
            waiting = iter(todo)
            running = {pool.submit(_work, unit) for unit in islice(waiting, workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    bar.update(1)
                    unit = next(waiting, None)
                    if unit is not None and (ends is None or time.monotonic() <= ends):
                        running.add(pool.submit(_work, unit))
    except BrokenProcessPool as error:
        raise UnperturbError(
            "A worker process ended before its work was done",
            expected="workers that live; the system may have stopped one for want of memory",
            fix="run the same again with fewer workers: what is finished is kept",
        ) from error


def complete(store: Store) -> bool:
    """Close an audit whose units are all done: worst images, then the manifest."""
    from unperturb.audit.images import keep_worst

    units = plan_units(store.plan())
    if not all(store.has(unit) for unit in units):
        return False
    if store.manifest() is None:
        plan = store.plan()
        rows = store.rows(units)
        keep_worst(store, plan, units, rows)
        store.write_whole(rows)
        version = plan["settings"]["schema_version"]
        store.finish(units, digest_rows(rows, plan["settings_hash"], version))
    return True
