"""Reading weights: safetensors only, with errors that say what does not fit."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unperturb.errors import WeightsError

__all__ = ["file_sha256", "fit_state", "nearest_sibling", "read_weights"]

_PICKLES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")
_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def nearest_sibling(path: Path) -> str:
    """Advice that names the file or folder beside ``path`` whose name is nearest."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; check the path"
    names = sorted(entry.name for entry in path.parent.iterdir())
    longer = [name for name in names if path.name and name.startswith(path.name)]
    near = longer or difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f"did you mean {str(path.parent / near[0])!r}?" if near else "check the path"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata of a safetensors file, on the CPU.

    Raises:
        WeightsError: The file is missing, a pickle (whatever it is called), or damaged.
    """
    if not path.exists():
        raise WeightsError(
            f"There is no weights file {str(path)!r}",
            expected="a safetensors file",
            fix=nearest_sibling(path),
        )
    if path.is_dir():
        raise WeightsError(
            f"The weights {str(path)!r} are a folder",
            expected="a safetensors file",
            fix="name a file in it; a folder saved by this package is given alone, without ARCH@",
        )
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise WeightsError(
            f"The weights {str(path)!r} cannot be read: {error.strerror or error}",
            expected="a readable safetensors file",
        ) from error
    # The first eight bytes of safetensors are a length, and may well look like a pickle's.
    plausible = start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    renamed = path.suffix.lower() == ".safetensors"
    if not plausible and (path.suffix.lower() in _PICKLES or start.startswith(_MAGIC)):
        target = path.with_name(path.stem + ("-converted" if renamed else "") + ".safetensors")
        raise WeightsError(
            f"The weights {str(path)!r} are a pickle"
            + (" in spite of the name" if renamed else "")
            + ", which can run code when it is loaded",
            expected="safetensors",
            fix=f"unperturb convert {path} {target}",
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"The weights {str(path)!r} are damaged or not safetensors ({error}; "
            f"{path.stat().st_size} bytes)",
            expected="a complete safetensors file",
            fix="fetch or convert the file again",
        ) from error
    return state, metadata


def fit_state(module: nn.Module, state: Mapping[str, Tensor], *, source: str, network: str) -> None:
    """Load tensors into a module of our own, strictly.

    Two differences are tolerated: a common prefix ``module.`` or ``_orig_mod.`` (left by
    wrappers that train on several devices or compile) is stripped, and missing
    ``num_batches_tracked`` counters, which no eval pass reads, stay as initialized. Other
    floating dtypes are converted to the module's.

    Args:
        module: What is filled.
        state: Tensors by name.
        source: What to call the weights in an error.
        network: What to call the network in an error.

    Raises:
        WeightsError: Missing, extra or differently shaped tensors; the first five of each are
            named. The module is untouched then.
    """
    state = strip_wrappers(state)
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in wanted]
    other = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(wanted[k].shape)} in the network"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    if missing or extra or other:
        parts = [
            f"{len(names)} {what} ({_first(names)})"
            for names, what in (
                (missing, "missing"),
                (extra, "extra"),
                (other, "of another shape"),
            )
            if names
        ]
        raise WeightsError(
            f"The weights {source} do not fit the network {network}: " + "; ".join(parts),
            expected=f"the {len(wanted)} tensors of {network}",
            fix="name the architecture they belong to, and the right classes and channels",
        )
    with torch.no_grad():
        module.load_state_dict(dict(state), strict=False)


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop a prefix ``module.`` or ``_orig_mod.`` that all names share."""
    stripped = dict(state)
    changed = bool(stripped)
    while changed:
        changed = False
        for prefix in ("module.", "_orig_mod."):
            if all(name.startswith(prefix) for name in stripped):
                stripped = {name[len(prefix) :]: tensor for name, tensor in stripped.items()}
                changed = True
    return stripped


def _first(names: Iterable[str], count: int = 5) -> str:
    listed = list(names)
    shown = ", ".join(listed[:count])
    return shown + (f", and {len(listed) - count} more" if len(listed) > count else "")
