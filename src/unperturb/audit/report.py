"""Reports of an audit: pure functions of its records, in HTML, Markdown, JSON and plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unperturb.audit.cases import Case
from unperturb.audit.report_html import html_page
from unperturb.audit.report_markdown import markdown_page
from unperturb.audit.report_records import NAME, records_bytes
from unperturb.audit.report_terminal import table_text
from unperturb.errors import RecordError
from unperturb.files import write_atomic

__all__ = [
    "SUMMARY_VERSION",
    "records_bytes",
    "render_html",
    "render_json",
    "render_markdown",
    "terminal_table",
    "write_reports",
]

SUMMARY_VERSION = 2
# Summaries of the first schema lack what the second added, and are rendered without it.
_READABLE = (1, 2)
_REQUIRED = (
    "complete", "left_out", "title", "settings_hash", "threat", "seed", "batch_size", "data",
    "environment", "has_defense", "target", "baseline", "attackers", "table", "attacks", "gains",
    "flags", "notes", "lesson",
)  # fmt: skip

Summary = Mapping[str, Any]


def _check(summary: Summary) -> None:
    version = summary.get("schema_version")
    if version not in _READABLE:
        raise RecordError(
            f"The summary has schema_version {version!r}",
            expected=f"schema_version {' or '.join(map(str, _READABLE))}",
            fix="make the report with the version of unperturb that ran the audit",
        )
    missing = [name for name in _REQUIRED if name not in summary]
    if missing:
        raise RecordError(
            f"The summary lacks {', '.join(missing)}",
            expected="a summary made from an audit's records",
            fix="run unperturb report on the audit's folder again",
        )


def render_html(summary: Summary, cases: Sequence[Case], records: bytes | None = None) -> str:
    """Render one HTML page that needs nothing else: no script, font, style or link outside it.

    The one exception are records too large to be held in the page: their link leads to the file
    beside it.

    Args:
        summary: What ``summarize`` made of the records. Accuracies are in [0, 1], times in
            seconds or milliseconds as named; an accuracy of None is shown as "not run".
        cases: Example images; none leaves the section of pictures out.
        records: The file of records to be downloaded from the page; see ``records_bytes``.

    Returns:
        The page. Equal arguments give an equal page.

    Raises:
        RecordError: The summary is of another version, or parts of it are missing.
        InputError: An example is not one image (C, H, W).
    """
    _check(summary)
    return html_page(summary, cases, records)


def render_markdown(summary: Summary) -> str:
    """Render the report as Markdown, without pictures.

    Raises:
        RecordError: The summary is of another version, or parts of it are missing.
    """
    _check(summary)
    return markdown_page(summary)


def render_json(summary: Summary) -> str:
    """Render the summary as indented JSON that reads back as an equal summary.

    Raises:
        RecordError: The summary is of another version, lacks parts, or holds NaN or infinity.
    """
    _check(summary)
    try:
        return json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise RecordError(
            f"The summary cannot be written as JSON: {error}",
            expected="finite numbers, and None where there is no figure",
            fix="check the records for NaN",
        ) from error


def terminal_table(summary: Summary) -> str:
    """Render the table shown at the end of an audit: ASCII, at most 100 columns wide.

    Raises:
        RecordError: The summary is of another version, or parts of it are missing.
    """
    _check(summary)
    return table_text(summary)


def write_reports(
    summary: Summary,
    cases: Sequence[Case],
    folder: Path,
    records: bytes | None = None,
) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``report.json`` and ``records.parquet`` into a folder.

    All are made before the first is written, and each is replaced as a whole.

    Args:
        summary: What ``summarize`` made of the records.
        cases: Example images.
        folder: Where the files shall stand; it is made.
        records: The rows behind the summary as a Parquet file, such as ``records_bytes`` makes;
            None writes no ``records.parquet``.

    Returns:
        The paths, HTML first.

    Raises:
        RecordError: The summary is of another version, or parts of it are missing.
        OutputError: The folder cannot be written, or the disk is full.
    """
    files = {
        "report.html": render_html(summary, cases, records).encode(),
        "report.md": render_markdown(summary).encode(),
        "report.json": render_json(summary).encode(),
    }
    if records is not None:
        files[NAME] = records
    paths = []
    for name, content in files.items():
        path = Path(folder) / name
        write_atomic(path, _writer(content))
        paths.append(path)
    return paths


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write
