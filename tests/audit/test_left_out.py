"""What was not run is told: attackers left out, budgets, shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit.doubles import EPS, arguments, digits, linear_net
from unperturb.audit import audit, read_result
from unperturb.audit import run as engine
from unperturb.audit.report import terminal_table
from unperturb.presets import tpap
from unperturb.threat import Linf

# -- attackers and attacks ----------------------------------------------------------------------


def test_an_audit_without_an_informed_attacker_says_so() -> None:
    images, labels = digits(8)
    found = audit(tpap(linear_net()), images, labels, threat=Linf(EPS), attacks="fgsm",
                  attackers=["oblivious"])  # fmt: skip
    assert "what it adds against one is not known" in found.summary["lesson"]
    assert "Over all attackers" not in found.summary["lesson"]
    assert any("--attacker adaptive" in note for note in found.summary["notes"])
    assert "oblivious attacker only" in terminal_table(found.summary)


@pytest.mark.parametrize("defended", [True, False])
def test_attacks_with_a_bound_of_their_own_leave_no_worst_case(defended: bool) -> None:
    images, labels = digits(4)
    target = tpap(linear_net()) if defended else linear_net()
    found = audit(target, images, labels, threat=Linf(EPS), attacks="stadv-1")
    assert found.complete
    assert found.worst_case_accuracy is None
    told = found.summary["lesson"]
    assert "No attack of the threat model was run, so there is no worst case." in told
    assert "not run" not in told
    assert "not known" not in told
    assert "worst attack" not in told
    if not defended:
        assert "The classifier answers 100.0% of clean images correctly. No attack" in told


def test_a_cut_audit_does_not_say_that_nothing_was_planned(tmp_path: Path) -> None:
    images, labels = digits(8)
    for name, target in (("bare", linear_net()), ("defended", tpap(linear_net()))):
        found = audit(target, images, labels, threat=Linf(EPS), attacks="fgsm",
                      out=tmp_path / name, shard=(1, 2))  # fmt: skip
        assert found.worst_case_accuracy is None
        assert "not known" in found.summary["lesson"]
        assert "No attack of the threat model" not in found.summary["lesson"]
    missing = audit(linear_net(), images, labels, threat=Linf(EPS), attacks="fgsm",
                    out=tmp_path / "later", shard=(2, 2))  # fmt: skip
    assert "What the classifier answers on clean images is not known" in missing.summary["lesson"]


# -- budgets ------------------------------------------------------------------------------------


def test_a_time_budget_cuts_and_says_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = audit(**arguments())
    clock = [0.0]
    honest = engine._do

    def slow(*rest: Any) -> None:
        honest(*rest)
        clock[0] += 10

    class Time:
        perf_counter = staticmethod(engine.time.perf_counter)

        @staticmethod
        def monotonic() -> float:
            return clock[0]

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_do", slow)
        patch.setattr(engine, "time", Time)
        cut = audit(**arguments(out=tmp_path, time_budget=175.0))
    # The first block of 8 images has 16 units and is done, the second has begun.
    assert not cut.complete
    assert cut.digest is None
    assert cut.to_json()["complete"] is False
    assert cut.to_json()["left_out"] == cut.summary["left_out"]
    assert cut.summary["left_out"] == ["30 of 48 units are not done", "images 8-15, 16-23"]
    assert cut.summary["target"]["clean"]["n"] == 16
    assert cut.summary["target"]["worst_case"]["n"] == 8, "only images that met every attack"
    assert not (tmp_path / "manifest.json").exists()
    assert cut.save_report(tmp_path / "report")
    found = audit(**arguments(out=tmp_path))
    assert found.complete
    assert found.summary["left_out"] == []
    assert found.digest == whole.digest
    assert read_result(tmp_path).digest == whole.digest


def test_an_attack_that_was_not_begun_is_not_passed_over(tmp_path: Path) -> None:
    images, labels = digits(8)
    common: dict[str, Any] = {"threat": Linf(EPS), "attacks": "fgsm,pgd-3"}
    defense = tpap(linear_net())
    audit(defense, images, labels, **common, out=tmp_path)
    for unit in engine.plan_units(read_result(tmp_path).plan):
        if unit.attack == "pgd-3" and unit.backward == "smoothed-sign":
            (tmp_path / "rows" / f"{unit.name}.parquet").unlink()
    found = read_result(tmp_path)
    assert found.worst_case_accuracy is None
    assert found.summary["target"]["worst_by_attacker"]["adaptive"] is None
    assert found.summary["target"]["worst_by_attacker"]["oblivious"] is not None
    cells = {row["attack"]: row["cells"]["target"]["adaptive"] for row in found.summary["table"]}
    assert cells["pgd-3"] is None, "one of its two gradients is missing"
    assert cells["fgsm"] is not None
    assert "the worst case is not known with the defense and" in found.summary["lesson"]


def test_a_shard_without_the_clean_images_can_be_read(tmp_path: Path) -> None:
    images, labels = digits(8)
    found = audit(tpap(linear_net()), images, labels, threat=Linf(EPS), attacks="fgsm",
                  out=tmp_path, shard=(2, 2))  # fmt: skip
    assert found.clean_accuracy is None
    assert found.worst_case_accuracy is None
    assert found.save_report()
    assert found.to_json()["clean_accuracy"] is None


def test_the_preview_counts_what_is_left(tmp_path: Path) -> None:
    told: list[str] = []
    audit(**arguments(out=tmp_path, announce=told.append, shard=(1, 3)))
    audit(**arguments(out=tmp_path, announce=told.append))
    audit(**arguments(out=tmp_path, announce=told.append))
    assert len(told) == 2, "nothing is announced where nothing is to do"
    assert told[0].startswith("16 units of work; the rest takes at most about ")
    assert told[1].startswith("48 units of work, 16 are done; the rest takes at most about ")
