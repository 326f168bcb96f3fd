"""Running recipes: records say what was run, go on after a cut, and agree with their pages."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipes.checks import check_cells, check_page, without_times
from unperturb.classifiers import load_classifier
from unperturb.data import load_images
from unperturb.errors import ConfigError, DataError, OutputError, RecordError, SpecError
from unperturb.recipes import (
    list_recipes,
    load_recipe,
    read_record,
    recipe_names,
    render,
    render_again,
    reproduce,
)
from unperturb.recipes import models as models_module
from unperturb.recipes import tables as tables_module
from unperturb.recipes.models import Models
from unperturb.recipes.needs import subjects
from unperturb.recipes.sources import NotRunError, Sources

Table = tuple[Path, dict[str, Any]]
LIGHT = ("tpap/table-5", "tpap/table-6", "logit-correction/imagenet", "atop/figure-3")


def test_cells_agree_with_their_audits_and_the_page_with_the_record(table: Table) -> None:
    out, record = table
    assert record["complete"]
    assert read_record(out) == json.loads(json.dumps(record))
    check_cells(record, out)
    page = (out / "table.md").read_text(encoding="utf-8")
    assert page == render(record)
    check_page(record, page)
    # The check can fail.
    with pytest.raises(AssertionError, match=re.escape("12.34")):
        check_page(record, page + "\n12.34 %")


def test_one_column_stands_for_one_stopping_rule(table: Table) -> None:
    _, record = table
    for cell in record["cells"]:
        if cell["attack"] is not None:
            rule = "fixed" if cell["attacker"] == "oblivious" else "first-success"
            rule = "minimal" if cell["column"] == "DeepFool" else rule
            assert cell["stops"] == [rule]
    page = [line for line in render(record).splitlines() if line.startswith("| PGD-20")]
    # What is told by gradient is of one attacker, who is named.
    lines = [line for line in page if "| adaptive |" not in line]
    assert lines
    assert all(line.endswith("| all steps; first success |") for line in lines)


def test_undefended_figures_are_those_of_a_plain_loop(table: Table, models_dir: Path) -> None:
    _, record = table
    net = load_classifier(models_dir / "smoke" / "fgsm" / "stage1")
    data = load_images("digits", split="test", limit=16)
    images = data.images().requires_grad_()
    loss = torch.nn.functional.cross_entropy(net(images), data.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    attacked = (images.detach() + 0.15 * gradient.sign()).clamp(0, 1)
    purified = attacked
    with torch.no_grad():
        clean = int((net(images).argmax(1) == data.labels).sum())
        right = int((net(attacked).argmax(1) == data.labels).sum())
    second = attacked.clone().requires_grad_()
    logits = net(second)
    loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, second)
    purified = (attacked + 0.15 * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        mended = int((net(purified).argmax(1) == data.labels).sum())
    cells = {(c["row"], c["column"], c["attacker"]): c for c in record["cells"]}
    bare, with_tpap = "RO-FGSM-DNN, no purification", "RO-FGSM-DNN, purification"
    assert cells[bare, "Clean", "none"]["correct"] == clean
    assert cells[bare, "FGSM", "oblivious"]["correct"] == right
    assert cells[with_tpap, "FGSM", "oblivious"]["undefended"]["correct"] == right
    assert cells[with_tpap, "FGSM", "oblivious"]["correct"] == mended


@pytest.mark.parametrize(
    "name",
    [n if n in LIGHT else pytest.param(n, marks=pytest.mark.slow) for n in recipe_names()],
)
def test_smoke_recipes_run_and_agree_with_their_pages(
    name: str, models_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    data = {"caltech101": "digits"} if name == "tpap/table-3" else None
    record = reproduce(name, scale="smoke", out=out, models_dir=models_dir, data=data)
    assert record["complete"], record["left_out"]
    page = (out / "table.md").read_text(encoding="utf-8")
    # From the file as well: keys of a JSON object come back in another order.
    assert page == render(record) == render(read_record(out))
    check_page(record, page)
    if record.get("cells"):
        check_cells(record, out)
    for file in record.get("files", []):
        assert (out / file).stat().st_size > 1000
    for figure in record.get("figures", []):
        assert all((out / file).is_file() for file in figure["files"])


# Going on


def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(
    tiny: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reproduce(tiny, scale="smoke", out=tmp_path / "a", models_dir=tiny_models)
    real, calls = tables_module.audit, []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    out, models = tmp_path / "b", tiny_models
    with monkeypatch.context() as patch:
        patch.setattr(tables_module, "audit", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce(tiny, scale="smoke", out=out, models_dir=models)
    kept = read_record(out)
    assert not kept["complete"]
    assert len(kept["audits"]) == 2
    calls.clear()
    monkeypatch.setattr(tables_module, "audit", lambda *a, **o: (calls.append(1), real(*a, **o))[1])
    again = reproduce(tiny, scale="smoke", out=out, models_dir=models)
    assert len(calls) == 2, "finished audits are read, not run"
    assert without_times(again) == without_times(whole)
    calls.clear()
    third = reproduce(tiny, scale="smoke", out=out, models_dir=models)
    assert not calls
    assert without_times(third) == without_times(whole)


def test_recipes_share_models_and_audits(tiny: Path, tiny_models: Path, tmp_path: Path) -> None:
    shared = {"models_dir": tiny_models, "audits_dir": tmp_path / "audits"}
    told: list[str] = []
    reproduce(tiny, scale="smoke", out=tmp_path / "a", **shared)
    reproduce(tiny, scale="smoke", out=tmp_path / "b", say=told.append, **shared)
    assert not [words for words in told if words.startswith(("training", "auditing"))]
    assert "model net: trained before" in told


def test_a_spent_budget_says_what_was_left_out(tiny: Path, tmp_path: Path) -> None:
    out, models = tmp_path / "out", tmp_path / "models"
    record = reproduce(tiny, scale="smoke", out=out, models_dir=models, time_budget=1e-9)
    assert not record["complete"]
    assert {c["status"] for c in record["cells"]} == {"not run"}
    assert {c["reason"] for c in record["cells"]} == {"time budget"}
    page = (out / "table.md").read_text(encoding="utf-8")
    assert "| FGSM | 12.5 % | not run: time budget | not run: time budget |" in page
    assert "- time budget: bare, Clean; bare, FGSM" in page
    assert not models.exists()


def test_an_attacker_that_a_column_leaves_out_says_why(
    tiny: Path, tiny_models: Path, tmp_path: Path
) -> None:
    shared = {"models_dir": tiny_models, "audits_dir": tmp_path / "audits"}
    whole = reproduce(tiny, scale="smoke", out=tmp_path / "whole", **shared)
    text = tiny.read_text(encoding="utf-8")
    fewer = text.replace("{attack: ddn-4,", "{attack: ddn-4, not_run: {adaptive: it takes days},")
    tiny.write_text(fewer, encoding="utf-8")
    record = reproduce(tiny, scale="smoke", out=tmp_path / "fewer", **shared)
    changed = {"audit", "right_although_wrong_when_clean"}
    for one, two in zip(whole["cells"], record["cells"], strict=True):
        if (one["column"], one["attacker"]) == ("DDN", "adaptive"):
            assert (two["status"], two["reason"]) == ("not run", "it takes days")
            continue
        assert two["status"] == "done"
        assert {k: v for k, v in one.items() if k not in changed and "seconds" not in k} == {
            k: v for k, v in two.items() if k not in changed and "seconds" not in k
        }
    assert record["left_out"] == ["it takes days: bare, DDN; purified, DDN"]
    assert "not run: it takes days" in (tmp_path / "fewer" / "table.md").read_text("utf-8")


def test_a_row_has_attacks_of_its_own_and_says_what_it_leaves_out(
    tiny: Path, tiny_models: Path, tmp_path: Path
) -> None:
    text = tiny.read_text(encoding="utf-8")
    text = text.replace("bare: {model: net,", "bare: {model: net, attacks: {FGSM: bim-2},")
    text = text.replace(
        "threat: {eps: 0.1}", "  wide: {preset: tpap, radius: 0.2}\nthreat: {eps: 0.1}", 1
    )
    text += "  left: {model: net, defense: wide, not_run: hours}\n"
    text += "  mostly: {model: net, defense: tpap, not_run: {Clean: nothing, DDN: it takes days}}\n"
    tiny.write_text(text + "side_effects: false\n", encoding="utf-8")
    assert len(subjects(load_recipe(tiny, scale="smoke"))) == 2
    told: list[str] = []
    record = reproduce(
        tiny, scale="smoke", out=tmp_path / "out", models_dir=tiny_models, say=told.append
    )
    found = {(c["row"], c["column"], c["attacker"]): c for c in record["cells"]}
    assert found["bare", "FGSM", "adaptive"]["attack"] == "bim-2"
    assert found["purified", "FGSM", "adaptive"]["attack"] == "fgsm"
    assert [c["reason"] for c in record["cells"] if c["row"] == "left"] == ["hours"] * 5
    assert "row left: not run" in told
    states = {key[1]: cell["status"] for key, cell in found.items() if key[0] == "mostly"}
    assert states == {"Clean": "not run", "FGSM": "done", "DDN": "not run"}
    assert (
        found["mostly", "FGSM", "oblivious"]["accuracy"]
        == (found["purified", "FGSM", "oblivious"]["accuracy"])
    )
    assert record["left_out"] == [
        "hours: left, Clean; left, FGSM; left, DDN", "nothing: mostly, Clean",
        "it takes days: mostly, DDN",
    ]  # fmt: skip
    page = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "FGSM: `bim-2` in the place of the column's attack." in page
    # What is no attack was not looked at, and the page says so.
    assert all(audit["control"] is None for audit in record["audits"].values())
    for folder in (tmp_path / "out" / "audits").iterdir():
        plan = json.loads((folder / "plan.json").read_text("utf-8"))
        assert plan["settings"]["benign"] == []
    assert "Benign changes and the controls of label leaking were not measured" in page


def test_training_stops_between_epochs_and_ends_with_the_same_weights(
    tiny: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny, scale="smoke")
    sources = Sources(recipe, {})
    whole = Models(recipe, sources, folder=tiny_models, zoo=[]).get("net")
    clock = iter([0.0, 0.0, 0.0, 99.0])
    with monkeypatch.context() as patch:
        patch.setattr(models_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        cut = Models(recipe, sources, folder=tmp_path / "b", zoo=[], ends=10.0)
        with pytest.raises(NotRunError, match="time budget"):
            cut.get("net")
    folder = tmp_path / "b" / "smoke" / "net"
    assert (folder / "stage1" / "training.json").is_file()
    assert not (folder / "stage2" / "training.json").is_file()
    assert any(path.name.startswith("checkpoint") for path in (folder / "stage2").iterdir())
    found = Models(recipe, sources, folder=tmp_path / "b", zoo=[]).get("net")
    assert found.facts["fingerprint"] == whole.facts["fingerprint"]


def test_the_page_is_written_from_the_record_alone(table: Table, tmp_path: Path) -> None:
    _, record = table
    changed = json.loads(json.dumps(record))
    changed["title"] = "Another title"
    (tmp_path / "record.json").write_text(json.dumps(changed), encoding="utf-8")
    page = render_again(tmp_path)
    assert page.read_text(encoding="utf-8").startswith("# Another title\n")


def test_curves_of_a_network_outside_the_state_begin_with_a_warning() -> None:
    records = Path(__file__).resolve().parents[2] / "docs" / "results" / "records" / "tpap"
    found = json.loads((records / "figure-4.json").read_text(encoding="utf-8"))
    page = render(found)
    assert "**Warning.** Never in robust overfitting" in page
    assert "the networks of FGSM-AT on Tiny-ImageNet. The rule: FGSM" in page
    # An epoch in the state is enough, whichever is kept.
    found["curves"]["tiny-fgsm"]["epochs"][3]["robust_overfitting"] = True
    assert "**Warning.**" not in render(found)
    # A network that was never meant for it has not missed it.
    other = json.loads((records / "figure-1.json").read_text(encoding="utf-8"))
    assert other["models"]["pgd"]["monitor"]["robust_overfitting"] is False
    assert "**Warning.**" not in render(other)


# What cannot be had


def test_a_model_nobody_has_is_a_row_that_is_not_run(tiny: Path, tmp_path: Path) -> None:
    text = tiny.read_text(encoding="utf-8")
    start, end = text.index("      train:"), text.index("defenses:")
    tiny.write_text(text[:start] + "      zoo: no-such-net\n" + text[end:], encoding="utf-8")
    record = reproduce(tiny, scale="smoke", out=tmp_path / "out")
    assert {c["reason"] for c in record["cells"]} == {"the zoo has no classifier no-such-net"}
    record = reproduce(tiny, scale="gpu", out=tmp_path / "gpu")
    assert {c["reason"] for c in record["cells"]} == {"no recipe for this model at the scale gpu"}


def test_images_nobody_has_are_rows_that_are_not_run_or_an_error(tmp_path: Path) -> None:
    record = reproduce("tpap/table-3", scale="cpu", out=tmp_path / "a")
    assert all("Caltech-101 is not at hand" in c["reason"] for c in record["cells"])
    with pytest.raises(DataError, match="needs CIFAR-10.*--data PATH"):
        reproduce("tpap/table-6", scale="cpu", out=tmp_path / "b")


def test_class_folders_without_splits_are_split_once_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for label in range(4):
        for number in range(10):
            path = tmp_path / "caltech" / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (60 * label, 10 * number, 0)).save(path)
    recipe = load_recipe("tpap/table-3", scale="cpu")
    sources = Sources(recipe, {"caltech101": str(tmp_path / "caltech")})
    train, test = sources.train("caltech101"), sources.test("caltech101", 100)
    assert (len(train), len(test)) == (32, 8)
    assert not set(train.ids) & set(test.ids)
    assert train.pixels.shape[1:] == (3, 64, 64)
    few = Sources(recipe, {"caltech101": str(tmp_path / "caltech")}, limit=3)
    assert few.test("caltech101", 100).ids == test.ids[:3]


def test_no_training_image_is_attacked_for_want_of_test_images(tmp_path: Path) -> None:
    from PIL import Image

    for label in range(2):
        path = tmp_path / "data" / "train" / f"class{label}" / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    recipe = load_recipe("tpap/table-6", scale="cpu")
    sources = Sources(recipe, {"cifar10": str(tmp_path / "data")})
    with pytest.raises(DataError, match="no split for testing"):
        sources.test("cifar10", 1)


# Mistakes


def test_a_folder_of_something_else_is_refused(table: Table, tmp_path: Path) -> None:
    out, _ = table
    with pytest.raises(RecordError, match="scale: smoke there, cpu here"):
        reproduce("tpap/table-6", scale="cpu", out=out, data="digits")
    with pytest.raises(RecordError, match=r"seed: 0 there, 1 here"):
        reproduce("tpap/table-6", scale="smoke", out=out, seed=1)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RecordError, match="not empty"):
        reproduce("tpap/table-6", scale="smoke", out=tmp_path)
    with pytest.raises(RecordError, match=r"no record\.json"):
        render_again(tmp_path)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(RecordError, match="damaged"):
        render_again(tmp_path)
    (tmp_path / "record.json").write_text('{"schema_version": 99}')
    with pytest.raises(RecordError, match="schema version 99"):
        render_again(tmp_path)
    with pytest.raises(OutputError, match="Cannot write"):
        reproduce("tpap/table-6", scale="smoke", out=tmp_path / "mine.txt" / "out")


def test_a_trained_model_of_other_settings_is_refused(
    tiny: Path, tiny_models: Path, tmp_path: Path
) -> None:
    models = shutil.copytree(tiny_models, tmp_path / "models")
    text = tiny.read_text(encoding="utf-8")
    tiny.write_text(text.replace("lr: 0.05", "lr: 0.06"), encoding="utf-8")
    with pytest.raises(RecordError, match=r"lr: 0\.05 there, 0\.06 here"):
        reproduce(tiny, scale="smoke", out=tmp_path / "b", models_dir=models)
    tiny.write_text(text.replace("train_limit: 300", "train_limit: 299"), encoding="utf-8")
    with pytest.raises(RecordError, match="other images"):
        reproduce(tiny, scale="smoke", out=tmp_path / "c", models_dir=models)
    record = models / "smoke" / "net" / "stage1" / "training.json"
    record.write_text("{}", encoding="utf-8")
    tiny.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match="damaged"):
        reproduce(tiny, scale="smoke", out=tmp_path / "d", models_dir=models)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"models": {"fgsmm": "x"}}, SpecError, "did you mean 'fgsm'"),
        ({"data": {"cifar": "digits"}}, SpecError, "did you mean 'cifar10'"),
        ({"limit": 0}, ConfigError, "limit is 0"),
        ({"workers": 0}, ConfigError, "workers is 0"),
        ({"time_budget": 0.0}, ConfigError, "time_budget is 0"),
        ({"zoo": "no/such/zoo"}, ConfigError, "no/such/zoo"),
        ({"device": "tpu"}, ConfigError, "tpu"),
    ],
)
def test_wrong_options_are_refused(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        reproduce("tpap/table-6", scale="smoke", out=tmp_path / "out", **options)


def test_a_classifier_of_other_classes_is_refused(table: Table, tmp_path: Path) -> None:
    from unperturb.classifiers import new_classifier, save_classifier

    net = save_classifier(
        new_classifier("small-cnn", num_classes=3, in_channels=1), tmp_path / "net"
    )
    with pytest.raises(ConfigError, match="3 classes, the images have 10"):
        reproduce("tpap/table-6", scale="smoke", out=tmp_path / "out", models={"fgsm": str(net)})


@pytest.mark.realdata
def test_the_zoo_serves_real_images(assets: Path, tmp_path: Path) -> None:
    zoo = Path(__file__).resolve().parents[2] / "zoo"
    if not (zoo / "cifar10-resnet20-tpap").is_dir():
        pytest.skip("the zoo is not at hand")
    record = reproduce(
        "tpap/table-6", scale="cpu", out=tmp_path / "out", zoo=zoo, limit=16,
        data=str(assets / "data" / "cifar10"),
    )  # fmt: skip
    assert record["complete"]
    cells = {(c["row"], c["column"], c["attacker"]): c for c in record["cells"]}
    bare, with_tpap = "RO-FGSM-DNN, no purification", "RO-FGSM-DNN, purification"
    assert cells[bare, "PGD-20", "oblivious"]["accuracy"] < 0.2
    # The published claim holds for the attacker it was made for, and for no other.
    assert cells[with_tpap, "PGD-20", "oblivious"]["accuracy"] > 0.5
    assert cells[with_tpap, "PGD-20", "adaptive"]["accuracy"] < 0.2


def test_the_list_names_what_each_scale_costs() -> None:
    for recipe in list_recipes():
        assert all(recipe["scales"].values()), recipe["name"]
