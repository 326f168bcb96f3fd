"""Options behind a question mark: ``tpap?radius=6/255&clip=false``."""

from __future__ import annotations

from pathlib import Path

from unperturb.errors import ConfigError

__all__ = ["option_pairs"]


def option_pairs(query: str, where: str) -> dict[str, object]:
    """The options of a preset or a purifier, each of the kind that it is written as.

    Args:
        query: What follows the question mark.
        where: The option of the command line that it stands in, for errors.

    Raises:
        ConfigError: A value is none of the kinds there are.

    Example:
        >>> option_pairs("radius=1/4&clip=false&steps=3&step=pgd", "--defense")
        {'radius': 0.25, 'clip': False, 'steps': 3, 'step': 'pgd'}
    """
    pairs = (pair.partition("=") for pair in filter(None, query.split("&")))
    return {key: _value(key, text, where) for key, _, text in pairs}


def _value(key: str, text: str, where: str) -> bool | int | float | str:
    from unperturb.threat import parse_eps

    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.isascii() and text.isdecimal():
        return int(text)
    if text.replace("-", "_").isidentifier():
        return text  # a name, such as that of TPAP's step: the preset says which there are
    try:
        return parse_eps(text)
    except ConfigError:
        # A folder, such as that of ALU's VAE.
        if Path(text).is_dir():
            return text
        raise ConfigError(
            f"The option {key} of {where} is {text!r}",
            expected="a number or fraction above 0, true or false, a name, or a folder that is "
            "there, such as radius=6/255, step=pgd or vae=runs/vae",
        ) from None
