"""Help: of every command, without loading anything heavy, with examples that work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unperturb
from unperturb.classifiers import load_classifier
from unperturb.cli import unperturb as program
from unperturb.generative import save_generative
from unperturb.networks.vae import VAE

Run = Callable[..., Any]

VERBS = (
    "demo", "audit", "report", "merge", "compare", "predict", "attack", "explain", "train", "bank",
    "fit", "correct", "cost", "reproduce", "convert", "list",
)  # fmt: skip


def _python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    source = str(Path(unperturb.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True
    )


def _examples(text: str) -> list[list[str]]:
    """Commands of a help text, each as a list of words."""
    text = re.sub(r"\\\n\s*", "", text)
    return [
        shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    unperturb ")
    ]


def test_the_commands_are_those_documented() -> None:
    assert tuple(program.commands) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option_and_shows_an_example(verb: str, run: Run) -> None:
    text = run(verb, "--help").out
    assert _examples(text), text
    assert all(words[0] == verb for words in _examples(text))
    silent = [
        option.opts[0]
        for option in program.commands[verb].params
        if option.param_type_name == "option" and not getattr(option, "help", None)
    ]
    assert not silent, f"options without a word: {silent}"


def test_the_list_of_commands_is_not_cut_off(run: Run) -> None:
    commands = run("--help").out.partition("Commands:")[2]
    assert len(commands.split("\n  ")) == len(VERBS) + 1
    assert "..." not in commands


def test_help_loads_no_torch() -> None:
    code = f"""
import sys
from unperturb.cli import main
for verb in {["", *VERBS]!r}:
    try:
        main([verb, "--help"] if verb else ["--help"])
    except SystemExit as end:
        assert not end.code, end.code
heavy = [n for n in ("torch", "numpy", "sklearn", "pyarrow", "PIL") if n in sys.modules]
print("HEAVY", heavy)
"""
    done = _python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_module_and_command_are_the_same() -> None:
    done = _python("-m", "unperturb", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: unperturb [OPTIONS]")


def test_exit_code_and_one_line_from_a_process_of_its_own() -> None:
    done = _python("-m", "unperturb", "list", "atacks")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "did you mean 'attacks'" in done.stderr


def test_unknown_commands_and_options_name_the_nearest(run: Run) -> None:
    assert "audit" in run("audti", code=2).err
    assert "--attacks" in run("audit", "--atacks", "fgsm", code=2).err
    assert "Usage:" in run(code=2).err


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_folders: Callable[..., Path], saved: Path
) -> Path:
    """A folder with all that the examples name."""
    class_folders("cifar10/train", classes=10, each=4)
    class_folders("cifar10/test", classes=10)
    class_folders("photos", classes=2)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "fgsm").symlink_to(saved)
    save_generative(VAE(width=2, latent_channels=1), tmp_path / "runs" / "vae")
    torch.save(load_classifier(str(saved)).module.state_dict(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_examples_of_the_help_work(project: Path, run: Run) -> None:
    less = {
        "audit": ["--limit", "3", "--quiet"],
        "attack": ["--limit", "3"],
        "train": shlex.split("--epochs 1 --batch-size 8 --holdout 10 --monitor-images 4 --shuffle"),
    }
    # The demo has a test of its own.
    for verb in ("convert", "list", "train", "predict", "audit", "report", "attack"):
        for words in _examples(run(verb, "--help").out):
            if words[-1] == "runs/fgsm":
                (project / "runs" / "fgsm").unlink()
            run(*words, *less.get(verb, []))
    for part in ("1", "2"):
        shard = ["--shard", f"{part}/2", "--out", f"runs/part{part}", "--attacks", "fgsm"]
        [words] = _examples(run("audit", "--help").out)
        run(*words, *less["audit"], *shard)
    [words] = _examples(run("merge", "--help").out)
    run(*words)
    written = {path.name for path in (project / "runs").iterdir()}
    assert written == {
        "adversarial", "fgsm", "part1", "part2", "pgd", "standard", "tpap", "unified", "vae",
        "whole",
    }  # fmt: skip
    assert (project / "runs" / "whole" / "report.html").is_file()
