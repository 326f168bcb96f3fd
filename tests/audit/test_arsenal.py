"""Which attacks an audit runs on a defense, and by which attacker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from audit.doubles import EPS, FGSM, PGD, Noisy, conv_net, digits, linear_net
from unperturb.attacks import SUITES, FirstOrder, Surface
from unperturb.audit import audit
from unperturb.audit.arsenal import adaptive_backwards, adaptive_goals, arsenal, suites_of
from unperturb.audit.plan import Plan, Unit, plan_units
from unperturb.context import Context
from unperturb.decisions import Decision
from unperturb.defense import Defense
from unperturb.detectors import ThresholdDetector
from unperturb.errors import AttackError, ConfigError, SpecError
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.threat import L2, Linf, Threat


class Difference(Decision):
    """ALU's decision: the change of the logits where flagged, the logits after elsewhere."""

    name = "difference"
    reads = frozenset({"before", "after"})
    routes: ClassVar = {"difference": True, "after": False}
    attacks = ("logit-matching-5",)

    def branches(self, before: Tensor | None, after: Tensor | None) -> dict[str, Tensor]:
        assert before is not None
        assert after is not None
        return {"difference": after - before, "after": after}

    def forward(self, before: Tensor | None, after: Tensor | None, flagged: Tensor) -> Tensor:
        both = self.branches(before, after)
        return torch.where(flagged[:, None], both["difference"], both["after"])


class Darker(Purifier):
    name = "darker"
    backwards = ("exact", "identity", "own-rule")
    adaptive = ("own-rule", "exact")

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        return Purified(images * 0.9, images * 0.9)


def routed(action: str = "route") -> Defense:
    detector = ThresholdDetector(threshold=0.5, action=action)
    return Defense(linear_net(), purifier=Darker(), detector=detector, decision=Difference())


def armed(target: nn.Module, attacks: Any = "quick", **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "attackers": ("oblivious", "adaptive"), "gradient_draws": 3, "probe_images": None,
        "shape": (100, 1, 8, 8),
    }  # fmt: skip
    return arsenal(attacks, target, changes.pop("threat", Linf(EPS)), **{**settings, **changes})


def test_a_stage_declares_gradients_and_goals() -> None:
    assert adaptive_backwards(routed()) == ("own-rule", "exact", "undefended")
    assert adaptive_backwards(linear_net()) == ("exact",)
    assert adaptive_backwards(routed(), ["identity"]) == ("identity",)
    assert adaptive_backwards(linear_net(), ["identity"]) == ("exact",)
    with pytest.raises(SpecError, match="did you mean 'own-rule'"):
        adaptive_backwards(routed(), ["own-rul"])
    for wrong in ([], ["identity", "identity"]):
        with pytest.raises(ConfigError, match="each once"):
            adaptive_backwards(routed(), wrong)
    assert adaptive_goals(routed()) == ("branch:difference", "branch:after")
    assert adaptive_goals(routed("reject"))[0] == "wrong-unflagged"
    assert adaptive_goals(tpap(linear_net())) == adaptive_goals(linear_net()) == ()


def test_a_stage_declares_attacks_that_only_the_informed_attacker_runs() -> None:
    found = armed(routed())
    assert found.facts[-1]["name"] == "logit-matching-5"
    assert found.facts[-1]["only"] == "adaptive"
    assert "only" not in found.facts[0]
    for attacks, attackers in (("fgsm", ("adaptive",)), ("quick", ("oblivious",))):
        plain = armed(routed(), attacks, attackers=attackers)
        assert all(fact["name"] != "logit-matching-5" for fact in plain.facts)
    # A paper's suite stays what the paper ran.
    papers = armed(routed(), "alu-paper")
    assert [fact["name"] for fact in papers.facts] == ["pgd-20", "autoattack"]


def test_the_control_is_an_attack_of_several_steps() -> None:
    assert armed(tpap(linear_net())).control == "pgd-20"
    assert armed(tpap(linear_net()), "fgsm").control == "fgsm"
    assert armed(tpap(linear_net()), "square-10").control is None
    assert armed(tpap(linear_net()), attackers=("adaptive",)).control is None


def test_probes_are_one_attack_at_other_strengths() -> None:
    net = linear_net()
    found = armed(tpap(net), threat=Linf(0.1))
    probe = found.probing
    assert probe["images"] == 64
    assert probe["eps"] == pytest.approx([0.025, 0.05, 0.1, 0.2, 0.4])
    assert probe["huge"] == 0.5
    assert probe["more"] == {"target": ["probe-more-steps"], "baseline": ["probe-more-steps"]}
    assert found.attacks["probe-more-steps"].steps == 4 * found.attacks["probe"].steps == 40
    assert [fact["name"] for fact in found.facts] == ["fgsm", "pgd-20", "mim-10"]
    noisy = armed(Defense(net, purifier=Noisy()), threat=Linf(0.3))
    drawn = noisy.probing
    assert drawn["more"]["target"] == ["probe-more-steps", "probe-more-draws"]
    assert drawn["more"]["baseline"] == ["probe-more-steps"]
    assert drawn["images"] == 16, "draws multiply what a probe costs"
    assert drawn["eps"] == pytest.approx([0.075, 0.15, 0.3]), "none beyond the huge one"
    assert noisy.attacks["probe-more-draws"].draws == 12
    assert noisy.attacks["probe"].draws == 3
    assert armed(net, "fgsm").probing is None, "a list of attacks is run as it is"
    assert armed(net, "fgsm", probe_images=7).probing["images"] == 7
    assert armed(net, probe_images=0).probing is None
    assert armed(net, probe_images=1000).probing["images"] == 100
    assert armed(net, threat=L2(1.0)).probing["huge"] == pytest.approx(0.5 * 8)
    # At the huge size itself and beyond, something larger is the huge one.
    assert armed(net, threat=Linf(0.5)).probing["huge"] == 1.0
    assert armed(net, threat=Linf(1.0)).probing["eps"] == pytest.approx([0.25, 0.5])
    assert armed(net, threat=L2(5.0)).probing["huge"] == 10.0
    with pytest.raises(ConfigError, match="probe_images is -1"):
        armed(net, probe_images=-1)


def test_probes_are_refused_where_nobody_would_run_them() -> None:
    """They attack as the adaptive attacker does."""
    for attacks in ("fgsm", "quick"):
        with pytest.raises(ConfigError, match=r"probe_images is 20, and no adaptive attacker"):
            armed(tpap(linear_net()), attacks, attackers=("oblivious",), probe_images=20)
        for count in (0, None):
            plain = armed(tpap(linear_net()), attacks, attackers=("oblivious",), probe_images=count)
            assert plain.probing is None


def test_attackers_take_what_a_stage_declares() -> None:
    """Every gradient with the plain goal, and every further goal with the stages' own."""
    images, labels = digits(8)
    found = audit(
        routed("reject"), images, labels, threat=Linf(EPS), attacks="fgsm,square-3", batch_size=8
    )
    jobs = {
        (u.attack, u.attacker, u.subject, u.backward, u.goal, u.rule)
        for u in found.units
        if u.kind == "attack"
    }
    goals = ("wrong-unflagged", "branch:difference", "branch:after")
    rules = ("own-rule", "exact")
    fast = ("fixed", "first-success")
    assert jobs == {
        ("fgsm", "oblivious", "baseline", "exact", "wrong", fast[0]),
        ("fgsm", "oblivious", "baseline", "exact", "predicted-label", fast[0]),
        ("square-3", "oblivious", "baseline", "none", "wrong", fast[0]),
        ("fgsm", "adaptive", "baseline", "exact", "wrong", fast[1]),
        ("square-3", "adaptive", "baseline", "none", "wrong", fast[1]),
        *(("fgsm", "adaptive", "target", b, "wrong", fast[1])
          for b in ("own-rule", "exact", "undefended")),
        *(("fgsm", "adaptive", "target", rule, goal, fast[1]) for goal in goals for rule in rules),
        *(("square-3", "adaptive", "target", "none", goal, fast[1])
          for goal in ("wrong", *goals)),
    }  # fmt: skip
    assert Counter(u.kind for u in found.units)["benign"] == 4


@dataclass(frozen=True, kw_only=True)
class Unable(FirstOrder):
    """Cannot be run on anything."""

    def check(self, surface: Surface, threat: Threat) -> None:
        raise AttackError("It cannot be run on this defense", expected="another", fix="use pgd-20")


def test_an_attack_that_cannot_run_is_refused_before_any_work(tmp_path: Any) -> None:
    images, labels = digits(8)
    attacks = [FGSM, Unable(name="unable", steps=1, step_size=1.0)]
    with pytest.raises(AttackError, match=r"cannot be run on this defense.*use pgd-20"):
        audit(linear_net(), images, labels, threat=Linf(EPS), attacks=attacks, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_baseline_is_attacked_where_it_stands() -> None:
    """Images made on one network say nothing of another: each is attacked undefended."""
    images, labels = digits(16)
    target, other = tpap(linear_net()), conv_net()
    found = audit(
        target, images, labels, threat=Linf(EPS), attacks="fgsm", baseline=other, batch_size=8
    )
    for subject, net in (("target", target.classifier), ("baseline", other)):
        alone = audit(
            net, images, labels, threat=Linf(EPS), attacks="fgsm", attackers="oblivious",
            batch_size=8,
        )  # fmt: skip
        of = (found.rows["subject"] == subject) & (found.rows["attacker"] == "oblivious")
        of &= found.rows["goal"] == "wrong"
        theirs = alone.rows["attacker"] == "oblivious"
        assert found.rows["pixels"][of].tolist() == alone.rows["pixels"][theirs].tolist(), subject
    assert found.plan["settings"]["own_baseline"] is False


def test_a_suite_among_others_keeps_what_it_asks_for() -> None:
    """Who adds an attack to a suite gets no fewer checks."""
    assert suites_of(" standard, quick,fgsm") == {n: SUITES[n] for n in ("standard", "quick")}
    alone = armed(routed())
    for attacks in ("quick,square-10", "quick,", ["quick"], ["square-10", "quick"]):
        found = armed(routed(), attacks)
        assert found.probing == alone.probing
        assert found.facts[-1]["name"] == "logit-matching-5"
        assert found.suite == (None if "square-10" in attacks or "," in attacks[:-1] else "quick")
    both = armed(linear_net(), "quick,first-order")
    assert both.probing["images"] == 100
    assert both.probing["attack"]["name"] == "pgd-20"


def test_a_defense_as_baseline_is_attacked_as_a_target_is() -> None:
    """The same suite and budget: every gradient and goal that the baseline declares."""
    images, labels = digits(16)
    found = audit(
        tpap(linear_net()), images, labels, threat=Linf(EPS), attacks="fgsm", batch_size=16,
        baseline=routed("reject"), attackers="adaptive",
    )  # fmt: skip
    jobs = {(u.backward, u.goal) for u in found.units if u.subject == "baseline"}
    goals = ("wrong-unflagged", "branch:difference", "branch:after")
    assert jobs == {
        *((b, "wrong") for b in ("own-rule", "exact", "undefended")),
        *((b, goal) for b in ("own-rule", "exact") for goal in goals),
    }


def test_a_random_baseline_is_probed_with_more_draws() -> None:
    images, labels = digits(8)
    found = audit(
        linear_net(), images, labels, threat=Linf(EPS), attacks=[FGSM], attackers="adaptive",
        baseline=Defense(linear_net(), purifier=Noisy()), probe_images=4, gradient_draws=2,
        batch_size=8, scoring_draws=2,
    )  # fmt: skip
    probes = {(u.subject, u.attack) for u in found.units if u.kind == "probe"}
    assert ("baseline", "probe-more-draws") in probes
    assert ("target", "probe-more-draws") not in probes


class Shaky(nn.Module):
    """Draws from the global generator at every call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        noise = torch.randn(images.shape, generator=generator)
        return self.net(images + 0.4 * noise)  # type: ignore[no-any-return]


def test_randomness_that_no_key_names_is_refused(tmp_path: Any) -> None:
    images, labels = digits(8)
    for subject in (Shaky(linear_net()), tpap(Shaky(linear_net()))):
        with pytest.raises(ConfigError, match=r"answers differently on equal images.*a Purifier"):
            audit(subject, images, labels, threat=Linf(EPS), attacks="fgsm", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_random_baseline_is_keyed() -> None:
    images, labels = digits(8)
    runs = [
        audit(
            conv_net(), images, labels, threat=Linf(EPS), attacks=[PGD], batch_size=8,
            baseline=Defense(conv_net(), purifier=Noisy(size=0.5)), scoring_draws=2,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert runs[0].digest == runs[1].digest
    assert set(runs[0].rows["purpose"]) == {"select", "score"}


def test_a_plan_of_the_first_schema_has_its_units() -> None:
    describe = {"num_classes": 10}
    subject = {"fingerprint": "f", "name": "n", "title": "t", "describe": describe}
    plan = Plan(
        attacks=({"name": "fgsm"}, {"name": "pgd-20"}), attackers=("oblivious", "adaptive"),
        norm="linf", eps=0.1, seed=0, batch_size=4, scoring_draws=1,
        backwards=("identity", "smoothed-sign"), keep_images="worst", ids=tuple("abcdef"),
        target=subject, baseline=subject, has_defense=True, data={"fingerprint": "d"},
    )  # fmt: skip
    settings = plan.to_dict()
    for name in ("own_baseline", "goals", "benign", "control", "probe", "outside", "suite"):
        del settings[name]
    units = plan_units({"settings": settings, "ids": list(plan.ids)})
    assert units == plan.units()
    # Place by place what the first schema had: its files are named by it.
    shape = [(u.kind, u.start, u.attack, u.attacker, u.subject, u.backward, u.rule) for u in units]
    block = [("clean", "clean", "none", "both", "none", "none")]
    for attack in ("fgsm", "pgd-20"):
        block += [
            ("attack", attack, "oblivious", "baseline", "exact", "fixed"),
            ("attack", attack, "adaptive", "target", "identity", "first-success"),
            ("attack", attack, "adaptive", "target", "smoothed-sign", "first-success"),
            ("attack", attack, "adaptive", "baseline", "exact", "first-success"),
        ]
    assert shape == [(k, start, *rest) for start in (0, 4) for k, *rest in block]
    assert units[0] == Unit(0, "clean", 0, 4)
