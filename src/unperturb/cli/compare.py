"""``unperturb compare``."""

from __future__ import annotations

from pathlib import Path

import click

from unperturb.cli.options import check_output


@click.command(short_help="Set audits side by side, on the same images.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER FOLDER...")
@click.option("--out", help="Where to write compare.html, compare.md and compare.json.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print all figures as one JSON object instead."
)
def compare(folders: tuple[str, ...], out: str | None, as_json: bool) -> int:
    """Compare audits on the images that all of them have: accuracies, paired tests, curves.

    \b
    Example:
      unperturb compare runs/tpap runs/plain --out runs/tpap-or-plain

    Audits under different threat models, of different images or of different classes are refused.
    Where they did not run the same attacks, the attacks they share are compared as well.
    """
    from unperturb.audit.compare import compare_audits
    from unperturb.audit.compare_report import (
        comparison_json,
        comparison_text,
        write_comparison,
    )

    if out is not None:
        check_output(Path(out))
    found = compare_audits(folders)
    paths = write_comparison(found, Path(out)) if out is not None else []
    if as_json:
        click.echo(comparison_json(found), nl=False)
        return 0
    click.echo(comparison_text(found))
    for path in paths:
        click.echo(path)
    return 0
