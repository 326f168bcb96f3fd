"""Adversarial images made elsewhere: read, matched by id, and checked against the threat model.

Nothing of them is believed: they are measured against the clean images, an image outside the ball
is counted and never counts as broken, and the answers are those of a fresh forward pass, as with
every attack of ours.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unperturb.audit.outside_files import Found, read_found
from unperturb.errors import ConfigError, DataError, InputError
from unperturb.files import short_paths
from unperturb.threat import Threat

__all__ = ["Outside", "OutsideCheck", "check_outside", "outside_name", "read_outside"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SHOWN = 3

# Other tools clip in float32 and then rescale; what lies this little out of [0, 1] is rounding.
_ROUNDING = 1e-6
_GREY_LEVEL = 1 / 255


@dataclass(frozen=True, eq=False)
class Outside:
    """Adversarial images of another tool for some of an audit's images.

    Attributes:
        name: What the records call them.
        images: Images (n, C, H, W), float32 in [0, 1].
        rows: Places of their clean images in the audit's ids, (n,) int64, ascending.
        facts: JSON-able: ``name``, ``source``, ``format``, ``n``, ``missing`` (images of the audit
            without one), ``eight_bit`` (all pixels are whole grey levels) and ``sha256``.
    """

    name: str
    images: Tensor
    rows: Tensor
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)


class OutsideCheck(NamedTuple):
    """Which outside images are attacks of the threat model."""

    inside: Tensor  # (n,) bool: in the ball and in [0, 1], by the tolerance all attacks get
    distance: Tensor  # (n,) float: distance from the clean image in the threat's norm
    excess: float  # how far the farthest lies outside the ball, in pixel units; 0 where none does
    note: str  # one sentence for the report; empty where all lie inside


def outside_name(name: str) -> str:
    """The name, if it can stand in records, file names and tables.

    Raises:
        ConfigError: It cannot.

    Example:
        >>> outside_name("foolbox-pgd")
        'foolbox-pgd'
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"The name of outside images is {name!r}",
            expected="1 to 64 letters, digits, dots, dashes and underscores",
            fix="name them after their tool, such as foolbox-pgd",
        )
    return name


def read_outside(
    source: str | os.PathLike[str] | Tensor | np.ndarray[Any, Any],
    ids: Sequence[str],
    shape: Sequence[int],
    *,
    name: str = "outside",
) -> Outside:
    """Read adversarial images that another tool made of an audit's images.

    ``source`` is one of

    - a folder of lossless images (PNG, BMP, PPM, PGM, lossless WebP) or of ``.npy``/``.npz``
      arrays, one file for each image, named by its id: ``test-000007.png``. Ids that are paths
      are looked for as paths below the folder, with their own suffix or another;
    - a parquet file or folder with a column ``id`` and a column ``image`` (encoded bytes, or a
      struct of ``bytes`` and ``path``) or ``pixels`` (lists of C*H*W numbers, C order);
    - a ``.safetensors`` file with a tensor ``images`` and, in its metadata, ``ids`` as a JSON
      list, as ``unperturb attack`` and the ``images/`` folder of an audit hold them; the output
      folder of ``unperturb attack`` itself;
    - an ``.npz`` file with ``images`` and, if it has them, ``ids``;
    - an ``.npy`` file or a tensor, (N, C, H, W) or (N, H, W, C), in the order of the ids.

    Pixels are ``uint8`` (value / 255) or floats in [0, 1]. Files without ids must hold exactly N
    images; with ids some may be missing, which is counted. Lossy files are refused: compression
    moves pixels after the attack, so what would be scored is not what the tool made.

    Args:
        source: Where they are.
        ids: The audit's N ids.
        shape: (C, H, W) of its images.
        name: What the records call them.

    Returns:
        At least one image.

    Raises:
        DataError: Nothing is there, an image cannot be read, or ids are unknown or occur twice.
        InputError: Images have another size, dtype or range, or hold NaN.
        ConfigError: The name cannot stand in records.

    Example:
        >>> found = read_outside(torch.rand(2, 3, 4, 4), ["a", "b"], (3, 4, 4), name="mine")
        >>> found.facts["n"], found.rows.tolist()
        (2, [0, 1])
    """
    outside_name(name)
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    if isinstance(source, Tensor | np.ndarray):
        where, found = "a tensor", Found(None, _tensor(source), "tensor")
    elif not isinstance(source, str | os.PathLike):
        raise DataError(
            f"The outside images {name!r} are {source!r}",
            expected="a folder, a file or a tensor",
        )
    else:
        path = Path(source).expanduser()
        where = str(path)
        found = read_found(path, size)
    pixels = _pixels(_oriented(found.pixels, size, where), where)
    rows = _rows(found, len(pixels), ids, where)
    order = torch.argsort(rows)
    rows, pixels = rows[order], pixels[order].contiguous()
    facts = {
        "name": name,
        "source": short_paths(where),
        "format": found.form,
        "n": len(rows),
        "missing": len(ids) - len(rows),
        "eight_bit": bool(((pixels * 255).round() / 255 - pixels).abs().max() < _ROUNDING),
        "sha256": _fingerprint(pixels, [ids[row] for row in rows.tolist()]),
    }
    return Outside(name, pixels, rows, facts)


def check_outside(outside: Outside, clean: Tensor, threat: Threat) -> OutsideCheck:
    """Measure outside images against the clean ones.

    An image of whole grey levels gets no more room than any other: where rounding has pushed it
    out of the ball, it is out, and the note says why.

    Args:
        outside: The images.
        clean: All clean images of the audit (N, C, H, W) in [0, 1].
        threat: The ball they must lie in.

    Example:
        >>> from unperturb.threat import Linf
        >>> clean = torch.full((2, 1, 2, 2), 0.5)
        >>> far = clean + torch.tensor([0.01, 0.1]).view(2, 1, 1, 1)
        >>> found = read_outside(far, ["a", "b"], (1, 2, 2))
        >>> check_outside(found, clean, Linf(8 / 255)).inside.tolist()
        [True, False]
    """
    origin = clean[outside.rows.to(clean.device)].to("cpu", torch.float32)
    inside = threat.contains(outside.images, origin)
    distance = threat.distance(outside.images, origin)
    count = int((~inside).sum())
    if not count:
        return OutsideCheck(inside, distance, 0.0, "")
    over = distance[~inside] - threat.eps
    excess = float(over.max())
    note = (
        f"{count} of {len(outside)} images of {outside.name} lie outside the ball (the farthest at "
        f"{float(distance.max()):.4g}, eps is {threat.eps:.4g}): counted, and never as broken."
    )
    # Rounding moves each pixel by half a grey level at most.
    room = _GREY_LEVEL / 2
    if threat.norm == "l2":
        room *= math.sqrt(outside.images[0].numel())
    rounded = int((over <= room + _ROUNDING).sum())
    if outside.facts["eight_bit"] and rounded:
        note += (
            f" {rounded} of them by no more than rounding to 8 bits adds: their pixels are whole "
            "grey levels. Hand them in as floats, or round toward the clean image."
        )
    return OutsideCheck(inside, distance, excess, note)


def _tensor(source: Tensor | np.ndarray[Any, Any]) -> Tensor:
    try:
        return torch.as_tensor(source).detach().cpu()
    except TypeError as error:
        raise InputError(
            f"The outside images are an array of {getattr(source, 'dtype', type(source))}",
            expected="uint8, or floats in [0, 1]",
        ) from error


def _oriented(pixels: Tensor, size: tuple[int, int, int], where: str) -> Tensor:
    """(n, C, H, W), whichever of the usual layouts they came in."""
    channels, height, width = size
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels.unsqueeze(1)
    if pixels.ndim == 4 and len(pixels):
        if tuple(pixels.shape[1:]) == size:
            return pixels
        if tuple(pixels.shape[1:]) == (height, width, channels):
            return pixels.permute(0, 3, 1, 2)
    if not pixels.numel():
        raise DataError(
            f"There is no image in {where}",
            expected="adversarial images of some of the audit's images",
            fix="check the path",
        )
    raise InputError(
        f"The outside images of {where} have the shape {tuple(pixels.shape)}",
        expected=f"(n, {channels}, {height}, {width}) or (n, {height}, {width}, {channels}), "
        "as the audit's images",
        fix="write them at the size and with the channels that the classifier is shown",
    )


def _pixels(pixels: Tensor, where: str) -> Tensor:
    """float32 in [0, 1]."""
    if pixels.dtype == torch.uint8:
        return pixels.to(torch.float32).div_(255.0)
    if not pixels.is_floating_point():
        raise InputError(
            f"The outside images of {where} have dtype {str(pixels.dtype).removeprefix('torch.')}",
            expected="uint8, or floats in [0, 1]",
            fix="convert them to uint8 if they hold 0 to 255",
        )
    flat = pixels.flatten(1)
    broken = int((~torch.isfinite(flat)).any(1).sum())
    if broken:
        raise InputError(
            f"{broken} of {len(pixels)} outside images of {where} hold NaN or infinite pixels",
            expected="finite pixels in [0, 1]",
            fix="leave those images out: missing ones are counted",
        )
    low, high = float(flat.min()), float(flat.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        bytes_like = 2 < high <= 255 and low >= 0
        wrong = int(((flat < -_ROUNDING) | (flat > 1 + _ROUNDING)).any(1).sum())
        raise InputError(
            f"{wrong} of {len(pixels)} outside images of {where} have pixels out of [0, 1], "
            f"from {low:.8g} to {high:.8g}",
            expected="uint8, or floats in [0, 1]",
            fix="divide them by 255"
            if bytes_like
            else "undo the normalization of the tool that made them, or clip them",
        )
    return pixels.to(torch.float32).clamp(0.0, 1.0)


def _rows(found: Found, count: int, ids: Sequence[str], where: str) -> Tensor:
    """Place of each image in the audit's ids, (n,)."""
    if found.ids is None:
        if count != len(ids):
            raise DataError(
                f"{where} holds {count} images without ids, and the audit has {len(ids)}",
                expected="as many, in the audit's order, or images with ids",
                fix="name them: files ID.png, or a parquet file with a column id",
            )
        return torch.arange(count)
    known = {name: row for row, name in enumerate(ids)}
    if found.files:
        # Another tool writes cat/1.png for the image cat/1.jpg. Where two ids differ in nothing
        # but the suffix, the file must say which.
        bare = Counter(_bare(name) for name in ids)
        known = {_bare(n): row for n, row in known.items() if bare[_bare(n)] == 1} | known
        names = [n if n in known else _bare(n) for n in found.ids]
    else:
        names = found.ids
    unknown = [n for n, key in zip(found.ids, names, strict=True) if key not in known]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {count} outside images of {where} have ids that the audit does not "
            f"know: {_list(unknown)}",
            expected=f"ids of its {len(ids)} images, such as {ids[0]!r}",
            fix="audit the images they were made from, a larger --limit perhaps, or leave them out",
        )
    rows = [known[name] for name in names]
    twice = [ids[row] for row, times in Counter(rows).items() if times > 1]
    if twice:
        raise DataError(
            f"{len(twice)} ids occur more than once in {where}: {_list(twice)}",
            expected="one adversarial image for each",
            fix="hand in further ones under another name: --outside NAME2=PATH2",
        )
    return torch.tensor(rows, dtype=torch.int64)


def _bare(name: str) -> str:
    """A path without its suffix."""
    path = PurePosixPath(name)
    # An id such as v1.5-0007 has no suffix that is one.
    return str(path.with_suffix("")) if re.fullmatch(r"\.[A-Za-z]{2,5}", path.suffix) else name


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (" ..." if len(names) > _SHOWN else "")


def _fingerprint(images: Tensor, ids: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{tuple(images.shape)};".encode())
    digest.update("\0".join(ids).encode())
    digest.update(np.ascontiguousarray(images.numpy()).data)
    return digest.hexdigest()
