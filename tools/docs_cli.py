"""MkDocs hook: the line ``<!-- commands -->`` becomes the help of every command, as it is."""

from __future__ import annotations

from typing import Any

import click

MARK = "<!-- commands -->"


def reference() -> str:
    """One section for each command, in the command line's own order."""
    from unperturb.cli import unperturb as program

    parts = []
    parent = click.Context(program, info_name="unperturb", **program.context_settings)
    for name, command in program.commands.items():
        # Nobody's terminal decides how wide the page is.
        context = click.Context(command, info_name=name, parent=parent, terminal_width=90)
        parts.append(f"### {name}\n\n```text\n{command.get_help(context)}\n```\n")
        for part, inner in getattr(command, "commands", {}).items():
            below = click.Context(inner, info_name=part, parent=context, terminal_width=90)
            parts.append(f"### {name} {part}\n\n```text\n{inner.get_help(below)}\n```\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the reference where the mark stands."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown
