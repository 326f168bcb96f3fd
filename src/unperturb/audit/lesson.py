"""What an audit found, in plain sentences that are true of whatever the figures are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unperturb.attacks.autoattack import FEW_CLASSES
from unperturb.audit.red_flags import EFFECT, SAME_ATTACK, Evidence

__all__ = ["is_random", "lesson", "notes"]


def is_random(settings: Mapping[str, Any], who: str) -> bool:
    """Whether ``target`` or ``baseline`` answers at random; a plain classifier never does."""
    return bool(settings[who]["describe"].get("stochastic", False))


def notes(
    settings: dict[str, Any], evidence: Evidence, summary: dict[str, Any] | None = None
) -> list[str]:
    """What a reader must know beside the figures.

    Args:
        settings: The plan's settings.
        evidence: What the red flags are found in.
        summary: The figures, for what can only be said once they are known.
    """
    figures = summary or {}
    found = _of_random(settings, figures)
    describe = settings["target"]["describe"]
    if settings["has_defense"] and "adaptive" not in settings["attackers"]:
        found.append(
            "Only the oblivious attacker was run. Its figures say nothing about an attacker who "
            "knows the defense; add --attacker adaptive."
        )
    if (describe.get("detector") or {}).get("action") == "reject":
        found.append(
            "The detector rejects what it flags. Its figure is the share of images that are "
            "answered wrongly and not flagged, beside the share of clean images that are flagged. "
            "Flags are in the records and enter no accuracy: there a flagged wrong answer counts "
            "as wrong, a flagged right one as right."
        )
    if evidence.purifier == "fgsm-step" and not (evidence.card.get("monitor") or {}).get(
        "robust_overfitting"
    ):
        found.append(
            "TPAP is proposed for networks trained into robust overfitting. This classifier is "
            "not known to be one, so this is not the defense the paper proposes."
        )
    objective = evidence.card.get("objective")
    if objective not in SAME_ATTACK.get(evidence.purifier, (objective,)):
        found.append(
            f"{evidence.purifier} presumes a network trained on the attack that purifies. This "
            "classifier is not known to be one."
        )
    return found + _of_attacks(settings, evidence) + _of_probes(settings, figures)


def _of_random(settings: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    draws = settings["scoring_draws"]
    if draws < 2:
        return []
    counts = (
        f"an image counts as right where most of {draws} fresh draws are right; no draw an attack "
        "was optimized on is used for scoring. "
    )
    if is_random(settings, "target"):
        found = f"The defense is random: {counts}"
    else:
        found = f"Only the baseline is random, and the target is not: for the baseline {counts}"
    if figures.get("selection_draws"):
        found += (
            f"The worst attack of an image is picked on {figures['selection_draws']} other draws, "
            "none of which it is scored on; so a worst case may lie above clean accuracy by chance."
        )
    else:
        found += (
            "The worst attack of an image is picked on those same scoring draws, which errs on the "
            "side of the attacker."
        )
    return [found]


def _of_attacks(settings: dict[str, Any], evidence: Evidence) -> list[str]:
    found = []
    attacks, describe = settings["attacks"], settings["target"]["describe"]
    classes = describe.get("classifier", describe)["num_classes"]
    if classes < 4 and any("dlr" in str(a.get("loss", "")) for a in attacks):
        found.append("The DLR loss needs four classes; the margin loss was used in its place.")
    if classes < 4 and any("version" in a and "queries" in a for a in attacks):
        found.append(FEW_CLASSES)
    bounds: dict[str, list[str]] = {}
    for attack in attacks:
        bounds.setdefault(attack.get("bound", "threat"), []).append(attack["name"])
    if "own" in bounds:
        found.append(
            f"{', '.join(bounds['own'])}: bounded in a measure of their own and not by the threat "
            "model. They stand apart, with accuracy as returned, and enter no worst case."
        )
    if "minimal" in bounds:
        found.append(
            f"{', '.join(bounds['minimal'])}: they look for the nearest image, whatever the threat "
            "model. An image counts as broken where what they found lies in the ball, and with "
            "its clean answer where it lies outside."
        )
    subject = "baseline" if "baseline" in evidence.subjects else "target"
    clean = evidence.answers.get((subject, "none", "clean"))
    weak = sorted(
        {
            attack
            for (who, _, attack), right in evidence.answers.items()
            if clean is not None
            and who == subject
            and evidence.blind(attack)
            and clean.mean() - right.mean() < EFFECT - 1e-9
        }
    )
    if weak:
        found.append(
            f"{', '.join(weak)}: at this number of queries it does not hurt the undefended "
            "classifier, and says nothing about a defense."
        )
    return found


def _of_probes(settings: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    probe = settings.get("probe")
    series = [s for s in (figures.get("curves") or {}).get("series", []) if s["source"] == "probe"]
    if not probe or not series:
        return []
    many = max(s["n"] for s in series)
    return [
        f"The security curve, the accuracy at a huge eps and the effect of more steps or draws are "
        f"those of {series[0]['attack']} on the first {many:,} of {settings['images']:,} images. "
        "Where such an image lies in the ball and is broken, it counts as broken."
    ]


def _percent(acc: dict[str, Any] | None) -> str:
    return "not known" if acc is None else f"{acc['accuracy']:.1%}"


def lesson(summary: dict[str, Any]) -> str:
    """What was found, in two plain sentences, true of whatever the figures are."""
    target, baseline = summary["target"], summary["baseline"]
    by = target["worst_by_attacker"]
    if not summary["has_defense"]:
        return _of_classifier(summary)
    worst = [subject["worst_by_attacker"][name] for subject in (target, baseline) for name in by]
    known = any(figure is not None for figure in worst)
    parts = [] if known else [_no_worst_case(summary)]
    for attacker, words in (
        ("oblivious", "Against an attacker who ignores the defense (the published protocol)"),
        ("adaptive", "Against one who knows it"),
    ):
        if known and attacker in by:
            parts.append(
                f"{words} the worst case is {_percent(by[attacker])} with the defense and "
                f"{_percent(baseline['worst_by_attacker'][attacker])} without."
            )
    if "adaptive" not in by:
        parts.append(
            "No attacker who knows the defense was run: what it adds against one is not known."
        )
    parts += _of_rejection(summary.get("rejection"))
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


def _of_classifier(summary: dict[str, Any]) -> str:
    clean, worst = summary["target"]["clean"], summary["target"]["worst_case"]
    if clean is None:
        return "What the classifier answers on clean images is not known: they are not done."
    found = f"The classifier answers {_percent(clean)} of clean images correctly"
    if worst is None:
        return f"{found}. {_no_worst_case(summary)}"
    return f"{found}, and {_percent(worst)} when each image is met by its worst attack."


def _no_worst_case(summary: dict[str, Any]) -> str:
    """Why there is none: nothing that counts for it was planned, or it is not done."""
    if summary["complete"]:
        return "No attack of the threat model was run, so there is no worst case."
    return "The worst case is not known: the audit is not complete."


def _of_rejection(rejection: dict[str, Any] | None) -> list[str]:
    """What a detector that rejects is judged by."""
    if rejection is None or rejection["wrong_unflagged"]["worst_case"] is None:
        return []
    fooled, flagged = rejection["wrong_unflagged"]["worst_case"], rejection["false_positive_rate"]
    return [
        f"Under its worst attack {fooled['rate']:.1%} of images are answered wrongly and not "
        f"flagged; of clean images {flagged['rate']:.1%} are flagged."
    ]
