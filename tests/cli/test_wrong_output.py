"""Folders that take no results, folders of something else, and machines that give out."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import unperturb.audit.run
from cli.mistakes import DIGITS, TRAIN, check

Run = Callable[..., Any]


# -- training -----------------------------------------------------------------------------------


def test_training_into_a_finished_run(nets: Any, run: Run) -> None:
    before = {path.name: path.read_bytes() for path in nets.fgsm.iterdir()}
    ran = run("train", "--start", nets.standard, *TRAIN, "--out", nets.fgsm, "--quiet", code=2)
    check(ran, f"{nets.fgsm} holds a finished training run", "choose another --out")
    assert {path.name: path.read_bytes() for path in nets.fgsm.iterdir()} == before


def test_training_into_another_unfinished_run(run: Run, tmp_path: Path) -> None:
    command = ("train", "--arch", "small-cnn", *TRAIN, "--out", tmp_path / "run", "--quiet")
    run(*command, "--epochs", 2, "--stop-after", 1)
    ran = run(*command, "--epochs", 2, "--lr", "0.05", code=2)
    check(ran, "belongs to another training run", "the same settings, images, start weights")


def test_training_into_the_folder_of_something_else(saved: Path, run: Run) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    ran = run("train", "--start", saved, *TRAIN, "--out", saved, code=2)
    check(ran, "is not empty and holds no training run (config.json, model.safetensors)")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


# -- output -------------------------------------------------------------------------------------


def _outputs(net: Path, digit_files: Path) -> dict[str, tuple[object, ...]]:
    return {
        "audit": ("audit", "--classifier", net, *DIGITS, "--attacks", "fgsm", "--quiet"),
        "attack": ("attack", "--classifier", net, *DIGITS, "--attack", "fgsm", "--quiet"),
        "train": ("train", "--start", net, *TRAIN, "--quiet"),
        "predict": ("predict", digit_files, "--classifier", net),
        "demo": ("demo", "--quiet"),
    }


VERBS_THAT_WRITE = ("audit", "attack", "train", "predict", "demo")


@pytest.mark.parametrize("verb", VERBS_THAT_WRITE)
def test_a_place_under_a_file(
    verb: str, nets: Any, digit_files: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    command = _outputs(nets.fgsm, digit_files)[verb]
    ran = run(*command, "--out", tmp_path / "file" / "out" / "x", code=1)
    check(ran, f"cannot be made: {tmp_path / 'file'} is a file", "Fix: choose another --out")
    if verb != "predict":
        ran = run(*command, "--out", tmp_path / "file", code=1)
        check(ran, f"{tmp_path / 'file'} is a file", "Fix: choose another --out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("verb", VERBS_THAT_WRITE)
def test_a_folder_that_may_not_be_written_to(
    verb: str, nets: Any, digit_files: Path, run: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Permissions do not bind the root user, whom containers run as.
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    command = _outputs(nets.fgsm, digit_files)[verb]
    ran = run(*command, "--out", tmp_path / "new" / "out", code=1)
    words = f"there is no permission to write into {tmp_path}"
    check(ran, words, "Expected: a folder that can be written to", "choose another --out")
    assert not (tmp_path / "new").exists()


def test_predictions_do_not_replace_a_folder(
    nets: Any, digit_files: Path, run: Run, tmp_path: Path
) -> None:
    ran = run("predict", digit_files, "--classifier", nets.fgsm, "--out", tmp_path, code=1)
    check(ran, f"{tmp_path} is a folder", "Expected: a file")


def test_the_folder_of_another_audit(nets: Any, run: Run, tmp_path: Path) -> None:
    command = (*_outputs(nets.fgsm, tmp_path)["audit"], "--out", tmp_path / "audit")
    run(*command)
    ran = run(*command, "--eps", "0.2", "--seed", "1", code=2)
    check(ran, "holds another audit", "seed: 0 there, 1 here", "threat.eps", "another --out")
    ran = run(*command, "--classifier", nets.standard, code=2)
    check(ran, "holds another audit (baseline.", '"fgsm" there, "standard" here')


@pytest.mark.parametrize("verb", ["audit", "attack"])
def test_a_folder_that_is_not_empty(verb: str, nets: Any, run: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    command = _outputs(nets.fgsm, tmp_path)[verb]
    ran = run(*command, "--out", tmp_path / "full", code=2)
    check(ran, f"{tmp_path / 'full'} is not empty", "choose another --out")
    assert [path.name for path in (tmp_path / "full").iterdir() if path.name != ".lock"] == [
        "letter.txt"
    ]


class Disk:
    """A disk that is full after some files."""

    def __init__(self, files: int) -> None:
        self.left = files

    def fsync(self, handle: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("files", [0, 1, 5, 8])
def test_a_full_disk_in_an_audit(
    files: int, nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = _outputs(nets.fgsm, tmp_path)["audit"]
    run(*command, "--out", tmp_path / "whole")
    out = tmp_path / "audit"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Disk(files).fsync)
        ran = run(*command, "--out", out, code=1)
    check(ran, "Cannot write", "No space left on device", "what is finished is kept")
    there = _files(out)
    assert not [name for name in there if name.endswith(".tmp")]
    assert len(there) - (".lock" in there) == files
    run(*command, "--out", out)
    whole = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert json.loads((out / "manifest.json").read_text())["digest"] == whole["digest"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("files", [0, 3, 5])
def test_a_full_disk_leaves_no_part_of_an_attack(
    files: int, there: bool, nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "images"
    if there:
        out.mkdir()
    command = (*_outputs(nets.fgsm, tmp_path)["attack"], "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Disk(files).fsync)
        ran = run(*command, code=1)
    check(ran, "No space left on device", "free some space")
    assert out.exists() == there
    assert not there or not any(out.iterdir())
    run(*command)


def test_a_full_disk_in_training(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "--start", nets.standard, *TRAIN, "--quiet", "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Disk(1).fsync)
        check(run(*command, code=1), "Cannot write", "No space left on device")
    assert set(_files(tmp_path / "run")) == {"checkpoint.safetensors"}
    run(*command)
    assert (tmp_path / "run" / "training.json").is_file()


# -- records ------------------------------------------------------------------------------------


def test_reports_of_what_is_no_audit(nets: Any, run: Run, tmp_path: Path) -> None:
    for command in (("report", tmp_path), ("merge", tmp_path, "--out", tmp_path / "new")):
        check(run(*command, code=2), f"{tmp_path} holds no audit: plan.json is missing")
    assert not (tmp_path / "new").exists()
    out = tmp_path / "audit"
    run(*_outputs(nets.fgsm, tmp_path)["audit"], "--out", out)
    plan = (out / "plan.json").read_text()
    (out / "plan.json").write_text(plan.replace('"schema_version": 2', '"schema_version": 99'))
    words = ("has schema version 99", "Expected: schema version 1 or 2")
    check(run("report", out, code=2), *words)
    (out / "plan.json").write_text(plan[:100])
    check(run("report", out, code=2), "plan.json is damaged")


def test_shards_of_two_audits_are_not_merged(nets: Any, run: Run, tmp_path: Path) -> None:
    command = _outputs(nets.fgsm, tmp_path)["audit"]
    run(*command, "--shard", "1/2", "--out", tmp_path / "one")
    run(*command, "--shard", "2/2", "--seed", 1, "--out", tmp_path / "two")
    ran = run("merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "new", code=2)
    check(ran, "are not shards of one audit", "seed")
    assert not (tmp_path / "new").exists()


# -- what is nobody's mistake -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Memory ran out. What is finished is kept."),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            "Fix: a smaller --batch-size",
        ),
        (BrokenProcessPool("terminated abruptly"), "Fix: run the same command again with fewer"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_the_machine_gives_out(
    error: Exception, words: str, nets: Any, run: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def give_out(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(unperturb.audit.run, "_do", give_out)
    command = _outputs(nets.fgsm, tmp_path)["audit"]
    check(run(*command, "--out", tmp_path / "audit", code=1), words)


def test_a_bug_of_ours_is_not_dressed_up(
    nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(unperturb.audit.run, "_do", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(*_outputs(nets.fgsm, tmp_path)["audit"], "--out", tmp_path / "audit")
