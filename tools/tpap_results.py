"""Write ``docs/results/tpap.md`` and a page for each recipe, from committed records alone.

python tools/tpap_results.py [--collect runs/repro]

``--collect`` first takes over what finished runs of ``unperturb reproduce`` left in
``runs/repro/NAME``: the record, and its pictures with fewer colors.

Records: ``docs/results/records/tpap/NAME.json`` is the ``record.json`` that
``unperturb reproduce tpap/NAME`` wrote; ``training/NAME.json`` is the ``training.json`` of a
training run whose weights are not in the zoo, ``other/NAME.json`` the ``report.json`` of an audit
on another data set. What has no record says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Collection
from pathlib import Path

from results import Record, collect, compact, find, page_of, percent, read, shrink
from unperturb.files import write_text
from unperturb.recipes import load_recipe
from unperturb.recipes.curves import plot
from unperturb.recipes.render import warnings
from unperturb.training.objectives import OVERFITTING

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "docs/results/records/tpap"
PAGES = ROOT / "docs/results/tpap"

TABLES = ("table-1", "table-2", "table-3", "table-4", "table-6", "table-7", "negative-claims")
OTHERS = ("table-5", "figure-1", "figure-4", "figure-5", "figure-6", "figure-7")

CURVES = "training-curves.png"
LINES = {
    "FGSM, training images": "train_fgsm",
    "clean": "heldout_clean",
    "PGD-20": "heldout_pgd",
    "TPAP clean": "heldout_tpap_clean",
    "TPAP PGD-20": "heldout_tpap_pgd",
}


def costs(record: Record) -> list[str]:
    """Table 5 with a column of the paper's and one of ours for each way of training."""
    rows = record["costs"]
    heads = [f"{row['row']}, {whose}" for row in rows for whose in ("paper", "ours")]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for i, part in enumerate(rows[0]["values"]):
        cells = []
        for row in rows:
            value = row["values"][i]["value"]
            cells.append(f"{row['paper'].get(part['name']) or ''}")
            cells.append("not run: nothing was timed" if value is None else f"{value:,.1f}")
        lines.append(f"| {part['name']} | " + " | ".join(cells) + " |")
    network, facts = record["network"], record["facts"]
    return [
        *lines,
        "",
        f"`{network['arch']}`, batches of {network['batch_size']}; {facts['device']}, "
        f"{facts['threads']} threads. {facts['note'].capitalize()}.",
    ]


def section(name: str) -> list[str]:
    """A recipe's part of the main page, with a link to the whole."""
    recipe = load_recipe(f"tpap/{name}", scale="cpu")
    record = read(RECORDS, name)
    lines = [f"## {recipe.paper.item}. {recipe.title}", ""]
    if record is None:
        return [*lines, f"not run: no record yet (`unperturb reproduce tpap/{name}`).", ""]
    if record["kind"] == "curves":
        lines += warnings(record)
    if record.get("cells") and record["kind"] == "table":
        lines += [*compact(record), ""]
    if record.get("costs"):
        lines += [*costs(record), ""]
    for picture in sorted(PAGES.glob(f"{name}*.png")):
        lines += [f"![{recipe.title}](tpap/{picture.name})", ""]
    return [
        *lines,
        f"Stopping rules, notes, classifiers and digests: [{name}](tpap/{name}.md).",
        "",
    ]


def trained(objectives: Collection[str]) -> list[tuple[str, str, Record]]:
    """Name, link from the page, and record of the training runs of some objectives."""
    zoo = [(path.parent.name, path) for path in (ROOT / "zoo").glob("*/training.json")]
    rest = [(path.stem, path) for path in (RECORDS / "training").glob("*.json")]
    found = []
    for name, path in sorted(zoo + rest):
        run = json.loads(path.read_text(encoding="utf-8"))
        # Networks of defenses have no objective.
        if run["config"].get("objective") in objectives:
            # What lies outside docs/ has no link on the site.
            inside = path.is_relative_to(RECORDS)
            label = f"[{name}](records/tpap/training/{path.name})" if inside else f"`zoo/{name}`"
            found.append((name, label, run))
    return found


def runs() -> list[str]:
    """What it took to get into the state: every run with a record, and its curve."""
    lines = [
        "## Training into robust overfitting",
        "",
        "*Robust overfitting* is the state that TPAP needs: nearly always right on the one-step "
        "attack (FGSM) that the network is trained on, nearly never on a stronger one (PGD). The "
        "last stage of each run, at the epoch that was kept; its record names the stages before. "
        "Figures are on held-out training images unless they say otherwise; *TPAP* is one step of "
        "8/255 around the network, clean and under oblivious PGD-20 at 8/255. One seed each.",
        "",
        "| run | last stage | epochs | hours | kept | FGSM, train | FGSM | PGD-20 | clean "
        "| TPAP clean | TPAP PGD-20 | state |",
        "|---" * 12 + "|",
    ]
    for _, label, run in trained(OVERFITTING):
        epochs, config = run["epochs"], run["config"]
        kept = epochs[run["kept_epoch"] - 1]
        sizes = config.get("mixture") or [config["eps"]]
        words = "+".join(f"{255 * size:g}" if size else "clean" for size in sizes)

        def share(key: str, kept: Record = kept) -> str:
            return f"{100 * kept[key]:.1f}" if key in kept else ""

        hours = sum(epoch["seconds"] for epoch in epochs) / 3600
        state = "reached" if kept["robust_overfitting"] else "not reached"
        lines.append(
            f"| {label} | {config['objective']} "
            f"{words}/255, lr {config['lr']:g}, {config['schedule']}"
            f"{', clean pass' if config['clean_pass'] else ''} | {len(epochs)} | {hours:.1f} "
            f"| {run['kept_epoch']} | {share('train_fgsm')} | {share('heldout_fgsm')} "
            f"| {share('heldout_pgd')} | {share('heldout_clean')} | {share('heldout_tpap_clean')} "
            f"| {share('heldout_tpap_pgd')} | {state} |"
        )
    if (PAGES / CURVES).exists():
        lines += ["", f"![Accuracy after each epoch of these runs](tpap/{CURVES})"]
    return [*lines, ""]


def draw_runs() -> None:
    """The curves of these runs as one picture."""
    axes = []
    for name, _, run in trained(OVERFITTING):
        lines = []
        for label, key in LINES.items():
            found = [epoch for epoch in run["epochs"] if key in epoch]
            places = [float(epoch["epoch"]) for epoch in found]
            lines.append((label, places, [100 * epoch[key] for epoch in found]))
        axes.append((name, "epoch", lines))
    with tempfile.TemporaryDirectory() as folder:
        if plot(axes, Path(folder)):
            shrink(Path(folder) / "figure.png", PAGES / CURVES)


# Quoted as their authors state them; none was measured by us.
PUBLISHED = {
    "EhanW/AdversarialTraining": """
        PGD-AT, ResNet-20 | 74.38 | 45.43 (PGD-10) | 110 epochs, 10 steps
        PGD-AT, ResNet-56 | 79.62 | 49.54 (PGD-10) | 110 epochs, 10 steps""",
    "LetheSec/Adversarial_Training_Pytorch": """
        PGD-AT, ResNet-18 | 82.57 | 51.28 (PGD-20) | best epoch on test images
        TRADES, ResNet-18 | 80.86 | 51.23 (PGD-20) | best epoch on test images
        MART, ResNet-18 | 78.59 | 54.87 (PGD-20) | best epoch on test images""",
    "yaodongyu/TRADES": """
        TRADES, WRN-34-10 | 84.92 | 56.61 (20 steps, eps 0.031) | the authors' weights""",
}


def rivals() -> list[str]:
    """Networks trained to be robust: ours on held-out images, and published ones."""
    lines = [
        "## Networks that are trained to be robust",
        "",
        "Ours, in bfloat16 with 7 PGD steps, every choice made on held-out training images; a "
        "line is a run's last stage, at the epoch that was kept. Table 1 is where they are "
        "attacked as TPAP is, on test images.",
        "",
        "| run | epochs | hours | clean, held-out | PGD-20, held-out |",
        "|---|---|---|---|---|",
    ]
    for _, label, run in trained(("pgd", "trades", "mart")):
        kept = run["epochs"][run["kept_epoch"] - 1]
        hours = sum(epoch["seconds"] for epoch in run["epochs"]) / 3600
        lines.append(
            f"| {label} | {len(run['epochs'])} | {hours:.1f} "
            f"| {100 * kept['heldout_clean']:.1f} | {100 * kept['heldout_pgd']:.1f} |"
        )
    lines += [
        "",
        "Published figures of comparable and larger networks, quoted and not measured by us (test "
        "images, Linf 8/255 where nothing else is said):",
        "",
        "| network | clean | robust | training | source |",
        "|---|---|---|---|---|",
    ]
    for source, rows in PUBLISHED.items():
        link = f"[{source}](https://github.com/{source})"
        lines += [f"| {row.strip()} | {link} |" for row in rows.strip().splitlines()]
    return [*lines, ""]


def others() -> list[str]:
    """Other data sets through the same commands."""
    found = sorted((RECORDS / "other").glob("*.json"))
    lines = [
        "## Other data sets, by the same commands",
        "",
        "`unperturb train` twice (standard, then `--objective fgsm`), and `unperturb audit` of "
        "`tpap` with FGSM and PGD-20. *Worst* is the per-image worst of an attacker's attacks.",
        "",
    ]
    if not found:
        return [*lines, "not run: no record yet.", ""]
    lines += [
        "| data | classes | n | state | clean, bare | clean, TPAP | ignoring it, worst "
        "| knowing it, worst | bare, worst |",
        "|---" * 9 + "|",
    ]
    for path in found:
        report = json.loads(path.read_text(encoding="utf-8"))
        target, bare = report["target"], report["baseline"]
        state = target["describe"]["classifier"]["card"]["monitor"]["robust_overfitting"]
        worst = target["worst_by_attacker"]
        lines.append(
            f"| [{report['data']['source'].partition(';')[0]}](records/tpap/other/{path.name}) "
            f"| {len(report['data']['classes'])} | {report['data']['n']} "
            f"| {'reached' if state else 'not reached'} | {percent(bare['clean'])} "
            f"| {percent(target['clean'])} | {percent(worst['oblivious'])} "
            f"| {percent(worst['adaptive'])} | {percent(bare['worst_case'])} |"
        )
    return [*lines, ""]


def conclusion() -> list[str]:
    """What a user should take away, in figures of the records."""
    table = read(RECORDS, "table-6")
    if table is None:
        return ["not run: no record of Table 6 yet.", ""]
    row = table["rows"][1]["name"]
    ignoring = find(table, row, "PGD-20", "oblivious")
    knowing = find(table, row, "PGD-20", "adaptive")
    clean = find(table, row, "Clean", "none")
    lines = [
        f"**TPAP repairs attacks that were not made for it, and next to none that was.** Around a "
        f"network in robust overfitting it answers {percent(clean)} % of clean images correctly "
        f"and {percent(ignoring)} % under PGD-20 by an attacker who ignores it (the paper: 86.25 "
        f"and 79.06). An attacker who knows it leaves {percent(knowing)} %.",
        "Where a figure for the attacker who ignores it lies above the clean one, the attack has "
        "repaired images: it starts from the true label, and away from that label is where the "
        "defense finds it again (label leaking). Clean accuracy is what a user gets.",
    ]
    negative = read(RECORDS, "negative-claims")
    if negative is not None:
        row = negative["rows"][0]["name"]
        cells = [find(negative, row, *what) for what in (("Clean", "none"), ("PGD-20", "adaptive"))]
        plain, attacked = ((percent(c and c["undefended"]), percent(c)) for c in cells)
        lines.append(
            "Around an ordinary robust network (PGD-AT) the same step only harms: of "
            f"{plain[0]} % clean it leaves {plain[1]} %, and of the {attacked[0]} % that withstand "
            f"PGD-20 {attacked[1]} % against an attacker who knows the step."
        )
    rivals = read(RECORDS, "table-1")
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", type=Path, metavar="RUNS")
    options = parser.parse_args()
    PAGES.mkdir(parents=True, exist_ok=True)
    if options.collect is not None:
        collect(options.collect, "tpap", (*TABLES, *OTHERS), RECORDS, PAGES)
    draw_runs()
    for name in (*TABLES, *OTHERS):
        record = read(RECORDS, name)
        if record is not None:
            write_text(PAGES / f"{name}.md", page_of(name, record))
    lines = [
        "# TPAP: the paper's tables, and what an attacker who knows leaves",
        "",
        "Written by `tools/tpap_results.py` from the records in `docs/results/records/tpap/`; "
        "scale `cpu`: ResNet-20, CIFAR-10, two CPU cores. Paper: Tang et al., CVPR 2024, "
        "ResNet-18, 10,000 test images, an attacker who ignores the defense. Figures are percent "
        "right, with Wilson's 95 % interval, on the first n test images.",
        "",
        "*Oblivious*: the attacker ignores the defense, runs all his steps on the bare network, "
        "and his last image is shown to the defense. *Adaptive*: he attacks the whole and stops at "
        "the first success, so an image that is wrong unattacked stays wrong. The two rules are "
        "not comparable: the same attack on the same network can leave more under the first, and "
        "the random starts of the two differ as well, which moves a figure by a few images.",
        "",
        "## What a user should conclude",
        "",
        *conclusion(),
        *runs(),
        *rivals(),
    ]
    for name in (*TABLES, *OTHERS):
        lines += section(name)
    lines += others()
    write_text(ROOT / "docs/results/tpap.md", "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
