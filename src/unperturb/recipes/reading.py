"""Reading plain YAML strictly: a key nobody knows or a value of another kind is an error."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unperturb.errors import ConfigError, SpecError

__all__ = ["Section", "number", "overlay", "read_yaml", "typed"]

_ABSENT = object()


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file whose top is a mapping.

    Raises:
        ConfigError: It is no YAML, repeats a key, or holds something else.
        SpecError: There is no such file.
    """
    import yaml

    class _Loader(yaml.SafeLoader):
        """The safe loader, which refuses a key that is given twice."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            # Here and not later: merged keys, which come on top, may repeat one.
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(str(key.value))
            return node

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(
            f"There is no file {path}", expected="a recipe", fix="check the path"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", expected="UTF-8 text") from error
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"{path.name} is no YAML: {words}", expected="YAML") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path.name} holds {type(found).__name__}", expected="a mapping of settings"
        )
    return found


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another: mappings key by key, anything else in place of what was there.

    A key whose value on top is null is taken away.

    Example:
        >>> overlay({"n": 5, "eps": {"a": 1, "b": 2}}, {"eps": {"b": 3}, "n": None})
        {'eps': {'a': 1, 'b': 3}}
    """
    found = dict(base)
    for key, value in top.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, Mapping):
            below = found.get(key)
            found[key] = overlay(below if isinstance(below, Mapping) else {}, value)
        else:
            found[key] = value
    return found


def number(value: Any, where: str) -> float:
    """A number, or a fraction in quotes or without, such as ``8/255``.

    Raises:
        ConfigError: It is neither.

    Example:
        >>> number("8/255", "eps") == 8 / 255, number(3, "n")
        (True, 3.0)
    """
    found = float("nan")
    if isinstance(value, str):
        above, _, below = value.partition("/")
        with contextlib.suppress(ValueError, ZeroDivisionError):
            found = float(above) / float(below) if below else float(above)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
    if not abs(found) < float("inf"):
        raise ConfigError(
            f"{where} is {value!r}", expected="a number or a fraction, such as 0.5 or 8/255"
        )
    return found


def typed(value: Any, like: Any, where: str) -> Any:
    """A setting as a recipe writes it, of the kind of the setting's default; None: any number.

    Raises:
        ConfigError: A value of another kind.
    """
    if isinstance(like, bool | str):
        if type(value) is not type(like):
            words = "true or false" if isinstance(like, bool) else "text"
            raise ConfigError(f"{where} is {value!r}"[:300], expected=words)
        return value
    if isinstance(like, tuple):
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}"[:300], expected="a list of numbers")
        whole = bool(like) and all(isinstance(part, int) for part in like)
        return tuple(_whole(v, where) if whole else number(v, where) for v in value)
    if like is None and isinstance(value, int) and not isinstance(value, bool):
        return value
    return _whole(value, where) if isinstance(like, int) else number(value, where)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{where} is {value!r}"[:300], expected="a whole number")
    return value


class Section:
    """A mapping of a recipe, taken apart key by key; ``end`` refuses what is left.

    Args:
        value: What the file holds there.
        where: How a message names the place.

    Raises:
        ConfigError: It is no mapping with texts as keys.

    Example:
        >>> part = Section({"title": "x", "eps": "8/255"}, "table-9")
        >>> part.text("title"), part.number("eps") < 0.04
        ('x', True)
        >>> part.end()
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(
                f"{where} is {value!r}"[:300], expected="a mapping of names to settings"
            )
        self.where = where
        self._left = dict(value)
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def any(self, key: str, default: Any = _ABSENT) -> Any:
        """A value as it stands."""
        self._known.append(key)
        value = self._left.pop(key, None)
        if value is None:
            if default is _ABSENT:
                raise ConfigError(
                    f"{self.where} lacks {key!r}", expected=f"the setting {key!r}", fix="add it"
                )
            return default
        return value

    def _typed(self, key: str, kind: type, words: str, default: Any) -> Any:
        value = self.any(key, default)
        # YAML says true where nobody meant a number.
        if value is default or (
            isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        ):
            return value
        raise ConfigError(f"{self.where}: {key} is {value!r}"[:300], expected=words)

    def text(self, key: str, default: Any = _ABSENT) -> Any:
        """A text."""
        return self._typed(key, str, "text", default)

    def flag(self, key: str, default: Any = _ABSENT) -> Any:
        """True or false."""
        return self._typed(key, bool, "true or false", default)

    def whole(self, key: str, default: Any = _ABSENT, *, least: int = 1) -> Any:
        """A whole number."""
        value = self._typed(key, int, "a whole number", default)
        if value is not default and value < least:
            raise ConfigError(f"{self.where}: {key} is {value}", expected=f"at least {least}")
        return value

    def number(self, key: str, default: Any = _ABSENT) -> Any:
        """A number or a fraction."""
        value = self.any(key, default)
        return value if value is default else number(value, f"{self.where}: {key}")

    def texts(self, key: str, default: Any = _ABSENT) -> Any:
        """A list of texts; one text alone is a list of one."""
        value = self.any(key, default)
        if value is default:
            return value
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(part, str) for part in listed):
            raise ConfigError(f"{self.where}: {key} is {value!r}"[:300], expected="a list of texts")
        return tuple(listed)

    def choice(self, key: str, known: Iterable[str], default: Any = _ABSENT) -> Any:
        """One of these names."""
        value, known = self.text(key, default), list(known)
        if value is not default and value not in known:
            raise self._unknown(f"{self.where}: {key} is {value!r}", value, known)
        return value

    def section(self, key: str, default: Any = _ABSENT) -> Section:
        """A mapping inside this one."""
        return Section(self.any(key, default), f"{self.where}: {key}")

    def sections(self, key: str, default: Any = _ABSENT) -> dict[str, Section]:
        """A mapping of names to mappings, in the order of the file."""
        value = self.any(key, default)
        Section(value, f"{self.where}: {key}")
        return {name: Section(part, f"{self.where}: {key}: {name}") for name, part in value.items()}

    def rest(self) -> dict[str, Any]:
        """Everything that has not been taken, for settings whose names others know."""
        left, self._left = self._left, {}
        return left

    def known(self, names: Iterable[str]) -> None:
        """Names that a message may offer though they were not asked for."""
        self._known.extend(names)

    def end(self) -> None:
        """Refuse what is left.

        Raises:
            SpecError: There is a key that means nothing here; the nearest known ones are named.
        """
        for key in self._left:
            raise self.unknown(key)

    def unknown(self, key: str) -> SpecError:
        """The error of a key that means nothing here."""
        return self._unknown(f"{self.where} has the unknown setting {key!r}", key, self._known)

    @staticmethod
    def _unknown(problem: str, name: str, known: list[str]) -> SpecError:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        return SpecError(
            problem,
            expected=f"one of {', '.join(sorted(set(known)))}",
            fix="did you mean " + " or ".join(repr(n) for n in near) + "?" if near else "",
        )
