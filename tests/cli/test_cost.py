"""``unperturb cost``: the table, the JSON object, the mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unperturb import tpap
from unperturb.classifiers import load_classifier

Run = Callable[..., Any]

SMALL = ("--arch", "small-cnn", "--image-size", "8", "--repeats", "0", "--batch-size", "4")


def test_counts_of_a_network_without_weights(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    ran = run("cost", *SMALL, "--defense", "tpap", "--attack-steps", 2, "--json", "--out", out)
    found = ran.json
    assert ran.err == ""
    assert json.loads(out.read_text()) == found
    rows = {row["name"]: row["forwards"] for row in found["rows"]}
    assert rows["defended answer"] == 3
    assert rows["training step, fgsm"] - rows["training step, standard"] == pytest.approx(2)
    assert rows["training step, pgd"] - rows["training step, standard"] == pytest.approx(4)
    assert found["defense"] == "tpap"
    assert found["parameters"] == 39154
    assert found["image_shape"] == [1, 8, 8]


def test_times_are_in_the_table(run: Run, nets: Any) -> None:
    rest = ("--image-size", 8, "--batch-size", 4, "--repeats", 1, "--objective", "standard")
    lines = run("cost", "--classifier", nets.fgsm, "--defense", "tpap", *rest).out.splitlines()
    head = next(line for line in lines if "forward passes" in line)
    assert head.split()[-2:] == ["ms/image", "s/epoch"]
    defended = next(line for line in lines if line.startswith("defended answer")).split()
    assert defended[3:5] == ["3.00", "10000"]
    assert float(defended[-1]) > 0
    assert any("2 FLOPs" in line for line in lines)
    bare = run("cost", *SMALL, "--objective", "none").out
    assert "training step" not in bare
    assert "ms/image" not in bare


def test_a_saved_defense(run: Run, nets: Any, tmp_path: Path) -> None:
    tpap(load_classifier(str(nets.fgsm))).save_pretrained(tmp_path / "defense")
    rest = ("--image-size", 8, "--repeats", 0, "--objective", "none", "--json")
    found = run("cost", "--defense", tmp_path / "defense", *rest).json
    assert [row["forwards"] for row in found["rows"]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("Nothing is named", "--arch", "--classifier")),
        (("--arch", "small-cn"), ("Unknown network 'small-cn'", "did you mean 'small-cnn'?")),
        ((*SMALL, "--classifier", "x"), ("Both --arch and --classifier",)),
        (("--classifier", "x", "--classes", 5), ("--classes is 5 without --arch",)),
        ((*SMALL, "--defense", "tpab"), ("Unknown defense 'tpab'", "did you mean 'tpap'?")),
        ((*SMALL, "--objective", "fgms"), ("Unknown objective 'fgms'", "did you mean 'fgsm'?")),
        ((*SMALL, "--objective", ","), ("--objective is ','", "none")),
        ((*SMALL, "--precision", "half"), ("Unknown precision 'half'", "bfloat16")),
        ((*SMALL, "--batch-size", 0), ("batch_size is 0", "at least 1")),
        ((*SMALL, "--attack-steps", 0), ("attack_steps is 0", "at least 1")),
        ((*SMALL, "--train-images", 0), ("train_images is 0", "at least 1")),
        ((*SMALL, "--repeats", -1), ("repeats is -1", "at least 0")),
        ((*SMALL, "--image-size", "2"), ("Images are 2x2", "at least 4x4")),
        ((*SMALL, "--image-size", "a"), ("--image-size is 'a'",)),
        ((*SMALL, "--device", "gpu"), ("The device 'gpu' cannot be used",)),
    ],
)
def test_mistakes(arguments: tuple[object, ...], words: tuple[str, ...], run: Run) -> None:
    ran = run("cost", *arguments, code=2)
    assert ran.out == ""
    assert ran.err.count("error: ") == 1
    for word in words:
        assert word in ran.err


def test_a_place_that_cannot_be_written_to(run: Run, tmp_path: Path) -> None:
    ran = run("cost", *SMALL, "--out", tmp_path, code=1)
    assert "is a folder" in ran.err
