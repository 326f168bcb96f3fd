"""A comparison of audits as a page, as Markdown, as JSON and for the terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unperturb.audit import report_text as words
from unperturb.audit.report_curves import COLORS, Curve, security_chart
from unperturb.audit.report_html import asset, section_view, template
from unperturb.audit.report_markdown import safe, section_text
from unperturb.audit.report_pictures import markup
from unperturb.audit.report_plots import security_curves
from unperturb.audit.report_tables import Cell, Chart, Section, Table, accuracy_cell, plain_cells
from unperturb.files import write_atomic

__all__ = [
    "comparison_html",
    "comparison_json",
    "comparison_markdown",
    "comparison_text",
    "write_comparison",
]

Comparison = Mapping[str, Any]

_WIDTH = 100
# Pairs that a page shows unasked.
_MANY = 12

_TESTED = (
    "Exact McNemar tests on the images that are done in both audits. Holm's correction is over all "
    "pairs of the same row; a difference is called clear from one point on and with a corrected p "
    "below 0.01."
)


def _title(comparison: Comparison) -> str:
    return f"{len(comparison['audits'])} audits compared"


def _setting(comparison: Comparison, *, ascii_only: bool = False) -> str:
    threat = comparison["threat"]
    norm = words.norm_name(threat["norm"], ascii_only=ascii_only)
    return f"{comparison['images']:,} common images, {norm} {threat['eps_text']}"


def _audits(comparison: Comparison) -> Section:
    rows = []
    for audit in comparison["audits"]:
        by, gain = audit["worst_by_attacker"], audit["gain"]
        points = Cell("none")
        if gain is not None:
            reading = words.verdict(gain)
            kind = reading if reading in ("better", "worse") else ""
            points = Cell(words.points(gain["difference"]), reading, kind)
        ratio = (audit["cost"] or {}).get("ratio")
        flags = len(audit["flags"])
        rows.append(
            (
                Cell(audit["name"], audit["title"]),
                accuracy_cell(audit["clean"]),
                accuracy_cell(by.get("oblivious")),
                accuracy_cell(by.get("adaptive")),
                accuracy_cell(audit["worst_case"]),
                points,
                Cell(f"{flags:,}", "", "worse" if flags else ""),
                Cell("none" if ratio is None else f"{ratio:.2f}\N{MULTIPLICATION SIGN}"),
                Cell(f"{audit['n']:,}", "" if audit["complete"] else "not complete"),
            )
        )
    return Section(
        id="audits",
        title="Each audit by itself",
        words=(
            "On all images of each audit. As published: the attacker ignores the defense. "
            "Informed: the attacker knows it. The gain is that of the worst case over the audit's "
            "own undefended classifier; the cost is the time of an answer against that one's.",
        ),
        tables=(
            Table(
                columns=("audit", "clean", "as published", "informed attacker", "worst case",
                         "gain, points", "red flags", "cost", "images"),
                rows=tuple(rows),
            ),
        ),
    )  # fmt: skip


def _flags(comparison: Comparison) -> Section | None:
    told = tuple(
        f"{audit['name']}: {'; '.join(audit['flags'])}."
        for audit in comparison["audits"]
        if audit["flags"]
    )
    if not told:
        return None
    return Section(
        id="flags",
        title="Red flags",
        words=("Where a flag stands, the figures may be better than the truth.", *told),
    )


def _reading(pair: Mapping[str, Any]) -> tuple[str, str]:
    verdict = words.verdict({"difference": pair["difference"], "mcnemar_p": pair["holm_p"]})
    if verdict == "no clear difference":
        return verdict, ""
    better = pair["first"] if verdict == "better" else pair["second"]
    return f"{better} is better", "better"


def _block(block: Mapping[str, Any], names: Sequence[str], number: int) -> Section:
    accuracies = Table(
        columns=("accuracy, common images", *names),
        rows=tuple(
            (Cell(row["what"]), *(accuracy_cell(value) for value in row["accuracy"]))
            for row in block["rows"]
        ),
    )
    worst = [pair for pair in block["pairs"] if pair["what"] == "worst case"]
    shown = worst if len(worst) <= _MANY else []
    rest = [pair for pair in block["pairs"] if pair not in shown]
    told = block["told"] if block["attacks"] is not None else "each with all that it ran"
    return Section(
        id=f"pairs-{number}",
        nav=f"Compared {block['title']}",
        title=f"Compared {block['title']}",
        words=(f"Counted: {told}.", _TESTED),
        tables=(accuracies, _pairs(shown)) if shown else (accuracies,),
        folded=(_pairs(rest),) if rest else (),
        fold_title=f"{'The other' if shown else 'All'} {len(rest):,} pairs",
    )


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for pair in pairs:
        reading, kind = _reading(pair)
        rows.append(
            (
                *plain_cells(pair["what"], pair["first"], pair["second"]),
                Cell(reading, "", kind),
                Cell(words.percent(pair["first_accuracy"])),
                Cell(words.percent(pair["second_accuracy"])),
                Cell(words.points(pair["difference"])),
                Cell(f"{pair['only_first']:,} / {pair['only_second']:,}"),
                Cell(words.p_value(pair["mcnemar_p"])),
                Cell(words.p_value(pair["holm_p"])),
                Cell(f"{pair['n']:,}"),
            )
        )
    return Table(
        columns=("accuracy", "first", "second", "reading", "first right", "second right", "points",
                 "only first / only second", "McNemar p", "Holm p", "n"),
        rows=tuple(rows),
        texts=4,
    )  # fmt: skip


def _curves(comparison: Comparison) -> Section | None:
    drawn: list[Curve] = []
    for number, entry in enumerate(comparison["curves"]):
        style = COLORS[number % len(COLORS)]
        dash = f" dash{number // len(COLORS)}" if number >= len(COLORS) else ""
        facts = {"curves": entry["curves"], "has_defense": entry["has_defense"]}
        # One curve for each audit: the probe's, which comes first.
        drawn += security_curves(facts, {"target": (style + dash,)}, entry["name"])
    if not drawn:
        return None
    threat = comparison["threat"]
    chart = security_chart(
        drawn, eps=threat["eps"], eps_text=threat["eps_text"],
        label="Accuracy of each audit's target against the size of the perturbation",
    )  # fmt: skip
    return Section(
        id="curve",
        nav="Curves",
        title="Accuracy against the size of the perturbation",
        words=("The attacker knows what is attacked; each audit's first images.",),
        charts=(Chart("", chart),),
    )


def _matrix(comparison: Comparison, names: Sequence[str]) -> Section | None:
    entries = comparison["matrix"]
    if not entries:
        return None
    rows = tuple(
        (
            Cell(entry["attack"], "" if entry["same_settings"] else "settings differ"),
            Cell(entry["attacker"]),
            *(accuracy_cell(value) for value in entry["cells"]),
        )
        for entry in entries
    )
    table = Table(columns=("attack", "attacker", *names), rows=rows, texts=2)
    return Section(
        id="matrix",
        nav="Each attack",
        title="Accuracy under each attack",
        words=("On the common images. Not run is not the same as not broken.",),
        tables=(table,),
    )


def _sections(comparison: Comparison) -> list[Section]:
    names = [audit["name"] for audit in comparison["audits"]]
    made = [
        _audits(comparison),
        _flags(comparison),
        *(_block(block, names, k) for k, block in enumerate(comparison["blocks"], start=1)),
        _curves(comparison),
        _matrix(comparison, names),
    ]
    return [section for section in made if section is not None]


def comparison_html(comparison: Comparison) -> str:
    """One page that opens offline; equal comparisons give equal pages."""
    return template("compare.html.j2").render(
        style=markup(asset("report.css")),
        title=_title(comparison),
        setting=_setting(comparison),
        notes=comparison["notes"],
        sections=[section_view(section) for section in _sections(comparison)],
    )


def comparison_markdown(comparison: Comparison) -> str:
    """The same as Markdown, without the chart."""
    parts = [f"# {_title(comparison)}", safe(_setting(comparison))]
    if comparison["notes"]:
        parts.append("**Before you compare:**")
        parts.append("\n".join(f"- {safe(note)}" for note in comparison["notes"]))
    parts += [section_text(section) for section in _sections(comparison)]
    return "\n\n".join(parts) + "\n"


def comparison_json(comparison: Comparison) -> str:
    """The same as indented JSON."""
    return json.dumps(comparison, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _ascii(text: str) -> str:
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def comparison_text(comparison: Comparison) -> str:
    """What the command line prints: plain ASCII, at most 100 columns."""
    header = f"{'audit':<28}{'clean':>9}{'published':>11}{'informed':>10}{'worst':>9}"
    header += f"{'gain':>8}{'flags':>7}{'images':>9}"
    lines = [_title(comparison), _setting(comparison, ascii_only=True), "", header]
    lines.append("-" * len(header))
    for audit in comparison["audits"]:
        by, gain = audit["worst_by_attacker"], audit["gain"]
        name = _ascii(audit["name"])
        cells = [audit["clean"], by.get("oblivious"), by.get("adaptive"), audit["worst_case"]]
        shown = [words.percent(cell) for cell in cells]
        points = "none" if gain is None else _ascii(words.points(gain["difference"]))
        lines.append(
            f"{name if len(name) < 28 else name[:24] + '...':<28}"
            f"{shown[0]:>9}{shown[1]:>11}{shown[2]:>10}{shown[3]:>9}"
            f"{points:>8}{len(audit['flags']):>7}{audit['n']:>9,}"
        )
    for block in comparison["blocks"]:
        lines += ["", _ascii(f"Compared {block['title']}:")]
        for pair in block["pairs"]:
            if pair["what"] != "worst case":
                continue
            told = (
                f"  {pair['first']} {words.percent(pair['first_accuracy'])}, {pair['second']} "
                f"{words.percent(pair['second_accuracy'])}: {_reading(pair)[0]} "
                f"(McNemar p, Holm: {words.p_value(pair['holm_p'])}, n = {pair['n']:,})"
            )
            lines += textwrap.wrap(_ascii(told), _WIDTH, initial_indent="  ",
                                   subsequent_indent="    ")  # fmt: skip
    if comparison["notes"]:
        lines.append("")
    for note in comparison["notes"]:
        lines += textwrap.wrap(f"! {_ascii(note)}", _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``compare.html``, ``compare.md`` and ``compare.json`` into a folder.

    All are made before the first is written, and each is replaced as a whole.

    Returns:
        The three paths, HTML first.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    texts = {
        "compare.html": comparison_html(comparison),
        "compare.md": comparison_markdown(comparison),
        "compare.json": comparison_json(comparison),
    }
    paths = []
    for name, text in texts.items():
        path = Path(folder) / name
        write_atomic(path, _writer(text))
        paths.append(path)
    return paths


def _writer(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8", newline="\n")

    return write
