"""The report as Markdown (tables as GitHub and MkDocs read them), without pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unperturb.audit import report_text as words
from unperturb.audit.report_glossary import COLUMN_HELP, GLOSSARY
from unperturb.audit.report_sections import sections
from unperturb.audit.report_tables import Cell, Section, Table

__all__ = ["markdown_page", "safe", "section_text", "table_text"]

Summary = Mapping[str, Any]


def safe(text: object) -> str:
    """Text that Markdown and the HTML behind it leave as it is."""
    line = re.sub(r"\s+", " ", str(text)).strip()
    line = re.sub(r"([\\`*\[\]|])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """A table whose first ``texts`` columns are text and the rest numbers."""
    rule = ["---" if index < texts else "---:" for index in range(len(header))]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return words.NOT_RUN
    return f"{words.percent(accuracy)} ({words.interval(accuracy)})"


def _headline(summary: Summary) -> str:
    has_defense = summary["has_defense"]
    _, subjects = words.columns(summary)
    subjects = list(reversed(subjects))
    header = ["", *(words.subject_name(subject, has_defense) for subject in subjects)]
    rows = []
    for attacker in words.ATTACKER_ORDER:
        heading = words.attacker_heading(attacker, has_defense)
        cells = [(summary[s].get("worst_by_attacker") or {}).get(attacker) for s in subjects]
        name = f"**{heading.title}**: {heading.subtitle} ({heading.short})"
        rows.append([name, *(_bold(cell) for cell in cells)])
    rows.append(
        ["Worst case per image, over everything that was run"]
        + [_cell(summary[s].get("worst_case")) for s in subjects]
    )
    if any(summary[s].get("worst_case_8bit") for s in subjects):
        rows.append(
            ["Worst case, attacked images rounded to 8 bits"]
            + [_cell(summary[s].get("worst_case_8bit")) for s in subjects]
        )
    rows.append(["Clean accuracy"] + [_cell(summary[s].get("clean")) for s in subjects])
    return table_text(header, rows, 1)


def _bold(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return words.NOT_RUN
    return f"**{words.percent(accuracy)}** ({words.interval(accuracy)})"


def _accuracies(summary: Summary) -> str:
    has_defense = summary["has_defense"]
    attackers, subjects = words.columns(summary)
    header = ["attack"]
    for attacker in attackers:
        short = words.attacker_heading(attacker, has_defense).short
        header += [
            f"{words.subject_name(s, has_defense)}, {short}" if has_defense else short
            for s in subjects
        ]
    rows = []
    for row in words.attack_rows(summary):
        cells = [_cell(row.cells[a][s]) for a in attackers for s in subjects]
        rows.append([f"**{row.name}**" if row.kind == "worst" else safe(row.name), *cells])
    return table_text(header, rows, 1)


def _gains(summary: Summary) -> str:
    header = [
        "accuracy", "reading", "undefended", "defended", "points", "only defended right",
        "only undefended right", "McNemar p",
    ]  # fmt: skip
    rows = [
        [
            safe(gain["what"]),
            words.verdict(gain),
            words.percent(gain["baseline"]),
            words.percent(gain["target"]),
            words.points(gain["difference"]),
            f"{gain['only_target']:,}",
            f"{gain['only_baseline']:,}",
            words.p_value(gain["mcnemar_p"]).replace("<", "&lt;"),
        ]
        for gain in summary["gains"]
    ]
    return table_text(header, rows, 2)


def _details(summary: Summary) -> str:
    has_defense = summary["has_defense"]
    random = summary.get("scoring_draws", 2) > 1
    header = [
        "attack", "settings", "attacker", "scored on", "backward", "goal", "stop",
        "accuracy", "8-bit", "distance", "queries", "zero gradients", "wrong when clean", "seconds",
    ]  # fmt: skip
    rows = []
    for attack in words.ordered_attacks(summary):
        n = attack["n"]
        seconds, queries = attack.get("seconds"), attack.get("queries_per_image")
        accuracy = {
            "accuracy": attack["robust_accuracy"], "n": n, "interval": attack["interval"],
        }  # fmt: skip
        rows.append(
            [
                safe(attack["name"]),
                safe(words.settings_text(attack.get("settings") or {}, random=random)),
                safe(attack["attacker"]),
                words.subject_name(attack["subject"], has_defense),
                safe(attack["backward"]),
                safe(attack.get("goal", "wrong")),
                safe(attack["stop"].replace("-", " ")),
                _cell(accuracy),
                words.share(attack.get("accuracy_8bit"), n),
                words.distance(attack.get("median_distance"), attack["norm"]),
                "none" if queries is None else f"{queries:,.1f}",
                words.share(attack.get("zero_gradient_share"), 0),
                words.share(attack.get("wrong_when_clean_accuracy"), 0),
                "none" if seconds is None else f"{seconds:,.1f}",
            ]
        )
    return table_text(header, rows, 7)


def _cost(summary: Summary) -> str:
    cost = summary.get("cost")
    if cost is None:
        return "The time of an answer was not measured."
    target, baseline = cost.get("target_ms_per_image"), cost.get("baseline_ms_per_image")
    batch = f", in batches of {cost['batch_size']}" if cost.get("batch_size") else ""
    note = f" ({safe(cost['note'].rstrip('.'))})" if cost.get("note") else ""
    memory = words.memory_line(cost, summary["has_defense"])
    memory = f" {safe(memory)}" if memory else ""
    if summary["has_defense"] and cost.get("ratio") is not None:
        return (
            f"A defended answer takes **{cost['ratio']:.2f}\N{MULTIPLICATION SIGN}** the time of "
            f"an undefended one: {target:.3g} ms against {baseline:.3g} ms for each image"
            f"{batch}{note}.{memory}"
        )
    return f"An answer takes {target:.3g} ms for each image{batch}{note}.{memory}"


def _settings(summary: Summary) -> str:
    audit: dict[str, Any] = {
        "threat": summary["threat"],
        "suite": summary.get("suite"),
        "seed": summary["seed"],
        "batch_size": summary["batch_size"],
        "settings_hash": summary["settings_hash"],
        "digest": summary.get("digest"),
    }
    groups: list[dict[str, Any]] = [
        audit,
        {"target": summary["target"].get("describe") or {}},
        {"data": summary["data"]},
        {"environment": summary["environment"]},
    ]
    if summary["has_defense"]:
        groups.insert(2, {"baseline": summary["baseline"].get("describe") or {}})
    rows = [
        [safe(name), safe(value)] for group in groups for name, value in words.settings_rows(group)
    ]
    return table_text(["setting", "value"], rows, 2)


def _section_cell(cell: Cell) -> str:
    value = safe(cell.value) or " "
    return f"{value} ({safe(cell.small)})" if cell.small else value


def _section_table(table: Table) -> str:
    rows = [[_section_cell(cell) for cell in row] for row in table.rows]
    text = table_text([safe(name) for name in table.columns], rows, table.texts)
    return f"{safe(table.caption)}\n\n{text}" if table.caption else text


def section_text(section: Section) -> str:
    """A section with its tables; pictures are left to HTML."""
    parts = [f"## {safe(section.title)}", *(safe(line) for line in section.words)]
    parts += [_section_table(table) for table in (*section.tables, *section.folded)]
    return "\n\n".join(parts)


def _rejection(summary: Summary) -> list[str]:
    facts = summary.get("rejection")
    if not facts:
        return []
    ours, theirs = facts["wrong_unflagged"], facts.get("baseline_wrong") or {}

    def row(title: str, one: Any, two: Any) -> list[str]:
        return [title, *(f"{words.rate(v)} ({words.rate_interval(v)})" if v else "none"
                         for v in (one, two))]  # fmt: skip

    named = [
        (words.attacker_heading(attacker, True).title, attacker)
        for attacker in words.ATTACKER_ORDER
        if attacker in summary["attackers"]
    ]
    rows = [
        row(title, *((v.get("worst_by_attacker") or {}).get(a) for v in (ours, theirs)))
        for title, a in named
    ]
    rows += [
        row(title, ours.get(key), theirs.get(key))
        for title, key in (("Worst case", "worst_case"), ("No attack", "clean"))
    ]
    rate = facts.get("false_positive_rate")
    header = ["**Wrong and not flagged** (the detector rejects)", "defended", "undefended, wrong"]
    told = f"Clean images rejected: **{words.rate(rate)}** ({words.rate_interval(rate)})."
    return [table_text(header, rows, 1), told]


def _items(items: Iterable[object]) -> str:
    return "\n".join(f"- {safe(item)}" for item in items)


def markdown_page(summary: Summary) -> str:
    """Render a checked summary; see :func:`unperturb.audit.report.render_markdown`."""
    parts = [f"# {safe(summary['title'])}", safe(words.setting_line(summary, ", "))]
    if not summary["complete"]:
        parts.append(f"**This audit is not complete.** {words.INCOMPLETE}")
    if summary["left_out"]:
        parts.append("Left out:\n\n" + _items(summary["left_out"]))
    parts += _rejection(summary)
    parts.append(_headline(summary))
    if words.draws_line(summary):
        parts.append(safe(words.draws_line(summary)))
    parts.append("In brackets: Wilson 95% intervals.")
    if summary["lesson"]:
        parts.append(f"> {safe(summary['lesson'])}")
    parts.append("## Red flags")
    for flag in summary["flags"]:
        parts.append(
            f"- **{safe(flag['title'])}** Evidence: {safe(flag['evidence'])} "
            f"What it means: {safe(flag['meaning'])}"
        )
    if not summary["flags"]:
        parts.append(words.NO_FLAG)
    if summary["notes"]:
        parts += ["## Notes", _items(summary["notes"])]
    parts += ["## Accuracy under each attack", _accuracies(summary)]
    if summary["has_defense"]:
        parts += ["## What the defense adds", _gains(summary)]
        parts.append(
            "Better or worse: at least one point, and p below 0.01 in McNemar's exact test."
        )
    parts += [section_text(section) for section in sections(summary)]
    parts += ["## Details of each attack", _details(summary)]
    parts.append("\n".join(f"- {term}: {meaning}" for term, meaning in COLUMN_HELP))
    parts += ["## Cost", _cost(summary)]
    parts.append("## Settings, and how to repeat this audit")
    if summary.get("command"):
        # A fence longer than any run of backticks inside cannot be closed by the command itself.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", summary["command"])), default=0))
        parts.append(f"{fence}\n{summary['command']}\n{fence}")
    parts.append(_settings(summary))
    parts += ["## Glossary", "\n".join(f"- **{term}**: {text}" for term, text in GLOSSARY)]
    return "\n\n".join(parts) + "\n"
