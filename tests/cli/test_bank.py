"""``unperturb bank`` as a user meets it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unperturb.banks import open_bank
from unperturb.cli.bank import _train_split
from unperturb.data import load_images

Run = Callable[..., Any]

DIGITS = ("--data", "digits", "--limit", 40, "--eps", 0.2)
PGD = "pgd-3?step_size=0.5"


def test_a_bank_and_what_is_said_of_it(run: Run, nets: Any, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    rest = ("--classifier", nets.standard, *DIGITS, "--out", out)
    ran = run("bank", *rest, "--attacks", f"fgsm,{PGD}")
    bank = open_bank(out)
    shares = [f"{name} {bank.accuracy(name):.1%}" for name in ("clean", "fgsm", PGD)]
    assert f"accuracy: {', '.join(shares)}; n = 40" in ran.out
    assert f"digest {bank.digest[:12]}" in ran.out
    assert "40 images, 2 attacks" in ran.err
    assert "at most about" in ran.err
    again = run("bank", *rest, "--attacks", f"fgsm,{PGD}", "--json").json
    assert again["digest"] == bank.digest
    assert again["accuracy"]["clean"] == bank.accuracy("clean")
    more = run("bank", *rest, "--attacks", "mim-3", "--json").json
    assert more["attacks"] == ["fgsm", PGD, "mim-3"]


def test_an_attack_that_does_nothing_is_called_out(run: Run, nets: Any, tmp_path: Path) -> None:
    ran = run(
        "bank", "--classifier", nets.standard, "--data", "digits", "--limit", 40,
        "--eps", "0.0001", "--attacks", "fgsm", "--out", tmp_path / "bank",
    )  # fmt: skip
    assert "warning: fgsm leaves" in ran.out
    assert "failed to hurt the classifier" in ran.out


def test_half_precision_states_its_error(run: Run, nets: Any, tmp_path: Path) -> None:
    rest = ("--classifier", nets.standard, *DIGITS, "--attacks", "fgsm")
    ran = run("bank", *rest, "--dtype", "float16", "--out", tmp_path / "half")
    run("bank", *rest, "--quiet", "--out", tmp_path / "whole")
    half, whole = (open_bank(tmp_path / name).logits("clean") for name in ("half", "whole"))
    assert torch.equal(half, whole.half().float())
    assert "stored as float16: off by at most" in ran.out


def test_crops_and_answers_in_the_place_of_images_and_labels(
    run: Run, nets: Any, tmp_path: Path
) -> None:
    rest = ("--classifier", nets.standard, *DIGITS, "--attacks", "fgsm")
    run("bank", *rest, "--crops", 3, "--labels", "predicted", "--out", tmp_path / "bank")
    bank = open_bank(tmp_path / "bank")
    images = load_images("digits", split="train", limit=40)
    assert len(bank) == 120
    assert bank.ids[3:5] == (f"{images.ids[1]}#crop-0", f"{images.ids[1]}#crop-1")
    assert bank.labels.tolist() == images.labels.repeat_interleave(3).tolist()
    fit = ("fit", "logit-correction", "--bank", tmp_path / "bank", "--width", 8, "--epochs", 1)
    card = run(*fit, "--target", "answer", "--out", tmp_path / "net", "--json").json["card"]
    assert card["config"]["target"] == "answer"
    assert card["rows"] == {"trained": 108, "held_out": 12}
    told = run(*fit, "--target", "answer", "--out", tmp_path / "again").out
    assert "the share of its own clean answers on 12 held-out rows from clean 100.0%" in told
    # Of the clean logits, every answer is there to be recovered.
    assert card["held_out"]["uncorrected"]["clean"] == 1.0
    wrong = run(*fit, "--target", "truth", "--out", tmp_path / "other", code=2)
    assert "Unknown target 'truth'" in wrong.err


def test_the_training_split_is_read_where_there_is_one(
    run: Run, nets: Any, class_folders: Callable[..., Path], tmp_path: Path
) -> None:
    plain = class_folders(classes=2)
    folder = tmp_path / "data"
    folder.mkdir()
    digits = load_images("digits", limit=12)

    def png(pixels: torch.Tensor) -> bytes:
        stream = io.BytesIO()
        Image.fromarray((pixels[0] * 255).round().to(torch.uint8).numpy()).save(stream, "PNG")
        return stream.getvalue()

    rows = [
        {"image": {"bytes": png(p), "path": None}, "label": int(y)}
        for p, y in zip(digits.images(), digits.labels, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows[:8]), folder / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows[8:]), folder / "test-00000-of-00001.parquet")
    assert _train_split({"data": str(folder), "seed": 0, "split": None}) == "train"
    assert _train_split({"data": str(plain), "seed": 0, "split": None}) is None
    out = tmp_path / "bank"
    run("bank", "--classifier", nets.standard, "--data", folder, "--eps", 0.2, "--attacks", "fgsm",
        "--channels", 1, "--quiet", "--out", out)  # fmt: skip
    assert (len(open_bank(out)), open_bank(out).split) == (8, "train")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--dtype", "int8"), ("Unknown dtype of a bank 'int8'", "float32")),
        (("--labels", "both"), ("Unknown kind of labels 'both'", "predicted")),
        (("--attacks", "pgdd"), ("Unknown attack 'pgdd'", "did you mean 'pgd'")),
        (("--eps", "16"), ("eps is 16", "16/255")),
        (("--classifier", "nowhere"), ("nowhere",)),
        (("--data", "nowhere"), ("nowhere",)),
        (("--shard-size", "0"), ("--shard-size", "0")),
    ],
)
def test_wrong_use_is_told(
    run: Run, nets: Any, tmp_path: Path, more: tuple[str, ...], words: tuple[str, ...]
) -> None:
    out = tmp_path / "bank"
    ran = run("bank", "--classifier", nets.standard, *DIGITS, "--out", out, *more, code=2)
    for word in words:
        assert word in ran.err
    assert ran.out == ""
    assert not (out / "plan.json").exists()


def test_a_folder_of_another_bank_or_of_something_else(run: Run, nets: Any, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    rest = ("--classifier", nets.standard, *DIGITS, "--attacks", "fgsm", "--quiet")
    run("bank", *rest, "--out", out)
    ran = run("bank", *rest, "--out", out, "--seed", 3, code=2)
    assert "holds another bank (seed: 0 there, 3 here)" in ran.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    ran = run("bank", *rest, "--out", tmp_path / "mine", code=2)
    assert "holds no logit bank (notes.txt)" in ran.err
    ran = run("bank", *rest, "--out", tmp_path / "mine" / "notes.txt", code=1)
    assert "is a file" in ran.err
