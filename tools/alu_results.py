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
  unperturb train --arch cifar-resnet20 --through zoo/cifar10-vae --level 0 --data CIFAR10 \\
    --epochs 20 --schedule one-cycle --precision bfloat16 --out zoo/cifar10-resnet20-asymmetric
  unperturb fit vae --data CIFAR100 --shuffle --epochs 40 --holdout 500 --out zoo/cifar100-vae
  unperturb fit vae --data TINY --shuffle --epochs 10 --holdout 500 --out zoo/tiny-imagenet-vae
"""

from __future__ import annotations

from collections.abc import Iterator

from results import Paper, Record, find, percent
from unperturb.recipes.render_changes import (
    accuracy_table,
    approach_lines,
    failed_table,
    pattern_table,
)
from unperturb.recipes.words import header_of, line_of, share_text

OTHER_DATA = ("table-2-cifar100", "table-2-tiny-imagenet")
TABLES = ("table-1", "table-2", *OTHER_DATA, "table-3")
LIMITS = ("limitation", "limitation-full")
CHANGES = ("figure-2", "figure-3", "figure-4", "figure-6", "figure-7", "appendix-a", "appendix-e",
           "factors", "reject")  # fmt: skip
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
    tables = {"figure-7": (pattern_table,), "appendix-e": (accuracy_table, pattern_table),
              "appendix-a": (approach_lines,), "reject": (accuracy_table, failed_table),
              "factors": (accuracy_table,)}.get(name, (accuracy_table,))  # fmt: skip
    if any(subject["status"] == "done" for subject in told["subjects"]):
        for part in tables:
            lines += [*part(told), ""]
    return [*lines, *PAPER.foot(name, record)]


def controls() -> Iterator[tuple[str, str, Record]]:
    """Recipe, row and the control for label leaking."""
    for name in ("table-1", "table-2"):
        record = PAPER.read(name) or {}
        most: dict[str, Record] = {}
        for audit in record.get("audits", {}).values():
            if audit["control"] is not None and audit["n"] >= most.get(audit["row"], audit)["n"]:
                most[audit["row"]] = audit
        for row, audit in most.items():
            yield name, row, audit["control"]


def leaking() -> list[str]:
    """What the true label tells: the same attack away from the predicted one."""
    lines = [
        "An attack that steps away from the *true* label tells it to whoever compares the logits "
        "before and after. The control is the same oblivious attack away from the *predicted* "
        "label. Robust accuracy above the clean one, as in the paper's Table 2, should not "
        "survive it.",
        "",
    ]
    found = list(controls())
    if not found:
        return [*lines, *PAPER.missing("table-2")]
    lines += header_of(["", "clean", "away from the true label", "away from the predicted label",
                        "verdict"])  # fmt: skip
    for name, row, control in found:
        part = control["subjects"].get("target")
        if part is None:
            continue
        clean, true, predicted = (
            part[key]["accuracy"] for key in ("clean", "true_label", "predicted_label")
        )
        verdict = "above clean by the true label" if true > clean else "not above clean"
        if true > clean:
            verdict += ", and still" if predicted > clean else ", and no longer without it"
        lines.append(
            line_of([f"{row} ({name})", *(percent(part[key]) for key in (
                "clean", "true_label", "predicted_label")), verdict])
        )  # fmt: skip
    return [*lines, ""]


def detector() -> list[str]:
    """Realized false-positive rate, detection rate and AUROC, from the recipe ``reject``."""
    record = PAPER.read("reject")
    lines = [
        "The threshold is the 99.5 % quantile over clean *training* images, so that 0.5 % of clean "
        "test images should be flagged.",
        "",
    ]
    if record is None:
        return [*lines, *PAPER.missing("reject")]
    lines += header_of(["", "clean test images flagged", "attacked images flagged",
                        "successful attacks flagged", "AUROC", "AUROC, successful"])  # fmt: skip
    for subject in record["changes"]["subjects"]:
        if subject["status"] != "done":
            continue
        found = subject["found"]
        areas = ("" if found[key] is None else f"{found[key]:.3f}"
                 for key in ("auroc", "auroc_successful"))  # fmt: skip
        lines.append(
            line_of([subject["name"], share_text(found["clean"]["flagged"]),
                     share_text(found["attacked"]["flagged"]),
                     share_text(found["successful"]["flagged"]), *areas])
        )  # fmt: skip
    return [*lines, ""]


def summary() -> list[str]:
    """What a user should take away, in figures of the records."""
    record = PAPER.read("table-2")
    if record is None:
        return ["not run: no record of Table 2 yet.", ""]
    lines = []
    for row in record["rows"]:
        if not row["defense"] or not row["model"]:
            continue
        name = row["name"]
        clean = find(record, name, "Clean", "none")
        published = find(record, name, "PGD20", "oblivious")
        knowing = find(record, name, "PGD20 on 128 images", "adaptive")
        bare = (knowing or {}).get("undefended")
        lines.append(
            f"- {name}: {percent(clean)} % of clean images are right, {percent(published)} % under "
            f"PGD-20 by an attacker who does not know ALU, {percent(knowing)} % under PGD-20 by "
            f"one who does (the undefended network: {percent(bare)} %)."
        )
    return [*lines, "", *_claim(), ""]


def _claim() -> list[str]:
    record = PAPER.read("figure-7")
    for subject in (record or {}).get("changes", {}).get("subjects", ()):
        if subject["status"] == "done":
            found = subject["found"]["successful"]
            return [
                f"- The true class's logit drops most in {share_text(found['drops_most'])} of the "
                f"successful attacks ({subject['name']}); the paper says 99.69 %."
            ]
    return ["- The 99.69 % claim: not run: no record of Figure 7 yet."]


DIFFERENCES = """\
- ResNet-20 in the place of ResNet-50, and a convolutional VAE of our own: the paper's figure of it
  is lost.
- Ten steps of Adam in the place of plain gradient descent; the paper states neither N nor the
  learning rate of its tables. Figures 3 and 4 vary both.
- The formula of the detector's statistic is lost: ours is the sum of absolute changes.
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
goes for both branches of the decision, and stops at the first success. Figures are percent right
with Wilson's 95 % interval on the first n test images."""


def parts() -> list[tuple[str, list[str]]]:
    """The page, part by part."""
    return [
        ("In short", summary()),
        ("Why ours differ from the paper's", changes("factors")),
        ("Table 1. The toy", PAPER.table("table-1")),
        ("Table 2. Plug-in and unified", PAPER.table("table-2")),
        (
            "Table 2. Other data",
            [*PAPER.table("table-2-cifar100"), *PAPER.table("table-2-tiny-imagenet")],
        ),
        ("Table 3. Beside other test-time defenses", PAPER.table("table-3")),
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
        ("Differences from the paper", [DIFFERENCES, ""]),
    ]


if __name__ == "__main__":
    PAPER.write(
        "ALU: the paper's tables, and what an attacker who knows leaves",
        "tools/alu_results.py",
        INTRODUCTION,
        parts,
    )
