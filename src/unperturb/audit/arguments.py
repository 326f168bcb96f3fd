"""Arguments of ``audit`` that are of another kind than they must be, refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unperturb.errors import ConfigError

__all__ = ["check_arguments"]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_arguments(
    *, attackers: Any, backwards: Any, ids: Any, outside: Any, probe_images: Any, shard: Any
) -> None:
    """Refuse what would end in an error of Python's own; ranges are checked where they are used.

    Raises:
        ConfigError: An argument is of the wrong kind.

    Example:
        >>> check_arguments(attackers=("adaptive",), backwards=("exact",), ids=None, outside=None,
        ...                 probe_images=0, shard=(1, 2))
    """
    pair = isinstance(shard, Sequence) and len(shard) == 2 and all(map(_whole, shard))
    for name, value, fits, expected in (
        ("attackers", attackers, isinstance(attackers, Sequence),
         "some of oblivious and adaptive, such as ('adaptive',)"),
        ("backwards", backwards,
         backwards is None or (isinstance(backwards, Sequence) and not isinstance(backwards, str)),
         "a list of names, such as ('exact', 'identity')"),
        ("ids", ids, ids is None or (isinstance(ids, Sequence) and not isinstance(ids, str)),
         "a list of one name for each image"),
        ("outside", outside, outside is None or isinstance(outside, Mapping),
         "a dictionary of name to folder, file or tensor"),
        ("probe_images", probe_images, probe_images is None or _whole(probe_images),
         "a whole number, 0 or more"),
        ("shard", shard, shard is None or pair, "a pair (i, n) with 1 <= i <= n"),
    ):  # fmt: skip
        if not fits:
            raise ConfigError(f"{name} is {value!r}", expected=expected)
