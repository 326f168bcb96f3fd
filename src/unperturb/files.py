"""Writing files so that a kill or a full disk never leaves one half-written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unperturb.errors import OutputError

__all__ = [
    "check_writable",
    "short_paths",
    "write_atomic",
    "write_json",
    "write_tensors",
    "write_text",
]


def check_writable(out: Path) -> None:
    """Make a folder, and find out before hours of work whether it can be written to.

    Raises:
        OutputError: It cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write into {out}: {error.strerror or error}",
            expected="a folder that can be written to",
            fix="choose another --out",
        ) from error


def _fix(error: OSError) -> str:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space and run the same command again: what is finished is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder you may write to"
    return "check the path"


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file in the same folder, flush it, and rename it.

    Args:
        path: Where the file shall stand; its folder is made.
        write: Fills the temporary file it is given.

    Raises:
        OutputError: The folder cannot be written or the disk is full. ``path`` is as it was.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        os.close(handle)
        write(Path(temporary))
        with Path(temporary).open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files private; give this one the mode an ordinary open would.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror or error}",
            expected="a folder that can be written to, with space left",
            fix=_fix(error),
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


def write_tensors(
    path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as one safetensors file, atomically."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        # The format refuses tensors that share memory, as tied weights do.
        if plain[name].untyped_storage().data_ptr() in seen:
            plain[name] = plain[name].clone()
        seen.add(plain[name].untyped_storage().data_ptr())

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    write_atomic(path, write)


def short_paths(text: str) -> str:
    """Replace paths by their last part: where a file lay says nothing to anybody else.

    Example:
        >>> short_paths("cifar-resnet20@some/w.safetensors; split test; all of a/b/c")
        'cifar-resnet20@w.safetensors; split test; all of c'
    """
    return re.sub(r"[^\s@;,]*/(?=[^\s@;,/])", "", text)
