"""``unperturb explain supporting-classes`` and ``mean-logits``, as a user meets them."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from unperturb.banks import LogitBank, make_bank, open_bank
from unperturb.classifiers import new_classifier
from unperturb.correction import Corrector, load_corrector
from unperturb.data import load_images
from unperturb.explain import causal_check, instance_shares, overlap, supporting_classes
from unperturb.networks.corrector import CorrectionNetwork
from unperturb.threat import Linf

Run = Callable[..., Any]

ATTACKS = ("fgsm", "mim-2?momentum=0.5")
FIRST = "supporting-classes"


class Made(NamedTuple):
    """A bank of 40 digits under two attacks, two correctors for it and one for another network."""

    bank: Path
    one: Path
    two: Path
    other: Path


def _corrector(bank: LogitBank, folder: Path, seed: int, *, classifier: str = "") -> Path:
    # A trained one is not needed: every network has its classes.
    network = CorrectionNetwork(num_classes=10, width=50, seed=seed)
    card = {"bank": {"attacks": [ATTACKS[seed % 2]]}}
    return Corrector(network, classifier or bank.classifier, "small-cnn", bank.classes, card).save(
        folder
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    net = new_classifier("small-cnn", seed=3, num_classes=10, in_channels=1)
    data = load_images("digits", limit=40)
    bank = make_bank(net, data, attacks=ATTACKS, threat=Linf(0.2), out=folder / "bank")
    return Made(
        folder / "bank",
        _corrector(bank, folder / "one", 0),
        _corrector(bank, folder / "two", 1),
        _corrector(bank, folder / "other", 2, classifier="f" * 64),
    )


def _supporting(made: Made, out: Path, *more: object) -> list[object]:
    few = ("--controls", 3, "--draws", 20)
    return [
        "explain",
        FIRST,
        "--corrector",
        made.one,
        "--bank",
        made.bank,
        *few,
        "--out",
        out,
        *more,
    ]


def _means(made: Made, out: Path, *more: object) -> list[object]:
    return ["explain", "mean-logits", "--bank", made.bank, "--out", out, *more]


def test_everything_is_written_and_is_what_the_library_says(
    made: Made, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "supporting.png"
    facts = run(*_supporting(made, out, "--seed", 4, "--json")).json
    files = ["supporting.png", "supporting.csv", "supporting.json", "supporting-overlap.png"]
    assert sorted(files) == sorted(path.name for path in out.parent.iterdir())
    assert facts["files"] == [str(out.parent / name) for name in files]
    for name in (files[0], files[3]):
        with Image.open(out.parent / name) as picture:
            assert min(picture.size) > 300
    written = json.loads((out.parent / files[2]).read_text())
    assert written == {key: facts[key] for key in written}
    bank, corrector = open_bank(made.bank), load_corrector(made.one)
    assert [each["name"] for each in facts["sets"]] == list(ATTACKS)
    sets = {}
    for attack, each in zip(ATTACKS, facts["sets"], strict=True):
        logits = bank.logits(attack)
        found = supporting_classes(corrector, logits, bank.labels)
        sets[attack] = found
        assert each["supporting"] == found.to_dict(bank.classes)
        assert each["supporting"]["top"] == 3
        causal = causal_check(corrector, logits, bank.labels, found, controls=3, seed=4)
        assert each["causal"] == causal.to_dict()
        assert each["instances"] == instance_shares(found)
        assert each["bank"] == bank.digest
        assert each["corrector_fingerprint"] == corrector.fingerprint()
    assert facts["overlap"] == overlap(sets, draws=20, seed=4).to_dict()
    rows = list(csv.DictReader((out.parent / files[1]).open()))
    assert len(rows) == 2 * 10
    for attack, found in sets.items():
        mine = [row for row in rows if row["set"] == attack]
        assert [int(row["score"]) for row in mine] == found.counts().tolist()
        assert {int(r["class"]) for r in mine if r["supporting"] == "1"} == set(found.classes())


def test_what_is_said(made: Made, run: Run, tmp_path: Path) -> None:
    ran = run(*_supporting(made, tmp_path / "s.svg", "--attack", "mim-2", "--lower", 5))
    lines = ran.out.splitlines()
    assert re.fullmatch(r"mim-2\?momentum=0.5: 40 images, \d+ corrected", lines[0])
    assert re.fullmatch(r"  supporting classes: \d \d+, \d \d+, \d \d+", lines[1])
    assert "classes lowered by 5" in lines[3]
    rank = r"rank [1-4] of 4, p = (0\.25|0\.5|0\.75|1)$"
    assert re.search(r"random classes: [\d.]+% \([\d.]+% to [\d.]+%\), " + rank, lines[4])
    assert "but an image's own class" in lines[5]
    # One set has nothing to overlap with.
    assert {path.name for path in tmp_path.iterdir()} == {"s.svg", "s.csv", "s.json"}
    assert "warning" not in ran.out
    whole = run(*_supporting(made, tmp_path / "s.svg", "--top", 10, "--attack", "fgsm"))
    assert "warning: a list of 10 of 10 classes holds every class" in whole.out
    assert run(*_supporting(made, tmp_path / "s.svg", "--quiet")).out == ""


def test_several_correctors_and_banks(made: Made, run: Run, tmp_path: Path) -> None:
    def names(*more: object) -> list[str]:
        facts = run(*_supporting(made, tmp_path / "s.png", *more, "--json")).json
        assert facts["overlap"]["names"] == [each["name"] for each in facts["sets"]]
        return [each["name"] for each in facts["sets"]]

    second = ("--corrector", made.two)
    assert names(*second) == [f"{c}: {a}" for c in ("one", "two") for a in ATTACKS]
    assert names(*second, "--attack", "fgsm") == ["one", "two"]
    assert names(*second, "--own") == [f"one: {ATTACKS[0]}", f"two: {ATTACKS[1]}"]
    assert names(*second, "--bank", made.bank, "--attack", "fgsm") == ["one", "two"]
    assert names("--corrector", made.one, "--attack", "fgsm") == ["one", "one (2)"]


def test_another_classifiers_bank_needs_a_word(made: Made, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "s.png"
    more = ("--corrector", made.other, "--attack", "fgsm")
    ran = run(*_supporting(made, out, *more), code=2)
    bank = open_bank(made.bank)
    for word in ("f" * 12, bank.classifier[:12], "--any-classifier"):
        assert word in ran.err
    assert not list(tmp_path.iterdir())
    facts = run(*_supporting(made, out, *more, "--any-classifier", "--json")).json
    assert [each["name"] for each in facts["sets"]] == ["one", "other"]
    assert facts["sets"][1]["corrector_classifier"] == "f" * 64
    assert facts["sets"][1]["bank_classifier"] == bank.classifier


def test_other_numbers_of_classes_are_always_refused(made: Made, run: Run, tmp_path: Path) -> None:
    small = CorrectionNetwork(num_classes=4, width=8)
    folder = Corrector(small, open_bank(made.bank).classifier).save(tmp_path / "small")
    more = ("--corrector", folder, "--any-classifier")
    ran = run(*_supporting(made, tmp_path / "s.png", *more), code=2)
    assert "reads 4 classes, the classifier has 10" in ran.err
    net = new_classifier("small-cnn", seed=3, num_classes=4, in_channels=1)
    data = load_images("digits", limit=40)
    few = data.take((data.labels < 4).nonzero().flatten())
    bank = make_bank(net, few, attacks="fgsm", threat=Linf(0.2), out=tmp_path / "bank")
    folder = Corrector(small, bank.classifier).save(tmp_path / "small")
    more = ("--corrector", folder, "--bank", tmp_path / "bank", "--attack", "fgsm")
    ran = run(*_supporting(made, tmp_path / "s.png", *more), code=2)
    assert "The correctors are of 4 and 10 classes" in ran.err


def test_examples_and_a_single_image(made: Made, run: Run, tmp_path: Path) -> None:
    image = open_bank(made.bank).ids[7]
    plain, shown = tmp_path / "plain.png", tmp_path / "shown.png"
    run(*_supporting(made, plain, "--attack", "fgsm", "--quiet"))
    more = ("--attack", "fgsm", "--data", "digits", "--instance", image, "--focus", 6)
    facts = run(*_supporting(made, shown, *more, "--json")).json
    assert facts["sets"][0]["instances"]["focus"] == 6
    assert facts["files"][-1] == str(tmp_path / "shown-instance.png")
    assert (tmp_path / "shown-instance.png").is_file()
    assert plain.read_bytes() != shown.read_bytes()
    assert (tmp_path / "plain.csv").read_text() == (tmp_path / "shown.csv").read_text()


def test_the_same_seed_gives_the_same_files(made: Made, run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(*_supporting(made, tmp_path / f"{name}.png", "--only", "all", "--quiet"))
    for end in (".png", ".csv", ".json", "-overlap.png"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()


def test_mean_logits(made: Made, run: Run, tmp_path: Path) -> None:
    facts = run(*_means(made, tmp_path / "h.png", "--bins", 7, "--json")).json
    assert {path.name for path in tmp_path.iterdir()} == {"h.png", "h.json"}
    assert len(facts["edges"]) == 8
    assert facts["n"] == dict.fromkeys(("clean", *ATTACKS), 40)
    bank = open_bank(made.bank)
    assert facts["mean"]["fgsm"] == pytest.approx(float(bank.logits("fgsm").double().mean()))
    written = json.loads((tmp_path / "h.json").read_text())
    assert written == {key: facts[key] for key in written}
    ran = run(*_means(made, tmp_path / "h.png", "--attack", "fgsm"))
    assert re.match(r"fgsm: mean logit \S+, clean \S+; AUROC 0\.\d+\nn = 40; ", ran.out)
    assert run(*_means(made, tmp_path / "h.png", "--quiet")).out == ""


@pytest.mark.parametrize(
    ("command", "more", "words"),
    [
        (_supporting, ("--out", "s.jpg"), ("'s.jpg'", "Fix: s.png")),
        (_supporting, ("--attack", "pgd"), ("Unknown attack of the bank 'pgd'", "fgsm")),
        (_supporting, ("--corrector", "nowhere"), ("no corrector in 'nowhere'",)),
        (
            _supporting,
            ("--bank", ".", "--bank", "."),
            ("--bank is given 3 times",),
        ),
        (_supporting, ("--only", "some"), ("Unknown choice of images 'some'", "corrected")),
        (_supporting, ("--lower", "0"), ("lower is 0",)),
        (_supporting, ("--lower", "nan"), ("lower is nan",)),
        (_supporting, ("--focus", "10"), ("focus is 10", "0 to 9")),
        (_supporting, ("--top", "0"), ("--top",)),
        (_supporting, ("--instance", "x"), ("no image 'x'", "such as")),
        (_supporting, ("--data", "nowhere"), ("nowhere",)),
        (_supporting, ("--own", "--attack", "mim-2"), ("was fitted on fgsm", "leave out --own")),
        (_supporting, ("--device", "cdua"), ("'cdua' cannot be used",)),
        (_means, ("--out", "h"), ("'h'", "Fix: h.png")),
        (_means, ("--attack", "pgd"), ("Unknown attack of the bank 'pgd'",)),
        (_means, ("--bank", "nowhere"), ("no logit bank in 'nowhere'",)),
        (_means, ("--bins", "0"), ("--bins",)),
    ],
)
def test_a_wrong_value(
    command: Callable[..., list[object]],
    more: tuple[str, ...],
    words: tuple[str, ...],
    made: Made,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*command(made, Path("out.png"), *more), code=2)
    assert ran.out == ""
    for word in words:
        assert word in ran.err, ran.err
    assert not list(tmp_path.iterdir())


def test_images_of_other_classes_are_refused(
    made: Made, run: Run, tmp_path: Path, class_folders: Callable[..., Path]
) -> None:
    folder = class_folders(classes=3)
    ran = run(*_supporting(made, tmp_path / "s.png", "--data", folder), code=2)
    assert "The images of --data have 3 classes, the bank 10" in ran.err


def test_an_absent_matplotlib_and_a_blocked_place_come_first(
    made: Made, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s-overlap.png").mkdir()
    start = ("explain", FIRST, "--corrector", "nowhere", "--bank", "nowhere", "--out")
    assert "choose another --out" in run(*start, tmp_path / "s.png", code=1).err
    start = ("explain", FIRST, "--corrector", made.one, "--bank", "nowhere", "--out")
    assert "no logit bank in 'nowhere'" in run(*start, tmp_path / "t.png", code=2).err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for words in (start, ("explain", "mean-logits", "--bank", "nowhere", "--out")):
        ran = run(*words, tmp_path / "t.png", code=2)
        assert "pip install 'unperturb[explain]'" in ran.err


# -- examples -------------------------------------------------------------------------------------


def _examples(text: str) -> list[list[str]]:
    text = re.sub(r"\\\n\s*", "", text)
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    unper")]


def test_examples_work(
    made: Made, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    for name, there in (("corrector", made.one), ("corrector-vgg", made.two)):
        (tmp_path / "runs" / name).symlink_to(there)
    for name in ("bank", "bank-vgg"):
        (tmp_path / "runs" / name).symlink_to(made.bank)
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[2] / "docs" / "guide" / "explain.md"
    texts = [run("explain", *name, "--help").out for name in ((), (FIRST,), ("mean-logits",))]
    texts.append(page.read_text(encoding="utf-8").replace("$ unperturb", "    unperturb"))
    found = {tuple(words) for text in texts for words in _examples(text)}
    found = {words for words in found if words[1] in (FIRST, "mean-logits")}
    assert len(found) >= 4
    for words in found:
        given = ["digits" if word == "cifar10/" else word for word in words]
        few = ["--controls", "2", "--draws", "5"] if words[1] == FIRST else []
        run(*given, *few, "--quiet")
        assert Path(words[words.index("--out") + 1]).is_file()
