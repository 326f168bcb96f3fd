"""Recipes of the kind logit-change, and columns that name the adaptive attacker's gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.checks import check_page
from recipes.purifying import TINY, write
from unperturb.errors import UnperturbError
from unperturb.recipes import load_recipe, read_record, render, reproduce

HEAD = TINY[: TINY.index("threat: {eps: 0.1}")].replace("kind: table", "kind: logit-change")
CHANGES = """threat: {eps: 0.1}
n: 6
changes:
  train: 8
  further: 20
  effort: true
  draw: [bars, statistic, changes, roc, curve, quality, compared]
  axis: something
  steps: [0, 3]
  each: {model: net, defense: alu, attack: pgd-2}
  subjects:
    plain: {place: 0, paper: {drops most: 99.69}, note: the first.}
    noise: {attack: noise, place: 1, series: other}
    whole: {gradient: unrolled, away_from: predicted, threat: {eps: 0.05}, place: 2, n: 4,
            against: plain}
"""
WRONG = {
    "model": ("each: {model: net", "each: {model: nett", "did you mean 'net'"),
    "defense": ("defense: alu,", "defense: aul,", "did you mean 'alu'"),
    "attack": ("attack: pgd-2}", "attack: pdg-2}", "did you mean 'pgd'"),
    "label": ("away_from: predicted", "away_from: guessed", "one of predicted, true"),
    "setting": ("gradient: unrolled", "gradeint: unrolled", "did you mean 'gradient'"),
    "picture": ("[bars,", "[bar,", "did you mean 'bars'"),
    "steps": ("steps: [0, 3]", "steps: [3, 0]", "increasing whole numbers"),
    "place": ("{attack: noise, place: 1, series: other}", "{attack: noise}", "place: a number"),
    "paper": ("{drops most: 99.69}", "{drop most: 99.69}", "did you mean 'drops most'"),
    "other": ("against: plain", "against: plan", "did you mean 'plain'"),
    "subjects": ("  subjects:\n", "  subjects: {}\n  others:\n", "no subjects"),
}

Made = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("changes")
    record = reproduce(write(folder, HEAD + CHANGES), scale="smoke", out=folder / "out")
    return folder, record


def test_every_subject_is_measured_and_drawn(made: Made) -> None:
    folder, record = made
    assert record["complete"], record["left_out"]
    subjects = {one["name"]: one["found"] for one in record["changes"]["subjects"]}
    assert list(subjects) == ["plain", "noise", "whole"]
    assert [found["gradient"] for found in subjects.values()] == [
        "undefended", "undefended", "unrolled"
    ]  # fmt: skip
    assert subjects["whole"]["eps"] == 0.05
    assert subjects["noise"]["attack"] == "noise"
    assert [row["steps"] for row in subjects["plain"]["approach"]] == [0, 3]
    assert all(found["train_images"] == 8 for found in subjects.values())
    assert all(found["false_positives"]["n"] == 20 for found in subjects.values())
    assert subjects["noise"]["effort"] is None
    assert set(subjects["plain"]["effort"]) == {"turned", "median", "mean"}
    told = {one["name"]: one for one in record["changes"]["subjects"]}
    paired = told["whole"]["paired"]
    assert paired["n"] == 4
    assert [paired[key]["correct"] for key in ("one", "other")] == [
        subjects[name]["right"]["attacked"][:4].count("1") for name in ("whole", "plain")
    ]
    assert "paired" not in told["plain"]
    assert set(record["thresholds"]) == {"latent/net"}
    names = {f"{kind}-{name}.png" for name in subjects
             for kind in ("bars", "statistic", "changes", "roc", "approach")}  # fmt: skip
    assert set(record["files"]) == {*names, "curve.png", "quality.png", "compared.png"}
    assert all((folder / "out" / name).stat().st_size > 1000 for name in record["files"])


def test_the_page_is_written_from_the_record(made: Made) -> None:
    folder, record = made
    page = (folder / "out" / "table.md").read_text(encoding="utf-8")
    assert page == render(record) == render(read_record(folder / "out"))
    check_page(record, page)
    assert "99.69 %" in page
    assert "- **plain**: the first." in page


def test_nothing_is_measured_twice(made: Made) -> None:
    folder, record = made
    said: list[str] = []
    again = reproduce(folder / "networks.yaml", scale="smoke", out=folder / "out", say=said.append)
    assert again["changes"] == record["changes"]
    assert sorted(again["files"]) == sorted(record["files"])
    assert not [words for words in said if words.startswith("measuring")]
    assert [words for words in said if words.startswith("subject plain: 6 images")]


def test_a_gradient_that_is_not_there_is_told(made: Made, tmp_path: Path) -> None:
    text = (HEAD + CHANGES).replace("gradient: unrolled", "gradient: unroled")
    with pytest.raises(UnperturbError, match=r"changes: whole: .*unroled"):
        reproduce(
            write(tmp_path, text), scale="smoke", out=tmp_path / "out",
            models_dir=made[0] / "models",
        )  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_where_they_are(tmp_path: Path, name: str) -> None:
    old, new, told = WRONG[name]
    assert old in CHANGES
    with pytest.raises(UnperturbError) as caught:
        load_recipe(write(tmp_path, HEAD + CHANGES.replace(old, new, 1)), scale="smoke")
    assert told in str(caught.value)


def test_columns_name_the_adaptive_attacker_s_gradients(made: Made, tmp_path: Path) -> None:
    text = (
        TINY[: TINY.index("attackers:")]
        + """columns:
  Clean: {}
  FGSM: {attack: fgsm}
  BPDA: {attack: pgd-2, gradients: [identity]}
rows:
  plug-in: {model: net, defense: alu, not_run: {FGSM: no time}}
  asymmetric: {model: asymmetric, defense: own, baseline: net}
  bare: {model: net}
"""
    )
    record = reproduce(
        write(tmp_path, text), scale="smoke", out=tmp_path / "out", models_dir=made[0] / "models"
    )
    cells = {(c["row"], c["attacker"]): c for c in record["cells"] if c["column"] == "BPDA"}
    assert cells["plug-in", "adaptive"]["backwards"] == ["identity"]
    assert cells["bare", "adaptive"]["backwards"] == ["exact"]
    # What reads an inner layer has no identity: that is not something left out.
    assert cells["asymmetric", "adaptive"]["reason"].endswith("no gradient identity here")
    assert record["left_out"] == ["no time: plug-in, FGSM"]
    found = {(c["row"], c["column"]): c for c in record["cells"] if c["attacker"] == "none"}
    # What a row is compared with may be another classifier than its own.
    assert found["asymmetric", "Clean"]["undefended"] == found["plug-in", "Clean"]["undefended"]
    assert found["bare", "Clean"]["correct"] == found["plug-in", "Clean"]["undefended"]["correct"]
    assert record["rows"][1]["baseline"] == "net"
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "takes only these gradients through it: identity." in page
    assert "without it: net, adaptive" in page
