"""Strict reading of banks, fits, selected images and explanations, and the paper's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.correcting import TINY, explained, write
from unperturb.errors import UnperturbError
from unperturb.recipes import load_recipe

Change = tuple[str, str, str]
WRONG: dict[str, Change] = {
    "model of a bank": ("other: {model: net", "other: {model: nett", "did you mean 'net'"),
    "attack of a bank": ("attacks: [pgd-2, mim-2]", "attacks: [pdg-2]", "did you mean 'pgd'"),
    "bank without attacks": ("attacks: [pgd-2, mim-2]", "attacks: []", "names no attack"),
    "bank's setting": ("part: test,", "parts: test,", "unknown setting 'parts'"),
    "part": ("part: test,", "part: tset,", "did you mean 'test'"),
    "dtype": ("limit: 30}", "limit: 30, dtype: float8}", "did you mean 'float"),
    "labels": ("limit: 30}", "limit: 30, labels: guessed}", "labels is 'guessed'"),
    "bank without a threat": ("bank_settings: {threat: {eps: 0.15}}", "bank_settings: {}",
                              "lacks 'threat'"),
    "no mapping below": ("bank_settings: {threat: {eps: 0.15}}", "bank_settings: 3",
                         "bank_settings is 3"),
    "bank of a fit": ("both: {bank: train}", "both: {bank: trane}", "did you mean 'train'"),
    "attack of a fit": ("attacks: [pgd-2], epochs", "attacks: [pgd-20], epochs", "pgd-20"),
    "attacks of a fit": ("attacks: [pgd-2], epochs", "attacks: 3, epochs", "attacks is 3"),
    "setting of a fit": ("width: 16", "with: 16", "did you mean 'width'"),
    "whole number": ("epochs: 2}", "epochs: 2.5}", "epochs is 2.5"),
    "out of range": ("width: 16", "width: 0", "width is 0"),
    "fit of a defense": ("corrector: {fit: both}", "corrector: {fit: bth}", "did you mean 'both'"),
    "corrector": ("corrector: {fit: both}", "corrector: {fti: both}", "one of fit"),
    "preset's option": ("any_classifier: true", "any_clasifier: true", "any_classifier"),
    "reference": ("select: {model: net", "select: {model: nett", "did you mean 'net'"),
    "selected images": (", select: {model: net, per_class: 1}", "", "of selected images"),
    "selected bank": (
        ", select: {model: net, per_class: 1}}",
        "}\ncolumns: {Clean: {}}\nrows: {r: {model: net}}\nn: 8\nkeep_out: ",
        "test is of selected images",
    ),
    "images of a class": ("per_class: 1", "per_class: 0", "per_class is 0"),
    "own attack": ("    attack: mim-2\n", "", "the row corrected names no attack"),
    "row's attack": ("    attack: mim-2\n", "    attack: own\n", "Unknown attack 'own'"),
    "figure without the defense": ("bare: {Clean: 91", "bare: {Cleen: 91", "did you mean 'Clean'"),
    "name of a model": ("models:\n  net:", "models:\n  banks:", "A model is named 'banks'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_is_refused_with_the_place(case: str, tmp_path: Path) -> None:
    old, new, words = WRONG[case]
    assert old in TINY
    text = TINY.replace(old, new, 1)
    if "keep_out" in text:
        text = text.partition("keep_out")[0] + text[text.index("\nmodels:") : text.index("fit_set")]
    with pytest.raises(UnperturbError, match=words):
        load_recipe(write(tmp_path, text), scale="smoke")


EXPLAINED_WRONG: dict[str, Change] = {
    "subject's bank": ("bank: test}", "bank: tset}", "did you mean 'test'"),
    "subject's fit": ("{fit: both, bank: test}", "{fit: bot, bank: test}", "did you mean 'both'"),
    "own bank": ("{fit: both, bank: test}", "{fit: both, bank: train, attack: pgd-2}",
                 "on the bank it is fitted on"),
    "which attack": ("{fit: both, bank: test}", "{bank: train}", "names no attack"),
    "attack": ("{fit: both, bank: test}", "{bank: test, attack: mim-2}", "mim-2"),
    "picture": ("draw: [mean-logit", "draw: [mean-logits", "did you mean 'mean-logit'"),
    "pair": ("PGD / other images:", "PGD / others:", "did you mean 'other images'"),
    "three of a pair": ("PGD / other images:", "PGD / bare / bare:", "names 'PGD / bare / bare'"),
    "coefficient": ("0.9662", "high", "'high'"),
    "list": ("top: 3", "top: 0", "top is 0"),
    "no subjects": ("  subjects:\n", "  subjects: {}\n  others:\n", "has no subjects"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPLAINED_WRONG)
def test_a_wrong_explanation_is_refused_with_the_place(case: str, tmp_path: Path) -> None:
    old, new, words = EXPLAINED_WRONG[case]
    text = explained(TINY)
    assert old in text
    with pytest.raises(UnperturbError, match=words):
        load_recipe(write(tmp_path, text.replace(old, new, 1)), scale="smoke")


def test_a_banks_own_settings_lie_over_those_of_all(tmp_path: Path) -> None:
    text = TINY.replace("limit: 30}", "limit: 30, threat: {eps: 0.2}}")
    recipe = load_recipe(write(tmp_path, text), scale="smoke")
    assert [bank.threat.eps for bank in recipe.banks.values()] == [0.15, 0.15, 0.2]
    assert recipe.fits["one"].config == {
        "width": 16, "epochs": 2, "batch_size": 32, "lr": 0.01, "attacks": ["pgd-2"]
    }  # fmt: skip


@pytest.mark.realdata
def test_quoted_figures_stand_in_the_paper(assets: Path) -> None:
    path = assets / "papers" / "logit-correction.txt"
    if not path.is_file():
        pytest.skip("the paper is not at hand")
    text = path.read_text("utf-8")
    quoted = 0
    for name in ("table-1", "table-2", "table-3", "ablations"):
        for row in load_recipe(f"logit-correction/{name}", scale="paper").rows.values():
            for value in (*row.paper.values(), *row.bare.values()):
                if not isinstance(value, str):
                    quoted += 1
                    forms = (f"{value:.1f}%", f"{value:.2f}%")
                    assert any(form in text for form in forms), (name, row.name, value)
    assert quoted == 24 + 16 + 16 + 3
    explanation = load_recipe("logit-correction/explanation-cifar10").explanation
    assert explanation is not None
    assert all(f"{value}" in text for *_, value in explanation.paper)
