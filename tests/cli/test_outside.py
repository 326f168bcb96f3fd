"""What enters and leaves an audit by the command line: outside images, options, records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from unperturb.classifiers import load_classifier, new_classifier, save_classifier
from unperturb.data import load_images
from unperturb.presets import tpap

Run = Callable[..., Any]

DATA = ("--data", "digits", "--limit", 12, "--eps", "0.1")


def _audit(net: Path, out: Path, *more: object) -> list[object]:
    return ["audit", "--classifier", net, *DATA, "--attacks", "fgsm", "--out", out, *more]


def _attack(net: Path, out: Path, *more: object) -> list[object]:
    return ["attack", "--classifier", net, *DATA, "--out", out, *more]


def _figures(report: Path) -> Any:
    return json.loads((report / "report.json").read_text())


# -- from attack to audit -------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["pgd-3", "mim-2?momentum=0.5"])
def test_an_audit_reads_what_attack_wrote(spec: str, nets: Any, run: Run, tmp_path: Path) -> None:
    facts = run(*_attack(nets.fgsm, tmp_path / "mine", "--attack", spec, "--json")).json
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", "--outside", f"mine={tmp_path / 'mine'}"))
    assert "outside: mine, 12 images, all inside the ball" in ran.out.splitlines()
    (given,) = _figures(tmp_path / "audit")["outside"]
    assert (given["name"], given["n"], given["inside"]) == ("mine", 12, 12)
    assert given["target"]["accuracy"] == pytest.approx(facts["robust_accuracy"])
    assert str(tmp_path) not in (tmp_path / "audit" / "plan.json").read_text()


def test_every_image_is_scored_as_attack_scored_it(nets: Any, run: Run, tmp_path: Path) -> None:
    import csv

    run(*_attack(nets.fgsm, tmp_path / "mine", "--attack", "pgd-3"))
    run(*_audit(nets.fgsm, tmp_path / "audit", "--outside", f"mine={tmp_path / 'mine'}"))
    from unperturb.audit import read_result

    rows = read_result(tmp_path / "audit").rows
    mask = rows["attacker"] == "outside"
    found = dict(zip(rows["image_id"][mask], rows["prediction"][mask], strict=True))
    with (tmp_path / "mine" / "table.csv").open() as stream:
        expected = {row["id"]: int(row["prediction"]) for row in csv.DictReader(stream)}
    assert found == expected


def test_images_made_for_another_eps_are_rejected_and_break_nothing(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    wide = [*_attack(nets.fgsm, tmp_path / "wide", "--attack", "fgsm", "--stop", "fixed")]
    wide[wide.index("0.1")] = "0.4"
    assert run(*wide, "--json").json["robust_accuracy"] < 0.9
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", "--outside", f"wide={tmp_path / 'wide'}"))
    assert "outside: wide, 12 images. 12 of 12 images of wide lie outside the ball" in ran.out
    found = _figures(tmp_path / "audit")
    (given,) = found["outside"]
    assert given["inside"] == 0
    assert given["target"]["accuracy"] == found["target"]["clean"]["accuracy"]
    assert given["as_returned"]["accuracy"] < given["target"]["accuracy"]
    run(*_audit(nets.fgsm, tmp_path / "without"))
    assert found["target"]["worst_case"] == _figures(tmp_path / "without")["target"]["worst_case"]


def test_worst_images_of_an_audit_come_back_too(nets: Any, run: Run, tmp_path: Path) -> None:
    run(*_audit(nets.fgsm, tmp_path / "first", "--attacks", "pgd-3"))
    source = tmp_path / "first" / "images" / "adaptive.safetensors"
    run(*_audit(nets.fgsm, tmp_path / "second", "--outside", f"worst={source}"))
    (given,) = _figures(tmp_path / "second")["outside"]
    first = _figures(tmp_path / "first")
    assert given["target"]["correct"] == first["target"]["worst_by_attacker"]["adaptive"]["correct"]


def test_more_than_one_source_and_a_few_images_only(nets: Any, run: Run, tmp_path: Path) -> None:
    run(*_attack(nets.fgsm, tmp_path / "one", "--attack", "fgsm"))
    few = [*_attack(nets.fgsm, tmp_path / "few", "--attack", "fgsm")]
    few[few.index(12)] = 5
    run(*few)
    ran = run(
        *_audit(nets.fgsm, tmp_path / "audit"),
        "--outside", f"one={tmp_path / 'one'}", "--outside", f"few={tmp_path / 'few'}",
    )  # fmt: skip
    assert "outside: few, 5 images (7 of the audit's are not among them), all inside" in ran.out
    assert {entry["name"]: entry["n"] for entry in _figures(tmp_path / "audit")["outside"]} == {
        "one": 12, "few": 5,
    }  # fmt: skip
    # Other outside images make another audit, and are not gone on with.
    ran = run(*_audit(nets.fgsm, tmp_path / "audit"), code=2)
    assert "holds another audit" in ran.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mine", ("--outside is 'mine'", "NAME=PATH", "--outside foolbox=mine")),
        ("mine=", ("--outside is 'mine='", "NAME=PATH")),
        ("a b={}", ("The name of outside images is 'a b'", "such as foolbox-pgd")),
        ("mine={}/nowhere", ("There is no file or folder", "(--outside mine)")),
        ("mine={}/empty", ("holds no adversarial images: it is empty", "ID.png")),
        ("mine={}/strange", ("1 of 1", "ids that the audit does not know: 'tset.png'")),
        ("mine={}/small", ("shape (1, 1, 4, 4)", "(n, 1, 8, 8)")),
    ],
)
def test_wrong_outside_images(
    given: str, words: tuple[str, ...], nets: Any, run: Run, tmp_path: Path
) -> None:
    from PIL import Image

    for name in ("empty", "strange", "small"):
        (tmp_path / name).mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "strange" / "tset.png")
    first = load_images("digits", limit=1).ids[0]
    Image.new("L", (4, 4)).save(tmp_path / "small" / f"{first}.png")
    out = tmp_path / "audit"
    ran = run(*_audit(nets.fgsm, out, "--outside", given.format(tmp_path)), code=2)
    for word in words:
        assert word in ran.err, ran.err
    assert ran.err.count("error: ") == 1
    assert not out.exists()


def test_one_name_for_two_sources(nets: Any, run: Run, tmp_path: Path) -> None:
    twice = ("--outside", f"mine={tmp_path}", "--outside", f"mine={tmp_path}")
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", *twice), code=2)
    assert "--outside names 'mine' twice" in ran.err


# -- attack of every kind -------------------------------------------------------------------------


def test_an_attack_of_least_distance_is_judged_inside_the_ball(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import dataclass
    from typing import ClassVar

    from unperturb.attacks import ATTACKS
    from unperturb.attacks.base import BaseAttack
    from unperturb.attacks.batch import Batch

    @dataclass(frozen=True, kw_only=True)
    class Invert(BaseAttack):
        """The negative of every second image, the others a little darker."""

        access: ClassVar[str] = "labels"
        bound: ClassVar[str] = "minimal"
        rules: ClassVar[tuple[str, ...]] = ("minimal",)

        def perturb(self, batch: Batch) -> None:
            negative = 1 - batch.origin
            negative[1::2] = (batch.origin[1::2] - 0.05).clamp(0, 1)
            batch.best = negative
            batch.measure = (negative - batch.origin).flatten(1).norm(dim=1)

    monkeypatch.setitem(ATTACKS, "invert", lambda steps: Invert(name="invert"))
    out = tmp_path / "mine"
    facts = run(*_attack(nets.fgsm, out, "--attack", "invert", "--json")).json
    assert (facts["bound"], facts["access"], facts["backward"]) == ("minimal", "labels", "none")
    assert facts["stop"] == "minimal", "it has no other rule"
    assert facts["outside_ball"] == 6
    images, data = load_file(out / "images.safetensors")["images"], load_images("digits", limit=12)
    with torch.no_grad():
        wrong = load_classifier(str(nets.fgsm))(images).argmax(1) != data.labels
        clean = load_classifier(str(nets.fgsm))(data.images()).argmax(1) != data.labels
    assert bool((wrong & ~clean)[::2].any())
    assert facts["accuracy_as_returned"] == pytest.approx(1 - float(wrong.float().mean()))
    broken = torch.cat((clean[::2], wrong[1::2]))
    assert facts["robust_accuracy"] == pytest.approx(1 - float(broken.sum()) / 12)
    header, first, second = (out / "table.csv").read_text().splitlines()[:3]
    inside, measure = (header.split(",").index(name) for name in ("inside", "measure"))
    assert (first.split(",")[inside], second.split(",")[inside]) == ("False", "True")
    assert float(first.split(",")[measure]) > float(second.split(",")[measure]) > 0
    ran = run(*_attack(nets.fgsm, tmp_path / "told", "--attack", "invert"))
    assert "6 images lie outside the ball" in ran.out


def test_what_was_wrong_already_is_not_made_robust_by_leaving_the_ball(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    import csv

    more = ("--attack", "stadv-5", "--stop", "fixed", "--json")
    command = [*_attack(nets.standard, tmp_path / "mine", *more)]
    command[command.index("0.1")], command[command.index(12)] = "0.001", 60
    facts = run(*command).json
    assert facts["clean_accuracy"] < 1
    assert facts["outside_ball"] == 60
    assert facts["robust_accuracy"] == pytest.approx(facts["clean_accuracy"])
    assert facts["accuracy_as_returned"] < facts["clean_accuracy"]
    with (tmp_path / "mine" / "table.csv").open() as stream:
        for row in csv.DictReader(stream):
            assert (row["broken"] == "True") == (row["clean_prediction"] != row["label"])


def test_an_attack_that_cannot_run_says_what_to_use(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import dataclass
    from typing import ClassVar

    from unperturb.attacks import ATTACKS, FirstOrder

    @dataclass(frozen=True, kw_only=True)
    class OnlyL2(FirstOrder):
        norms: ClassVar[tuple[str, ...]] = ("l2",)

    monkeypatch.setitem(ATTACKS, "only", lambda steps: OnlyL2(name="only", steps=1, step_size=1.0))
    command = _audit(nets.fgsm, tmp_path / "new", "--attacks", "fgsm,only")
    for words in (command, _attack(nets.fgsm, tmp_path / "new", "--attack", "only")):
        ran = run(*words, code=2)
        assert "The attack 'only' has no form for the norm linf. Expected: one of l2." in ran.err
        assert "Fix: use another norm, or an attack for linf such as pgd-20" in ran.err
        assert not (tmp_path / "new").exists()
    l2 = run(*_attack(nets.fgsm, tmp_path / "new", "--attack", "only", "--norm", "l2", "--json"))
    assert l2.json["norm"] == "l2"


# -- probes, baseline, suites ---------------------------------------------------------------------


def test_probes_are_asked_for_and_left_out(nets: Any, run: Run, tmp_path: Path) -> None:
    def planned(name: str, *more: object) -> Any:
        run(*_audit(nets.fgsm, tmp_path / name, *more, "--quiet"))
        return json.loads((tmp_path / name / "plan.json").read_text())["settings"]["probe"]

    assert planned("list") is None
    assert planned("some", "--probe-images", 3)["images"] == 3
    assert planned("none", "--attacks", "quick", "--no-probes") is None
    ran = run(*_audit(nets.fgsm, tmp_path / "x", "--no-probes", "--probe-images", 3), code=2)
    assert "--probe-images is 3, and --no-probes is given" in ran.err


def test_another_baseline(nets: Any, run: Run, tmp_path: Path) -> None:
    more = ("--baseline", nets.standard, "--defense", "tpap")
    run(*_audit(nets.fgsm, tmp_path / "audit", *more, "--quiet"))
    settings = json.loads((tmp_path / "audit" / "plan.json").read_text())["settings"]
    expected = load_classifier(str(nets.standard)).fingerprint()
    assert settings["baseline"]["fingerprint"] == expected
    assert settings["own_baseline"] is False
    ran = run(*_audit(nets.fgsm, tmp_path / "no", "--baseline", "./nowhere"), code=2)
    assert "There is no folder './nowhere'" in ran.err


def test_a_saved_defense_as_baseline(nets: Any, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    defense = tpap(load_classifier(str(nets.standard)), radius=0.1)
    defense.save_pretrained(folder)
    run(*_audit(nets.fgsm, tmp_path / "audit", "--baseline", folder, "--quiet"))
    settings = json.loads((tmp_path / "audit" / "plan.json").read_text())["settings"]
    assert settings["baseline"]["fingerprint"] == defense.fingerprint()
    assert settings["baseline"]["describe"]["purifier"]["name"] == "fgsm-step"


def test_probes_without_the_attacker_who_runs_them(nets: Any, run: Run, tmp_path: Path) -> None:
    more = ("--probe-images", 3, "--attacker", "oblivious")
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", *more), code=2)
    assert "probe_images is 3, and no adaptive attacker is named" in ran.err
    assert not (tmp_path / "audit").exists()


def test_a_gate_needs_an_attack_of_the_threat_model(nets: Any, run: Run, tmp_path: Path) -> None:
    more = ("--attacks", "stadv-1", "--fail-under", 0)
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", *more), code=1)
    assert "no attack of the threat model was run: the gate cannot be judged" in ran.err
    assert "not complete" not in ran.err


def test_a_paper_s_suite_brings_its_threat(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unperturb.attacks import SUITES
    from unperturb.attacks.registry import Suite

    paper = Suite(("fgsm",), "A paper's.", threat=("linf", 16 / 255), adapts=False)
    monkeypatch.setitem(SUITES, "some-paper", paper)
    command = ["audit", "--classifier", nets.fgsm, "--data", "digits", "--limit", 4,
               "--attacks", "some-paper"]  # fmt: skip
    ran = run(*command, "--out", tmp_path / "one", "--json")
    assert {attack["eps"] for attack in ran.json["attacks"]} == {16 / 255}
    ran = run(*command, "--out", tmp_path / "two", "--eps", "0.1")
    assert "note: the paper of some-paper states linf 16/255" in ran.err
    ran = run(*command, "--out", tmp_path / "three", "--norm", "l2")
    assert "note: the paper of some-paper states linf 16/255" in ran.err


def test_keeping_all_images_tells_their_size_beforehand(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", "--keep-images", "all"))
    # Two attackers, 12 images of 64 pixels, float32.
    assert "the adversarial images take 6 kB, and all are kept" in ran.err
    kept = sum(
        load_file(path)["images"].numel() * 4
        for path in (tmp_path / "audit" / "pixels").iterdir()
        if "images" in load_file(path)
    )
    assert kept == 2 * 12 * 64 * 4


# -- publishing -----------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Iterator[str]:
    """The URL of an empty place in memory."""
    files = fsspec.filesystem("memory")
    for _ in range(2):
        files.store.clear()
        files.pseudo_dirs[:] = [""]
        if not _:
            yield "memory://bucket/audit"


def test_published_records_give_the_same_report(
    nets: Any, run: Run, tmp_path: Path, bucket: str
) -> None:
    ran = run(*_audit(nets.fgsm, tmp_path / "audit", "--publish", bucket))
    assert ran.out.splitlines()[-1] == f"published: {bucket}"
    figures = run("report", bucket, "--json").json
    assert figures == _figures(tmp_path / "audit")
    run("report", bucket, "--out", tmp_path / "again")
    assert _figures(tmp_path / "again") == figures
    ran = run("report", bucket, code=2)
    assert f"{bucket} is in an object store. Expected: --out" in ran.err


def test_wrong_places_are_refused_before_any_work(
    nets: Any, run: Run, tmp_path: Path, bucket: str
) -> None:
    for url, words in (("runs/tpap", "is no URL"), ("foo://x/y", "Protocol not known: foo")):
        ran = run(*_audit(nets.fgsm, tmp_path / "audit", "--publish", url), code=2)
        assert words in ran.err
        assert not (tmp_path / "audit").exists()
    ran = run("report", bucket, "--json", code=2)
    assert "holds no published audit: manifest.json is missing" in ran.err


# -- few classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_than_four_classes_work_and_say_what_replaced_dlr(
    classes: int, run: Run, tmp_path: Path, class_folders: Callable[..., Path]
) -> None:
    net = new_classifier("small-cnn", num_classes=classes, seed=1)
    save_classifier(net, tmp_path / "net")
    folder = class_folders(classes=classes, each=4, side=8, channels=1)
    command = [
        "audit", "--classifier", tmp_path / "net", "--data", folder, "--batch-size", 4,
        "--attacks", "pgd-3?loss=dlr,apgd-dlr-3,apgd-t-3,fgsm", "--eps", "0.1", "--quiet",
    ]  # fmt: skip
    run(*command, "--out", tmp_path / "audit")
    found = _figures(tmp_path / "audit")
    assert found["complete"]
    told = [words for words in found["notes"] if "DLR" in words]
    assert len(told) == 1
    assert "margin" in told[0]
    command[command.index("--attacks") + 1] = "fgsm"
    run(*command, "--out", tmp_path / "b")
    assert not [words for words in _figures(tmp_path / "b")["notes"] if "DLR" in words]


# -- a detector without a threshold ---------------------------------------------------------------


def test_a_detector_without_a_threshold_is_refused_before_anything_is_written(
    nets: Any, run: Run, tmp_path: Path
) -> None:
    from unperturb.defense import Defense
    from unperturb.detectors import ThresholdDetector
    from unperturb.purifiers import FGSMStep
    from unperturb.saving import save_defense

    defense = Defense(
        load_classifier(str(nets.fgsm)), purifier=FGSMStep(radius=0.1),
        detector=ThresholdDetector(action="reject"),
    )  # fmt: skip
    save_defense(defense, tmp_path / "defense")
    attacks = {"audit": "--attacks", "attack": "--attack"}
    for verb, option in attacks.items():
        out = tmp_path / verb
        ran = run(verb, "--defense", tmp_path / "defense", *DATA, option, "fgsm", "--out", out,
                  code=2)  # fmt: skip
        assert "The detector 'threshold' has no threshold" in ran.err
        assert "Fix: detector.fit(scores on clean training images" in ran.err
        assert not out.exists()
