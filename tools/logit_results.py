"""Write ``docs/results/logit-correction.md`` and a page for each recipe, from records alone.

python tools/logit_results.py [--collect runs/repro]

``--collect`` first takes over what finished runs of ``unperturb reproduce`` left in
``runs/repro/NAME``: the record, and its pictures with fewer colors.

Records: ``docs/results/records/logit-correction/NAME.json`` is the ``record.json`` that
``unperturb reproduce logit-correction/NAME`` wrote. What has no record says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from results import Paper, Record, compact, find, percent
from unperturb.recipes.render_explanations import (
    accuracy_lines,
    causal_lines,
    instance_lines,
    mean_logit_lines,
    overlap_lines,
    supporting_lines,
    transfer_lines,
)
from unperturb.recipes.words import header_of, line_of

MANY = ("table-1-cifar100", "table-1-tiny-imagenet")
EXPLAINED = ("explanation-cifar10", "explanation-cifar100", "explanation-tiny-imagenet")
FIGURES = ("figure-1", "figure-2-3", "figure-4")
NAMES = ("table-1", "table-2", "table-3", "ablations", "networks", "strengths", *MANY, "imagenet",
         *FIGURES, *EXPLAINED)  # fmt: skip
PAPER = Paper(
    "logit-correction", NAMES, "Stopping rules, classifiers, banks, correctors and digests"
)


def controls() -> Iterator[tuple[str, str, Record]]:
    """Recipe, row and the control for label leaking, on images that are not selected."""
    for name in ("table-1", *MANY):
        record = PAPER.read(name) or {}
        for _, audit in sorted(record.get("audits", {}).items()):
            if audit["control"] is not None and not audit.get("selected"):
                yield name, audit["row"], audit["control"]


def rate(part: Record | None) -> str:
    """A share of images in percent, or that there are none."""
    if part is None:
        return "no such image"
    low, high = (100 * end for end in part["interval"])
    return f"{100 * part['rate']:.1f} ({low:.1f}-{high:.1f}; n = {part['n']})"


def ablated() -> list[str]:
    """The rows of the ablations beside the paper's network."""
    record = PAPER.read("ablations")
    if record is None:
        return []
    names = [row["name"] for row in record["rows"]]
    whole, *others = (
        [find(record, name, *what) for what in (("Clean, selected", "none"),
                                                ("PGD, selected", "oblivious"))]
        for name in names
    )  # fmt: skip
    lines = [
        f"Beside the paper's {names[0]} (its claims: one layer falls from 75.4 to 41.9 % under "
        "PGD, fewer units lose much, more layers lose some):",
        "",
    ]
    for name, cells in zip(names[1:], others, strict=True):
        if any(cell is None or cell.get("accuracy") is None for cell in (*whole, *cells)):
            continue
        clean, attacked = (
            100 * (mine["accuracy"] - theirs["accuracy"])
            for mine, theirs in zip(cells, whole, strict=True)
            if mine is not None and theirs is not None
        )
        lines.append(f"- {name}: {clean:+.1f} points clean, {attacked:+.1f} points under PGD.")
    return [*lines, ""]


def leaking() -> list[str]:
    """What the true label tells: the same attack away from the predicted one."""
    lines = [
        "The attacks step away from the *true* label, and what they do to the logits tells that "
        "label to whoever has learned to read it. The control is the same oblivious attack away "
        "from the *predicted* label, which is all that an attacker without the label has. Images "
        "that a row gets wrong when clean are where the two differ. The paper's DenseNet-121 is "
        "right for 74.47 % of clean images and, corrected, for 88.29 % of attacked ones.",
        "",
    ]
    found = list(controls())
    if not found:
        return [*lines, *PAPER.missing("table-1")]
    lines += header_of([
        "", "", "clean", "away from the true label", "away from the predicted label",
        "wrong when clean, true label: right", "wrong when clean, predicted label: right",
    ])  # fmt: skip
    told = []
    for name, row, control in found:
        for subject, words in (("target", "corrected"), ("baseline", "bare")):
            part = control["subjects"].get(subject)
            if part is None:
                continue
            wrong = part["wrong_when_clean"]
            lines.append(
                line_of([
                    f"**{row}** ({name})" if subject == "target" else "", words,
                    *(percent(part[key]) for key in ("clean", "true_label", "predicted_label")),
                    rate(wrong["true_label"]), rate(wrong["predicted_label"]),
                ])
            )  # fmt: skip
        if "target" in control["subjects"]:
            told.append(_above(row, control["subjects"]["target"]))
    return [*lines, "", *told, ""]


def _above(row: str, part: Record) -> str:
    """Whether an attack on a corrected network repairs more than it breaks."""
    clean, true, predicted = (
        part[key]["accuracy"] for key in ("clean", "true_label", "predicted_label")
    )

    def beside(share: float) -> str:
        return "above" if share > clean else "below" if share < clean else "equal to"

    return (
        f"- {row}, corrected: {100 * true:.1f} % under the attack away from the true label is "
        f"{beside(true)} the {100 * clean:.1f} % clean; {100 * predicted:.1f} % under the one away "
        f"from the predicted label is {beside(predicted)} it."
    )


def knowing() -> list[str]:
    """What an attacker who knows the corrector leaves, beside the bare network."""
    lines = [
        "The corrector is differentiable: this attacker takes the gradient through it, end to end, "
        "and the bare network's as well; each figure is the worse for each image. Below stands "
        "what the same attacks leave of the bare network.",
        "",
    ]
    rows = [
        (name, record, row["name"])
        for name in ("table-1", "table-2", "ablations", *MANY, "imagenet")
        if (record := PAPER.read(name)) is not None
        for row in record["rows"]
    ]
    cells = [
        (name, row, column["name"], cell)
        for name, record, row in rows
        for column in record["columns"]
        if column["attack"] is not None
        and (cell := find(record, row, column["name"], "adaptive")) is not None
        and cell.get("accuracy") is not None
    ]
    if not cells:
        return [*lines, *PAPER.missing("table-1")]
    lines += header_of(["", "attack", "n", "oblivious", "adaptive", "bare network, adaptive"])
    for name, row, column, cell in cells:
        record = PAPER.read(name) or {}
        ignoring = find(record, row, column, "oblivious")
        lines.append(
            line_of([
                f"{row} ({name})", column, f"{cell['n']:,}", percent(ignoring), percent(cell),
                percent(cell["undefended"]) if cell["undefended"] else "",
            ])
        )  # fmt: skip
    return [*lines, "", *_strongest(cells), ""]


def _strongest(cells: Sequence[tuple[str, str, str, Record]]) -> list[str]:
    """What the strongest attack of each row leaves, corrected and bare."""
    rows: dict[tuple[str, str], list[tuple[str, Record]]] = {}
    for name, row, column, cell in cells:
        rows.setdefault((name, row), []).append((column, cell))
    least = {key: min(found, key=lambda part: part[1]["accuracy"]) for key, found in rows.items()}
    (name, row), (column, most) = max(least.items(), key=lambda part: part[1][1]["accuracy"])
    lines = [
        f"The strongest attack of each of these {len(least)} rows leaves at most "
        f"{percent(most)} % right ({row} of {name}, {column})."
    ]
    gains = [
        min(cell["accuracy"] for _, cell in found)
        - min(cell["undefended"]["accuracy"] for _, cell in found)
        for found in rows.values()
        if all((cell["undefended"] or {}).get("accuracy") is not None for _, cell in found)
    ]
    if gains:
        lines.append(
            f"That is from {100 * min(gains):+.1f} to {100 * max(gains):+.1f} points beside what "
            "the strongest of the same attacks leaves of the bare network."
        )
    return lines


def explained(name: str) -> list[str]:
    """Numbers of an explanation."""
    record = PAPER.read(name)
    lines = [f"### {PAPER.recipe(name).title}", ""]
    if record is None:
        return [*lines, *PAPER.missing(name)]
    told = record["explanation"]
    done = [subject for subject in told["subjects"] if "supporting" in subject]
    for subject in told["subjects"]:
        if subject["status"] != "done":
            lines += [f"{subject['name']}: not run: {subject['reason']}", ""]
    lines += PAPER.pictures(name)
    if done:
        parts = (accuracy_lines, supporting_lines, causal_lines, instance_lines)
        for part in parts:
            lines += [*part(told), ""]
        lines += [*collapses(done), ""]
    if told["overlap"] is not None:
        lines += [*overlap_lines(told), "", *transfer_lines(told), "", *tracks(told)]
    if told["mean_logits"]:
        lines += ["", *mean_logit_lines(told)]
    return [*lines, "", *PAPER.foot(name, record)]


def collapses(done: Sequence[Record]) -> list[str]:
    """The causal check in sentences, computed."""
    lines = []
    for subject in done:
        causal = subject["causal"]
        if causal is None:
            continue
        hit, drawn = causal["lowered"], causal["lowered"]["controls"]
        draws = causal["draws"]
        fewer = sum(share > hit["after"]["accuracy"] for share in drawn["accuracies"])
        lines.append(
            f"- {subject['name']}: lowering the supporting classes takes the corrected answers "
            f"from {100 * causal['before']['accuracy']:.1f} to "
            f"{100 * hit['after']['accuracy']:.1f} %, which is less than {fewer} of {draws} draws "
            f"of random classes leave (mean {100 * drawn['mean']:.1f} %)."
        )
    return lines


def tracks(told: Record) -> list[str]:
    """Whether overlap goes with transfer, as rank correlation over pairs of subjects."""
    found, names = told["overlap"], told["overlap"]["names"]
    accuracy = {
        (part["corrector"], part["logits"]): part["accuracy"]["accuracy"]
        for part in told["transfer"]
    }
    pairs = [
        (found["values"][i][k], (accuracy[one, two] + accuracy[two, one]) / 2)
        for i, one in enumerate(names)
        for k, two in enumerate(names)
        if i < k and (one, two) in accuracy and (two, one) in accuracy
    ]
    if len(pairs) < 3 or any(len({pair[side] for pair in pairs}) < 2 for side in (0, 1)):
        return []
    from scipy.stats import spearmanr

    value = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return [
        f"Over the {len(pairs)} pairs the coefficient and the mean transfer of both directions "
        f"have the rank correlation {value:.2f} (Spearman).",
        "",
    ]


def held_out() -> list[str]:
    """A thousand classes: corrected against uncorrected on logits of held-out images."""
    record = PAPER.read("imagenet")
    if record is None:
        return [*PAPER.head("imagenet"), *PAPER.missing("imagenet")]
    lines = PAPER.head("imagenet")
    for subject in record["explanation"]["subjects"]:
        if "attacked" not in subject:
            continue
        part = subject["attacked"]
        low, high = (100 * end for end in part["interval"])
        sign = "above" if low > 0 else "below" if high < 0 else "not told apart from"
        lines.append(
            f"On {subject['n']} held-out images under {subject['name']}, corrected logits are "
            f"right for {percent(part['corrected'])} %, uncorrected ones for "
            f"{percent(part['uncorrected'])} %: a paired difference of "
            f"{100 * part['difference']:+.1f} points ({low:+.1f} to {high:+.1f}; exact McNemar "
            f"p = {part['mcnemar_p']:.2g}): corrected {sign} uncorrected."
        )
    return [*lines, "", *compact(record, whole=True), "", *explained("imagenet")]


def summary() -> list[str]:
    """What a user should take away, in figures of the records."""
    record = PAPER.read("table-1")
    if record is None:
        return ["not run: no record of Table 1 yet.", ""]
    lines = []
    for row in record["rows"]:
        clean, ignoring, knowing = (
            find(record, row["name"], *what)
            for what in (("Clean, full", "none"), ("PGD, full", "oblivious"),
                         ("PGD, full", "adaptive"))
        )  # fmt: skip
        if any(cell is None or cell.get("accuracy") is None for cell in (clean, ignoring)):
            lines.append(f"- {row['name']}: {percent(clean)}.")
            continue
        assert clean is not None
        bare = (ignoring or {}).get("undefended")
        lines.append(
            f"- {row['name']}: corrected, {percent(clean)} % of clean images are right (bare "
            f"{percent(clean['undefended'])} %), {percent(ignoring)} % under PGD by an attacker "
            f"who does not know the corrector (bare {percent(bare)} %), and {percent(knowing)} % "
            "under PGD by one who does."
        )
    return [*lines, *_weaker(), ""]


def _weaker() -> list[str]:
    """What attacks of other strengths than the corrector's own leave, in a sentence for each."""
    record = PAPER.read("strengths")
    if record is None:
        return []
    lines = []
    for row in record["rows"]:
        cells = [
            (column["name"], cell)
            for column in record["columns"]
            if column["attack"] is not None
            and (cell := find(record, row["name"], column["name"], "oblivious")) is not None
            and cell.get("accuracy") is not None
        ]
        if not cells:
            continue
        told = ", ".join(f"{100 * cell['accuracy']:.1f} % at {name}" for name, cell in cells)
        least, cell = min(cells, key=lambda part: part[1]["accuracy"])
        # The bare network under the same attack of the same size.
        bare = percent(cell.get("undefended"))
        lines.append(
            f"- The corrector {row['name']}, under PGD of other sizes by an attacker who does not "
            f"know it: {told}. The least is left at {least} (bare {bare} %)."
        )
    return lines


DIFFERENCES = """\
- Networks and data: CIFAR-10 and networks for it in the place of ILSVRC2012, ResNet-50, VGG-16 and
  DenseNet-121; CIFAR-100 and Tiny-ImageNet in part; a thousand images of ImageNet, one a class.
- Selected images: up to 100 of each of 10 classes (10 of 100, 5 of 200) in the place of one of each
  of 1,000; the first that the reference gets right, the same for every network.
- At the scale cpu, banks of training images take gradients in bfloat16, but for DeepFool and C&W;
  with 100 and 200 classes, banks that only an explanation needs are of a part of the images.
- A thousand classes: 700 images with one label each teach nothing of the other classes, so rows are
  of random crops, and the network's own clean answers are learnt in the place of labels. Beside the
  paper's corrector stands one whose classes share their weights.
- The epoch of a corrector that is kept is the one that is best on a tenth of the bank's rows, which
  it is not trained on; the paper trains on all and says nothing of a choice.
- The corrector of three layers has 1,000 units in each hidden layer in the place of 10,000.
- Attacks are this project's own, with the paper's settings; the paper took CleverHans.
- DeepFool and C&W: an image counts as broken within L2 0.5, and at any distance in a line of its
  own, which is the paper's way of counting.
- Lists of supporting classes have 3 of 10 classes, and 10 of 100, 200 and 1,000.
- Besides: an attacker who knows the corrector, intervals, the control for label leaking, random
  controls of the causal check, bootstrap intervals of the coefficients."""

INTRODUCTION = """\
A corrector is a small network from a classifier's logits to corrected logits (Li et al., 2019).
It is fitted on a *bank*: the clean logits of training images, and their logits under an attack on
the bare network. It never sees an image.

*Oblivious*: the attacker does not know the corrector, runs all his steps on the bare network, and
the logits of his last image are corrected (the paper's protocol). *Adaptive*: he attacks network
and corrector together and stops at the first success. The two rules are not comparable, and their
random starts differ as well. Figures are percent right with Wilson's 95 % interval; *selected* are
the first test images that ResNet-20 (with 100 and 200 classes the network itself) gets right, the
same for every row, *full* the first n of all."""


def figure(name: str) -> list[str]:
    """A figure of the paper."""
    record = PAPER.read(name)
    lines = PAPER.heading(name)
    if record is None:
        return [*lines, *PAPER.missing(name)]
    lines += PAPER.pictures(name)
    if record["explanation"]["mean_logits"] and name == "figure-1":
        lines += [*mean_logit_lines(record["explanation"]), ""]
    return [*lines, *PAPER.foot(name, record)]


def parts() -> list[tuple[str, list[str]]]:
    """The page, part by part."""
    return [
        ("In short", summary()),
        ("Table 1. Three networks under PGD", PAPER.table("table-1")),
        ("Label leaking", leaking()),
        ("Table 2. Four attacks", PAPER.table("table-2")),
        ("Table 3. From one attack to another", PAPER.table("table-3")),
        ("Ablations", [*PAPER.table("ablations"), *ablated()]),
        ("From one network to another", PAPER.table("networks")),
        ("Other strengths", PAPER.table("strengths")),
        ("Many classes", [line for name in MANY for line in PAPER.table(name)]),
        ("A thousand classes", held_out()),
        ("Figures", [line for name in FIGURES for line in figure(name)]),
        ("Explanation", [line for name in EXPLAINED for line in explained(name)]),
        ("An attacker who knows the corrector", knowing()),
        ("Differences from the paper", [DIFFERENCES, ""]),
    ]


if __name__ == "__main__":
    PAPER.write(
        "Logit correction: the paper's tables, and what an attacker who knows leaves",
        "tools/logit_results.py",
        INTRODUCTION,
        parts,
    )
