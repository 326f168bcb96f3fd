"""Write ``docs/results/atop.md`` and a page for each recipe, from committed records alone.

python tools/atop_results.py [--collect runs/repro]

``--collect`` first takes over what finished runs of ``unperturb reproduce`` left in
``runs/repro/NAME``: the record, and its pictures with fewer colors.

Records: ``docs/results/records/atop/NAME.json`` is the ``record.json`` that
``unperturb reproduce atop/NAME`` wrote; ``restoration.json`` is that of ``tools/restoration.py``.
What has no record says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from atop_words import DIFFERENCES, FACTORS, INTRODUCTION
from later_images import later_images
from results import ROOT, Paper, Record, compact, find, percent, read, single_draw
from unperturb.recipes.draws import KINDS
from unperturb.recipes.render_draws import difference_text, panel_lines
from unperturb.recipes.words import header_of, line_of

AUTOATTACK = (
    "table-2", "autoattack", "table-3", "table-4", "table-5", "table-5-cifar100", "table-6",
)  # fmt: skip
TRANSFORMS = ("table-7", "table-8", "table-9")
FIGURES = ("figure-3", "figure-4", "figures-5-9")
GROUPS = {"none": "clean", "oblivious": "oblivious", "adaptive": "adaptive"}
STANDINGS = ("above", "below", "above, perhaps by chance,", "below, perhaps by chance,", "level")
TUNING = ("fine-tuning-2000", "fine-tuning", "fine-tuning-purifiers")
NAMES = (*AUTOATTACK, *TRANSFORMS, *TUNING, "factors", *FIGURES)
PAPER = Paper("atop", NAMES, "Draws, gradients, stopping rules, networks and digests")


def table(name: str) -> list[str]:
    """What the paper quotes of others, ours beside the paper's own, and draws."""
    record = PAPER.read(name)
    if record is None:
        return [*PAPER.heading(name), *PAPER.missing(name)]
    ours = {**single(record), "rows": [row for row in record["rows"] if row["model"] is not None]}
    lines = [*PAPER.heading(name), *quoted(record), *compact(ours, whole=True), ""]
    return [*lines, *draws(record), *PAPER.foot(name, record)]


def single(record: Record) -> Record:
    """The record with the accuracy of a single draw in the cells of random defenses."""
    return {**record, "cells": [single_draw(cell) for cell in record["cells"]]}


def quoted(record: Record) -> list[str]:
    """Rows that are only quoted."""
    rows = [row for row in record["rows"] if row["model"] is None]
    if not rows:
        return []
    names = [
        column["name"]
        for column in record["columns"]
        if any(printed(record, row, column["name"]) is not None for row in rows)
    ]  # fmt: skip
    lines = ["Quoted from the paper, not run here:", "", *header_of(["", *names])]
    for row in rows:
        found = [printed(record, row, name) for name in names]
        lines.append(line_of([row["name"], *("" if v is None else f"{v}" for v in found)]))
    return [*lines, "", "Ours beside the paper's own:", ""]


def printed(record: Record, row: Record, column: str) -> float | str | None:
    """The paper's figure, which stands with every attacker."""
    cells = (find(record, row["name"], column, attacker) for attacker in record["attackers"])
    return next((cell["paper"] for cell in cells if cell is not None), None)


def draws(record: Record) -> list[str]:
    """Single draw, worst of N and majority of every row, each beside clean."""
    cells = [
        cell
        for cell in record["cells"]
        if cell.get("draws") and (cell["attacker"] == "none" or "clean" in cell["draws"])
    ]
    if not cells:
        return []
    count = cells[0]["draws"]["n"]
    lines = [
        f"A single draw, images that each of {count} draws gets right, and images that more than "
        "half of them get right, in percent (single / worst / majority); beside it the same of the "
        "clean images of that audit:",
        "",
        *header_of(["", "", "attacker", "under attack", "clean", "n"]),
    ]
    for cell in cells:
        own, clean = cell["draws"], cell["draws"].get("clean")
        if clean is None:
            continue
        lines.append(
            line_of([
                cell["row"], cell["column"], cell["attacker"], triple(own), triple(clean),
                f"{cell['n']:,}",
            ])
        )  # fmt: skip
    return [*lines, ""]


def triple(part: Record) -> str:
    """Three accuracies in percent."""
    return " / ".join(
        "" if part[kind] is None else f"{100 * part[kind]['accuracy']:.1f}" for kind in KINDS
    )


def helps() -> list[str]:
    """Fine-tuned against not fine-tuned, image by image."""
    lines = [
        "The paper's claim: for each transform the fine-tuned network leaves more right than the "
        "same network without fine-tuning, clean and under attack. The same images, attacks, seeds "
        "and draws; of a random defense an image counts as right where more than half of the draws "
        "are; exact McNemar tests, Newcombe's 95 % interval.",
        "",
    ]
    found = [
        (name, pair)
        for name in (*TUNING, *TRANSFORMS, *AUTOATTACK)
        for pair in (PAPER.read(name) or {}).get("pairs", ())
    ]
    if not found:
        return [*lines, *PAPER.missing("table-7")]
    return [
        *lines,
        *compared(found),
        "",
        *verdicts(found),
        "",
        *later_images(*map(PAPER.read, ("fine-tuning", "fine-tuning-2000"))),
    ]


def compared(found: Sequence[tuple[str, Record]]) -> list[str]:
    """Pairs of rows, image by image."""
    lines = header_of([
        "table", "pair", "column", "attacker", "first", "second", "difference", "McNemar p", "n",
    ])  # fmt: skip
    for name, pair in found:
        lines.append(
            line_of([
                name, " / ".join(pair["rows"]), pair["column"],
                "" if pair["attacker"] == "none" else pair["attacker"],
                f"{100 * pair['one']['accuracy']:.1f}", f"{100 * pair['other']['accuracy']:.1f}",
                difference_text(pair), f"{pair['mcnemar_p']:.2g}", f"{pair['one']['n']:,}",
            ])
        )  # fmt: skip
    return lines


def compared_in(name: str) -> list[str]:
    """The pairs of a recipe, where there are any."""
    found = [(name, pair) for pair in (PAPER.read(name) or {}).get("pairs", ())]
    if not found:
        return []
    told = (
        "Compared image by image, an image being right where more than half of the draws are "
        "(exact McNemar tests, not corrected for their number; Newcombe's 95 % interval):"
    )
    return [told, "", *compared(found), "", *verdicts(found), ""]


def verdicts(found: Sequence[tuple[str, Record]]) -> list[str]:
    """For each pair whether its first row is above: clean, oblivious and adaptive by themselves."""
    lines = []
    for name, title in dict.fromkeys((name, pair["pair"]) for name, pair in found):
        own = [pair for table, pair in found if (table, pair["pair"]) == (name, title)]
        first, second = own[0]["rows"]
        parts = []
        for attacker, word in GROUPS.items():
            pairs = [pair for pair in own if pair["attacker"] == attacker]
            if pairs:
                parts.append(f"{word}: {verdict(pairs)}")
        lines.append(f"- {name}, *{first}* against *{second}*: {'; '.join(parts)}.")
    return [*lines, "", "(Chance: p of 0.05 or more, not corrected for the number of comparisons.)"]


def verdict(pairs: Sequence[Record]) -> str:
    """In how many of some comparisons the first row is above or below, with their images."""
    counts = Counter(standing(pair) for pair in pairs)
    told = ", ".join(f"{word} in {counts[word]}" for word in STANDINGS if counts[word])
    sizes = ", ".join(dict.fromkeys(f"{pair['one']['n']:,}" for pair in pairs))
    return f"{told} of {len(pairs)} (n = {sizes})"


def standing(pair: Record) -> str:
    """Where the first row stands, and whether that may be chance."""
    if pair["difference"] == 0:
        return "level"
    word = "above" if pair["difference"] > 0 else "below"
    return word if pair["mcnemar_p"] < 0.05 else f"{word}, perhaps by chance,"


def gradients() -> list[str]:
    """What each gradient that an attacker may take leaves."""
    lines = [
        "The paper skips the purifier in the backward pass (*identity*). *Exact* goes through "
        "mask, noise and network; *undefended* is the gradient of the bare classifier. All are "
        "means over 20 draws. Percent of images that more than half of the scoring draws get "
        "right.",
        "",
    ]
    cells = [
        (name, cell)
        for name in (*TRANSFORMS, "factors")
        for cell in (PAPER.read(name) or {}).get("cells", ())
        if cell.get("by_gradient")
    ]
    if not cells:
        return [*lines, *PAPER.missing("table-8")]
    names = list(dict.fromkeys(key for _, cell in cells for key in cell["by_gradient"]))
    lines += header_of(["", "attack", *names, "n"])
    for name, cell in cells:
        parts = [cell["by_gradient"].get(key) for key in names]
        lines.append(
            line_of([
                f"{cell['row']} ({name})", cell["column"],
                *("" if part is None else percent(part) for part in parts), f"{cell['n']:,}",
            ])
        )  # fmt: skip
    return [*lines, ""]


def restores() -> list[str]:
    """Errors on dropped pixels, beside filling without learning."""
    lines = [
        "Mean absolute error on dropped pixels of test images, in pixel units (0 to 1), on the "
        "same masks and noise: the network, the mean of what is visible, and straight lines "
        "between the nearest visible pixels. Every network of CIFAR-10's tables stands here with "
        "every transform that a row puts it behind.",
        "",
    ]
    record = PAPER.read("restoration")
    if record is None:
        return [*lines, "not run: no record yet (`tools/restoration.py`).", "", *on_rt1()]
    lines += header_of([
        "network", "trained on", "transform", "network", "mean", "lines", "below both", "n",
    ])  # fmt: skip
    for row in record["rows"]:
        found = row["errors"]
        both = found["masked_l1"] < min(found["mean_l1"], found["bilinear_l1"])
        lines.append(
            line_of([
                row["name"], row["trained_on"]["name"], row["transform"]["name"],
                *(f"{found[key]:.4f}" for key in ("masked_l1", "mean_l1", "bilinear_l1")),
                "yes" if both else "**no**", f"{row['n']:,}",
            ])
        )  # fmt: skip
    return [*lines, "", *on_rt1()]


def on_rt1() -> list[str]:
    """Why the network fine-tuned on RT1 has another target and another lambda."""
    tried = [PAPER.read(f"training-rt1-lambda-{value}") for value in ("0.1", "0.03", "0.01")]
    shipped = read(ROOT / "zoo" / "cifar10-gan-atop-rt1", "training")
    found = [record for record in (*tried, shipped) if record is not None]
    lines = [
        "Fine-tuned on RT1 as in eq. 9 the network comes to restore worse than lines, and with eq. "
        "5's target it does not. (RT1 adds no noise, and most examples stay wrong behind it: the "
        "classifier's loss is large, which may be what pulls at the gaps.) The last row is the "
        "network of the tables, chosen by this. Held-out training images, seed 0; accuracy on "
        "clean images and on FGSM examples made against the classifier alone, before the first "
        "step and after the last:",
        "",
        *header_of(["target", "lambda", "epochs", "network", "lines", "clean", "FGSM", "n"]),
    ]
    for record in found:
        own, config = record["heldout"], record["config"]
        began = record["epochs"][0]["before"]
        change = [f"{100 * began[key]:.1f} → {100 * own[key]:.1f}" for key in ("clean", "attacked")]
        lines.append(
            line_of([
                config["target"], f"{config['cls_weight']:g}", f"{config['epochs']}",
                f"{own['masked_l1']:.4f}", f"{own['bilinear_l1']:.4f}",
                *change, f"{config['monitor_images']}",
            ])
        )  # fmt: skip
    return [*lines, ""]


def figure(name: str) -> list[str]:
    """A figure of the paper."""
    record = PAPER.read(name)
    if record is None:
        return [*PAPER.heading(name), *PAPER.missing(name)]
    lines = [*PAPER.heading(name), *PAPER.pictures(name)]
    for part in record.get("figures", ()):
        lines += [f"**{part.get('subject') or part['draw']}**", ""]
        if part["status"] == "done":
            lines += [*panel_lines(part["found"]), ""]
        else:
            lines += [f"not run: {part['reason']}", ""]
    if record.get("cells"):
        lines += [*compact(single(record), whole=True), "", *draws(record), *compared_in(name)]
    return [*lines, *PAPER.foot(name, record)]


def summary() -> list[str]:
    """What a user should take away, in figures of the records."""
    record = PAPER.read("table-7")
    if record is None:
        return ["not run: no record of Table 7 yet.", ""]
    record = single(record)
    lines = ["Figures are of a single draw.", ""]
    for row in record["rows"]:
        clean, ignoring, knowing = (
            find(record, row["name"], *what)
            for what in (("Standard", "none"), ("PGD-20", "oblivious"),
                         ("PGD-10 with EOT-20", "adaptive"))
        )  # fmt: skip
        if any((cell or {}).get("accuracy") is None for cell in (clean, ignoring, knowing)):
            lines.append(f"- {row['name']}: not all of it was run.")
            continue
        lines.append(
            f"- {row['name']}: {counted(clean)} of clean images are right, {counted(ignoring)} "
            f"under PGD-20 by an attacker who ignores the defense, {counted(knowing)} under "
            "PGD-10 with EOT by one who knows it."
        )
    return [*lines, ""]


def counted(cell: Record | None) -> str:
    """An accuracy with its interval and its images."""
    assert cell is not None
    return f"{percent(cell)} % (n = {cell['n']:,})"


def parts() -> list[tuple[str, list[str]]]:
    """The page, part by part."""
    return [
        ("In short", summary()),
        ("Does fine-tuning help?", [*helps(), *(line for name in TUNING for line in table(name))]),
        ("Does the network restore?", restores()),
        ("Three transforms", [line for name in TRANSFORMS for line in table(name)]),
        ("AutoAttack", [line for name in AUTOATTACK for line in table(name)]),
        ("Which gradient the attacker takes", gradients()),
        ("One factor at a time", [FACTORS, "", *table("factors"), *compared_in("factors")]),
        ("Figures", [line for name in FIGURES for line in figure(name)]),
        ("Differences from the paper", [DIFFERENCES, ""]),
    ]


if __name__ == "__main__":
    PAPER.write(
        "AToP: the paper's tables, and what an attacker who knows leaves",
        "tools/atop_results.py",
        INTRODUCTION,
        parts,
    )
