"""What units mean: who is attacked, by which rule, who is scored, what is kept and told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from audit.doubles import (
    EPS,
    Blind,
    SometimesNegative,
    arguments,
    conv_net,
    digits,
    linear_net,
)
from unperturb.attacks import Surface, make_attack
from unperturb.audit import AuditResult, audit, read_result
from unperturb.audit import run as engine
from unperturb.audit.images import load_cases, worst_images
from unperturb.audit.report import terminal_table
from unperturb.classifiers import as_classifier
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.errors import AttackError, InputError
from unperturb.presets import tpap
from unperturb.purifiers import Purified, Purifier
from unperturb.randomness import Keys
from unperturb.threat import Linf

SMALL = 0.07


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """A deterministic defense under both attackers, every image kept; without probes."""
    images, labels = digits(30)
    return audit(
        tpap(conv_net(), radius=0.1), images, labels, threat=Linf(SMALL), attacks="fgsm,pgd-4",
        batch_size=16, keep_images="all", out=tmp_path_factory.mktemp("audited"),
    )  # fmt: skip


def column(result: AuditResult, name: str, **where: Any) -> dict[str, Any]:
    """Image id to the value of a column, of the one row that ``where`` leaves."""
    rows = result.rows
    if where.get("attacker") == "oblivious":
        where = {"goal": "wrong", **where}  # and not the control for label leaking
    mask = np.logical_and.reduce([rows[key] == value for key, value in where.items()])
    found = dict(zip(rows["image_id"][mask], rows[name][mask], strict=True))
    assert len(found) == mask.sum() == len(result.plan["ids"])
    return found


def kept(result: AuditResult, **where: Any) -> Tensor:
    """All images of an attack, in the plan's order."""
    where = {"goal": "wrong", **where}
    units = [u for u in result.units if all(getattr(u, k) == v for k, v in where.items())]
    parts = [load_file(result.store.pixels_path(unit))["images"] for unit in units]
    found = torch.cat(parts)
    assert len(found) == len(result.plan["ids"])
    return found


def sha(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:32]


def test_oblivious_is_the_fixed_step_attack_on_the_undefended_classifier(
    audited: AuditResult,
) -> None:
    images, labels = digits(30)
    net, defense = conv_net(), tpap(conv_net(), radius=0.1)
    for name in ("fgsm", "pgd-4"):
        keys = Keys.of(0, audited.plan["ids"], domain=f"attack/{name}/oblivious/baseline/exact")
        ours = make_attack(name).run(
            Surface(as_classifier(net)), images, labels, threat=Linf(SMALL), keys=keys, stop="fixed"
        )
        theirs = kept(audited, attack=name, attacker="oblivious")
        torch.testing.assert_close(theirs, ours.images, rtol=0, atol=1e-6)
        with torch.no_grad():
            answers = {"baseline": net(theirs).argmax(1), "target": defense(theirs).argmax(1)}
        for subject, answer in answers.items():
            where = {"attack": name, "attacker": "oblivious", "subject": subject}
            found = column(audited, "prediction", **where)
            assert list(found.values()) == [
                int(answer[audited.plan["ids"].index(i)]) for i in found
            ]
            assert set(column(audited, "rule", **where).values()) == {"fixed"}
    # All steps were run: images that fell early moved on, so that most lie at the edge.
    moved = (kept(audited, attack="pgd-4", attacker="oblivious") - images).flatten(1).abs().amax(1)
    torch.testing.assert_close(moved, torch.full_like(moved, SMALL), rtol=0, atol=1e-6)


def test_adaptive_stops_at_the_first_success(audited: AuditResult) -> None:
    images, _ = digits(30)
    where = {"attack": "pgd-4", "attacker": "adaptive", "subject": "target", "backward": "identity"}
    moved = (kept(audited, **where) - images).flatten(1).abs().amax(1)
    clean = column(audited, "correct", attack="clean", subject="target")
    correct = column(audited, "correct", **where)
    wrong = [i for i, right in clean.items() if not right]
    assert wrong, "some images are wrong as they are"
    for i in wrong:
        assert moved[int(i)] == 0, "what is wrong already is left as it is"
        assert not correct[i]
    queries = column(audited, "queries", **where)
    held = [i for i in correct if correct[i]]
    fell = [i for i in correct if clean[i] and not correct[i]]
    assert held
    assert fell
    assert min(queries[i] for i in held) > min(queries[i] for i in fell)
    assert max(queries[i] for i in wrong) < min(queries[i] for i in held)


@pytest.mark.parametrize("subject", ["target", "baseline"])
def test_an_adaptive_attacker_is_never_above_clean(audited: AuditResult, subject: str) -> None:
    clean = column(audited, "correct", attack="clean", subject=subject)
    for entry in audited.summary["attacks"]:
        if entry["attacker"] != "adaptive" or entry["subject"] != subject:
            continue
        where = {k: entry[k] for k in ("attacker", "subject", "backward")}
        right = column(audited, "correct", attack=entry["name"], **where)
        assert all(clean[i] or not right[i] for i in right), "an image can only fall"
        assert entry["robust_accuracy"] <= audited.summary[subject]["clean"]["accuracy"]


def test_hashes_are_those_of_the_kept_images(audited: AuditResult) -> None:
    images, _ = digits(30)
    for attacker, subject, backward in [
        ("oblivious", "baseline", "exact"),
        ("adaptive", "target", "identity"),
        ("adaptive", "target", "smoothed-sign"),
        ("adaptive", "target", "undefended"),
        ("adaptive", "baseline", "exact"),
    ]:
        where = {"attack": "pgd-4", "attacker": attacker, "subject": subject, "backward": backward}
        hashes, linf = column(audited, "pixels", **where), column(audited, "linf", **where)
        found = kept(audited, **where)
        assert [hashes[i] for i in audited.plan["ids"]] == [sha(image) for image in found]
        moved = (found - images).flatten(1).abs().amax(1)
        for i, distance in zip(audited.plan["ids"], moved, strict=True):
            assert linf[i] == pytest.approx(float(distance), abs=1e-7)
    clean = column(audited, "pixels", attack="clean", subject="target")
    assert [clean[i] for i in audited.plan["ids"]] == [sha(image) for image in images]


def test_eight_bit_figures_are_those_of_rounded_images(audited: AuditResult) -> None:
    _, labels = digits(30)
    defense = tpap(conv_net(), radius=0.1)
    where = {"attack": "fgsm", "attacker": "adaptive", "subject": "target", "backward": "identity"}
    rounded = (kept(audited, **where) * 255).round() / 255
    right = (defense(rounded).argmax(1) == labels).tolist()
    found = column(audited, "correct_8bit", **where)
    assert [bool(found[i]) for i in audited.plan["ids"]] == right


def test_eight_bits_are_rounded_and_not_truncated() -> None:
    class Threshold(nn.Module):
        """Class 0 above a mean of 100.8/255."""

        def forward(self, images: Tensor) -> Tensor:
            excess = 255 * images.mean((1, 2, 3)) - 100.8
            return torch.stack((excess, torch.zeros_like(excess)), 1)

    images = (torch.tensor([100.6, 100.4, 101.4]) / 255).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    labels = torch.tensor([1, 1, 0])
    found = audit(Threshold().eval(), images, labels, threat=Linf(1e-6), attacks="fgsm")
    where = {"attack": "fgsm", "attacker": "adaptive"}
    assert list(column(found, "correct", **where).values()) == [True, True, True]
    # 101, 100 and 101.
    assert list(column(found, "correct_8bit", **where).values()) == [False, True, True]


@pytest.fixture(scope="module")
def worst_kept(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    images, labels = digits(30)
    return audit(
        tpap(conv_net(), radius=0.1), images, labels, threat=Linf(SMALL), attacks="fgsm,pgd-4",
        batch_size=16, out=tmp_path_factory.mktemp("worst"),
    )  # fmt: skip


@pytest.mark.parametrize("attacker", ["oblivious", "adaptive"])
def test_the_worst_images_are_in_the_ball_and_wrong_where_the_record_says_so(
    worst_kept: AuditResult, audited: AuditResult, attacker: str
) -> None:
    images, labels = digits(30)
    worst = worst_images(worst_kept.store, attacker)
    assert worst.shape == images.shape
    assert bool(Linf(SMALL).contains(worst, images).all())
    right = tpap(conv_net(), radius=0.1)(worst).argmax(1) == labels
    rows = worst_kept.rows
    mask = (rows["subject"] == "target") & (rows["attacker"] == attacker)
    survived = dict.fromkeys(worst_kept.plan["ids"], True)
    for image, correct in zip(rows["image_id"][mask], rows["correct"][mask], strict=True):
        survived[image] = survived[image] and bool(correct)
    assert right.tolist() == [survived[i] for i in worst_kept.plan["ids"]]
    assert worst_kept.digest == audited.digest, "what is kept decides no result"
    path = worst_kept.store.folder / "images" / f"{attacker}.safetensors"
    with safe_open(path, framework="pt") as stored:
        choice = json.loads(stored.metadata()["choice"])
        assert json.loads(stored.metadata()["ids"]) == worst_kept.plan["ids"]
    for position, image in enumerate(worst_kept.plan["ids"]):
        tried = {
            (rows["attack"][i], rows["backward"][i], rows["goal"][i]): (
                not rows["correct"][i], rows["margin"][i],
            )
            for i in np.flatnonzero(mask & (rows["image_id"] == image))
        }  # fmt: skip
        # One oblivious attack is also the control, away from the predicted label.
        assert len(tried) == (3 if attacker == "oblivious" else 6)
        name, backward, goal = (choice[k][position] for k in ("attack", "backward", "goal"))
        assert tried[(name, backward, goal)] == max(tried.values()), (
            "wrong, and by the greatest margin"
        )
        where = mask & (rows["attack"] == name) & (rows["backward"] == backward)
        where &= rows["goal"] == goal
        assert rows["pixels"][where & (rows["image_id"] == image)] == [sha(worst[position])]


def test_dropped_images_are_gone_and_all_images_are_there(
    worst_kept: AuditResult, audited: AuditResult, tmp_path: Path
) -> None:
    images, labels = digits(30)
    for unit in worst_kept.units:
        path = worst_kept.store.pixels_path(unit)
        assert path.exists() == (unit.start == 0 and unit.kind != "benign")
        if path.exists():
            assert "images" not in load_file(path)
    assert not (audited.store.folder / "images").exists()
    for unit in audited.units:
        path = audited.store.pixels_path(unit)
        if unit.kind == "attack":
            assert len(load_file(path)["images"]) == unit.stop - unit.start
    none = audit(
        tpap(conv_net(), radius=0.1), images, labels, threat=Linf(SMALL), attacks="fgsm,pgd-4",
        batch_size=16, keep_images="none", out=tmp_path,
    )  # fmt: skip
    assert not (tmp_path / "images").exists()
    assert all("images" not in load_file(p) for p in (tmp_path / "pixels").iterdir())
    assert none.digest == audited.digest


def test_cases_show_what_was_sent_and_said(worst_kept: AuditResult) -> None:
    images, labels = digits(30)
    net, defense = conv_net(), tpap(conv_net(), radius=0.1)
    result = worst_kept
    cases = load_cases(result.store, result.plan, result.units, result.rows)
    clean_right = (defense(images).argmax(1) == labels).tolist()
    first = [str(i) for i, right in enumerate(clean_right[:12]) if right][:6]
    assert [case.image_id for case in cases] == first, "the first that are right, not hand-picked"
    for case in cases:
        position = int(case.image_id)
        assert case.label == int(labels[position])
        assert torch.equal(case.clean, images[position])
        assert [view.title.split(" ")[0] for view in case.views] == [
            "clean", "oblivious", "adaptive"
        ]  # fmt: skip
        for view in case.views:
            sent = view.image[None]
            assert bool(Linf(SMALL).contains(sent, images[position : position + 1]).all())
            with torch.no_grad():
                logits = net(sent)[0]
            answer = defense.predict(sent)
            torch.testing.assert_close(torch.tensor(view.baseline_logits), logits)
            torch.testing.assert_close(torch.tensor(view.target_scores), answer.scores[0])
            assert view.target_prediction == int(answer.labels)
            assert view.baseline_prediction == int(logits.argmax())
            assert view.purified is not None
            assert answer.purified is not None
            torch.testing.assert_close(view.purified, answer.purified[0])
        for attacker, view in zip(("oblivious", "adaptive"), case.views[1:], strict=True):
            assert torch.equal(view.image, worst_images(result.store, attacker)[position])


# -- random defenses ----------------------------------------------------------------------------


def test_a_defense_that_answers_at_random_a_tenth_of_the_time() -> None:
    images, labels = digits(60)
    defense = Defense(linear_net(), purifier=SometimesNegative(probability=0.1))
    found = audit(
        defense, images, labels, threat=Linf(0.02), attacks="fgsm", attackers=("adaptive",),
        gradient_draws=3,
    )  # fmt: skip
    rows = found.rows
    target = rows["subject"] == "target"
    assert set(rows["draw"][target]) == set(range(10))
    assert set(rows["draw"][~target]) == {0}
    net_right = (linear_net()(images).argmax(1) == labels).numpy()
    clean = target & (rows["attack"] == "clean")
    right = {i: [] for i in found.plan["ids"]}
    for image, correct in zip(rows["image_id"][clean], rows["correct"][clean], strict=True):
        right[image].append(bool(correct))
    votes = np.array([right[i] for i in found.plan["ids"]])
    # Draws are fresh: some images meet the coin, in about a tenth of 600 throws.
    wrong = 1 - votes[net_right].mean()
    assert 0.06 < wrong < 0.15
    assert len({tuple(v) for v in votes[net_right].tolist()}) > 5, "each image has its own draws"
    # The majority is what the net itself says, although most images met one unlucky draw.
    assert found.clean_accuracy == pytest.approx(net_right.mean())
    assert votes.all(1).mean() < found.clean_accuracy - 0.2
    assert any("most of 10 fresh draws" in note for note in found.summary["notes"])


def test_scoring_uses_no_draw_an_attack_was_optimized_or_selected_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, set[tuple[str, int, int]]] = {"attack": set(), "select": set(), "score": set()}
    honest = Keys._words

    def watched(self: Keys, stage: str, *rest: Any) -> Any:
        if self.domain not in ("fresh", "check"):  # cost and repeatability: nothing is scored
            kind = self.domain if self.domain in ("select", "score") else "attack"
            assert kind != "attack" or self.domain.startswith(("attack/", "benign/"))
            pairs = zip(self.images.tolist(), self.draws.tolist(), strict=True)
            seen[kind] |= {(self.domain, image, draw) for image, draw in pairs}
        return honest(self, stage, *rest)

    monkeypatch.setattr(Keys, "_words", watched)
    audit(**arguments(batch_size=24))
    assert len(seen["attack"]) > 100
    assert len(seen["score"]) == len(seen["select"]) == 24 * 3
    assert not seen["attack"] & (seen["score"] | seen["select"])
    assert not seen["score"] & seen["select"]


def test_a_defense_that_is_not_random_is_scored_once() -> None:
    images, labels = digits(6)
    found = audit(tpap(linear_net()), images, labels, threat=Linf(EPS), attacks="fgsm",
                  scoring_draws=7)  # fmt: skip
    assert set(found.rows["draw"]) == {0}
    assert set(found.rows["purpose"]) == {"score"}
    assert found.plan["settings"]["scoring_draws"] == 1
    assert found.summary["random"] is None


# -- what is told -------------------------------------------------------------------------------


def test_the_short_object(audited: AuditResult) -> None:
    found = audited.to_json()
    issue = {"clean_accuracy", "worst_case_accuracy", "baseline", "attacks"}
    # Beyond them only whether that is all of the audit, what is not, and its digest.
    assert found.keys() == issue | {"complete", "left_out", "digest"}
    assert found["left_out"] == []
    assert found["baseline"].keys() == {"clean_accuracy", "worst_case_accuracy"}
    for attack in found["attacks"]:
        assert list(attack) == [
            "name", "attacker", "backward", "eps", "norm", "n", "robust_accuracy", "interval",
            "median_distance", "seconds",
        ]  # fmt: skip
    named = {(a["name"], a["attacker"], a["backward"]) for a in found["attacks"]}
    assert named == {
        (name, attacker, backward)
        for name in ("fgsm", "pgd-4")
        for attacker, backward in (
            ("oblivious", "exact"), ("adaptive", "identity"), ("adaptive", "smoothed-sign"),
            ("adaptive", "undefended"),
        )
    }  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["clean_accuracy"] == audited.clean_accuracy
    assert found["complete"] is True


def test_a_classifier_by_itself() -> None:
    images, labels = digits(20)
    found = audit(linear_net(), images, labels, threat=Linf(EPS), attacks="fgsm,pgd-3")
    assert set(found.rows["subject"]) == {"target"}
    short = found.to_json()
    assert short["baseline"]["clean_accuracy"] == short["clean_accuracy"]
    assert short["baseline"]["worst_case_accuracy"] == short["worst_case_accuracy"]
    assert not found.summary["has_defense"]
    # On a linear net one step is the optimum, so that every first-order attack finds the same.
    cells = [c for row in found.summary["table"] for c in row["cells"]["target"].values()]
    assert {cell["correct"] for cell in cells} == {cells[0]["correct"]}


def test_a_classifier_against_another() -> None:
    images, labels = digits(20)
    common: dict[str, Any] = {"threat": Linf(0.1), "attacks": "fgsm", "baseline": conv_net()}
    both = audit(linear_net(), images, labels, **common)
    # Images made on another network say nothing: each is attacked where it is undefended.
    for subject, net in (("target", linear_net()), ("baseline", conv_net())):
        keys = Keys.of(0, both.plan["ids"], domain=f"attack/fgsm/oblivious/{subject}/exact")
        made = make_attack("fgsm").run(
            Surface(as_classifier(net)), images, labels, threat=Linf(0.1), keys=keys, stop="fixed"
        )
        hashes = column(both, "pixels", attack="fgsm", attacker="oblivious", subject=subject)
        assert [hashes[i] for i in both.plan["ids"]] == [sha(image) for image in made.images]
    assert both.summary["failed_attacks"] == [], "those of one say nothing about the other"
    found = audit(linear_net(), images, labels, attackers=["adaptive"], **common)
    right = {n: (net(images).argmax(1) == labels).float().mean() for n, net in
             (("target", linear_net()), ("baseline", conv_net()))}  # fmt: skip
    for subject, share in right.items():
        assert found.summary[subject]["clean"]["accuracy"] == pytest.approx(float(share))
    assert set(found.rows["subject"]) == {"target", "baseline"}
    assert len(found.summary["gains"]) == 3


class Nothing(Purifier):
    """A purifier whose reading is not a number."""

    name = "nothing"

    def forward(self, images: Tensor, *, ctx: Context) -> Purified:
        reading = images * float("nan")
        return Purified(reading, reading)


def test_an_answer_that_is_not_a_number_is_never_right() -> None:
    images, _ = digits(8)
    # The argmax of nothing but NaN is class 0.
    labels = torch.zeros(8, dtype=torch.int64)
    found = audit(Defense(linear_net(), purifier=Nothing()), images, labels, threat=Linf(EPS),
                  attacks="fgsm")  # fmt: skip
    assert found.clean_accuracy == 0.0
    assert found.worst_case_accuracy == 0.0


def test_two_attacks_of_one_name_are_refused() -> None:
    images, labels = digits(4)
    fgsm = make_attack("fgsm")
    with pytest.raises(AttackError, match="different settings are named 'fgsm'"):
        audit(linear_net(), images, labels, threat=Linf(EPS),
              attacks=[fgsm, replace(fgsm, step_size=0.5)])  # fmt: skip


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


def test_only_one_attacker() -> None:
    images, labels = digits(8)
    for attacker in ("oblivious", "adaptive"):
        found = audit(tpap(linear_net()), images, labels, threat=Linf(EPS), attacks="fgsm",
                      attackers=[attacker])  # fmt: skip
        assert set(found.rows["attacker"]) == {"none", "benign", attacker}
        assert list(found.summary["target"]["worst_by_attacker"]) == [attacker]
        assert found.complete


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


# -- what is left alone, and what is refused ----------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_users_module_is_untouched(
    training: bool,
    untouched: Callable[[nn.Module], AbstractContextManager[nn.Module]],
    conv: Callable[..., nn.Module],
    pixels: Callable[..., Tensor],
) -> None:
    net = conv().train(training)
    first = next(net.parameters())
    first.requires_grad_(False)
    last = list(net.parameters())[-1]
    last.grad = torch.ones_like(last)
    images = pixels(6)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    copies = images.clone(), labels.clone()
    with untouched(net):
        for subject in (net, tpap(net)):
            audit(subject, images, labels, threat=Linf(EPS), attacks="fgsm,pgd-2")
    assert torch.equal(images, copies[0])
    assert torch.equal(labels, copies[1])
    assert torch.equal(last.grad, torch.ones_like(last))


def test_an_audit_works_inside_no_grad_and_inference_mode() -> None:
    images, labels = digits(8)
    common: dict[str, Any] = {"threat": Linf(EPS), "attacks": "fgsm"}
    defense = tpap(linear_net())
    plain = audit(defense, images, labels, **common)
    with torch.no_grad():
        assert audit(defense, images, labels, **common).digest == plain.digest
    with torch.inference_mode():
        assert audit(defense, images, labels, **common).digest == plain.digest
        assert audit(defense, images.clone(), labels, **common).digest == plain.digest


def test_wrong_input_is_told() -> None:
    images, labels = digits(4)
    net = conv_net()

    def refused(words: str, x: Any = images, y: Any = labels, net: nn.Module = net) -> None:
        with pytest.raises(InputError, match=words):
            audit(tpap(net), x, y, threat=Linf(EPS), attacks="fgsm")

    refused("1 of 4 labels lie outside the classes: the first is 10, at position 2.*from 0 to 9",
            y=torch.tensor([0, 1, 10, 2]))  # fmt: skip
    refused("first is -1", y=torch.tensor([-1, 1, 2, 3]))
    refused(r"Labels have shape \(3,\)", y=labels[:3])
    refused("Labels are of dtype float32", y=labels.float())
    refused("There is no image", x=images[:0], y=labels[:0])
    refused("Images have 3 channels.*Expected: 1 channel", x=images.expand(-1, 3, -1, -1))
    refused("divide by 255", x=images * 255)
    refused(r"images\.float\(\) / 255", x=(images * 255).to(torch.uint8))
    refused("1 of 4 images hold NaN", x=torch.where(torch.arange(4).view(-1, 1, 1, 1) == 1,
                                                      torch.nan, images))  # fmt: skip
    refused("add a batch dimension", x=images[0], y=labels[:1])


def test_the_declared_gradients_are_all_tried() -> None:
    images, labels = digits(8)
    for defense, rules in (
        (tpap(conv_net()), {"identity", "smoothed-sign", "undefended"}),
        (Defense(conv_net(), purifier=Blind()), {"exact", "undefended"}),
        (Defense(conv_net()), {"exact", "undefended"}),
    ):
        found = audit(defense, images, labels, threat=Linf(EPS), attacks="fgsm",
                      attackers=("adaptive",))  # fmt: skip
        entries = [a for a in found.to_json()["attacks"] if a["attacker"] == "adaptive"]
        assert {a["backward"] for a in entries} == rules
