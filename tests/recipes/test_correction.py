"""Banks, correctors and selected images in recipes: made once, kept, refused if they are others."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipes.checks import check_cells, check_page, without_times
from recipes.correcting import TINY, explained, write
from unperturb.attacks import Surface, make_attack
from unperturb.banks import open_bank
from unperturb.classifiers import load_classifier
from unperturb.correction import load_corrector
from unperturb.data import load_images
from unperturb.errors import DataError, RecordError
from unperturb.randomness import Keys
from unperturb.recipes import fits as fits_module
from unperturb.recipes import load_recipe, read_record, render, reproduce
from unperturb.recipes.schema import Dataset
from unperturb.recipes.sources import Sources
from unperturb.recipes.terminal import terminal_lines
from unperturb.recipes.words import cells_of

Made = tuple[Path, dict[str, Any]]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write(tmp_path, TINY)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folder and record of that table; models, banks and fits are in ``models`` beside it."""
    folder = tmp_path_factory.mktemp("corrector")
    path = write(folder, TINY)
    return folder / "table", reproduce(path, scale="smoke", out=folder / "table")


@pytest.fixture(scope="session")
def explanation(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folder and record of the explanation, with the same models, banks and fits."""
    folder = tmp_path_factory.mktemp("explanation")
    path = write(folder, explained(TINY))
    models = made[0].parent / "models"
    out = folder / "out"
    return out, reproduce(path, scale="smoke", out=out, models_dir=models)


# Running


def test_a_table_of_correctors_agrees_with_its_page(made: Made) -> None:
    out, record = made
    assert record["complete"], record["left_out"]
    check_cells(record, out)
    page = (out / "table.md").read_text(encoding="utf-8")
    assert page == render(record) == render(read_record(out))
    check_page(record, page)
    assert "| Own | 0.25 % | 87.8 % |" in page
    assert "Attack: `deepfool-3?form=l2`, L2 0.4." in page
    assert "Own, at any distance" in page
    assert set(record["banks"]) == {"train"}
    assert set(record["fits"]) == {"both", "one"}
    assert set(record["settings"]["banks"]) == {"train"}


def test_selected_images_are_the_first_ones_that_the_reference_gets_right(made: Made) -> None:
    out, record = made
    net = load_classifier(out.parent / "models" / "smoke" / "net" / "stage1")
    data = load_images("digits", split="test")
    with torch.no_grad():
        right = net(data.images()).argmax(1) == data.labels
    seen: Counter[int] = Counter()
    rows = []
    for row, label in enumerate(data.labels.tolist()):
        if right[row]:
            seen[label] += 1
            if seen[label] == 1:
                rows.append(row)
    facts = record["selected"]["digits"]
    assert facts["n"] == len(rows)
    assert facts["fingerprint"] == data.take(sorted(rows)).fingerprint()
    # Columns of both kinds of images do not share an audit.
    cells = cells_of(record, "corrected", "Clean") | cells_of(record, "corrected", "PGD")
    chosen = cells_of(record, "corrected", "Clean, selected")["none"]
    assert chosen["undefended"]["accuracy"] == 1
    assert chosen["audit"] not in {cell["audit"] for cell in cells.values()}
    assert record["audits"][chosen["audit"]]["selected"]


def test_oblivious_figures_are_those_of_a_plain_loop(made: Made) -> None:
    out, record = made
    models = out.parent / "models" / "smoke"
    net = load_classifier(models / "net" / "stage1")
    corrector = load_corrector(models / "fits" / "both")
    data = load_images("digits", split="test", limit=8)
    with torch.no_grad():
        clean = corrector.correct(net(data.images())).labels == data.labels
    cell = cells_of(record, "corrected", "Clean")["none"]
    assert cell["correct"] == int(clean.sum())
    # MIM draws no random numbers: the row's own attack, on the selected images.
    own = cells_of(record, "corrected", "Own")["oblivious"]
    bank = open_bank(models / "banks" / "train")
    assert bank.attacks == ("pgd-2", "mim-2")
    whole = load_images("digits", split="test")
    chosen = whole.take([whole.ids.index(name) for name in _selected_ids(out, record)])
    attacked = make_attack("mim-2").run(
        Surface(net), chosen.images(), chosen.labels, threat=load_recipe(
            out.parent / "corrector.yaml", scale="smoke").threat,
        keys=Keys.of(0, chosen.ids), stop="fixed",
    )  # fmt: skip
    with torch.no_grad():
        logits = net(attacked.images)
    bare = int((logits.argmax(1) == chosen.labels).sum())
    corrected = int((corrector.correct(logits).labels == chosen.labels).sum())
    assert (own["undefended"]["correct"], own["correct"]) == (bare, corrected)


def _selected_ids(out: Path, record: dict[str, Any]) -> list[str]:
    key = cells_of(record, "corrected", "Own")["oblivious"]["audit"]
    plan = json.loads((out / "audits" / key / "plan.json").read_text(encoding="utf-8"))
    return list(plan["ids"])


def test_a_bank_holds_the_logits_of_its_images(made: Made) -> None:
    out, record = made
    net = load_classifier(out.parent / "models" / "smoke" / "net" / "stage1")
    bank = open_bank(out.parent / "models" / "smoke" / "banks" / "train")
    data = load_images("digits", split="train", limit=200)
    assert bank.ids == data.ids
    with torch.no_grad():
        torch.testing.assert_close(bank.logits("clean"), net(data.images()), rtol=1e-4, atol=1e-4)
    facts = record["banks"]["train"]
    assert (facts["digest"], facts["n"], facts["model"]) == (bank.digest, 200, "net")
    assert facts["accuracy"]["mim-2"] == bank.accuracy("mim-2")
    assert record["fits"]["one"]["attacks"] == ["pgd-2"]
    assert record["fits"]["both"]["bank_digest"] == bank.digest


def test_an_explanation_agrees_with_its_page_and_with_plain_figures(explanation: Made) -> None:
    out, record = explanation
    assert record["complete"], record["left_out"]
    page = (out / "table.md").read_text(encoding="utf-8")
    assert page == render(record) == render(read_record(out))
    check_page(record, page)
    assert record["files"] == [
        "mean-logit-net.png", "supporting.png", "overlap.png", "instance-net.png"
    ]  # fmt: skip
    assert all((out / name).stat().st_size > 1000 for name in record["files"])
    told = record["explanation"]
    subject = told["subjects"][0]
    assert subject["own_classifier"]
    assert subject["attacked"]["difference"] == pytest.approx(
        subject["attacked"]["corrected"]["accuracy"]
        - subject["attacked"]["uncorrected"]["accuracy"]
    )
    low, high = subject["attacked"]["interval"]
    assert low <= subject["attacked"]["difference"] <= high
    assert subject["clean"]["uncorrected"]["accuracy"] == 1, "they are selected"
    assert subject["wrong_when_clean"] is None
    assert subject["causal"]["draws"] == 4
    assert len(subject["causal"]["classes"]) == 3
    assert told["subjects"][3]["name"] == "bare"
    assert "supporting" not in told["subjects"][3]
    transfer = {(p["corrector"], p["logits"]): p["accuracy"] for p in told["transfer"]}
    assert len(transfer) == 3 * 4
    for part in told["subjects"][:3]:
        assert transfer[part["name"], part["name"]] == part["attacked"]["corrected"]
    assert told["overlap"]["names"] == ["PGD", "PGD, another corrector", "other images"]
    assert told["mean_logits"]["net"]["n"]["PGD"] == subject["n"]


def test_a_terminal_is_told_what_was_corrected(explanation: Made) -> None:
    _, record = explanation
    lines = terminal_lines(record)
    part = record["explanation"]["subjects"][0]["attacked"]["corrected"]
    assert len(lines) == 3
    assert lines[0].startswith("PGD: right ")
    assert lines[0].endswith(f"corrected {part['accuracy']:.1%} (n={part['n']})")


def test_explained_figures_are_those_of_the_bank_and_the_corrector(
    made: Made, explanation: Made
) -> None:
    models = made[0].parent / "models" / "smoke"
    bank = open_bank(models / "banks" / "other")
    corrector = load_corrector(models / "fits" / "both")
    subject = explanation[1]["explanation"]["subjects"][2]
    logits = bank.logits("pgd-2")
    right = corrector.correct(logits).labels == bank.labels
    assert subject["attacked"]["corrected"]["correct"] == int(right.sum())
    # By autograd, one image after the other.
    counts: Counter[int] = Counter()
    for row, label in zip(logits, bank.labels.tolist(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: corrector.network(z[None])[0], row)
        assert isinstance(jacobian, torch.Tensor)
        counts.update((jacobian[label] - jacobian.mean(0)).topk(3).indices.tolist())
    assert subject["supporting"]["counts"]["score"] == {str(k): n for k, n in counts.items()}


# Going on


def test_nothing_is_made_twice(made: Made, tiny: Path, tmp_path: Path) -> None:
    out, record = made
    told: list[str] = []
    models = out.parent / "models"
    again = reproduce(
        tiny, scale="smoke", out=tmp_path / "again", models_dir=models, audits_dir=out / "audits",
        say=told.append,
    )  # fmt: skip
    busy = ("training", "fitting", "auditing", "bank " + str(models))
    assert not [words for words in told if words.startswith(busy)]
    assert "bank train: made before" in told
    assert "corrector both: fitted before" in told
    assert without_times(again)["cells"] == without_times(record)["cells"]


def test_what_it_will_cost_is_said_first(tiny: Path, tmp_path: Path) -> None:
    told: list[str] = []
    reproduce(tiny, scale="smoke", out=tmp_path / "out", time_budget=1e-9, say=told.append)
    (bank,) = (words for words in told if words.startswith("bank train"))
    assert "2 attacks on 200 images, about" in bank
    fits = [words for words in told if words.startswith("corrector")]
    assert len(fits) == 2
    assert "corrector one: 2 epochs of 200 rows" in fits[1]
    assert any("1 attacks on 8 selected images" in words for words in told)


def test_a_killed_fit_goes_on_and_ends_as_an_uninterrupted_one(
    made: Made, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    shutil.copytree(made[0].parent / "models", models)
    shutil.rmtree(models / "smoke" / "fits")
    real = fits_module.fit_correction

    def killed(*arguments: Any, **options: Any) -> Any:
        real(*arguments, **{**options, "stop_after": 1})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fits_module, "fit_correction", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce(tiny, scale="smoke", out=tmp_path / "out", models_dir=models)
    assert not (models / "smoke" / "fits" / "both" / "training.json").is_file()
    again = reproduce(tiny, scale="smoke", out=tmp_path / "out", models_dir=models)
    assert without_times(again) == without_times(made[1])


def test_a_fit_stops_between_epochs_when_time_is_up(
    made: Made, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    shutil.copytree(made[0].parent / "models", models)
    shutil.rmtree(models / "smoke" / "fits")
    clock = iter([0.0, 0.0, 1e12, 1e12])
    with monkeypatch.context() as patch:
        patch.setattr(fits_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        record = reproduce(
            tiny, scale="smoke", out=tmp_path / "out", models_dir=models, time_budget=1e6
        )
    assert {cell["reason"] for cell in record["cells"]} == {"time budget"}
    assert any((models / "smoke" / "fits" / "both").glob("checkpoint*"))
    again = reproduce(tiny, scale="smoke", out=tmp_path / "out", models_dir=models, time_budget=1e6)
    assert without_times(again) == without_times(made[1])


def test_no_bank_is_begun_without_time(made: Made, tiny: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(made[0].parent / "models" / "smoke" / "net", models / "smoke" / "net")
    out = tmp_path / "out"
    record = reproduce(tiny, scale="smoke", out=out, models_dir=models, time_budget=1e-9)
    assert {cell["status"] for cell in record["cells"]} == {"not run"}
    assert {cell["reason"] for cell in record["cells"]} == {"time budget"}
    assert not (models / "smoke" / "banks").exists()
    path = write(tmp_path, explained(TINY))
    record = reproduce(path, scale="smoke", out=tmp_path / "e", models_dir=models, time_budget=1e-9)
    assert not record["complete"]
    assert {part["status"] for part in record["explanation"]["subjects"]} == {"not run"}
    page = (tmp_path / "e" / "table.md").read_text(encoding="utf-8")
    assert "- PGD: not run: time budget" in page
    assert "- time budget: PGD; PGD, another corrector; other images; bare" in page


def test_a_first_look_has_banks_of_its_own(made: Made, tmp_path: Path) -> None:
    models = made[0].parent / "models"
    path = write(tmp_path, explained(TINY))
    record = reproduce(path, scale="smoke", out=tmp_path / "out", models_dir=models, limit=5)
    assert [part["n"] for part in record["explanation"]["subjects"]] == [5, 5, 5, 5]
    assert (models / "smoke" / "banks" / "test-first-5").is_dir()
    assert record["banks"]["test"]["n"] == 5


# What is something else


def test_banks_and_fits_of_other_settings_are_refused(made: Made, tmp_path: Path) -> None:
    models = shutil.copytree(made[0].parent / "models", tmp_path / "models")

    def run(old: str, new: str) -> None:
        path = write(tmp_path, TINY.replace(old, new, 1))
        reproduce(path, scale="smoke", out=tmp_path / "out", models_dir=models)

    with pytest.raises(RecordError, match=r"holds another bank \(eps: 0\.15 there, 0\.2 here\)"):
        run("bank_settings: {threat: {eps: 0.15}}", "bank_settings: {threat: {eps: 0.2}}")
    with pytest.raises(RecordError, match=r"holds another fit \(lr: 0\.01 there, 0\.02 here\)"):
        run("lr: 0.01}", "lr: 0.02}")
    shutil.rmtree(models / "smoke" / "banks")
    with pytest.raises(RecordError, match=r"holds another fit \(another bank\)"):
        run("bank_settings: {threat: {eps: 0.15}}", "bank_settings: {threat: {eps: 0.2}}")
    card = models / "smoke" / "fits" / "both" / "config.json"
    found = json.loads(card.read_text(encoding="utf-8"))
    del found["card"]["bank"]
    card.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(RecordError, match="damaged"):
        run("bank_settings: {threat: {eps: 0.15}}", "bank_settings: {threat: {eps: 0.2}}")


def test_a_reference_that_nobody_has_leaves_its_cells_out(tmp_path: Path) -> None:
    text = TINY.replace("select: {model: net", "select: {model: ref").replace(
        "models:\n", "models:\n  ref: {title: none, data: digits, smoke: {unavailable: lost}}\n"
    )
    models = tmp_path / "models"
    record = reproduce(write(tmp_path, text), scale="smoke", out=tmp_path / "o", models_dir=models)
    reasons = {(cell["column"], cell["reason"]) for cell in record["cells"]}
    assert ("Own", "lost") in reasons
    assert ("PGD", "") in reasons
    assert cells_of(record, "corrected", "Clean")["none"]["status"] == "done"


# Held out by id


def test_one_split_is_divided_by_ids_whatever_their_order() -> None:
    recipe = load_recipe("logit-correction/imagenet", scale="smoke")
    dataset = recipe.datasets["imagenet-samples"]
    assert (dataset.train, dataset.test, dataset.test_share) == ("test", "test", 0.3)
    sources = Sources(recipe, {})
    train, test = sources.train("imagenet-samples"), sources.test("imagenet-samples", None)
    whole = load_images("digits", split="test")
    order = sorted(whole.ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert (len(whole), len(train), len(test)) == (500, 350, 150)
    assert list(test.ids) == order[:150]
    assert list(train.ids) == order[150:]
    assert sources.test("imagenet-samples", 7).ids == test.ids[:7]


def test_a_share_of_nothing_is_refused() -> None:
    from dataclasses import replace

    recipe = load_recipe("logit-correction/imagenet", scale="smoke")
    dataset: Dataset = replace(recipe.datasets["imagenet-samples"], test_share=0.0001)
    changed = replace(recipe, datasets={"imagenet-samples": dataset})
    with pytest.raises(DataError, match="of which 0% are 0"):
        Sources(changed, {}).train("imagenet-samples")
