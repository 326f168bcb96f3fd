"""Checks of a purifier's settings: the value, what was expected, the fix."""

from __future__ import annotations

from unperturb.errors import ConfigError

__all__ = ["check_flag", "check_number", "check_radius", "check_whole"]

_MOST_STEPS = 1000


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_radius(radius: float) -> float:
    """A purification radius in pixel units, above 0 and at most 1.

    Raises:
        ConfigError: It is no such number.
    """
    if not _is_number(radius):
        raise ConfigError(
            f"The purification radius is {radius!r}", expected="a number, such as 8 / 255"
        )
    if not 0 < radius <= 1:
        raise ConfigError(
            f"The purification radius is {radius:g}",
            expected="above 0 and at most 1, in pixel units such as 8/255",
            fix=f"write {radius:g}/255" if 1 < radius <= 255 else "",
        )
    return float(radius)


def check_flag(name: str, value: bool) -> bool:
    """A setting that is true or false.

    Raises:
        ConfigError: It is neither.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}", expected="true or false")
    return value


def check_whole(name: str, value: int) -> int:
    """A count: a whole number from 1 to 1,000.

    Raises:
        ConfigError: It is no such number.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_STEPS:
        raise ConfigError(
            f"{name} is {value!r}", expected=f"a whole number from 1 to {_MOST_STEPS:,}"
        )
    return value


def check_number(name: str, value: float, *, most: float, zero: bool = False) -> float:
    """A number above 0 (or from 0 on) and at most ``most``.

    Raises:
        ConfigError: It is no such number.
    """
    expected = f"a number {'from 0 on' if zero else 'above 0'}, at most {most:g}"
    if not _is_number(value):
        raise ConfigError(f"{name} is {value!r}", expected=expected)
    if not (value > 0 or (zero and value == 0)) or not value <= most:
        raise ConfigError(f"{name} is {value:g}", expected=expected)
    return float(value)
