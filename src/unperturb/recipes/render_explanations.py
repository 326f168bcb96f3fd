"""Explanations, banks and correctors on a reproduction's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unperturb.recipes.words import (
    Record,
    accuracy_text,
    cell_text,
    header_of,
    line_of,
    share_text,
    threat_text,
)

__all__ = [
    "accuracy_lines",
    "banks_part",
    "causal_lines",
    "explanation_part",
    "fits_part",
    "instance_lines",
    "mean_logit_lines",
    "overlap_lines",
    "supporting_lines",
    "transfer_lines",
]

Part = Mapping[str, Any]


def explanation_part(record: Record) -> list[str]:
    """Everything that an explanation found, subject by subject and between them."""
    told = record["explanation"]
    lines = ["## Explanation", ""]
    shown = [f"![{name}]({name})" for name in record.get("files", ())]
    lines += [*shown, ""] if shown else []
    for subject in told["subjects"]:
        if subject["status"] != "done":
            lines += [f"- {subject['name']}: not run: {subject['reason']}", ""]
    if _fitted(told):
        lines += ["### Correction", "", *accuracy_lines(told), ""]
        lines += ["### Supporting classes", "", *supporting_lines(told), ""]
        if any(subject["causal"] for subject in _fitted(told)):
            lines += ["### Causal check", "", *causal_lines(told), ""]
        lines += ["### Single images", "", *instance_lines(told), ""]
    if told["overlap"] is not None:
        lines += ["### Overlap and transfer", "", *overlap_lines(told), "", *transfer_lines(told)]
        lines.append("")
    if told["mean_logits"]:
        lines += ["### Mean logit", "", *mean_logit_lines(told), ""]
    return lines


def _fitted(told: Part) -> list[Part]:
    """Subjects whose corrector was explained."""
    return [subject for subject in told["subjects"] if "supporting" in subject]


def accuracy_lines(told: Part) -> list[str]:
    """Logits with and without correction, and the paired difference."""
    names = ["logits", "n", "uncorrected", "corrected", "difference", "McNemar p",
             "wrong when clean: corrected"]  # fmt: skip
    lines = header_of(names)
    for subject in _fitted(told):
        for key in ("clean", "attacked"):
            part = subject[key]
            low, high = part["interval"]
            lines.append(
                line_of([
                    f"{cell_text(subject['name'])}, {key}", f"{subject['n']:,}",
                    accuracy_text(part["uncorrected"]), accuracy_text(part["corrected"]),
                    f"{part['difference']:+.1%} ({low:+.1%} to {high:+.1%})",
                    f"{part['mcnemar_p']:g}",
                    share_text(subject["wrong_when_clean"]) if key == "attacked" else "",
                ])
            )  # fmt: skip
    return [
        *lines,
        "",
        "Logits of attacks on the bare network, who ignore the corrector. Differences are paired, "
        "with Newcombe's 95 % interval and the exact McNemar test.",
    ]


def supporting_lines(told: Part) -> list[str]:
    """The supporting classes of each subject, with the images whose lists have them."""
    lines = header_of(["subject", "images", "list", "by S", "pull up", "push down"])
    for subject in _fitted(told):
        found = subject["supporting"]
        listed = [
            ", ".join(
                f"{cell_text(_short(k['name']))} ({k['count']:,})" for k in found["classes"][which]
            )
            for which in ("score", "pull", "push")
        ]
        size = f"{found['top']} of {found['num_classes']:,}"
        lines.append(line_of([cell_text(subject["name"]), f"{found['n']:,}", size, *listed]))
    warned = {words for subject in _fitted(told) for words in subject["supporting"]["warnings"]}
    return [*lines, *(f"\n{words}" for words in sorted(warned))]


def causal_lines(told: Part) -> list[str]:
    """What lowering the supporting classes does, beside as many random ones."""
    lower, draws = told["settings"]["lower"], told["settings"]["controls"]
    lines = header_of([
        "subject", "corrected", "supporting classes lowered", f"{draws} random draws: mean",
        "least", "most", "p", "back to the attack's class", "own class spared",
        "random, own class spared: mean",
    ])  # fmt: skip
    for subject in _fitted(told):
        found = subject["causal"]
        if found is None:
            continue
        hit, spared = found["lowered"], found["spared"]
        drawn = hit["controls"]
        lines.append(
            line_of([
                cell_text(subject["name"]), accuracy_text(found["before"]),
                accuracy_text(hit["after"]), f"{drawn['mean']:.1%}", f"{drawn['min']:.1%}",
                f"{drawn['max']:.1%}", f"{hit['p']:.3f}", share_text(hit["returned"]),
                accuracy_text(spared["after"]), f"{spared['controls']['mean']:.1%}",
            ])
        )  # fmt: skip
    return [
        *lines,
        "",
        f"Accuracy after correction once the supporting classes' logits are {lower:g} lower, and "
        "once those of as many random classes are. p: share of draws, the real one among them, "
        "that leave as little.",
    ]


def instance_lines(told: Part) -> list[str]:
    """What appendix B says of single images."""
    done = _fitted(told)
    lines = header_of(["subject", "the top S is the true class", "class", "on top, corrected",
                       "on top, not corrected"])  # fmt: skip
    for subject in done:
        found = subject["instances"]
        names = {k["class"]: k["name"] for k in subject["supporting"]["classes"]["score"]}
        on_top = found["focus_on_top"]
        lines.append(
            line_of([
                cell_text(subject["name"]), share_text(found["top_is_true"]),
                cell_text(_short(names.get(found["focus"], f"class {found['focus']}"))),
                share_text(on_top["corrected"]), share_text(on_top["uncorrected"]),
            ])
        )  # fmt: skip
    return [*lines, "", f"On top: among the {done[0]['instances']['among']} greatest S."]


def overlap_lines(told: Part) -> list[str]:
    """Bhattacharyya coefficients between the subjects, the paper's beside them."""
    found = told["overlap"]
    names = found["names"]
    lines = header_of(["", *(cell_text(name) for name in names)])
    for i, name in enumerate(names):
        cells = [
            f"{found['values'][i][k]:.3f} ({found['low'][i][k]:.3f} to {found['high'][i][k]:.3f})"
            if i != k
            else ""
            for k in range(len(names))
        ]
        lines.append(line_of([cell_text(name), *cells]))
    lines += ["", "Bhattacharyya coefficients of the classes in the lists by S, with bootstrap "
              "intervals."]  # fmt: skip
    if told["paper"]:
        quoted = "; ".join(f"{one} and {two} {value:g}" for one, two, value in told["paper"])
        lines[-1] += f" The paper: {quoted}."
    return lines


def transfer_lines(told: Part) -> list[str]:
    """Accuracy of each corrector on each subject's adversarial logits."""
    cells = {(part["corrector"], part["logits"]): part for part in told["transfer"]}
    rows = list(dict.fromkeys(one for one, _ in cells))
    columns = list(dict.fromkeys(two for _, two in cells))
    lines = header_of(["corrector", *(cell_text(name) for name in columns)])
    for one in rows:
        texts = [accuracy_text(cells[one, two]["accuracy"]) for two in columns]
        lines.append(line_of([cell_text(one), *texts]))
    return [*lines, "", "Accuracy after correction: correctors in rows, adversarial logits in "
            "columns."]  # fmt: skip


def mean_logit_lines(told: Part) -> list[str]:
    """Means of the mean logit, and how well it tells attacked images from clean ones."""
    lines = header_of(["network", "attack", "n", "mean, clean", "mean, attacked", "AUROC"])
    for model, part in sorted(told["mean_logits"].items()):
        for name, area in sorted(part["auroc"].items()):
            lines.append(
                line_of([
                    cell_text(model), cell_text(name), f"{part['n'][name]:,}",
                    f"{part['mean']['clean']:.3f}", f"{part['mean'][name]:.3f}", f"{area:.3f}",
                ])
            )  # fmt: skip
    return [*lines, "", "AUROC: of the mean logit as a detector; chance is a half."]


def banks_part(record: Record) -> list[str]:
    """Banks: what was attacked, how well the attack worked, and its digest."""
    lines = ["## Logit banks", ""]
    for name, facts in sorted(record["banks"].items()):
        accuracies = ", ".join(f"{key} {value:.1%}" for key, value in facts["accuracy"].items())
        lines.append(
            f"- **{name}**: {facts['n']:,} {facts['part']} images ({facts['source']}), "
            f"{facts['model']}, {threat_text(facts['threat'])}, away from the {facts['labels']} "
            f"label, gradients in {facts['precision']}, stored as {facts['dtype']}, seed "
            f"{facts['seed']}; accuracy of the bare network: "
            f"{accuracies}; digest `{facts['digest'][:16]}`"
        )
        lines += [f"    - **warning**: {words}" for words in facts["weak"]]
    return [*lines, ""]


def fits_part(record: Record) -> list[str]:
    """Correctors: settings, the epoch that is kept, and its figures on held-out rows."""
    lines = ["## Correctors", ""]
    for name, facts in sorted(record["fits"].items()):
        config = facts["config"]
        lines.append(
            f"- **{name}**: on the bank {facts['bank']}, width {config['width']}, depth "
            f"{config['depth']}, {config['epochs']} epochs, batch size {config['batch_size']}, "
            f"lr {config['lr']:g}, weight decay {config['weight_decay']:g}, clean share "
            f"{config['clean_share']:g}, dropout {config['dropout']:g}, seed {config['seed']}; "
            f"fingerprint `{facts['fingerprint'][:16]}`"
        )
        if facts["kept_epoch"]:
            lines.append(f"    - epoch {facts['kept_epoch']} kept{_held_out(facts)}")
    return [*lines, ""]


def _held_out(facts: Part) -> str:
    if not facts["held_out"]:
        return ""
    rows = facts["rows"]["held_out"]
    told = []
    for whose in ("corrected", "uncorrected"):
        found = facts["held_out"][whose]
        shares = {"clean": found["clean"], **found["adversarial"]}
        told.append(f"{whose} {', '.join(f'{key} {v:.1%}' for key, v in shares.items())}")
    return f"; on {rows:,} held-out rows: {'; '.join(told)}"


def _short(name: str) -> str:
    """The first of a class's synonyms."""
    return name.partition(",")[0].strip() or name
