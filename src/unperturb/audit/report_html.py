"""The report as one HTML page that opens offline: no script, no font, no link to anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from unperturb.audit import charts
from unperturb.audit import report_text as words
from unperturb.audit.cases import Case
from unperturb.audit.report_glossary import COLUMN_HELP, GLOSSARY
from unperturb.audit.report_pictures import case_views, markup
from unperturb.audit.report_records import LARGEST_INLINE, NAME
from unperturb.audit.report_sections import sections
from unperturb.audit.report_tables import Section, Table

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["asset", "html_page", "section_view", "template"]

Summary = Mapping[str, Any]


@cache
def template(name: str) -> Template:
    """A template of this package; it may import macros of the others."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def asset(name: str) -> str:
    """A text file that comes with the package."""
    return files("unperturb.audit").joinpath("templates", name).read_text(encoding="utf-8")


def _number(accuracy: Mapping[str, Any] | None, subject: str, has_defense: bool) -> dict[str, Any]:
    return {
        "who": words.subject_name(subject, has_defense),
        "subject": subject,
        "value": words.percent(accuracy),
        "interval": words.interval(accuracy),
        "count": words.count(accuracy),
        "meter": markup(charts.meter(accuracy, subject)),
        "run": accuracy is not None,
    }


def _headline(summary: Summary) -> dict[str, Any]:
    has_defense = summary["has_defense"]
    subjects = ["target", "baseline"] if has_defense else ["target"]

    def numbers(*path: str) -> list[dict[str, Any]]:
        found = []
        for subject in subjects:
            value: Any = summary[subject]
            for key in path:
                value = (value or {}).get(key)
            found.append(_number(value, subject, has_defense))
        return found

    cards = [
        {
            "id": attacker,
            "heading": words.attacker_heading(attacker, has_defense),
            "run": attacker in summary["attackers"],
            "numbers": numbers("worst_by_attacker", attacker),
            "by_attack": [
                (row.name, words.percent(row.cells[attacker]["target"]))
                for row in words.attack_rows(summary)
                if row.kind == "attack" and attacker in row.cells
            ],
        }
        for attacker in words.ATTACKER_ORDER
    ]
    rounded = []
    if any(summary[subject].get("worst_case_8bit") for subject in subjects):
        title = "Worst case, attacked images rounded to 8 bits"
        rounded.append({"title": title, "numbers": numbers("worst_case_8bit")})
    return {
        "draws": words.draws_line(summary),
        "cards": cards,
        "strip": [
            {"title": "Worst case per image, over everything that was run",
             "numbers": numbers("worst_case")},
            {"title": "Clean accuracy, no attack", "numbers": numbers("clean")},
            *rounded,
        ],
    }  # fmt: skip


def _table(summary: Summary) -> dict[str, Any]:
    has_defense = summary["has_defense"]
    attackers, subjects = words.columns(summary)
    rows = words.attack_rows(summary)
    panels = []
    for attacker in attackers:
        heading = words.attacker_heading(attacker, has_defense)
        label = f"Accuracy under each attack, {heading.subtitle}"
        drawn = charts.accuracy_chart(rows, attacker, subjects, label)
        panels.append({"heading": heading, "chart": markup(drawn)})
    return {
        "attackers": [words.attacker_heading(name, has_defense) for name in attackers],
        "subjects": [(s, words.subject_name(s, has_defense)) for s in subjects],
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "cells": [
                    _number(row.cells[attacker][subject], subject, has_defense)
                    for attacker in attackers
                    for subject in subjects
                ],
            }
            for row in rows
        ],
        "panels": panels,
    }


def _gains(summary: Summary) -> list[dict[str, Any]]:
    rows = []
    # Never finer than ten points, so that a chance difference does not fill the bar.
    reach = max([0.1, *(abs(gain["difference"]) for gain in summary["gains"])])
    for gain in summary["gains"]:
        reading = words.verdict(gain)
        kind = reading if reading in ("better", "worse") else "unclear"
        rows.append(
            {
                "what": gain["what"],
                "baseline": words.percent(gain["baseline"]),
                "target": words.percent(gain["target"]),
                "points": words.points(gain["difference"]),
                "bar": markup(charts.diverging_bar(gain["difference"], kind, reach)),
                "only_target": f"{gain['only_target']:,}",
                "only_baseline": f"{gain['only_baseline']:,}",
                "p": words.p_value(gain["mcnemar_p"]),
                "reading": reading,
                "kind": kind,
            }
        )
    return rows


def _attacks(summary: Summary) -> dict[str, Any]:
    has_defense = summary["has_defense"]
    random = summary.get("scoring_draws", 2) > 1
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    seconds: dict[tuple[object, ...], float] = {}
    for attack in words.ordered_attacks(summary):
        accuracy = {
            "accuracy": attack["robust_accuracy"],
            "n": attack["n"],
            "interval": attack["interval"],
        }
        settings = words.settings_text(attack.get("settings") or {}, random=random)
        oblivious = attack["attacker"] == "oblivious"
        # An oblivious attack is made once and scored on both models.
        goal = attack.get("goal", "wrong")
        key = (attack["name"], oblivious or attack["subject"], attack["backward"], goal)
        seconds[key] = max(seconds.get(key, 0.0), attack.get("seconds") or 0.0)
        groups.setdefault((attack["name"], settings), []).append(
            {
                "attacker": attack["attacker"],
                "subject": words.subject_name(attack["subject"], has_defense),
                "backward": attack["backward"],
                "goal": goal,
                "stop": attack["stop"].replace("-", " "),
                "accuracy": words.percent(accuracy),
                "interval": words.interval(accuracy),
                "rounded": words.share(attack.get("accuracy_8bit"), attack["n"]),
                "distance": words.distance(attack.get("median_distance"), attack["norm"]),
                "queries": _plain(attack.get("queries_per_image"), "{:,.1f}"),
                "zero": words.share(attack.get("zero_gradient_share"), 0),
                "leak": words.share(attack.get("wrong_when_clean_accuracy"), 0),
                "seconds": _plain(attack.get("seconds"), "{:,.1f}"),
            }
        )
    goals = any(row["goal"] != "wrong" for rows in groups.values() for row in rows)
    leaks = any(row["leak"] != "none" for rows in groups.values() for row in rows)
    return {
        "groups": [
            {"name": name, "settings": settings, "rows": rows}
            for (name, settings), rows in groups.items()
        ],
        "leaks": leaks,
        "goals": goals,
        "count": sum(map(len, groups.values())),
        "seconds": f"{sum(seconds.values()):,.0f}",
        "help": COLUMN_HELP,
    }


def _plain(value: float | None, form: str) -> str:
    return "none" if value is None else form.format(value)


def _cost(summary: Summary) -> dict[str, Any] | None:
    cost = summary.get("cost")
    if cost is None:
        return None
    ratio = cost.get("ratio")
    return {
        "target": _plain(cost.get("target_ms_per_image"), "{:.3g} ms"),
        "baseline": _plain(cost.get("baseline_ms_per_image"), "{:.3g} ms"),
        "memory": words.memory_line(cost, summary["has_defense"]),
        "ratio": None if ratio is None else f"{ratio:.2f}\N{MULTIPLICATION SIGN}",
        "batch_size": cost.get("batch_size"),
        "note": (cost.get("note") or "").rstrip("."),
    }


def _settings(summary: Summary) -> list[dict[str, Any]]:
    data = {key: value for key, value in summary["data"].items() if key != "classes"}
    data["classes"] = summary["data"].get("classes") or []
    audit = {
        "threat": summary["threat"],
        "attackers": summary["attackers"],
        "suite": summary.get("suite"),
        "seed": summary["seed"],
        "batch size": summary["batch_size"],
        "draws per answer": summary.get("scoring_draws", 1),
        "draws to select the worst attack": summary.get("selection_draws"),
        "settings hash": summary["settings_hash"],
        "digest": summary.get("digest"),
    }
    groups: list[tuple[str, Any]] = [("Audit", audit)]
    if summary["has_defense"]:
        groups.append(("Defended classifier", summary["target"].get("describe") or {}))
        groups.append(("Undefended classifier", summary["baseline"].get("describe") or {}))
    else:
        groups.append(("Classifier", summary["target"].get("describe") or {}))
    groups += [("Data", data), ("Environment", summary["environment"])]
    return [{"title": title, "rows": words.settings_rows(values)} for title, values in groups]


def section_view(section: Section) -> dict[str, Any]:
    """What the template draws of a section."""
    return {
        "id": section.id,
        "title": section.title,
        "nav": section.nav or section.title,
        "words": section.words,
        "charts": [{"title": chart.title, "svg": markup(chart.svg)} for chart in section.charts],
        "tables": [_table_view(table) for table in section.tables],
        "folded": [_table_view(table) for table in section.folded],
        "fold_title": section.fold_title,
    }


def _table_view(table: Table) -> dict[str, Any]:
    sides = ["" if k < table.texts else "num" for k in range(len(table.columns))]
    return {
        "caption": table.caption,
        "columns": list(zip(table.columns, sides, strict=True)),
        "rows": [
            [(cell, f"{side} {cell.kind}".strip()) for cell, side in zip(row, sides, strict=True)]
            for row in table.rows
        ],
    }


def _rejection(summary: Summary) -> dict[str, Any] | None:
    """The headline of a detector that rejects: wrong and not flagged."""
    facts = summary.get("rejection")
    if not facts:
        return None
    ours, theirs = facts["wrong_unflagged"], facts.get("baseline_wrong") or {}

    def pair(title: str, *path: str) -> dict[str, Any]:
        found = []
        for values in (ours, theirs):
            value: Any = values
            for key in path:
                value = (value or {}).get(key)
            found.append((words.rate(value), words.rate_interval(value)))
        return {"title": title, "target": found[0], "baseline": found[1]}

    figures = [
        pair(words.attacker_heading(attacker, True).title, "worst_by_attacker", attacker)
        for attacker in words.ATTACKER_ORDER
        if attacker in summary["attackers"]
    ]
    figures += [pair("Worst case", "worst_case"), pair("No attack", "clean")]
    rate, kept = facts.get("false_positive_rate"), facts.get("right_unflagged_clean")
    gain = facts.get("gain")
    told = ""
    if gain:
        less = "fewer" if gain["difference"] >= 0 else "more"
        told = (
            f"Over everything that was run, {abs(100 * gain['difference']):.1f} points {less} "
            f"images are fooled than undefended: {words.verdict(gain)} "
            f"(McNemar p {words.p_value(gain['mcnemar_p'])})."
        )
    return {
        "figures": figures,
        "false_positive": (words.rate(rate), words.rate_interval(rate)),
        "kept": (words.rate(kept), words.rate_interval(kept)),
        "told": told,
    }


def _records(records: bytes | None) -> dict[str, Any] | None:
    if records is None:
        return None
    inline = None
    if len(records) <= LARGEST_INLINE:
        # Not image/*, and named by the link's download attribute: browsers save it.
        kind = "application/vnd.apache.parquet"
        inline = markup(f"data:{kind};base64,{base64.b64encode(records).decode('ascii')}")
    return {"name": NAME, "size": words.size(len(records)), "inline": inline}


def html_page(summary: Summary, cases: Sequence[Case], records: bytes | None = None) -> str:
    """Render a checked summary; see :func:`unperturb.audit.report.render_html`."""
    has_defense = summary["has_defense"]
    return template("report.html.j2").render(
        style=markup(asset("report.css")),
        title=summary["title"],
        setting=words.setting_line(summary, " \N{MIDDLE DOT} "),
        has_defense=has_defense,
        complete=summary["complete"],
        left_out=summary["left_out"],
        incomplete=words.INCOMPLETE,
        lesson=summary["lesson"],
        headline=_headline(summary),
        rejection=_rejection(summary),
        flags=summary["flags"],
        no_flag=words.NO_FLAG,
        notes=summary["notes"],
        table=_table(summary),
        gains=_gains(summary),
        sections=[section_view(section) for section in sections(summary)],
        cases=case_views(cases, summary) if cases else None,
        attacks=_attacks(summary),
        cost=_cost(summary),
        settings=_settings(summary),
        digest=summary.get("digest"),
        records=_records(records),
        command=summary.get("command"),
        glossary=GLOSSARY,
    )
