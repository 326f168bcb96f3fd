"""Curves, sweeps, pictures and costs on a reproduction's page."""

from __future__ import annotations

from collections.abc import Iterable

from unperturb.recipes.render_draws import panel_lines
from unperturb.recipes.render_tables import column_notes, leaking, legend
from unperturb.recipes.words import (
    Record,
    cell_text,
    cells_of,
    header_of,
    line_of,
    ours_text,
)

__all__ = ["costs_part", "curves_part", "figures_part", "sweeps_part"]


def curves_part(record: Record) -> list[str]:
    lines = ["## Curves", "", *_pictures(record.get("files", ()))]
    for panel in record["panels"]:
        lines += [
            f"### {panel['title']}",
            "",
            *header_of(["line", "epochs", "first", "last", "best"]),
        ]
        for label, model, key in panel["lines"]:
            curve = record["curves"].get(model, {"status": "not run", "reason": "", "epochs": []})
            values = [e[key] for e in curve["epochs"] if e.get(key) is not None]
            if not values:
                reason = curve["reason"] or f"training records no {key}"
                lines.append(
                    line_of([cell_text(label), f"not run: {cell_text(reason)}", "", "", ""])
                )
                continue
            shown = [f"{value:.1%}" for value in (values[0], values[-1], max(values))]
            # The first point may be what stood before the first step.
            count = sum(e.get(key) is not None and e["epoch"] > 0 for e in curve["epochs"])
            lines.append(line_of([cell_text(label), str(count), *shown]))
        lines.append("")
    return lines


def sweeps_part(record: Record) -> list[str]:
    lines = ["## Sweeps", "", "The epoch that each run keeps, by its monitor.", ""]
    lines += _pictures(record.get("files", ()))
    figures, audited = dict(record["sweep_figures"]), _audited(record)
    for sweep in record["sweeps"]:
        names = [sweep["label"], *figures, "in the state", *audited]
        lines += [f"### {sweep['name']}", "", *header_of(names)]
        for point in sweep["points"]:
            found = point["figures"]
            if point["status"] != "done":
                rest = [f"not run: {cell_text(point['reason'])}", *[""] * (len(names) - 2)]
            else:
                rest = ["" if found.get(k) is None else f"{found[k]:.1%}" for k in figures.values()]
                rest.append("yes" if found.get("robust_overfitting") else "no")
                rest += [
                    ours_text(cells_of(record, point["row"], column).get(attacker))
                    for column, attacker in audited.values()
                ]
            lines.append(line_of([str(point["value"]), *rest]))
        lines.append("")
    if audited:
        lines += [*legend(record), "", *column_notes(record), *leaking(record)]
    return lines


def _audited(record: Record) -> dict[str, tuple[str, str]]:
    """Columns of a sweep's audits: heading to (column, attacker)."""
    found: dict[str, tuple[str, str]] = {}
    if not record.get("cells"):
        return found
    defenses = {row["defense"] for row in record["rows"] if row["defense"]}
    subject = f"with {'/'.join(sorted(defenses))}, " if defenses else ""
    for column in record["columns"]:
        if column["attack"] is None:
            found[f"{subject}{column['name']}"] = (column["name"], "none")
            continue
        for attacker in record["attackers"]:
            found[f"{subject}{column['name']}, {attacker}"] = (column["name"], attacker)
    return found


def _pictures(files: Iterable[str]) -> list[str]:
    shown = [f"![{name}]({name})" for name in files if name.endswith(".png")]
    return [*shown, ""] if shown else []


def figures_part(record: Record) -> list[str]:
    lines = ["## Figures", ""]
    for figure in record["figures"]:
        title = figure.get("subject") or figure["draw"]
        lines += [f"### {title}", ""]
        if figure["status"] != "done":
            lines += [f"not run: {figure['reason']}", ""]
            continue
        lines += _pictures(figure["files"])
        lines += [f"- left out: {words}" for words in figure.get("left_out", ())]
        found = figure["found"]
        if figure["draw"] == "panels":
            lines += panel_lines(found)
        elif figure["draw"] == "gradcam":
            lines += [*header_of(["column", "right answers", "n"])]
            lines += [
                line_of([part["name"], f"{part['accuracy']:.1%}", str(found["n"])])
                for part in found["columns"]
            ]
        else:
            lines += header_of(["row", "column", "accuracy", "10-NN label agreement", "silhouette"])
            for row in found["rows"]:
                for panel in row["panels"]:
                    shape = panel["silhouette"]
                    lines.append(
                        line_of([
                            cell_text(row["name"]), panel["name"], f"{panel['accuracy']:.1%}",
                            f"{panel['neighbors']:.1%}",
                            "undefined" if shape is None else f"{shape:.3f}",
                        ])
                    )  # fmt: skip
            lines += ["", f"n = {found['n']}; agreement by chance {found['chance']:.1%}."]
        lines.append("")
    return lines


def costs_part(record: Record) -> list[str]:
    facts, network = record["facts"], record["network"]
    lines = [
        "## Costs",
        "",
        f"`{network['arch']}`, batches of {network['batch_size']}, {network['train_images']:,} "
        f"images in an epoch of training and {network['test_images']:,} in one of testing; "
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}. {facts['note']}. "
        "Seconds are those of one batch, multiplied.",
        "",
        *header_of(["", "", "paper", "ours"]),
    ]
    for row in record["costs"]:
        for part in row["values"]:
            quoted, value = row["paper"].get(part["name"]), part["value"]
            lines.append(
                line_of(
                    [
                        cell_text(row["row"]),
                        part["name"],
                        "not reported" if quoted is None else f"{quoted}",
                        "not run: nothing was timed" if value is None else f"{value:.2f}",
                    ]
                )
            )
        for what, words in (("training", "training step"), ("answer", "answer")):
            passes = f"{row['forwards'][what]:.2f}"
            name = f"Forward passes of one {words}"
            lines.append(line_of([cell_text(row["row"]), name, "not reported", passes]))
    return [*lines, ""]
