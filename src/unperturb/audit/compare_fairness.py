"""Whether audits can be compared at all, and what makes their comparison lame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unperturb.audit.report_text import norm_name
from unperturb.audit.result import AuditResult
from unperturb.errors import RecordError

__all__ = ["Compared", "check_comparable", "common_attacks", "differences", "run_by"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """An audit that is compared.

    Attributes:
        name: What tables call it.
        result: Its records and figures.
    """

    name: str
    result: AuditResult

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of its plan."""
        found: Mapping[str, Any] = self.result.plan["settings"]
        return found


def run_by(compared: Compared) -> set[str]:
    """Attackers whose images it was shown."""
    outside = ["outside"] if compared.settings.get("outside") else []
    return {*compared.settings["attackers"], *outside}


def check_comparable(compared: Sequence[Compared]) -> list[str]:
    """Refuse audits of different questions.

    Args:
        compared: At least one audit.

    Returns:
        Ids of the images that all of them have, in the first one's order.

    Raises:
        RecordError: Threat models, classes or images differ; it says which and how.
    """
    first = compared[0]
    for other in compared[1:]:
        _same_threat(first, other)
        _same_classes(first, other)
    common = set(first.result.plan["ids"])
    for other in compared[1:]:
        common &= set(other.result.plan["ids"])
    if not common:
        raise RecordError(
            "The audits have no image in common: "
            + "; ".join(f"{one.name} has {_some(one.result.plan['ids'])}" for one in compared),
            expected="audits of the same images, by the same ids",
            fix="run them on the same --data, --split, --limit and --seed",
        )
    ids = [image for image in first.result.plan["ids"] if image in common]
    for other in compared[1:]:
        _same_images(first, other, ids)
    return ids


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:3])
    return f"{len(ids):,} ({shown}{' ...' if len(ids) > 3 else ''})"


def _threat(compared: Compared) -> str:
    threat = compared.result.summary["threat"]
    return f"{norm_name(threat['norm'], ascii_only=True)} {threat['eps_text']}"


def _same_threat(first: Compared, other: Compared) -> None:
    one, two = first.settings["threat"], other.settings["threat"]
    if (one["norm"], one["eps"]) == (two["norm"], two["eps"]):
        return
    raise RecordError(
        f"The audits are of different threat models: {first.name} is under {_threat(first)}, "
        f"{other.name} under {_threat(other)}",
        expected="one norm and one eps",
        fix="run one of them again with the other's --norm and --eps",
    )


def _count(compared: Compared) -> int | None:
    describe = compared.settings["target"]["describe"]
    found: int | None = describe.get("classifier", describe).get("num_classes")
    return found


def _same_classes(first: Compared, other: Compared) -> None:
    one, two = ([*c.settings["data"].get("classes", ())] for c in (first, other))
    if one and two and one != two:
        odd = next(
            (k for k in range(min(len(one), len(two))) if one[k] != two[k]),
            min(len(one), len(two)),
        )
        raise RecordError(
            f"The audits have different label sets: class {odd} is {_named(one, odd)} in "
            f"{first.name} ({len(one)} classes) and {_named(two, odd)} in {other.name} "
            f"({len(two)} classes)",
            expected="the same classes in the same order",
            fix="use one --label-map for both",
        )
    counts = _count(first), _count(other)
    if None not in counts and counts[0] != counts[1]:
        raise RecordError(
            f"The audits have different label sets: {first.name} has {counts[0]} classes, "
            f"{other.name} {counts[1]}",
            expected="classifiers of the same classes",
        )


def _named(classes: Sequence[str], place: int) -> str:
    return repr(str(classes[place])) if place < len(classes) else "not there"


def _clean_pixels(compared: Compared) -> dict[str, str]:
    """Id to the hash of the unperturbed image, of what has been done."""
    rows = compared.result.rows
    clean = (rows["attack"] == "clean") & (rows["draw"] == 0)
    return dict(zip(rows["image_id"][clean], rows["pixels"][clean], strict=True))


def _same_images(first: Compared, other: Compared, ids: Sequence[str]) -> None:
    """Ids may be positions: the same one may stand for another image."""
    labels, pixels = [], []
    for one in (first, other):
        plan = one.result.plan
        labels.append(dict(zip(plan["ids"], plan["labels"], strict=True)))
        pixels.append(_clean_pixels(one))
    fix = "run them on the same --data and --split"
    for image in ids:
        one, two = labels[0][image], labels[1][image]
        if one != two:
            raise RecordError(
                f"Image {image} has the label {one} in {first.name} and {two} in {other.name}",
                expected="the same images with the same labels",
                fix=fix,
            )
        hashes = pixels[0].get(image), pixels[1].get(image)
        if None not in hashes and hashes[0] != hashes[1]:
            raise RecordError(
                f"Image {image} of {first.name} is not that of {other.name}: their pixels differ",
                expected="the same images, of the same size, under the same ids",
                fix=fix,
            )


# Facts of a plan's attack that decide nothing of what it does to an image.
_SILENT = ("only",)


def _attacks(compared: Compared) -> dict[str, dict[str, Any]]:
    """Attacks that enter its worst case, by name."""
    return {
        attack["name"]: {key: value for key, value in attack.items() if key not in _SILENT}
        for attack in compared.settings["attacks"]
        if attack.get("bound", "threat") != "own"
    }


def _beside(compared: Compared) -> tuple[Any, ...]:
    """What enters its worst case beside its attacks: outside images and probes."""
    outside = sorted(given["fingerprint"] for given in compared.settings.get("outside") or ())
    probe = compared.settings.get("probe") or {}
    return outside, probe.get("attack"), probe.get("images")


def common_attacks(compared: Sequence[Compared]) -> list[str] | None:
    """Attacks that all audits ran with equal settings; None where nothing else was run at all."""
    each = [_attacks(one) for one in compared]
    shared = [
        name for name, attack in each[0].items() if all(one.get(name) == attack for one in each)
    ]
    alike = all(one == each[0] for one in each)
    attackers = all(run_by(one) == run_by(compared[0]) for one in compared)
    beside = all(_beside(one) == _beside(compared[0]) for one in compared)
    return None if alike and attackers and beside else shared


def differences(
    compared: Sequence[Compared], ids: Sequence[str], shared: Sequence[str] | None
) -> list[str]:
    """What a reader must know before believing the comparison, in plain words."""
    found = []
    for one in compared:
        if not one.result.summary["complete"]:
            left = "; ".join(one.result.summary["left_out"])
            found.append(
                f"{one.name} is not complete ({left}): its worst case counts only images of which "
                "everything that was planned is done."
            )
    sizes = {one.name: len(one.result.plan["ids"]) for one in compared}
    if any(size != len(ids) for size in sizes.values()):
        told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        found.append(
            f"Not the same images ({told}): the comparison is made on the {len(ids):,} that all "
            "have."
        )
    if shared is not None:
        found += _other_attacks(compared, shared)
    found += _others(compared)
    return found


def _other_attacks(compared: Sequence[Compared], shared: Sequence[str]) -> list[str]:
    found = []
    each = {one.name: _attacks(one) for one in compared}
    parts = []
    for name, attacks in each.items():
        others = [other for key, other in each.items() if key != name]
        own = [a for a in attacks if not any(a in other for other in others)]
        if own:
            parts.append(f"only {name} ran {', '.join(own)}")
    everywhere = [a for a in each[compared[0].name] if all(a in other for other in each.values())]
    changed = [a for a in everywhere if a not in shared]
    if changed:
        parts.append(f"{', '.join(changed)} ran with other settings")
    partly = {a for other in each.values() for a in other} - set(everywhere)
    if partly and not parts:
        parts.append(f"not all of them ran {', '.join(sorted(partly))}")
    if parts:
        found.append(
            f"Not the same attacks: {'; '.join(parts)}. The worst case of the one with fewer "
            "attacks flatters it. Compare over the attacks they share."
        )
    if any(run_by(one) != run_by(compared[0]) for one in compared):
        told = "; ".join(f"{one.name}: {', '.join(sorted(run_by(one)))}" for one in compared)
        found.append(
            f"Not the same attackers ({told}). The worst case of the one with fewer attackers "
            "flatters it."
        )
    if any(_beside(one) != _beside(compared[0]) for one in compared):
        found.append(
            "Not the same outside images or probes, which enter the worst case where they lie in "
            "the ball. The attacks they share are compared without them."
        )
    return found


def _others(compared: Sequence[Compared]) -> list[str]:
    found = []
    suites = {one.name: one.settings.get("suite") or "attacks by name" for one in compared}
    # What is not random has one draw, whatever was asked for.
    draws = {
        one.name: one.settings["scoring_draws"]
        for one in compared
        if one.settings["scoring_draws"] > 1
    }
    facts: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("suites", suites, ""),
        ("seeds", {one.name: one.settings["seed"] for one in compared},
         " Random starts differ, and small differences with them."),
        ("numbers of draws", draws, " Majorities of few draws are noisier."),
        ("versions of unperturb",
         {one.name: one.result.plan["environment"].get("unperturb") for one in compared}, ""),
    )  # fmt: skip
    for what, values, told in facts:
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            found.append(f"Not the same {what}: {listed}.{told}")
    if len({one.settings["baseline"]["fingerprint"] for one in compared}) > 1:
        found.append(
            "Not the same undefended classifier: each gain is over the audit's own, and what "
            "differs may be the classifiers rather than the defenses."
        )
    return found
