"""``unperturb convert``."""

from __future__ import annotations

from pathlib import Path

import click

from unperturb.cli.options import echo_json


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--key", help="Where in the checkpoint the weights are, such as state_dict.")
@click.option("--strip-prefix", help="Prefix to take off every name.")
@click.option("--overwrite", is_flag=True, help="Replace TARGET if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(
    source: str,
    target: str,
    key: str | None,
    strip_prefix: str | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Turn pickled weights (.pth, .pt, .bin) into safetensors.

    The pickle is opened in a process of its own that refuses to run code.

    \b
    Example:
      unperturb convert weights.pth weights.safetensors
    """
    from unperturb.convert import convert_weights

    facts = convert_weights(
        Path(source), Path(target), key=key, strip_prefix=strip_prefix, overwrite=overwrite
    )
    if as_json:
        echo_json(facts)
        return 0
    click.echo(f"{target}: {facts['tensors']} tensors, {facts['parameters']:,} numbers")
    if facts["dropped"]:
        click.echo(f"left out, being no tensors: {', '.join(facts['dropped'])}")
    return 0
