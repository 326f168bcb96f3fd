"""AutoAttack by its authors' package: parity, and a guard against each of its faults."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unperturb.attacks.autoattack import AutoAttack, parts
from unperturb.attacks.base import Attacked
from unperturb.attacks.batch import Batch
from unperturb.attacks.outside import SurfaceModule, fenced
from unperturb.attacks.registry import make_attack
from unperturb.attacks.surface import Surface
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import AttackError, ConfigError, MissingExtraError, SpecError
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import L2, Linf, Threat

SHORT = {"iterations": 10, "queries": 40}


def run(
    target: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int = 0,
    surface: dict[str, Any] | None = None,
    **settings: Any,
) -> Attacked:
    ids = [f"image-{i}" for i in range(len(images))]
    attack = AutoAttack(**{"name": "autoattack", **SHORT, **settings})
    made = Surface(target, **(surface or {}))
    return attack.run(made, images, labels, threat=threat, keys=Keys.of(seed, ids))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the package was told, once for each of its runs."""
    with fenced(0):
        import pyautoattack
    theirs, seen = pyautoattack.AutoAttack.run_standard_evaluation, []

    def spy(self: Any, *args: Any, **settings: Any) -> Any:
        from pyautoattack import checks

        parts = (self.apgd, self.apgd_targeted, self.fab, self.square)
        seen.append(
            {
                "attacks": list(self.attacks_to_run),
                "seeds": [self.seed, *(part.seed for part in parts)],
                "targets": (self.apgd_targeted.n_target_classes, self.fab.n_target_classes),
                "draws": self.apgd.eot_iter,
                "counts": dict(checks.funcs),
                "settings": settings,
            }
        )
        return theirs(self, *args, **settings)

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", spy)
    return seen


# --- parity -----------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [Linf(0.12), L2(0.6)], ids=["linf", "l2"])
def test_it_finds_what_the_package_finds(
    digits: tuple[Tensor, Tensor], digits_net: nn.Module, threat: Threat
) -> None:
    from pyautoattack import AutoAttack as Theirs

    images, labels = digits[0][1200:1280], digits[1][1200:1280]
    with fenced(0, "auto-attack"):
        made = Theirs(digits_net, norm={"linf": "Linf", "l2": "L2"}[threat.norm], eps=threat.eps)
        made.seed = 1
        for part in (made.apgd, made.apgd_targeted, made.fab):
            part.n_iter = 10
        made.square.n_queries = 40
        _, answers = made.run_standard_evaluation(images, labels, batch_size=80)
    digits_net.zero_grad(set_to_none=True)  # FAB leaves gradients in the parameters
    found = run(digits_net, images, labels, threat)
    wanted = answers != labels
    assert 0.2 < float(wanted.float().mean()) < 0.8
    assert int((found.success ^ wanted).sum()) <= 2
    assert bool(threat.contains(found.images, images).all())
    with torch.no_grad():
        assert torch.equal(found.success, digits_net(found.images).argmax(1) != labels)


def test_the_defaults_are_those_of_the_package(
    conv: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyautoattack import AutoAttack as Theirs

    seen = {}

    def spy(self: Any, images: Tensor, labels: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        for name in ("apgd", "apgd_targeted", "fab", "square"):
            values = vars(getattr(self, name))
            plain = {k: v for k, v in values.items() if isinstance(v, int | float | str)}
            seen[name] = {k: v for k, v in plain.items() if k not in ("seed", "device")}
        return images, labels

    monkeypatch.setattr(Theirs, "run_standard_evaluation", spy)
    images, net = pixels(2), conv(classes=10)
    for version in ("autoattack", "autoattack-rand"):
        seen.clear()
        threat, labels = Linf(0.01), net(images).argmax(1)
        keys = Keys.of(0, ["a", "b"])
        make_attack(version).run(Surface(net), images, labels, threat=threat, keys=keys)
        ours = dict(seen)
        with fenced(0, "auto-attack"):
            plain = Theirs(
                net, norm="Linf", eps=0.01, version="rand" if "rand" in version else "standard"
            )
        seen.clear()
        spy(plain, images, labels)
        if "rand" in version:
            # Twenty equal gradients have the mean of one, where nothing is random.
            assert seen["apgd"].pop("eot_iter") == 20
            assert ours["apgd"].pop("eot_iter") == 1
        assert ours == seen


# --- the package's faults ---------------------------------------------------------------


def test_it_is_seeded_by_the_run_and_never_by_the_clock(
    calls: list[dict[str, Any]], conv: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, images = conv(), pixels(6)
    labels = net(images).argmax(1)
    ticks: Iterator[int] = iter(range(10**6))
    first = run(net, images, labels, Linf(0.01))
    monkeypatch.setattr(time, "time", lambda: next(ticks))
    second = run(net, images, labels, Linf(0.01))
    third = run(net, images, labels, Linf(0.01), seed=1)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, third.images)
    assert calls[0]["seeds"] == calls[1]["seeds"] != calls[2]["seeds"]
    for call in calls:
        assert len(set(call["seeds"])) == 1
        assert 0 <= call["seeds"][0] < 2**32
        assert not call["settings"].get("state_path"), "its resume loses images"


def test_it_leaves_traces_counts_files_and_words_to_nobody(
    calls: list[dict[str, Any]],
    conv: Any,
    pixels: Any,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    untouched: Any,
) -> None:
    from pyautoattack import checks

    def trace(*args: object) -> None:
        return None

    net, images = conv(), pixels(3)
    labels = tpap(net, radius=0.02)(images).argmax(1)
    outer, kept = sys.gettrace(), dict(checks.funcs)
    log, here = logging.getLogger("auto-attack"), sorted(Path.cwd().iterdir())
    checks.funcs["grad"] = 5
    sys.settrace(trace)
    try:
        with untouched(net), caplog.at_level(logging.DEBUG):
            # The count of gradients in forward passes rises here: TPAP takes one in each.
            run(tpap(net, radius=0.02), images, labels, Linf(0.01), queries=3, iterations=2)
        assert sys.gettrace() is trace
        assert checks.funcs == {**kept, "grad": 5}
        assert not log.disabled
    finally:
        sys.settrace(outer)
        checks.funcs.update(kept)
    assert calls[0]["counts"] == dict.fromkeys(kept, 0)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert sorted(Path.cwd().iterdir()) == here


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_few_classes_get_our_apgd_in_place_of_dlr(
    calls: list[dict[str, Any]], linear: Any, pixels: Any, version: str, classes: int
) -> None:
    net, images, eps = linear(classes=classes), pixels(12, 1, 4), 0.05
    labels = net(images).argmax(1)
    found = run(net, images, labels, Linf(eps), version=version)
    assert calls[0]["attacks"] == list(parts(version, classes))
    assert not set(calls[0]["attacks"]) & {"apgd-t", "apgd-dlr"}
    assert calls[0]["targets"] == (classes - 1, classes - 1)
    assert torch.equal(found.success, reach(net, images, labels, eps))
    assert 0 < int(found.success.sum()) < len(images)


def test_only_our_apgd_finds_what_the_dropped_attack_would(
    linear: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fenced(0):
        import pyautoattack
    monkeypatch.setattr(
        pyautoattack.AutoAttack, "run_standard_evaluation", lambda self, x, y, **_: (x, y)
    )
    net, images, eps = linear(classes=3), pixels(12, 1, 4), 0.05
    labels = net(images).argmax(1)
    found = run(net, images, labels, Linf(eps))
    assert torch.equal(found.success, reach(net, images, labels, eps))
    net = linear(classes=4)
    labels = net(images).argmax(1)
    assert not bool(run(net, images, labels, Linf(eps)).success.any())


def reach(net: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Whether the Linf ball holds a point that a linear model answers otherwise, (N,) bool."""
    with torch.no_grad():
        weight, scores = net[1].weight, net(images)
        behind = scores.gather(1, labels[:, None]) - scores
        gain = eps * (weight[None] - weight[labels][:, None]).abs().sum(2)
        return (gain > behind).scatter(1, labels[:, None], False).any(1)


class Flips(Purifier):
    """Mirrors the brightness of an image now and then: a linear model then errs."""

    name = "flips"
    stochastic = True

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        flip = ctx.uniform("flips", (1, 1, 1)) < 0.15
        return Purified(torch.where(flip, 1 - images, images), None)


def test_an_image_that_luck_has_dropped_is_attacked_again(
    calls: list[dict[str, Any]], linear: Any, pixels: Any
) -> None:
    """15 % of all answers are wrong by chance; the same attack without chance is the measure."""
    from pyautoattack import AutoAttack as Theirs

    net, images, eps = linear(classes=5), pixels(24, 1, 4), 0.008
    labels = net(images).argmax(1)
    defense = Defense(net, purifier=Flips())
    settings: dict[str, Any] = {"version": "rand", "iterations": 30}
    wanted = run(net, images, labels, Linf(eps), **settings).success
    assert not bool((wanted & ~reach(net, images, labels, eps)).any())
    assert 4 < int(wanted.sum()) < 20
    with fenced(0, "auto-attack"):
        made = Theirs(SurfaceModule(Surface(defense)), norm="Linf", eps=eps, seed=0, version="rand")
        made.apgd.n_iter, made.apgd.eot_iter = 30, 5
        theirs, answers = made.run_standard_evaluation(images, labels)
    # Called as it is, it calls images broken that are not, and hands back some that are not
    # broken in place of what could be.
    turned, claimed = net(theirs).argmax(1) != labels, answers != labels
    lost = int((wanted & ~turned).sum())
    assert int((claimed & ~wanted).sum()) >= 4
    assert lost >= 4
    once = run(defense, images, labels, Linf(eps), draws=5, rounds=1, **settings)
    calls.clear()
    found = run(defense, images, labels, Linf(eps), draws=5, **settings)
    # The answer without the chance is the majority's.
    missed = [
        int((wanted & (net(images).argmax(1) == labels)).sum())
        for images in (once.images, found.images)
    ]
    assert not bool(((net(found.images).argmax(1) != labels) & ~wanted).any())
    assert missed[1] < missed[0]
    assert missed[1] <= lost // 2
    assert [call["attacks"] for call in calls] == [
        ["apgd-ce", "apgd-dlr"], ["apgd-dlr", "apgd-ce"], ["apgd-ce", "apgd-dlr"],
    ]  # fmt: skip
    # Later rounds see means over at least nine draws, in place of a mean of gradients.
    assert [call["draws"] for call in calls] == [5, 1, 1]
    assert len({call["seeds"][0] for call in calls}) == 3
    again = run(defense, images, labels, Linf(eps), draws=5, **settings)
    assert torch.equal(found.images, again.images)


def test_an_image_that_most_draws_get_wrong_is_attacked_again_and_kept(
    linear: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bare majority gets wrong, fresh draws may get right: it is not done with."""
    net, images = linear(classes=5), pixels(24, 1, 4)
    images = images[net(images).argmax(1) != net(1 - images).argmax(1)]
    labels = net(1 - images).argmax(1)  # wrong but for the flips
    asked: list[int] = []

    def theirs(self: Any, batch: Batch, rows: Tensor, classes: int, number: int) -> Tensor:
        asked.append(len(rows))
        # First what most draws get wrong, then what most get right.
        return batch.origin[rows] if number == 0 else 1 - batch.origin[rows]

    monkeypatch.setattr(AutoAttack, "_theirs", theirs)
    defense = Defense(net, purifier=Flips())
    found = run(defense, images, labels, Linf(1.0), version="rand", draws=5)
    # All of nine draws get an image wrong with a chance of 0.85^9: few are done with.
    assert len(images) > asked[0] > asked[1] == asked[2] > 4
    assert torch.equal(found.images, images)
    # Without chance, one look is enough.
    asked.clear()
    run(net, images, labels, Linf(1.0), version="rand")
    assert asked == []


# --- what it refuses --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 1, 5), (1, 4, 6)])
def test_images_too_small_for_square_under_l2_are_refused(
    shape: tuple[int, int, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, *shape, generator=generator)
    layer = nn.utils.skip_init(nn.Linear, images[0].numel(), 5, bias=False)
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
    net = nn.Sequential(nn.Flatten(), layer).eval()
    labels = net(images).argmax(1)
    size = f"{shape[1]} x {shape[2]} pixels"
    with pytest.raises(AttackError, match=f"L2 on images of {size}.*5 x 5.*square or apgd-t"):
        run(net, images, labels, L2(0.01))
    # Nothing else is refused: not the other norm, the other version, or what the message names.
    run(net, images, labels, Linf(0.01))
    run(net, images, labels, L2(0.01), version="rand")
    for spec in ("square-5", "apgd-t-5"):
        keys = Keys.of(0, [str(i) for i in range(4)])
        make_attack(spec).run(Surface(net), images, labels, threat=L2(0.01), keys=keys)


def test_what_cannot_be_run_says_why_and_what_to_use(
    conv: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, images, labels = conv(), pixels(2), torch.arange(2)
    detector = ThresholdDetector(threshold=0.1, action="reject")
    defense = Defense(tpap(net).classifier, purifier=tpap(net).purifier, detector=detector)
    with pytest.raises(AttackError, match="wrong-unflagged.*Fix: use apgd-ce"):
        run(defense, images, labels, Linf(0.1), surface={"goal": "wrong-unflagged"})
    with pytest.raises(AttackError, match="autoattack-50 does not exist"):
        make_attack("autoattack-50")
    with pytest.raises(AttackError, match="autoattack-rand-50 does not exist"):
        make_attack("autoattack-rand-50")
    with pytest.raises(SpecError, match="plus.*rand, standard"):
        make_attack("autoattack?version=plus")
    for option in ("votes=8", "rounds=0", "queries=-1"):
        with pytest.raises(ConfigError, match="Expected: "):
            make_attack(f"autoattack?{option}")
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(MissingExtraError, match="AutoAttack needs the package 'pyautoattack'"):
        run(net, images, labels, Linf(0.1))
