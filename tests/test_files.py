"""Files are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from unperturb.errors import OutputError
from unperturb.files import write_atomic, write_json, write_tensors


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    assert path.read_text() == '{\n  "a": [\n    1.5,\n    null\n  ],\n  "b": 1\n}\n'
    write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_the_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "ours", 1)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "choose a folder you may write to"),
        (errno.EIO, "check the path"),
    ],
)
def test_a_failure_leaves_nothing_half_written(tmp_path: Path, number: int, fix: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError) as caught:
        write_atomic(path, fail)
    assert f"Cannot write {path}: {os.strerror(number)}" in str(caught.value)
    assert fix in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_another_error_leaves_nothing_either(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        write_atomic(tmp_path / "a.json", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="Cannot write"):
        write_json(tmp_path / "file" / "a.json", 1)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.name != "posix" or not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        with temporary.open("w") as stream:
            stream.write("x" * 100_000)

    with pytest.raises(OutputError, match="No space left on device.*free some space"):
        write_atomic(tmp_path / "a.txt", write)
    assert list(tmp_path.iterdir()) == []


def test_tensors_round_trip_even_when_tied(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weight = nn.Parameter(torch.arange(6.0).view(2, 3))
    tensors = {"a": weight, "b": weight, "part": weight[1], "turned": weight.T}
    write_tensors(tmp_path / "m.safetensors", tensors, {"made": "here"})
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], tensors[k]) for k in found)
