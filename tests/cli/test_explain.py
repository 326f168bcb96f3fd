"""``unperturb explain``: what its commands write, and what they say to mistakes."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from unperturb.classifiers import load_classifier, new_classifier, save_classifier
from unperturb.cli import unperturb as program
from unperturb.data import load_images
from unperturb.explain import gradcam
from unperturb.generative import save_generative
from unperturb.networks.restorers import build_restorer
from unperturb.networks.vae import VAE
from unperturb.presets import tpap
from unperturb.purifiers.transforms import RandomTransform
from unperturb.restoration import RestorationNet, save_restoration

Run = Callable[..., Any]

COMMANDS: Any = program.commands["explain"].commands  # type: ignore[attr-defined]
DIGITS = ("--data", "digits", "--eps", "0.2")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier of digits that was never trained."""
    made = new_classifier("small-cnn", seed=3, num_classes=10, in_channels=1)
    return save_classifier(made, tmp_path_factory.mktemp("net") / "digits-net")


def _gradcam(net: Path, out: Path, *more: object) -> list[object]:
    few = ("--images", 2, "--attack", "fgsm")
    return ["explain", "gradcam", "--classifier", net, *DIGITS, *few, "--out", out, *more]


def _embedding(net: Path, out: Path, *more: object) -> list[object]:
    few = ("--limit", 20, "--attack", "fgsm", "--perplexity", 5)
    return ["explain", "embedding", "--classifier", net, *DIGITS, *few, "--out", out, *more]


def _panels(net: Path, out: Path, *more: object) -> list[object]:
    few = ("--images", 2)
    return ["explain", "panels", "--classifier", net, *DIGITS, *few, "--out", out, *more]


def _restorer(folder: Path, side: int = 8, channels: int = 1) -> Path:
    """A restoration network that was never trained."""
    options = {"channels": channels, "width": 4, "coarse_width": 2}
    network = build_restorer("inpainting-gan", **options)
    shape = (channels, side, side)
    made = RestorationNet("inpainting-gan", network, shape, RandomTransform(name="rt2"))
    return save_restoration(made, folder)


def test_panels_writes_the_picture_and_the_images(net: Path, run: Run, tmp_path: Path) -> None:
    out, defense = tmp_path / "new" / "panels.png", _restorer(tmp_path / "gan")
    more = ("--defense", f"atop?purifier={defense}", "--tensors")
    facts = run(*_panels(net, out, *more, "--json")).json
    assert {path.name for path in out.parent.iterdir()} == {"panels.png", "panels.safetensors"}
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert [one["name"] for one in facts["transforms"]] == ["rt1", "rt2", "rt3"]
    data = load_images("digits", limit=2)
    assert facts["ids"] == list(data.ids)
    with safe_open(facts["tensors"], "pt") as stored:
        assert torch.equal(stored.get_tensor("original.clean"), data.images())
        assert stored.get_tensor("rt3 restored.attacked").shape == (2, 1, 8, 8)
    few = ("--transform", "rt3", "--all-passes")
    ran = run(*_panels(net, tmp_path / "few.svg", *more[:2], *few))
    assert re.search(r"fgsm, 2 images, right: original \d+% clean.*; .*few.svg", ran.out)


def test_panels_need_a_restoration_network(net: Path, run: Run, tmp_path: Path) -> None:
    for more in ((), ("--defense", "tpap")):
        ran = run(*_panels(net, tmp_path / "x.png", *more), code=2)
        assert "There is nothing to restore" in ran.err
    wide = _restorer(tmp_path / "wide", side=16)
    ran = run(*_panels(net, tmp_path / "x.png", "--defense", f"atop?purifier={wide}"), code=2)
    assert "16x16, on which this restoration network was trained" in ran.err
    fit = ("--defense", f"atop?purifier={_restorer(tmp_path / 'gan')}")
    ran = run(*_panels(net, tmp_path / "x.png", *fit, "--transform", "rt4"), code=2)
    assert "Unknown random transform 'rt4'" in ran.err
    assert not (tmp_path / "x.png").exists()


def test_logit_change_writes_pictures_and_figures(net: Path, run: Run, tmp_path: Path) -> None:
    vae = save_generative(VAE(image_shape=(1, 8, 8), width=2, downsample=1), tmp_path / "vae")
    out = tmp_path / "new" / "change.png"
    given = ["explain", "logit-change", "--classifier", net, *DIGITS, "--limit", 4,
             "--defense", f"alu?vae={vae}&threshold=0.5&steps=1"]  # fmt: skip
    facts = run(*given, "--attack", "fgsm", "--train-images", 3, "--out", out, "--json").json
    names = {"change.png", "change-statistic.png", "change-changes.png", "change.json"}
    assert {path.name for path in out.parent.iterdir()} == names
    assert json.loads((out.parent / "change.json").read_text(encoding="utf-8")) == facts
    assert (facts["n"], facts["train_images"], facts["gradient"]) == (4, 3, "undefended")
    ran = run(*given, "--attack", "noise", "--gradient", "identity", "--out", tmp_path / "x.png")
    assert re.search(r"noise, n = 4: clean [\d.]+% right.*successful attacks", ran.out, re.DOTALL)
    ran = run(*given, "--gradient", "unroled", "--out", tmp_path / "y.png", code=2)
    assert "did you mean 'unrolled'" in ran.err
    ran = run(*given[:-2], "--out", tmp_path / "y.png", code=2)
    assert "There is nothing that purifies" in ran.err
    assert not (tmp_path / "y.png").exists()


def test_gradcam_writes_the_picture_and_the_maps(net: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "cam.png"
    facts = run(*_gradcam(net, out, "--defense", "tpap", "--maps", "--json")).json
    assert {path.name for path in out.parent.iterdir()} == {"cam.png", "cam.safetensors"}
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    names = ["clean", "attacked", "clean-purified", "attacked-purified"]
    assert [column["name"] for column in facts["columns"]] == names
    data = load_images("digits", limit=2)
    assert facts["ids"] == list(data.ids)
    classifier = load_classifier(str(net))
    with safe_open(facts["maps"], "pt") as stored:
        assert json.loads(stored.metadata()["ids"]) == list(data.ids)
        assert json.loads(stored.metadata()["settings"])["eps"] == 0.2
        torch.testing.assert_close(stored.get_tensor("images.clean"), data.images())
        for name in names:
            expected = gradcam(classifier, stored.get_tensor(f"images.{name}")).maps
            torch.testing.assert_close(stored.get_tensor(f"maps.{name}"), expected)
        moved = (stored.get_tensor("images.attacked") - data.images()).abs().amax()
        assert float(moved) == pytest.approx(0.2, abs=1e-6)
        purified = tpap(classifier).predict(data.images()).purified
        torch.testing.assert_close(stored.get_tensor("images.clean-purified"), purified)


def test_gradcam_without_a_defense_says_what_it_found(net: Path, run: Run, tmp_path: Path) -> None:
    ran = run(*_gradcam(net, tmp_path / "cam.svg", "--layer", "bn2", "--target", "true"))
    assert re.fullmatch(
        r"fgsm, 2 images, right: \d+% clean, \d+% attacked; \S+cam.svg\n", ran.out
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["cam.svg"]
    assert run(*_gradcam(net, tmp_path / "cam.pdf", "--quiet")).out == ""


def test_embedding_writes_picture_points_and_figures(net: Path, run: Run, tmp_path: Path) -> None:
    more = ("--defense", "tpap", "--versus", net, "--versus", net, "--json")
    facts = run(*_embedding(net, tmp_path / "map.png", *more)).json
    assert {path.name for path in tmp_path.iterdir()} == {"map.png", "map.csv", "map.json"}
    names = ["digits-net", "digits-net (2)", "digits-net + tpap"]
    assert [row["name"] for row in facts["rows"]] == names
    written = json.loads((tmp_path / "map.json").read_text())
    assert written == {key: facts[key] for key in written}
    rows = list(csv.DictReader((tmp_path / "map.csv").open()))
    assert len(rows) == 3 * 2 * 20
    data = load_images("digits", limit=20)
    assert [row["id"] for row in rows[:20]] == list(data.ids)
    for k, row in enumerate(facts["rows"]):
        for j, panel in enumerate(row["panels"]):
            part = rows[(2 * k + j) * 20 :][:20]
            assert {(line["row"], line["column"]) for line in part} == {
                (row["name"], panel["name"])
            }
            right = sum(line["label"] == line["prediction"] for line in part)
            assert panel["accuracy"] == pytest.approx(right / 20)


def test_the_same_seed_gives_the_same_files(net: Path, run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ran = run(*_embedding(net, tmp_path / f"{name}.png", "--seed", 5))
        assert "digits-net: clean " in ran.out
        assert "10-NN" in ran.out
    for suffix in ("csv", "json", "png"):
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_saved_defense_is_a_row_of_its_own(net: Path, run: Run, tmp_path: Path) -> None:
    tpap(load_classifier(str(net)), radius=0.1).save_pretrained(tmp_path / "saved")
    more = ("--versus", tmp_path / "saved", "--json")
    facts = run(*_embedding(net, tmp_path / "map.png", *more)).json
    assert [row["name"] for row in facts["rows"]] == ["saved", "digits-net"]


def test_several_attacks_are_several_columns(net: Path, run: Run, tmp_path: Path) -> None:
    facts = run(*_embedding(net, tmp_path / "map.png", "--attack", "pgd-2", "--json")).json
    assert [panel["name"] for panel in facts["rows"][0]["panels"]] == ["clean", "fgsm", "pgd-2"]


@pytest.mark.parametrize(
    ("command", "option", "value", "words"),
    [
        (_gradcam, "--out", "cam.jpg", ("'cam.jpg'", ".png, .svg or .pdf", "Fix: cam.png")),
        (_gradcam, "--layer", "bnn3", ("Unknown layer 'bnn3'", "bn1", "did you mean 'bn3'")),
        (_gradcam, "--layer", "linear", ("'linear' gives (10,)", "such as conv1")),
        (_gradcam, "--attack", "pdg", ("Unknown attack 'pdg'", "did you mean 'pgd'")),
        (_gradcam, "--attacker", "x", ("Unknown attacker 'x'", "adaptive, oblivious")),
        (_gradcam, "--target", "x", ("Unknown target 'x'", "predicted, true")),
        (_gradcam, "--eps", "8", ("eps is 8", "8/255")),
        (_gradcam, "--channels", "3", ("3 channels", "--channels 1")),
        (_gradcam, "--limit", "0", ("limit is 0",)),
        (_gradcam, "--split", "tests", ("did you mean 'test'",)),
        (_gradcam, "--defense", "tpapp", ("did you mean 'tpap'",)),
        (_embedding, "--out", "map", ("'map'", "Fix: map.png")),
        (_embedding, "--limit", "5", ("5 images for the perplexity 5", "at least 6 images")),
        (_embedding, "--perplexity", "0", ("perplexity is 0", "above 0")),
        (_embedding, "--attack", "pdg", ("did you mean 'pgd'",)),
        (_embedding, "--attacker", "x", ("Unknown attacker 'x'",)),
        (_embedding, "--versus", "nowhere", ("'nowhere'",)),
        (_embedding, "--device", "cdua", ("'cdua' cannot be used",)),
    ],
)
def test_a_wrong_value(
    command: Callable[..., list[object]],
    option: str,
    value: str,
    words: tuple[str, ...],
    net: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*command(net, Path("out.png")), option, value, code=2)
    assert ran.out == ""
    for word in words:
        assert word in ran.err, ran.err
    assert ran.err.count("error: ") == 1
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_refused_first(run: Run, tmp_path: Path) -> None:
    nowhere = Path("no-such-classifier")
    (tmp_path / "map.csv").mkdir()
    (tmp_path / "file").touch()
    for command, out in (
        (_gradcam, tmp_path / "file" / "cam.png"),
        (_embedding, tmp_path / "map.png"),
    ):
        ran = run(*command(nowhere, out), code=1)
        assert "choose another --out" in ran.err
    run("explain", "gradcam", "--data", "digits", "--images", 0, code=2)
    run("explain", "gradcamm", code=2)


def test_an_absent_matplotlib_is_named_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (_gradcam, _embedding):
        ran = run(*command(Path("no-such-classifier"), tmp_path / "x.png"), code=2)
        assert "pip install 'unperturb[explain]'" in ran.err


def test_a_classifier_without_maps_names_what_its_layers_give(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = "torch.nn.Flatten(), torch.nn.Linear(64, 10)"
    code = f"import torch\n\ndef flat():\n    return torch.nn.Sequential({layers})\n"
    (tmp_path / "flatnet.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    from unperturb.files import write_tensors

    weights = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
    write_tensors(tmp_path / "flat.safetensors", weights)
    spec = f"flatnet:flat@{tmp_path / 'flat.safetensors'}"
    out = tmp_path / "cam.png"
    ran = run(*_gradcam(Path(spec), out, "--trust-remote-code"), code=2)
    assert "no layer that gives maps" in ran.err
    assert "1 (10,)" in ran.err
    assert not out.exists()


# -- help -----------------------------------------------------------------------------------------


def _examples(text: str) -> list[list[str]]:
    text = re.sub(r"\\\n\s*", "", text)
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    unper")]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_and_shows_an_example(name: str, run: Run) -> None:
    text = run("explain", name, "--help").out
    assert all(words[:2] == ["explain", name] for words in _examples(text))
    assert _examples(text)
    silent = [
        option.opts[0] for option in COMMANDS[name].params if not getattr(option, "help", None)
    ]
    assert not silent, f"options without a word: {silent}"
    assert name in run("explain", "--help").out


def test_examples_work(
    run: Run,
    tmp_path: Path,
    class_folders: Callable[..., Path],
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class_folders("cifar10/test", classes=10)
    (tmp_path / "runs").mkdir()
    for name in ("fgsm", "pgd", "standard"):
        (tmp_path / "runs" / name).symlink_to(saved)
    _restorer(tmp_path / "runs" / "atop", side=32, channels=3)
    monkeypatch.chdir(tmp_path)
    few = {
        "gradcam": ["--images", "1"],
        "embedding": ["--limit", "8", "--perplexity", "3"],
        "panels": ["--images", "1"],
    }
    pages = [run("explain", *name, "--help").out for name in ((), *((name,) for name in few))]
    page = Path(__file__).resolve().parents[2] / "docs" / "guide" / "explain.md"
    pages.append(page.read_text(encoding="utf-8").replace("$ unperturb", "    unperturb"))
    found = [words for text in pages for words in _examples(text) if words[1] in few]
    assert len(found) >= 9
    for words in {tuple(words) for words in found}:
        quick = ["--attack", "fgsm", "--out", "picture.png", "--quiet"]
        run(*words, *few[words[1]], *quick)
