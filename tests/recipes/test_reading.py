"""Strict reading of recipes: what is misspelled or misplaced is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from unperturb.classifiers import new_classifier
from unperturb.errors import ConfigError, SpecError, UnperturbError
from unperturb.flops import count_flops
from unperturb.recipes import SCALES, list_recipes, load_recipe, recipe_names
from unperturb.recipes.models import make_config
from unperturb.recipes.reading import Section, number, overlay, read_yaml
from unperturb.recipes.schema import Recipe
from unperturb.threat import L2, Linf


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_read_at_every_scale(name: str, scale: str) -> None:
    recipe = load_recipe(name, scale=scale)
    assert (recipe.name, recipe.scale) == (name, scale)
    for row in recipe.rows.values():
        assert row.model is None or row.model in recipe.models
        # Every column but our own says what the paper reports, or nothing of the row is reported.
        theirs = {c.name for c in recipe.columns.values() if not c.note.startswith("ours;")}
        assert not row.paper or set(row.paper) == theirs


def test_all_tables_and_figures_of_the_paper_are_there() -> None:
    items = {recipe["item"] for recipe in list_recipes()}
    assert {f"Table {k}" for k in range(1, 8)} <= items
    assert {f"Figure {k}" for k in (1, 4, 5, 6, 7)} <= items


@pytest.mark.realdata
def test_quoted_figures_stand_in_the_paper(assets: Path) -> None:
    path = assets / "papers" / "tpap.txt"
    if not path.is_file():
        pytest.skip("the paper is not at hand")
    printed = {tuple(line.split("\t")[1:]) for line in path.read_text("utf-8").splitlines()}
    quoted = 0
    for name in ("table-2", "table-3", "table-4", "table-6", "table-7"):
        for row in load_recipe(f"tpap/{name}", scale="paper").rows.values():
            figures = tuple(f"{v:g}" for v in row.paper.values() if not isinstance(v, str))
            if figures:
                quoted += 1
                assert any(line[-len(figures) :] == figures or line[: len(figures)] == figures
                           for line in printed), (name, row.name)  # fmt: skip
    assert quoted == 15
    for row in load_recipe("tpap/table-5", scale="paper").measured:
        assert not row.paper or tuple(f"{v:g}" for v in row.paper.values()) in printed


def test_a_scale_changes_what_it_states_and_nothing_else(tiny: Path) -> None:
    text = tiny.read_text(encoding="utf-8")
    tiny.write_text(text + "scales: {smoke: {n: 4, columns: {DDN: null, FGSM: {n: 3}}}}\n")
    smoke, cpu = load_recipe(tiny, scale="smoke"), load_recipe(tiny, scale="cpu")
    assert [(c.name, c.n) for c in smoke.columns.values()] == [("Clean", 4), ("FGSM", 3)]
    assert [(c.name, c.n) for c in cpu.columns.values()] == [
        ("Clean", 12), ("FGSM", 12), ("DDN", 12)
    ]  # fmt: skip
    assert cpu.columns["DDN"].threat == L2(0.5)
    assert cpu.threat == Linf(0.1)


def test_overlay_leaves_what_is_below_as_it_was() -> None:
    below = {"a": {"b": 1, "c": [1, 2]}}
    assert overlay(below, {"a": {"c": [3]}, "d": 4}) == {"a": {"b": 1, "c": [3]}, "d": 4}
    assert below == {"a": {"b": 1, "c": [1, 2]}}


Change = tuple[str, str, str]
WRONG: dict[str, Change] = {
    "unknown key": ("n: 12", "m: 12", "unknown setting 'm'"),
    "misspelled key": ("threat: {eps: 0.1}", "treat: {eps: 0.1}", "lacks 'threat'"),
    "key given twice": ("n: 12", "n: 12\nn: 13", "given twice"),
    "no YAML": ("n: 12", "n: [12", "no YAML"),
    "text for a number": ("n: 12", "n: many", "n is 'many'"),
    "truth for a number": ("n: 12", "n: true", "n is True"),
    "too few images": ("n: 12", "n: 0", "n is 0"),
    "kind": ("kind: table", "kind: tabel", "did you mean 'table'"),
    "attack": ("{attack: fgsm}", "{attack: fgms}", "did you mean 'fgsm'"),
    "attacker left out": ("{attack: fgsm}", "{attack: fgsm, not_run: {adaptiv: no}}", "adaptive"),
    "no attacker left": (
        "{attack: fgsm}", "{attack: fgsm, not_run: {adaptive: a, oblivious: b}}", "no attacker"
    ),
    "attacker without a reason": ("{attack: fgsm}", "{attack: fgsm, not_run: [adaptive]}",
                                  "not_run is"),
    "row's attack": ("bare: {model: net", "bare: {attacks: {FGSM: fgms}, model: net", "'fgsm'"),
    "column of a row's attack": ("bare: {model: net", "bare: {attacks: {Clean: fgsm}, model: net",
                                 "attacks has the unknown setting 'Clean'"),
    "column that a row leaves out": ("bare: {model: net", "bare: {not_run: {FGMS: no}, model: net",
                                     "did you mean 'FGSM'"),
    "model": ("bare: {model: net", "bare: {model: nett", "did you mean 'net'"),
    "defense": ("defense: tpap,", "defense: tapp,", "did you mean 'tpap'"),
    "preset": ("{preset: tpap", "{preset: tpaq", "Unknown preset 'tpaq'"),
    "preset's option": ("radius: 0.1}", "radios: 0.1}", "radios"),
    "data set": ("data: digits\npaper", "data: digit\npaper", "data is 'digit'"),
    "column": ("paper: {Clean: 90", "paper: {Cleen: 90", "did you mean 'Clean'"),
    "paper's figure": ("Clean: 80.25", "Clean: [80.25]", r"Clean is \[80.25\]"),
    "training setting": ("lr: 0.05,", "learning_rate: 0.05,", "training setting"),
    "training value": ("objective: fgsm", "objective: fsgm", "did you mean 'fgsm'"),
    "training number": ("lr: 0.05,", "lr: fast,", "lr is 'fast'"),
    "training whole number": ("epochs: 2, batch_size: 64, lr: 0.05", "epochs: 2.5, lr: 0.05",
                              "epochs is 2.5"),
    "neither network nor start": ("arch: small-cnn, ", "", "neither of arch and start"),
    "network in a later stage": ("- {objective", "- {arch: small-cnn, objective", "names arch"),
    "threat": ("threat: {eps: 0.1}", "threat: {eps: 8 px}", "eps is '8 px'"),
    "norm": ("norm: l2", "norm: l3", "Unknown norm 'l3'"),
    "scale": ("n: 12", "n: 12\nscales: {smok: {}}", "did you mean 'smoke'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_is_refused_with_the_place(case: str, tiny: Path) -> None:
    old, new, words = WRONG[case]
    text = tiny.read_text(encoding="utf-8")
    assert old in text
    tiny.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UnperturbError, match=words):
        load_recipe(tiny, scale="smoke")


def test_the_recipe_of_the_guide_can_be_read(tmp_path: Path) -> None:
    guide = Path(__file__).resolve().parents[2] / "docs" / "guide" / "reproduce.md"
    text = guide.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.columns["AA"].n == 200
    assert [stage.name for stage in recipe.models["net"].stages] == ["stage1", "stage2"]


def test_a_table_needs_rows(tiny: Path) -> None:
    text = tiny.read_text(encoding="utf-8")
    tiny.write_text(text[: text.index("rows:")], encoding="utf-8")
    with pytest.raises(ConfigError, match="a table without rows"):
        load_recipe(tiny, scale="smoke")


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (lambda: load_recipe("tpap/table-9"), "did you mean 'tpap/table-"),
        (lambda: load_recipe("tpap/table-2", scale="cpus"), "did you mean 'cpu'"),
        (lambda: load_recipe("nowhere.yaml"), "no file nowhere.yaml"),
        (lambda: read_yaml(Path(__file__).parent), "cannot be read"),
        (lambda: number([1], "here"), r"here is \[1\]"),
        (lambda: number("1/0", "here"), "here is '1/0'"),
        (lambda: Section([], "here"), r"here is \[\]"),
        (lambda: make_config({"clean_pass": 1}, where="here"), "clean_pass is 1"),
        (lambda: make_config({"milestones": 0.5}, where="here"), "milestones is 0.5"),
        (lambda: make_config({"fat_tau": [0.5]}, where="here"), "fat_tau is 0.5"),
    ],
)
def test_wrong_names_and_values_are_refused(load: Callable[[], Recipe], words: str) -> None:
    with pytest.raises((SpecError, ConfigError), match=words):
        load()


def test_settings_of_training_are_those_written() -> None:
    config = make_config(
        {"objective": "fgsm", "mixture": [0, "8/255", "16/255"], "milestones": [0.5]},
        where="here",
        seed=3,
    )
    assert config.mixture == (0.0, 8 / 255, 16 / 255)
    assert (config.milestones, config.seed) == ((0.5,), 3)
    assert make_config({"seed": 5}, where="here", seed=3).seed == 5


def test_the_wider_rival_costs_what_its_row_says() -> None:
    note = load_recipe("tpap/table-1").rows["PGD-AT, wider"].note
    image, counts = torch.zeros(1, 3, 32, 32), {}
    for arch in ("cifar-wrn-16-2", "cifar-resnet20"):
        counts[arch] = count_flops(partial(new_classifier(arch), image))
    ratio = counts["cifar-wrn-16-2"] / counts["cifar-resnet20"]
    assert f"operations of {ratio:.1f} forward passes" in note
