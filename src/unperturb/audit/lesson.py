"""What an audit found, in plain sentences that are true of whatever the figures are."""

from __future__ import annotations

from typing import Any

from unperturb.audit.red_flags import Evidence

__all__ = ["lesson", "notes"]


def notes(settings: dict[str, Any], evidence: Evidence) -> list[str]:
    """What a reader must know beside the figures."""
    found = []
    describe = settings["target"]["describe"]
    if settings["scoring_draws"] > 1:
        found.append(
            f"The defense is random: an image counts as right where most of "
            f"{settings['scoring_draws']} fresh draws are right; no draw an attack was optimized "
            "on is used for scoring. The worst attack of an image is picked on those same scoring "
            "draws, which errs on the side of the attacker."
        )
    if settings["has_defense"] and "adaptive" not in settings["attackers"]:
        found.append(
            "Only the oblivious attacker was run. Its figures say nothing about an attacker who "
            "knows the defense; add --attacker adaptive."
        )
    if (describe.get("detector") or {}).get("action") == "reject":
        found.append(
            "The detector rejects what it flags. Flags are in the records and enter no figure "
            "here: a flagged wrong answer counts as wrong, a flagged right one as right."
        )
    if evidence.purifier == "fgsm-step" and not (evidence.card.get("monitor") or {}).get(
        "robust_overfitting"
    ):
        found.append(
            "TPAP is proposed for networks trained into robust overfitting. This classifier is "
            "not known to be one, so this is not the defense the paper proposes."
        )
    classes = describe.get("classifier", describe)["num_classes"]
    if any(a.get("loss") == "dlr" for a in settings["attacks"]) and classes < 4:
        found.append("The DLR loss needs four classes; the margin loss was used in its place.")
    return found


def _percent(acc: dict[str, Any] | None) -> str:
    return "not run" if acc is None else f"{acc['accuracy']:.1%}"


def lesson(summary: dict[str, Any]) -> str:
    """What was found, in two plain sentences, true of whatever the figures are."""
    target, baseline = summary["target"], summary["baseline"]
    by = target["worst_by_attacker"]
    if not summary["has_defense"]:
        return (
            f"The classifier answers {_percent(target['clean'])} of clean images correctly, and "
            f"{_percent(target['worst_case'])} when each image is met by its worst attack."
        )
    parts = []
    for attacker, words in (
        ("oblivious", "Against an attacker who ignores the defense (the published protocol)"),
        ("adaptive", "Against one who knows it"),
    ):
        if attacker in by:
            parts.append(
                f"{words} the worst case is {_percent(by[attacker])} with the defense and "
                f"{_percent(baseline['worst_by_attacker'][attacker])} without."
            )
    if "adaptive" not in by:
        parts.append(
            "No attacker who knows the defense was run: what it adds against one is not known."
        )
    gain = next((g for g in summary["gains"] if g["what"] == "worst case"), None)
    if gain is not None and "adaptive" in by:
        clear = gain["mcnemar_p"] < 0.01 and abs(gain["difference"]) >= 0.01 - 1e-9
        if not clear:
            parts.append(
                "Over all attackers the defense adds no robustness that can be told from zero."
            )
        elif gain["difference"] > 0:
            parts.append(f"Over all attackers it adds {gain['difference'] * 100:.1f} points.")
        else:
            parts.append(f"Over all attackers it costs {-gain['difference'] * 100:.1f} points.")
    return " ".join(parts)
