"""Pickled weights to safetensors, in a process of its own.

A pickle can run code when it is loaded. It is therefore opened by a child process only, with
PyTorch's restricted unpickler (``weights_only=True``), and what leaves that process is a
safetensors file and one line of JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unperturb.errors import OutputError, WeightsError

__all__ = ["convert_weights"]

# Where training scripts put the tensors of a checkpoint, the likeliest first.
_PLACES = ("state_dict", "model_state_dict", "model", "net")
_TIMEOUT_S = 1800


def convert_weights(
    source: Path,
    target: Path,
    *,
    key: str | None = None,
    strip_prefix: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Convert a pickled checkpoint (``.pth``, ``.pt``, ``.bin``, ...) to safetensors.

    Args:
        source: The checkpoint.
        target: The ``.safetensors`` file to write; its folder must be there.
        key: Entry of the checkpoint that holds the tensors, with dots for nested entries; None:
            the top level, or under ``state_dict``, ``model_state_dict``, ``model`` or ``net``.
        strip_prefix: Beginning of the tensors' names to drop, such as ``module.``.
        overwrite: Replace a target that is there.

    Returns:
        ``source``, ``target``, ``key`` (where the tensors were found), ``tensors`` and
        ``parameters`` (counts), ``dropped`` (entries beside them that are no tensors) and
        ``sha256`` of the target.

    Raises:
        WeightsError: The source is missing, unreadable, holds no tensors where it should, or
            asks for code: what was refused is named. Nothing is written then.
        OutputError: The target cannot be written, or is there already.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     old = Path(folder, "net.pth")
        ...     torch.save({"state_dict": {"weight": torch.zeros(2, 3)}}, old)
        ...     convert_weights(old, old.with_suffix(".safetensors"))["key"]
        'state_dict'
    """
    from unperturb.classifiers.weights import file_sha256, nearest_sibling
    from unperturb.files import write_atomic

    source, target = Path(source), Path(target)
    if not source.is_file():
        raise WeightsError(
            f"There is no checkpoint {str(source)!r}",
            expected="a file saved with torch.save",
            fix=nearest_sibling(source),
        )
    _check_target(source, target, overwrite=overwrite)
    facts: dict[str, Any] = {}

    def write(temporary: Path) -> None:
        facts.update(_in_child(source, temporary, key, strip_prefix))

    write_atomic(target, write)
    return {
        "source": str(source),
        "target": str(target),
        **facts,
        "sha256": file_sha256(target),
    }


def _check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    if target.suffix != ".safetensors":
        raise OutputError(
            f"The target is {str(target)!r}",
            expected="a name that ends in .safetensors",
            fix=f"write to {target.with_suffix('.safetensors')}",
        )
    if target.exists() and (target.is_dir() or target.resolve() == source.resolve()):
        raise OutputError(
            f"The target {str(target)!r} is a folder or the source itself",
            expected="another file",
        )
    if target.exists() and not overwrite:
        raise OutputError(
            f"The target {str(target)!r} is there already",
            expected="a new file",
            fix="choose another name, or allow overwriting",
        )
    if not target.parent.is_dir():
        raise OutputError(
            f"The folder {str(target.parent)!r} is not there",
            expected="a folder to write to",
            fix="make it first",
        )


def _in_child(source: Path, target: Path, key: str | None, prefix: str | None) -> dict[str, Any]:
    """Run this file as a process of its own and read its one line of JSON."""
    package_folder = str(Path(__file__).resolve().parents[1])
    paths = [package_folder, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    request = {"source": str(source), "target": str(target), "key": key, "prefix": prefix}
    # -P keeps files of the current folder from being imported in place of libraries.
    command = [sys.executable, "-P", "-m", "unperturb.convert", json.dumps(request)]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsError(
            f"Reading {str(source)!r} took more than {_TIMEOUT_S} seconds",
            expected="a checkpoint of tensors",
        ) from error
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        tail = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise WeightsError(
            f"The process that read {str(source)!r} ended with code {done.returncode}: {tail[0]}",
            expected="a checkpoint of tensors that fits in memory",
        ) from error
    if "unwritable" in answer:
        raise OSError(answer["unwritable"])
    if "problem" in answer:
        raise WeightsError(answer["problem"], expected=answer["expected"], fix=answer["fix"])
    return dict(answer)


def _read(source: str) -> Any:
    import torch

    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        EOFError,
        OSError,
    ) as error:
        text = str(error)
        refused = re.search(r"GLOBAL (\S+)", text) or re.search(r"class (\S+)", text)
        if refused and isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"The checkpoint {source!r} asks for {refused.group(1)}, which was refused: "
                "loading it could run code",
                expected="a checkpoint of tensors, dicts, lists and numbers",
                fix="where you trust it, load it yourself and torch.save(model.state_dict(), ...)",
            ) from error
        first = text.splitlines()[0] if text else type(error).__name__
        if "weights_only" in first:
            # PyTorch goes on to advise loading the pickle with code; that is not ours to pass on.
            first = "it is no checkpoint that holds tensors only"
        raise WeightsError(
            f"The checkpoint {source!r} cannot be read: {first}",
            expected="a file saved with torch.save, complete",
            fix="fetch the file again",
        ) from error


def _find(found: Any, key: str | None, source: str) -> tuple[str, Mapping[str, Any]]:
    """The place and the entries of the mapping that holds tensors."""
    if key is not None:
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise _no_tensors(source, found, f"no entry {key!r}")
            found = found[part]
        if not _holds_tensors(found):
            raise _no_tensors(source, found, f"no tensors under {key!r}")
        return key, found
    if isinstance(found, Mapping):
        for place in _PLACES:
            if place in found and _holds_tensors(found[place]):
                return place, found[place]
    if _holds_tensors(found):
        return "", found
    raise _no_tensors(source, found, "no tensors at the usual places")


def _holds_tensors(value: Any) -> bool:
    import torch

    return isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values())


def _no_tensors(source: str, found: Any, what: str) -> WeightsError:
    if isinstance(found, Mapping):
        holds = "entries " + ", ".join(repr(str(name)) for name in list(found)[:10])
    else:
        holds = f"a {type(found).__name__}"
    return WeightsError(
        f"The checkpoint {source!r} has {what}; it holds {holds}",
        expected="tensors by name, at the top or under " + ", ".join(_PLACES),
        fix="name the entry with --key",
    )


def _tensors(entries: Mapping[str, Any], prefix: str | None, source: str) -> dict[str, Any]:
    import torch

    tensors: dict[str, Any] = {}
    for name, value in entries.items():
        if not isinstance(value, torch.Tensor):
            continue
        if value.layout != torch.strided or value.is_quantized:
            raise WeightsError(
                f"The tensor {name!r} of {source!r} is sparse or quantized",
                expected="dense tensors",
            )
        # A copy each: safetensors refuses tensors that share memory.
        tensors[str(name)] = value.detach().clone().contiguous()
    if not prefix:
        return tensors
    if not any(name.startswith(prefix) for name in tensors):
        shown = ", ".join(list(tensors)[:3])
        raise WeightsError(
            f"No tensor of {source!r} begins with {prefix!r} (the first are {shown})",
            expected="the beginning of names that are there",
            fix="leave --strip-prefix out, or correct it",
        )
    stripped = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if len(stripped) < len(tensors):
        raise WeightsError(
            f"Two tensors of {source!r} have the same name without {prefix!r}",
            expected="names that differ",
        )
    return stripped


def _work(request: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    source = str(request["source"])
    place, entries = _find(_read(source), request["key"], source)
    tensors = _tensors(entries, request["prefix"], source)
    try:
        save_file(tensors, request["target"], metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        return {"unwritable": str(error)}
    return {
        "key": place,
        "tensors": len(tensors),
        "parameters": sum(t.numel() for t in tensors.values()),
        "dropped": sorted(str(n) for n, v in entries.items() if not isinstance(v, torch.Tensor)),
    }


def _main(argument: str) -> int:
    try:
        answer = _work(json.loads(argument))
    except WeightsError as error:
        answer = {"problem": error.problem, "expected": error.expected, "fix": error.fix}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
