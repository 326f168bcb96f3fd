"""``unperturb reproduce``: a recipe from the command line, and what a user gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

RECIPE = """
title: A table of a test
kind: table
data: digits
paper: {source: nobody, item: Table 9}
datasets:
  digits: {title: digits}
  others: {title: other images, spec: digits}
models:
  net: {title: a network, data: digits, smoke: {zoo: no-such-net}}
defenses:
  tpap: {preset: tpap, radius: 0.1}
threat: {eps: 0.1}
n: 8
batch_size: 8
columns:
  Clean: {}
  FGSM: {attack: fgsm}
rows:
  purified: {model: net, defense: tpap, paper: {Clean: 90, FGSM: 12.5}}
scales: {smoke: {cost: nothing}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of one row, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE, encoding="utf-8")
    return Path("mine.yaml")


def test_a_recipe_runs_and_its_page_is_written_again(run: Run, recipe: Path, nets: Any) -> None:
    command = ("reproduce", recipe, "--scale", "smoke", "--data", "digits", "--out", "out",
               "--model", f"net={nets.fgsm}")  # fmt: skip
    ran = run(*command)
    assert "model net: given" in ran.err
    assert "stated for this scale: nothing" in ran.err
    assert "purified, FGSM: paper 12.5 %, oblivious" in ran.out
    assert ran.out.endswith("page: out/table.md\n")
    page = Path("out/table.md")
    before = page.read_text(encoding="utf-8")
    page.write_text("spoiled", encoding="utf-8")
    again = run("reproduce", recipe, "--scale", "smoke", "--out", "out", "--render-only")
    assert again.out == "out/table.md\n"
    assert page.read_text(encoding="utf-8") == before
    found = run(*command, "--json").json
    assert [cell["column"] for cell in found["cells"]] == ["Clean", "FGSM", "FGSM"]
    assert run(*command, "--quiet").out == ""


def test_recipes_are_listed_with_their_costs(run: Run) -> None:
    text = run("reproduce", "--list").out
    assert "tpap/table-2: Table 2." in text
    assert "    paper: " in text
    listed = run("reproduce", "--list", "--json").json
    assert {"name", "title", "kind", "item", "data", "scales"} == set(listed[0])


def test_out_is_named_after_the_recipe(run: Run, recipe: Path) -> None:
    run("reproduce", recipe, "--scale", "smoke", "--data", "digits", "--quiet")
    assert Path("runs/mine/table.md").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "No recipe is named"),
        (("tpap/table-22",), "did you mean 'tpap/table-2'"),
        (("mine.yaml", "--scale", "smok"), "did you mean 'smoke'"),
        (("tpap/table-6", "--scale", "cpu"), "needs CIFAR-10"),
        (("none.yaml",), "no file none.yaml"),
        (("mine.yaml", "--scale", "smoke", "--data", "digit=x"), "did you mean 'digits'"),
        (("mine.yaml", "--scale", "smoke", "--data", "digits="), "PATH or NAME=PATH"),
        (("mine.yaml", "--data", "digits", "--data", "digits=x"), "'digits' twice"),
        (("mine.yaml", "--scale", "smoke", "--data", "x=y=z"), "Unknown data set"),
        (("mine.yaml", "--data", "digits", "--model", "net"), "NAME=CLASSIFIER"),
        (("mine.yaml", "--data", "digits", "--model", "nett=x"), "did you mean 'net'"),
        (("mine.yaml", "--model", "net=a", "--model", "net=b"), "'net' twice"),
        (("mine.yaml", "--scale", "smoke", "--data", "digits", "--model", "net=nowhere/net"),
         "nowhere/net"),
        (("mine.yaml", "--data", "digits", "--zoo", "nowhere"), "The zoo is 'nowhere'"),
        (("mine.yaml", "--data", "digits", "--zoo", ".", "--no-zoo"), "one of the two"),
        (("mine.yaml", "--data", "digits", "--time-budget", "0"), "--time-budget is 0"),
        (("mine.yaml", "--data", "digits", "--device", "tpu"), "'tpu'"),
        (("mine.yaml", "--render-only", "--out", "nothing"), "holds no record.json"),
        (("mine.yaml", "--data", "digits", "--limit", "0"), "--limit"),
        (("mine.yaml", "--data", "digits", "--workers", "0"), "--workers"),
    ],
)  # fmt: skip
def test_mistakes_get_one_message(
    options: tuple[str, ...], words: str, run: Run, recipe: Path
) -> None:
    ran = run("reproduce", *options, code=2)
    assert words in ran.err


def test_a_folder_that_is_a_file_cannot_be_written(run: Run, recipe: Path) -> None:
    Path("file").write_text("mine")
    for option in ("--out", "--models-dir", "--audits-dir"):
        ran = run("reproduce", recipe, "--data", "digits", option, "file", code=1)
        assert "file" in ran.err


def test_other_data_sets_are_named(run: Run, recipe: Path) -> None:
    ran = run("reproduce", recipe, "--scale", "smoke", "--data", "digits", "--data",
              "others=digits", "--out", "out")  # fmt: skip
    assert "left out: the zoo has no classifier no-such-net: purified, Clean" in ran.out
