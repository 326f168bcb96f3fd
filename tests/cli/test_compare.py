"""``unperturb compare`` on audits that the command line made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def audits(nets: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small audits, where the help's example looks for them."""
    monkeypatch.chdir(tmp_path)
    common = (
        "--data", "digits", "--limit", 16, "--batch-size", 16, "--attacks", "fgsm", "--eps", "0.1",
        "--attacker", "oblivious", "--quiet",
    )  # fmt: skip
    run("audit", "--classifier", nets.fgsm, *common, "--out", "runs/tpap")
    run("audit", "--classifier", nets.standard, *common, "--out", "runs/plain")
    return tmp_path / "runs"


def test_the_example_of_the_help_writes_three_files(audits: Path, run: Run) -> None:
    text = run("compare", "--help").out
    (line,) = [line for line in text.splitlines() if line.startswith("    unperturb ")]
    done = run(*line.split()[1:])
    assert "2 audits compared" in done.out
    assert "16 common images, Linf 0.1" in done.out
    assert "! Not the same undefended classifier" in done.out
    folder = audits / "tpap-or-plain"
    assert {path.name for path in folder.iterdir()} == {
        "compare.html", "compare.md", "compare.json",
    }  # fmt: skip
    assert "runs/tpap-or-plain/compare.html" in done.out


def test_json_is_one_object_and_equals_the_file(audits: Path, run: Run) -> None:
    found = run("compare", "runs/plain", "runs/tpap", "--json", "--out", "both").json
    assert [audit["name"] for audit in found["audits"]] == ["plain", "tpap"]
    assert found == json.loads(Path("both/compare.json").read_text(encoding="utf-8"))
    assert run("compare", "runs/plain", "runs/tpap", "--json").json == found


def test_mistakes_get_one_line(audits: Path, run: Run) -> None:
    assert "at least two folders" in run("compare", "runs/plain", code=2).err
    assert "holds no audit" in run("compare", "runs/plain", "runs/nowhere", code=2).err
    Path("file").write_text("x")
    blocked = run("compare", "runs/plain", "runs/tpap", "--out", "file", code=1)
    assert "file is a file" in blocked.err
    assert blocked.out == ""
