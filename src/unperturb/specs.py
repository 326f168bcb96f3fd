"""Names with options, as in ``tpap?radius=6/255``."""

from __future__ import annotations

from unperturb.errors import ConfigError
from unperturb.threat import parse_eps

__all__ = ["option_pairs"]


def option_pairs(query: str, where: str = "--defense") -> dict[str, object]:
    """What follows the question mark of a preset or a purifier, each of the kind it is written as.

    Args:
        query: ``OPTION=VALUE``, with ``&`` between several.
        where: How a message names the place.

    Raises:
        ConfigError: A value is none of these kinds.

    Example:
        >>> option_pairs("radius=1/4&clip=false&steps=3&step=pgd&vae=runs/vae")
        {'radius': 0.25, 'clip': False, 'steps': 3, 'step': 'pgd', 'vae': 'runs/vae'}
    """
    pairs = (pair.partition("=") for pair in filter(None, query.split("&")))
    return {key: _option_value(key, text, where) for key, _, text in pairs}


def _option_value(key: str, text: str, where: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.isascii() and text.isdecimal():
        return int(text)
    if text.isidentifier():
        return text  # a name, such as that of TPAP's step: the preset says which there are
    try:
        return parse_eps(text)
    except ConfigError:
        if any(letter.isalpha() for letter in text) or text.startswith((".", "/")):
            return text  # a path, such as that of a corrector: the preset looks whether it is there
        raise ConfigError(
            f"The option {key} of {where} is {text!r}",
            expected="a number or fraction above 0, true or false, a name or a path, such as "
            "radius=6/255, step=pgd or corrector=runs/corrector",
        ) from None
