"""What the commands that draw share: places to write to, and what is printed in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unperturb.cli.options import check_output, echo_json

__all__ = ["outputs", "tell", "watched"]


def outputs(options: dict[str, Any], *beside: str) -> list[Path]:
    """Where the picture and the files beside it go; whether it can be drawn and written there.

    Args:
        options: The command's; ``out`` names the picture.
        beside: For each file beside it, a suffix (``.csv``), or what follows the picture's name
            (``-overlap``) for another picture of the same format.

    Raises:
        ConfigError: The picture's format cannot be written.
        OutputError: A file cannot be written there.
        MissingExtraError: matplotlib is not installed.
    """
    from unperturb.explain.canvas import check_format, new_figure

    out = Path(options["out"])
    check_format(out)
    found = [out]
    for end in beside:
        found.append(
            out.with_suffix(end) if end.startswith(".") else out.with_stem(f"{out.stem}{end}")
        )
    for path in found:
        check_output(path, folder=False)
    # An absent matplotlib shows before any work is done.
    new_figure(1, 1)
    return found


def watched(options: dict[str, Any]) -> bool:
    """Whether somebody wants to see progress."""
    return not (options["quiet"] or options["as_json"])


def tell(options: dict[str, Any], facts: dict[str, Any], sentence: str) -> None:
    """Print facts as JSON, or a sentence, or nothing."""
    if options["as_json"]:
        echo_json(facts)
    elif not options["quiet"]:
        click.echo(sentence)
