"""Write ``docs/results/tpap.md`` and a page for each recipe, from committed records alone.

python tools/tpap_results.py

Records: ``docs/results/records/tpap/NAME.json`` is the ``record.json`` that
``unperturb reproduce tpap/NAME`` wrote; ``training/NAME.json`` is the ``training.json`` of a
training run. What has no record says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unperturb.files import write_text
from unperturb.recipes import load_recipe, render

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "docs/results/records/tpap"
PAGES = ROOT / "docs/results/tpap"

TABLES = ("table-1", "table-2", "table-3", "table-4", "table-6", "table-7", "negative-claims")
OTHERS = ("table-5", "figure-1", "figure-4", "figure-5", "figure-6", "figure-7")

Record = dict[str, Any]


def read(name: str) -> Record | None:
    """A committed record, or None."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def percent(cell: Record | None) -> str:
    """Accuracy and Wilson interval of a cell, or why there is none."""
    if cell is None or cell.get("accuracy") is None:
        reason = (cell or {}).get("reason") or "no record"
        return f"not run: {reason}"
    low, high = (100 * end for end in cell["interval"])
    return f"{100 * cell['accuracy']:.1f} ({low:.1f}-{high:.1f})"


def find(record: Record | None, row: str, column: str, attacker: str) -> Record | None:
    """The cell of a row and a column; the clean one has no attacker."""
    for cell in (record or {}).get("cells", ()):
        same = cell["row"] == row and cell["column"] == column
        if same and cell["attacker"] in (attacker, "none"):
            return cell
    return None


def compact(record: Record) -> list[str]:
    """One table: for each row the paper's figures, ours oblivious, ours adaptive, in percent."""
    names = [column["name"] for column in record["columns"]]
    counts = {
        name: next((c["n"] for c in record["cells"] if c["column"] == name and c.get("n")), None)
        for name in names
    }
    heads = [f"{name} (n = {counts[name]:,})" if counts[name] else name for name in names]
    lines = ["| | | " + " | ".join(heads) + " |", "|---" * (len(names) + 2) + "|"]
    for row in record["rows"]:
        cells = [find(record, row["name"], name, "oblivious") for name in names]
        paper = ["" if c is None or c.get("paper") is None else str(c["paper"]) for c in cells]
        lines.append(f"| **{row['name']}** | paper | " + " | ".join(paper) + " |")
        for attacker in record["attackers"]:
            found = [percent(find(record, row["name"], name, attacker)) for name in names]
            lines.append(f"| | ours, {attacker} | " + " | ".join(found) + " |")
    return lines


def section(name: str) -> list[str]:
    """A recipe's part of the main page, with a link to the whole."""
    recipe = load_recipe(f"tpap/{name}", scale="cpu")
    record = read(name)
    lines = [f"## {recipe.paper.item}. {recipe.title}", ""]
    if record is None:
        return [*lines, f"not run: no record yet (`unperturb reproduce tpap/{name}`).", ""]
    if record.get("cells") and record["kind"] == "table":
        lines += [*compact(record), ""]
    for picture in sorted(PAGES.glob(f"{name}*.png")):
        lines += [f"![{recipe.title}](tpap/{picture.name})", ""]
    return [
        *lines,
        f"Stopping rules, notes, classifiers and digests: [{name}](tpap/{name}.md).",
        "",
    ]


def runs() -> list[str]:
    """What it took to get into the state: every recipe that was given an hour, and its curve."""
    lines = [
        "## Training into robust overfitting",
        "",
        "Every recipe that was given about an hour of one core or more, best held-out epoch of "
        "each. Figures are on held-out training images; *TPAP* is one step of 8/255 around the "
        "network, clean and under oblivious PGD-20 at 8/255.",
        "",
        "| run | last stage | epochs | hours | kept | FGSM, train | FGSM | PGD-20 | clean "
        "| TPAP clean | TPAP PGD-20 | state |",
        "|---" * 12 + "|",
    ]
    for path in sorted((RECORDS / "training").glob("ro-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        epochs, config = run["epochs"], run["config"]
        kept = epochs[run["kept_epoch"] - 1]
        sizes = config.get("mixture") or [config["eps"]]
        words = "+".join(f"{255 * size:g}" if size else "clean" for size in sizes)

        def share(key: str, kept: Record = kept) -> str:
            return f"{100 * kept[key]:.1f}" if key in kept else ""

        hours = sum(epoch["seconds"] for epoch in epochs) / 3600
        state = "reached" if kept["robust_overfitting"] else "not reached"
        lines.append(
            f"| [{path.stem}](records/tpap/training/{path.name}) | {config['objective']} "
            f"{words}/255, lr {config['lr']:g}, {config['schedule']}"
            f"{', clean pass' if config['clean_pass'] else ''} | {len(epochs)} | {hours:.1f} "
            f"| {run['kept_epoch']} | {share('train_fgsm')} | {share('heldout_fgsm')} "
            f"| {share('heldout_pgd')} | {share('heldout_clean')} | {share('heldout_tpap_clean')} "
            f"| {share('heldout_tpap_pgd')} | {state} |"
        )
    return [*lines, ""]


def conclusion() -> list[str]:
    """What a user should take away, in figures of the records."""
    table = read("table-2")
    if table is None:
        return ["not run: no record of Table 2 yet.", ""]
    row = table["rows"][0]["name"]
    ignoring = find(table, row, "PGD-20", "oblivious")
    knowing = find(table, row, "PGD-20", "adaptive")
    clean = find(table, row, "Clean", "none")
    lines = [
        f"**TPAP repairs attacks that were not made for it, and stops none that was.** Around a "
        f"network in robust overfitting it answers {percent(clean)} % of clean images correctly "
        f"and {percent(ignoring)} % under PGD-20 by an attacker who ignores it (the paper: 86.25 "
        f"and 79.06). An attacker who knows it leaves {percent(knowing)} %.",
    ]
    rivals = read("table-1")
    if rivals is not None:
        told = [
            f"{name} {percent(found)} %"
            for name in ("PGD-AT", "TRADES", "MART")
            if (found := find(rivals, name, "PGD-20", "adaptive")) is not None
        ]
        if told:
            lines.append(
                f"A network of the same size that is trained to be robust keeps, under the same "
                f"attack: {', '.join(told)}. It needs no purification, and no ignorance of the "
                "attacker."
            )
    return [*lines, ""]


def main() -> None:
    """Write every page."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in (*TABLES, *OTHERS):
        record = read(name)
        if record is not None:
            write_text(PAGES / f"{name}.md", render(record))
    lines = [
        "# TPAP: the paper's tables, and what an attacker who knows leaves",
        "",
        "Written by `tools/tpap_results.py` from the records in `docs/results/records/tpap/`; "
        "scale `cpu`: ResNet-20, CIFAR-10, two CPU cores. Paper: Tang et al., CVPR 2024, "
        "ResNet-18, 10,000 test images, an attacker who ignores the defense. Figures are percent "
        "right, with Wilson's 95 % interval, on the first n test images.",
        "",
        "## What a user should conclude",
        "",
        *conclusion(),
        *runs(),
    ]
    for name in (*TABLES, *OTHERS):
        lines += section(name)
    write_text(ROOT / "docs/results/tpap.md", "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
