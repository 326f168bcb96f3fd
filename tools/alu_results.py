"""Write ``docs/results/alu.md`` and a page for each recipe, from records alone.

python tools/alu_results.py [--collect runs/repro-alu]

``--collect`` first takes over what finished runs of ``unperturb reproduce`` left in
``runs/repro-alu/NAME``: the record, and its pictures with fewer colors.

Records: ``docs/results/records/alu/NAME.json`` is the ``record.json`` that
``unperturb reproduce alu/NAME`` wrote. What has no record says so.

The networks of the zoo that these recipes ask for come from

  unperturb fit vae --data CIFAR10 --epochs 12 --out zoo/cifar10-vae
  unperturb fit vae --data CIFAR10 --epochs 12 --latent-channels 4 --out zoo/cifar10-vae-latent4
  unperturb fit vae --data CIFAR10 --epochs 12 --latent-channels 16 --out zoo/cifar10-vae-latent16
  unperturb fit denoiser --classifier zoo/cifar10-resnet20-standard --data CIFAR10 --epochs 1 \\
    --lr 0.05 --precision bfloat16 --out zoo/cifar10-denoiser
  unperturb train --arch cifar-resnet20 --through zoo/cifar10-vae --data CIFAR10 --epochs 20 \\
    --schedule one-cycle --precision bfloat16 --out zoo/cifar10-resnet20-unified
  unperturb train --arch cifar-resnet20 --through zoo/cifar10-vae --level 1 --data CIFAR10 \\
    --epochs 20 --schedule one-cycle --precision bfloat16 --out zoo/cifar10-resnet20-asymmetric
  unperturb fit vae --data CIFAR100 --shuffle --epochs 40 --holdout 500 --out zoo/cifar100-vae
  unperturb fit vae --data TINY --shuffle --epochs 10 --holdout 500 --out zoo/tiny-imagenet-vae
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alu_cost import cost
from alu_summary import nearest, summary
from results import Paper, Record, find, percent
from unperturb.audit.statistics import paired_comparison
from unperturb.recipes.render_changes import (
    accuracy_table,
    approach_lines,
    detector_table,
    done_of,
    effort_table,
    failed_table,
    paired_table,
    pattern_table,
    quality_table,
)
from unperturb.recipes.words import header_of, line_of

OTHER_DATA = ("table-2-cifar100", "table-2-tiny-imagenet")
TABLES = ("table-1", "table-2", *OTHER_DATA, "table-3")
LIMITS = ("limitation", "limitation-full")
CHANGES = ("figure-2", "figure-3", "figure-4", "figure-6", "figure-7", "appendix-a", "appendix-e",
           "factors", "reject", "vae-quality", "detector", "label-leaking")  # fmt: skip
NAMES = (*TABLES, *LIMITS, "purifiers", *CHANGES)
PAPER = Paper("alu", NAMES, "Stopping rules, classifiers, networks, thresholds and digests")


def changes(name: str) -> list[str]:
    """Tables and pictures of logit changes."""
    record = PAPER.read(name)
    if record is None:
        return [*PAPER.head(name), *PAPER.missing(name)]
    told, lines = record["changes"], [*PAPER.head(name), *PAPER.pictures(name)]
    for subject in told["subjects"]:
        if subject["status"] != "done":
            lines += [f"{subject['name']}: not run: {subject['reason']}", ""]
    tables: dict[str, tuple[Callable[..., list[str]], ...]] = {
        "figure-7": (pattern_table,),
        "appendix-e": (accuracy_table, pattern_table, effort_table),
        "appendix-a": (approach_lines,),
        "reject": (accuracy_table, detector_table, failed_table),
        "factors": (one_by_one, two_at_once),
        "vae-quality": (quality_table,),
        "detector": (detector_table,),
    }
    if any(subject["status"] == "done" for subject in told["subjects"]):
        for part in tables.get(name, (accuracy_table,)):
            lines += [*part(told), ""]
    return [*lines, *PAPER.foot(name, record)]


def _block(told: Record, together: bool) -> list[str]:
    """The factors' tables, of rows that switch one factor or of those that switch two."""
    some = [one for one in told["subjects"] if one["name"].startswith("together:") == together]
    part = {**told, "subjects": some}
    return [*accuracy_table(part), "", *paired_table(part)] if done_of(part) else []


def one_by_one(told: Record) -> list[str]:
    """The base, and rows that switch one factor of it."""
    return ["**One factor at a time.**", "", *_block(told, together=False)]


def two_at_once(told: Record) -> list[str]:
    """Rows that switch two factors."""
    return [
        "**Two factors at once**, each compared with the base.",
        "",
        *_block(told, together=True),
    ]


def factors() -> list[str]:
    """One factor at a time; below it the VAEs' quality, and what another stopping rule leaves."""
    lines = [*nearest(PAPER), *changes("factors")]
    record = PAPER.read("factors")
    if record is None:
        return lines
    for name, facts in sorted(record.get("networks", {}).items()):
        value = facts.get("figures", {}).get("heldout_psnr")
        if value is not None:
            lines.append(
                f"- {facts['title']} (`{name}`): {value:.2f} dB at N = 0 on "
                "held-out training images."
            )
    table = PAPER.read("table-2")
    cell = find(table, "Standard + ALU", "PGD20 on 128 images", "adaptive")
    told = "not run: no record of Table 2 yet" if table is None else f"{percent(cell)} % are right"
    return [
        *lines,
        "",
        "Another stopping rule: the fully adaptive attacker of Table 2 takes every gradient, goes "
        "for both branches and stops at the first success (standard classifier, 128 images): "
        f"{told}. The rows above run all their steps.",
        "",
    ]


def three_ways(name: str) -> list[str]:
    """PGD-20 by three attackers beside the paper's figure."""
    record = PAPER.read(name)
    if record is None:
        return []
    columns = (("PGD20", "oblivious"), ("PGD20, N = 0 gradient", "adaptive"),
               ("PGD20 on 128 images", "adaptive"))  # fmt: skip
    lines = [
        "PGD-20 in percent: the paper's figure, and ours by three attackers. The first runs all "
        "steps on the undefended network, the other two stop at the first success.",
        "",
        *header_of(["", "paper", "ours, oblivious", "ours, adaptive, gradient of N = 0 alone",
                    "ours, fully adaptive (128 images)"]),
    ]  # fmt: skip
    for row in record["rows"]:
        if not row["defense"] or not row["model"]:
            continue
        cells = [find(record, row["name"], *column) for column in columns]
        paper = (cells[0] or {}).get("paper")
        lines.append(
            line_of([row["name"], "" if paper is None else str(paper), *map(percent, cells)])
        )
    return [
        *lines,
        "",
        "The gradient of N = 0 is what the paper seems to have taken. Here (`encoder-decoder`) the "
        "attacker goes with it for the whole defense, both branches of its decision; in the table "
        "of factors (`encode-decode`) for encoder, decoder and classifier without detector and "
        "update, all steps run.",
        "",
    ]


def _paired(found: Record, kind: str, other: Record) -> Record:
    """A subject's answers to clean or attacked images against another's to attacked ones."""
    bits = [found["right"][kind], other["right"]["attacked"]]
    n = min(map(len, bits))
    one, two = (np.array([bit == "1" for bit in part[:n]]) for part in bits)
    return paired_comparison(two, one, ("attacked", "clean"))


def leaking() -> list[str]:
    """What the true label tells: the same attack away from the predicted one, image by image."""
    lines = [
        "An attack that steps away from the *true* label tells it to whoever compares the logits "
        "before and after. The control is the same attack, all its steps, away from the "
        "*predicted* label. Robust accuracy above the clean one, as in the paper's Table 2, should "
        "not survive it. Attacked and clean answers are compared image by image: a figure counts "
        "as above the clean one where the exact McNemar test gives p < 0.05.",
        "",
    ]
    record = PAPER.read("label-leaking")
    if record is None:
        return [*lines, *PAPER.missing("label-leaking")]
    lines += PAPER.pictures("label-leaking")
    lines += header_of(["", "clean", "attacked", "difference", "McNemar p", "verdict", "n"])
    for subject in done_of(record["changes"]):
        found = subject["found"]
        test = _paired(found, "clean", found)
        low, high = test["interval"]
        sure = test["mcnemar_p"] < 0.05
        above = test["difference"] > 0
        verdict = ("above clean" if above else "below clean") if sure else "no difference shown"
        lines.append(
            line_of([
                subject["name"], *(percent(found[key]["answer"]) for key in ("clean", "attacked")),
                f"{test['difference']:+.1%} ({low:+.1%} to {high:+.1%})",
                f"{test['mcnemar_p']:.2g}", verdict, f"{found['n']:,}",
            ])
        )  # fmt: skip
    return [*lines, "", *paired_table(record["changes"]), "", *PAPER.foot("label-leaking", record)]


def quality() -> list[str]:
    """Whether the VAEs keep what is asked of them."""
    lines = changes("vae-quality")
    record = PAPER.read("vae-quality")
    if record is None:
        return lines
    lines += ["This project's own targets: at least 24 dB, and at most 15 points lost.", ""]
    for subject in done_of(record["changes"]):
        last = subject["found"]["approach"][-1]
        drop = 100 * (last["right_clean"]["accuracy"] - last["right"]["accuracy"])
        enough, few = last["psnr"] >= 24, drop <= 15
        lines.append(
            f"- {subject['name']}: {last['psnr']:.2f} dB after {last['steps']} steps "
            f"({'at least' if enough else 'less than'} 24 dB); the standard classifier loses "
            f"{drop:.1f} points ({'at most' if few else 'more than'} 15)."
        )
    return [*lines, ""]


def detector() -> list[str]:
    """Realized false-positive rate, detection rate, wrong answers without a flag, ROC."""
    return [
        "The threshold is the 99.5 % quantile over clean *training* images, so that 0.5 % of clean "
        "test images should be flagged. Failed attacks and noise: see below.",
        "",
        *changes("detector"),
    ]


DIFFERENCES = """\
- ResNet-20 in the place of ResNet-50, and a convolutional VAE of our own: the paper's figure of it
  is missing from the copy that we have.
- Ten steps of L-BFGS in the place of plain gradient descent; the paper states neither N nor the
  learning rate of its tables. Figures 3 and 4 vary both, with some points of plain descent.
- The formula of the detector's statistic is missing as well: ours is the sum of absolute changes.
- "Gradient through both generative model and classifier" does not say through how many steps: each
  of ours is named, and the table of factors puts them side by side.
- The classifier is trained by SGD, the paper's by Adam.
- Its attack regularized against the pattern is not defined: ours raises another logit past the true
  one, and then both.
- FAT and GAIRAT: the zoo has no such networks."""

INTRODUCTION = """\
ALU purifies an image by a VAE whose code is optimized, compares the logits before and after, and
answers flagged images with the class whose logit rose most.

*Oblivious*: the attacker does not know ALU, runs all his steps on the bare network (of the unified
variants: encoder, decoder and classifier with N = 0), and his last image is answered by ALU.
*Adaptive*: he attacks the whole by every gradient that it has, or by those that a column names,
goes for both branches of the decision, and stops at the first success. AutoAttack pursues a wrong
answer alone: it goes for no branch and reads no flag. Unified and asymmetric classifiers are
compared with the standard one, trained on raw images. Figures are percent right with Wilson's 95 %
interval on the first n test images.

Figures of the two attackers stop by different rules and are not to be compared. The same attack may
differ by a few images from table to table, as its random starts do."""


def parts() -> list[tuple[str, list[str]]]:
    """The page, part by part."""
    return [
        ("In short", summary(PAPER)),
        ("Why ours differ from the paper's", factors()),
        (
            "Table 1. The toy",
            [
                "C&W (L2): an image counts as broken within L2 0.5; *at any distance*: wherever "
                "the attack ended. The paper's bounds of the C&W columns are unknown. AA: "
                "AutoAttack.",
                "",
                *PAPER.table("table-1"),
            ],
        ),
        ("Table 2. Plug-in and unified", [*three_ways("table-2"), *PAPER.table("table-2")]),
        (
            "Table 2. Other data",
            [line for name in OTHER_DATA for line in (*three_ways(name), *PAPER.table(name))],
        ),
        (
            "Table 3. Beside published defenses",
            [
                "All rows but unified ALU are quoted from the paper, not measured here.",
                "",
                *three_ways("table-3"),
                *PAPER.table("table-3"),
            ],
        ),
        ("The VAE", quality()),
        ("Limitation: BPDA", [line for name in LIMITS for line in PAPER.table(name)]),
        ("Label leaking", leaking()),
        ("The detector", [*detector(), *changes("figure-2")]),
        ("Which logit drops most", changes("figure-7")),
        ("An attack that avoids the pattern", changes("appendix-e")),
        ("Failed attacks, small sizes, noise", changes("reject")),
        ("Steps and learning rate", [*changes("figure-3"), *changes("figure-4")]),
        ("Distance to the clean image", changes("appendix-a")),
        ("Single images", changes("figure-6")),
        ("Other purifiers", PAPER.table("purifiers")),
        ("What it costs", cost(PAPER.pages)),
        ("Differences from the paper", [DIFFERENCES, ""]),
    ]


if __name__ == "__main__":
    PAPER.write(
        "ALU: the paper's tables, and what an attacker who knows leaves",
        "tools/alu_results.py",
        INTRODUCTION,
        parts,
    )
