"""MkDocs hook: a nav entry that ends in ``/`` becomes the pages of that folder, index first.

Folders within come after the pages, each a group of its own name.
So a new purifier, detector, decision or attack is one new page, and no line in ``mkdocs.yml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _pages(docs: Path, folder: str) -> list[Any]:
    names = sorted(path.name for path in (docs / folder).glob("*.md"))
    names.sort(key=lambda name: name != "index.md")
    pages: list[Any] = [f"{folder}{name}" for name in names]
    for inner in sorted(path for path in (docs / folder).glob("*") if path.is_dir()):
        if found := _pages(docs, f"{folder}{inner.name}/"):
            pages.append({f"{inner.name}, one by one": found})
    return pages


def _expand(entry: Any, docs: Path) -> Any:
    if isinstance(entry, list):
        # A folder without pages yet has no place in the menu.
        return [item for item in (_expand(item, docs) for item in entry) if item]
    if isinstance(entry, dict):
        full = {title: _expand(item, docs) for title, item in entry.items()}
        return {title: item for title, item in full.items() if item}
    return _pages(docs, entry) if isinstance(entry, str) and entry.endswith("/") else entry


def on_config(config: Any) -> Any:
    """Expand folders before MkDocs builds the navigation."""
    config["nav"] = _expand(config["nav"], Path(config["docs_dir"]))
    return config
