"""What counts: the threat model's ball, own bounds, controls, side effects, curves; by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from audit.doubles import digits, linear_net
from audit.records import EPS, attack, cell, clean, plan, summary
from unperturb.audit import audit
from unperturb.audit.answers import Answers, Key
from unperturb.audit.plan import Unit
from unperturb.audit.summary import summarize
from unperturb.presets import tpap
from unperturb.threat import L2, Linf


def target(found: dict[str, Any], attack: str, attacker: str = "adaptive") -> dict[str, Any]:
    row = next(row for row in found["table"] if row["attack"] == attack)
    cell: dict[str, Any] = row["cells"]["target"][attacker]
    return cell


# -- the ball -----------------------------------------------------------------------------------


def test_an_image_outside_the_ball_counts_with_its_clean_answer() -> None:
    was = np.array([1, 1, 1, 0])
    found = summary(
        plan(4, [attack("cw", bound="minimal")], has_defense=False),
        clean(was),
        # Broken inside, broken outside, withstood, and one that the attack made right outside.
        cell([0, 0, 1, 1], attack="cw", inside=np.array([1, 0, 1, 0]),
             linf=np.array([0.01, 0.2, 0.0, 0.3]), rule="minimal"),
    )  # fmt: skip
    assert target(found, "cw")["correct"] == 2, "images 1 and 2"
    assert found["target"]["worst_case"]["correct"] == 2
    (entry,) = found["minimal"]
    minimal = entry["cells"]["target"]["adaptive"]
    assert minimal["within"]["correct"] == 2
    assert minimal["as_returned"]["correct"] == 2, "images 2 and 3"
    assert minimal["successes"] == 2, "of images that were right when clean"
    assert minimal["median_distance"] == pytest.approx(0.105)
    (listed,) = found["attacks"]
    assert listed["outside_ball"] == 2
    assert listed["median_distance"] == pytest.approx(0.105)
    assert any("whatever the threat model" in note for note in found["notes"])


def test_an_attack_with_a_bound_of_its_own_stands_apart() -> None:
    flow = np.array([0.05, 0.01, 0.03, 0.02])
    found = summary(
        plan(4, [attack("pgd-20"), attack("stadv", bound="own")], has_defense=False),
        clean([1, 1, 1, 0]),
        cell([1, 1, 0, 0]),
        cell([0, 0, 0, 0], attack="stadv", measure=flow, inside=False, linf=0.4, l2=3.0),
    )
    assert found["target"]["worst_case"]["correct"] == 2
    assert [row["attack"] for row in found["table"]] == ["pgd-20"]
    (own,) = found["own"]
    figures = own["cells"]["target"]["adaptive"]
    assert figures["accuracy"]["correct"] == 0
    assert figures["measure"] == {"median": pytest.approx(0.025), "max": pytest.approx(0.05),
                                  "n": 4}  # fmt: skip
    assert figures["median_linf"] == pytest.approx(0.4)
    entry = next(e for e in found["attacks"] if e["name"] == "stadv")
    assert (entry["in_worst_case"], entry["robust_accuracy"]) == (False, 0.0)
    assert [e["in_worst_case"] for e in found["attacks"]] == [True, False]
    assert any("stand apart" in note for note in found["notes"])


def test_every_goal_and_gradient_enters_the_worst_case() -> None:
    found = summary(
        plan(4, [attack("pgd-20")], has_defense=False),
        clean([1, 1, 1, 1]),
        cell([0, 1, 1, 1]),
        cell([1, 0, 1, 1], backward="identity"),
        cell([1, 1, 0, 1], goal="branch:replaced"),
    )
    assert target(found, "pgd-20")["correct"] == 1
    assert found["target"]["worst_case"]["correct"] == 1
    assert {(e["backward"], e["goal"]) for e in found["attacks"]} == {
        ("exact", "wrong"), ("identity", "wrong"), ("exact", "branch:replaced")
    }  # fmt: skip
    assert [(w["goal"], w["images"]) for w in found["worst_of"]] == [
        ("branch:replaced", 1), ("wrong", 1), ("wrong", 1)
    ]  # fmt: skip


# -- label leaking ------------------------------------------------------------------------------


def test_the_control_for_label_leaking() -> None:
    hit = {"attacker": "oblivious", "rule": "fixed"}
    found = summary(
        plan(6, [attack("pgd-20")], control="pgd-20"),
        clean([1, 1, 1, 0, 0, 0]),
        clean([1, 1, 1, 1, 0, 0], subject="baseline"),
        # Away from the true label, two of the three wrong images come out right.
        cell([1, 1, 0, 1, 1, 0], **hit),
        cell([1, 0, 0, 0, 0, 0], goal="predicted-label", **hit),
        cell([0, 0, 0, 0, 1, 0], subject="baseline", **hit),
        cell([0, 0, 0, 0, 1, 1], subject="baseline", goal="predicted-label", **hit),
    )
    control = found["control"]
    assert control["attack"] == "pgd-20"
    defended = control["subjects"]["target"]
    assert [defended[k]["correct"] for k in ("clean", "true_label", "predicted_label")] == [3, 4, 1]
    wrong = defended["wrong_when_clean"]
    assert (wrong["n"], wrong["true_label"]["count"], wrong["predicted_label"]["count"]) == (
        3,
        2,
        0,
    )
    bare = control["subjects"]["baseline"]["wrong_when_clean"]
    assert (bare["n"], bare["true_label"]["count"], bare["predicted_label"]["count"]) == (2, 1, 2)
    # As published is what was published; the worst case knows both.
    assert target(found, "pgd-20", "oblivious")["correct"] == 4
    assert found["target"]["worst_by_attacker"]["oblivious"]["correct"] == 1
    entries = {e["goal"]: e for e in found["attacks"] if e["subject"] == "target"}
    assert entries["wrong"]["wrong_when_clean_accuracy"] == pytest.approx(2 / 3)
    assert summary(plan(1, [attack("pgd-20")]), clean([1]), cell([1]))["control"] is None


# -- images that need no defense ----------------------------------------------------------------


def test_benign_changes_and_failed_attacks() -> None:
    noise = {"attack": "uniform-noise", "attacker": "benign", "backward": "none", "goal": "none"}
    hit = {"attacker": "oblivious", "rule": "fixed"}
    found = summary(
        plan(5, [attack("pgd-20")]),
        clean([1, 1, 1, 1, 0]),
        clean([1, 1, 1, 1, 1], subject="baseline"),
        cell([1, 0, 0, 1, 1], **noise),
        cell([1, 1, 1, 1, 0], subject="baseline", **noise),
        cell([0, 0, 1, 1, 1], subject="target", **hit),
        cell([1, 1, 1, 0, 0], subject="baseline", **hit),
    )
    (entry,) = found["benign"]
    assert entry["name"] == "uniform-noise"
    assert (entry["target"]["correct"], entry["baseline"]["correct"]) == (3, 4)
    assert (entry["only_target"], entry["only_baseline"]) == (1, 2)
    assert (entry["clean"]["correct"], entry["changed"]["count"]) == (4, 2)
    (failed,) = found["failed_attacks"]
    assert (failed["attack"], failed["n"], failed["target_wrong"]["count"]) == ("pgd-20", 3, 2)
    # They are no attacks: neither enters a worst case.
    assert found["target"]["worst_case"]["correct"] == 2


# -- imported images ----------------------------------------------------------------------------


def test_outside_images() -> None:
    facts = {"name": "import:foolbox", "inside": 2, "rejected": 1}
    there = {"attack": "import:foolbox", "attacker": "outside", "backward": "none", "rule": "none"}
    found = summary(
        plan(4, [attack("pgd-20")], outside=[facts]),
        clean([1, 1, 1, 1]),
        clean([1, 1, 1, 1], subject="baseline"),
        cell([1, 1, 1, 0]),
        cell([1, 1, 1, 1], subject="baseline"),
        # Three of four images were brought; the third lies outside the ball.
        cell([0, 1, 0], inside=np.array([1, 1, 0]), **there),
        cell([1, 1, 0], subject="baseline", inside=np.array([1, 1, 0]), **there),
    )
    (entry,) = found["outside"]
    assert (entry["name"], entry["checks"]) == ("foolbox", facts)
    assert (entry["n"], entry["inside"]) == (3, 2)
    assert entry["target"]["correct"] == 2
    assert entry["as_returned"]["correct"] == 1
    assert (entry["only_outside"], entry["only_outside_count"]) == (["0"], 1)
    assert found["target"]["worst_case"]["correct"] == 2, "images 0 and 3 fell"
    assert found["target"]["worst_case"]["n"] == 4, "an image that nobody brought is not missing"
    by = found["target"]["worst_by_attacker"]
    assert by["outside"]["correct"] == 3
    assert by["adaptive"]["correct"] == 3


def test_an_outside_unit_that_is_not_done_is_missing() -> None:
    facts = {"name": "import:x"}
    units = [
        Unit(0, "clean", 0, 2), Unit(1, "clean", 2, 4),
        Unit(2, "attack", 0, 2, attack="pgd-20", attacker="adaptive", subject="target",
             scores="target", backward="exact", rule="first-success", goal="wrong", eps=EPS),
        Unit(3, "attack", 2, 4, attack="pgd-20", attacker="adaptive", subject="target",
             scores="target", backward="exact", rule="first-success", goal="wrong", eps=EPS),
        Unit(4, "outside", 0, 2, attack="import:x", attacker="outside", goal="wrong", eps=EPS),
        Unit(5, "outside", 2, 4, attack="import:x", attacker="outside", goal="wrong", eps=EPS),
    ]  # fmt: skip
    stored = plan(4, [attack("pgd-20")], outside=[facts], has_defense=False)
    there = {"attack": "import:x", "attacker": "outside", "backward": "none", "rule": "none"}
    rows = {
        name: np.concatenate([part[name] for part in (
            clean([1, 1, 1, 1]), cell([1, 1, 1, 1]), cell([1], **there),
        )])
        for name in clean([1])
    }  # fmt: skip
    done = {number: {"unit": 1.0} for number in range(5)}
    cut = summarize(stored, rows, units, done, digest=None, cost=None)
    assert cut["target"]["worst_case"]["n"] == 2, "the second block's outside unit is not done"
    assert cut["target"]["worst_by_attacker"]["adaptive"]["n"] == 4
    done[5] = {"unit": 1.0}
    assert summarize(stored, rows, units, done, digest=None, cost=None)["target"][
        "worst_case"
    ]["n"] == 4  # fmt: skip


# -- curves -------------------------------------------------------------------------------------


def curve(found: dict[str, Any], subject: str, source: str) -> list[tuple[float, int]]:
    series = next(
        s for s in found["curves"]["series"] if (s["subject"], s["source"]) == (subject, source)
    )
    return [(point["eps"], point["correct"]) for point in series["points"]]


def test_a_security_curve_of_probes() -> None:
    probe = {"attack": {"name": "pgd-10"}, "images": 4, "eps": [EPS / 2, EPS, 2 * EPS],
             "huge": 0.5}  # fmt: skip
    cells = [clean([1, 1, 1, 1, 1, 1]), clean([1, 1, 0, 1, 1, 1], subject="baseline"),
             cell([1, 1, 1, 1, 1, 0])]  # fmt: skip
    for eps, right in ((EPS / 2, [1, 1, 1, 0]), (EPS, [1, 1, 0, 1]), (2 * EPS, [0, 1, 1, 1]),
                       (0.5, [0, 0, 0, 1])):  # fmt: skip
        cells.append(cell(right, attack="probe", eps=eps, inside=eps <= EPS))
    cells.append(cell([1, 0, 0, 0], attack="probe", eps=EPS, subject="baseline"))
    found = summary(plan(6, [attack("pgd-20")], probe=probe), *cells)
    # An image that is broken at a smaller size stays broken.
    assert curve(found, "target", "probe") == [(0.0, 4), (EPS / 2, 3), (EPS, 2), (2 * EPS, 1)]
    assert curve(found, "baseline", "probe") == [(0.0, 3), (EPS, 1)]
    huge = found["curves"]["huge"]
    assert (huge["eps"], huge["target"]["correct"], huge["target"]["n"]) == (0.5, 1, 4)
    assert huge["baseline"] is None
    # What a probe breaks inside the ball is broken; what it breaks outside is not.
    assert found["target"]["worst_case"]["correct"] == 3, "images 0, 1 and 4"
    assert found["target"]["worst_case"]["n"] == 6
    assert [row["attack"] for row in found["table"]] == ["pgd-20"]
    assert all(not e["name"].startswith("probe") for e in found["attacks"])
    assert any("first 4 of 6 images" in note for note in found["notes"])


def test_a_security_curve_of_distances() -> None:
    found = summary(
        plan(5, [attack("ddn", bound="minimal")], has_defense=False),
        clean([1, 1, 1, 1, 0]),
        cell([0, 0, 1, 0, 0], attack="ddn", inside=False,
             linf=np.array([0.1, 0.3, 0.0, 0.2, 0.0])),
        # Another gradient gets nearer to the second image, and never to the first.
        cell([1, 0, 1, 0, 0], attack="ddn", backward="identity", inside=False,
             linf=np.array([0.0, 0.05, 0.0, 0.4, 0.0])),
    )  # fmt: skip
    points = curve(found, "target", "minimal")
    assert [eps for eps, _ in points] == pytest.approx([0, 0.05, 0.1, 0.2])
    assert [correct for _, correct in points] == [4, 3, 2, 1]
    assert found["curves"]["huge"] is None


def test_a_curve_of_many_distances_is_thinned() -> None:
    random = np.random.default_rng(0)
    distances = random.random(500)
    found = summary(
        plan(500, [attack("ddn", bound="minimal")], has_defense=False),
        clean(np.ones(500)),
        cell(np.zeros(500), attack="ddn", inside=False, linf=distances),
    )
    points = curve(found, "target", "minimal")
    assert len(points) == 61
    known = distances.astype(np.float32)
    assert all(correct == np.count_nonzero(known > eps) for eps, correct in points)
    assert points[-1] == (pytest.approx(float(known.max())), 0)


def test_no_probe_and_no_minimal_attack_give_no_curve() -> None:
    assert summary(plan(1, [attack("pgd-20")]), clean([1]), cell([1]))["curves"] is None


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.8)])
def test_curves_of_a_real_audit_fall(threat: Any) -> None:
    images, labels = digits(30)
    found = audit(
        tpap(linear_net(), radius=0.05), images, labels, threat=threat, attacks="fgsm",
        probe_images=30, keep_images="none", batch_size=30,
    ).summary  # fmt: skip
    series = found["curves"]["series"]
    assert [s["subject"] for s in series] == ["target", "baseline"]
    for s in series:
        right = [point["correct"] for point in s["points"]]
        assert right == sorted(right, reverse=True)
        assert right[0] > right[-1]
        assert s["points"][0]["correct"] == found[s["subject"]]["clean"]["correct"]
        assert [p["eps"] for p in s["points"]] == pytest.approx(
            [threat.eps * part for part in (0, 0.25, 0.5, 1, 2, 4)]
        )
    assert found["curves"]["huge"]["baseline"]["correct"] == 0


# -- what is missing ----------------------------------------------------------------------------


def test_probes_of_the_first_images_leave_the_others_complete() -> None:
    units = [Unit(0, "clean", 0, 4), Unit(1, "probe", 0, 2, attack="probe", attacker="adaptive",
                                          subject="target", scores="target", backward="exact",
                                          rule="first-success", goal="wrong", eps=EPS)]  # fmt: skip
    rows = {
        name: np.concatenate((clean([1] * 4)[name], cell([0, 1], attack="probe")[name]))
        for name in clean([1])
    }
    answers = Answers(rows, list("0123"), units, [0, 1], {}, ("target",))
    key = Key("target", "probe", "adaptive", "exact", "wrong", EPS)
    assert answers.cells[key].asked.tolist() == [True, True, False, False]
    found = answers.worst_case("target")
    assert found is not None
    assert found[0].right.tolist() == [False, True, True, True]
    assert found[0].done.all()
    # The same with a probe that is planned and not done.
    cut = Answers(clean([1] * 4), list("0123"), units, [0], {}, ("target",))
    found = cut.worst_case("target")
    assert found is not None
    assert found[0].done.tolist() == [False, False, True, True]
    assert found[0].which.tolist() == [-1, -1, 0, 0]


def test_margins_that_are_not_numbers_are_the_worst() -> None:
    found = summary(
        plan(2, [attack("a"), attack("b")], has_defense=False),
        clean([1, 1], margin=-1.0),
        cell([0, 0], attack="a", margin=5.0),
        cell([0, 0], attack="b", margin=np.nan),
    )
    assert [(w["attack"], w["images"]) for w in found["worst_of"]] == [("b", 2)]


def test_dlr_below_four_classes_is_told() -> None:
    two = {"arch": "net", "num_classes": 2}
    stored = plan(1, [attack("apgd-t", loss="dlr-targeted")], has_defense=False)
    stored["settings"]["target"]["describe"] = two
    told = "The DLR loss needs four classes"
    rows = clean([1]), cell([0], attack="apgd-t")
    assert any(told in note for note in summary(stored, *rows)["notes"])
    stored["settings"]["target"]["describe"] = {**two, "num_classes": 4}
    assert not any(told in note for note in summary(stored, *rows)["notes"])


def test_a_black_box_attack_that_does_nothing_is_a_note_and_no_flag() -> None:
    found = summary(
        plan(100, [attack("hopskipjump", access="labels", gradients=0)], has_defense=False),
        clean(np.ones(100)), cell(np.ones(100), attack="hopskipjump", backward="none"),
    )  # fmt: skip
    assert found["flags"] == []
    assert any("hopskipjump: at this number of queries" in note for note in found["notes"])
