"""The demo: reduced by default, as users run it with ``-m slow``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unperturb.classifiers import load_classifier

Run = Callable[..., Any]

# The package holds the command of that name, not the module.
demo = importlib.import_module("unperturb.cli.demo")


def _check_end(out: str, folder: Path) -> None:
    """A short table, the lesson, the report and the next command, in this order."""
    lines = out.strip().splitlines()
    assert lines[0].startswith("tpap around small-cnn")
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 40
    table = out.index("worst case  ")
    lesson = out.index("What this shows: TPAP needs a network in robust overfitting, which is")
    report = out.index(f"report: {folder / 'report.html'}")
    following = out.index("next:   unperturb audit --classifier ")
    assert table < lesson < report < following


def test_a_reduced_demo(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "ATTACKS", "fgsm,pgd-3")
    folder = tmp_path / "demo"
    first = run("demo", "--out", folder)
    _check_end(first.out, folder)
    assert "was never reached on digits" in first.out
    said = ("1/3  train", "2/3  defend with TPAP", "units of work", "3/3  report")
    places = [first.err.index(words) for words in said]
    assert places == sorted(places)
    for name in ("report.html", "standard/training.json", "fgsm/training.json"):
        assert (folder / name).is_file()
    assert load_classifier(str(folder / "fgsm")).origin.card["objective"] == "fgsm"

    trained = (folder / "fgsm" / "model.safetensors").stat().st_mtime_ns
    again = run("demo", "--out", folder, "--json")
    found = again.json
    assert found["report"] == str(folder / "report.html")
    assert {attack["attacker"] for attack in found["attacks"]} == {"oblivious", "adaptive"}
    assert {attack["n"] for attack in found["attacks"]} == {500}
    assert (folder / "fgsm" / "model.safetensors").stat().st_mtime_ns == trained
    figures = json.loads((folder / "report.json").read_text())
    assert figures["complete"] is True

    other = run("demo", "--out", folder, "--seed", 1, "--quiet", code=2)
    assert (
        f"{folder} holds a demo of the seed 0. Expected: the seed 1, or a new folder" in other.err
    )


def _accuracy(value: float) -> dict[str, float]:
    return {"accuracy": value}


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (-0.2, "Here TPAP costs 20 points against an informed attacker: do not deploy it so."),
        (0.005, "Here TPAP adds nothing against an informed attacker"),
        (0.12, "Here TPAP adds 12 points against an informed attacker."),
    ],
)
def test_the_lesson_follows_the_figures(gain: float, words: str) -> None:
    summary = {
        "target": {
            "worst_by_attacker": {"oblivious": _accuracy(0.61)},
            "worst_case": _accuracy(0.3 + gain),
        },
        "baseline": {
            "worst_by_attacker": {"oblivious": _accuracy(0.31)},
            "worst_case": _accuracy(0.3),
        },
    }
    text = demo.lesson(summary, False)
    assert words in text
    assert "ignores the defense:  61% with TPAP, 31% without." in text
    assert f"{0.3 + gain:.0%} with TPAP, 30% without." in text
    assert "was never reached on digits" in text
    assert "was reached on digits" in demo.lesson(summary, True)


@pytest.mark.slow
def test_the_demo_as_users_run_it(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    _check_end(run("demo", "--out", folder).out, folder)
    figures = json.loads((folder / "report.json").read_text())
    # Digits are learned, and TPAP does not help there against one who knows it.
    assert figures["baseline"]["clean"]["accuracy"] > 0.9
    gain = figures["target"]["worst_case"]["accuracy"]
    assert gain <= figures["baseline"]["worst_case"]["accuracy"] + 0.01
