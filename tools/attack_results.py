"""Write ``docs/results/attacks.md`` from the records beside it.

python tools/attack_results.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unperturb.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "docs" / "results" / "records"
PAGE = ROOT / "docs" / "results" / "attacks.md"

STRENGTH = (
    ("4b", "linf", "published robust ResNet 4b"),
    ("wide", "linf", "published robust CNN wide"),
    ("pgd", "linf", "our PGD-trained ResNet-20"),
    ("wide", "l2", "published robust CNN wide"),
)


def record(name: str) -> dict[str, Any] | None:
    """A record, or None where it was not made."""
    path = RECORDS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def percent(part: dict[str, Any]) -> str:
    """An accuracy with its interval."""
    low, high = part["interval"]
    return f"{part['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def strength() -> list[str]:
    """Our suite beside AutoAttack."""
    lines = [
        "## The suite `standard` beside AutoAttack",
        "",
        "First 1,000 CIFAR-10 test images, seed 0, Wilson 95 % intervals. AutoAttack `standard` is "
        "`pyautoattack`, called as its users call it, in blocks of 100. Every image of either side "
        "was checked by other code: range and distance in float64, and a plain forward pass.",
        "",
        "| network | threat | clean | AutoAttack leaves | ours leaves | AutoAttack breaks, ours "
        "does not | ours breaks, AutoAttack does not |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, norm, words in STRENGTH:
        found = record(f"strength-{name}-{norm}")
        threat = "Linf 8/255" if norm == "linf" else "L2 0.5"
        if found is None:
            lines.append(f"| {words} | {threat} | not run | | | | |")
            continue
        threat += f", n = {found['n']:,}"
        only = [found["package_breaks_ours_does_not"], found["ours_breaks_package_does_not"]]
        counts = [f"{len(ids)}" + (f": {', '.join(ids)}" if ids else "") for ids in only]
        robust = found["robust"]
        lines.append(
            f"| {words} | {threat} | {found['clean']['accuracy']:.1%} | "
            f"{percent(robust['package'])} | {percent(robust['ours'])} | {counts[0]} | "
            f"{counts[1]} |"
        )
    return [*lines, ""]


def minimal() -> list[str]:
    """Minimal-norm attacks beside a reference with ten times the steps."""
    found = record("minimal-norm")
    lines = ["## Minimal-norm attacks", ""]
    if found is None:
        return [*lines, "Not run.", ""]
    lines += [
        "Median distance of ours over that of Foolbox's attack with ten times our steps, both on "
        f"the same test images, those that the classifier answers rightly; seed {found['seed']}. "
        "For C&W the steps are those of one search: ours makes three, the reference the nine "
        "of its default. Target: at most 1.03, at equal success.",
        "",
        "| network | attack | steps: ours, reference | success: ours, reference | median: ours | "
        "median: reference | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [
            f"`{row['classifier']}`",
            f"`{row['attack']['name'].rsplit('-', 1)[0]}`, {row['norm']}",
            f"{row['attack']['steps']}, {row['reference']['steps']}",
            f"{row['success']}, {row['reference_success']} of {row['n']}",
            f"{row['median']:.4f}",
            f"{row['reference_median']:.4f}",
            f"{row['ratio']:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def spatial() -> list[str]:
    """StAdv and the Wasserstein attack."""
    found = record("spatial-wasserstein")
    lines = ["## Spatial and Wasserstein attacks", ""]
    if found is None:
        return [*lines, "Not run.", ""]
    lines += [
        f"On standard networks, {found['images']}, seed {found['seed']}, {found['rule']}. The "
        "bounds were checked by code that shares nothing with the attacks: SciPy bends the clean "
        "image by the flow and gets the attacked one; an exact optimal-transport program (HiGHS) "
        "over all pairs of pixels gives the Wasserstein distance, which must not exceed the bound.",
        "",
        "| network | attack | bound | clean | attacked | greatest measure | independent check |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        check = row["check"]
        if "largest_pixel_difference" in check:
            seen = (
                f"{check['by']}, {check['images']} images: pixels differ by at most "
                f"{check['largest_pixel_difference']:.1e}"
            )
        else:
            far = next(v for k, v in check.items() if k.startswith("largest"))
            seen = f"{check['by']}, {check['images']} images: at most {far:.6f}"
        cells = [
            f"`{row['classifier']}`",
            f"`{row['attack']['name']}`",
            f"{row['bound']:g}",
            f"{row['clean_accuracy']:.1%}",
            f"{percent(row)}, n = {row['n']}",
            f"{row['largest_measure']:.6f}",
            seen,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


CASES = {
    "tpap": "TPAP around the robust-overfitted ResNet-20",
    "random": "noise and masks (random) around the published robust CNN wide",
}


def adaptivity() -> list[str]:
    """Outside attacks on what ours leaves."""
    lines = [
        "## Attacks of other libraries on what ours leaves",
        "",
        "Our suite `standard` as the adaptive attacker; then, on every image that survives it, "
        "Foolbox's and ART's PGD (100 steps, 5 restarts) and `pyautoattack`, on the exact and the "
        "identity gradient, with means over 20 draws where the defense is random: fixed "
        "beforehand. Target: they break at most 0.5 % of n that ours does not.",
        "",
        "| defense | n | ours leaves | images left to the others | they break, ours does not |",
        "|---|---|---|---|---|",
    ]
    for name, words in CASES.items():
        found = record(f"adaptivity-{name}")
        if found is None:
            lines.append(f"| {words} | not run | | | |")
            continue
        only = sorted({i for ids in found["outside_breaks_ours_does_not"].values() for i in ids})
        ours = found["robust_accuracy_ours"]
        told = f"{len(only)}" + (f": {', '.join(only)}" if only else "")
        lines.append(f"| {words} | {found['n']:,} | {percent(ours)} | {ours['right']} | {told} |")
    return [*lines, ""]


def honest() -> list[str]:
    """Five networks that mask nothing."""
    found = record("honest-nets")
    lines = ["## Red flags on honest networks", ""]
    if found is None:
        return [*lines, "Not run.", ""]
    lines += [
        f"Audits of bare networks by the suite `{found['suite']}`, {found['images']}, "
        f"{found['threat']}, seed {found['seed']}, probes on the first 256 images. None of these "
        "hides its gradients; a flag here would be a false alarm. The network of seed 1 is not in "
        "the zoo; `tools/honest_nets.py` names the command that trains it, "
        "`records/training-seed1.json` is its record.",
        "",
        "| network | clean | worst case | red flags |",
        "|---|---|---|---|",
    ]
    for name, row in found["networks"].items():
        flags = ", ".join(flag["id"] for flag in row["flags"]) or "none"
        lines.append(
            f"| `{name}` | {percent(row['clean'])} | {percent(row['worst_case'])} | {flags} |"
        )
    return [*lines, ""]


def machine() -> list[str]:
    """Where the records were made."""
    for name in ("strength-pgd-linf", "strength-4b-linf"):
        found = record(name)
        if found is not None:
            facts = found["environment"]
            return [
                f"Machine: CPU, {facts['machine']}, {facts['instructions']}, torch "
                f"{facts['torch']}. The page is written by `python tools/attack_results.py` from "
                "the records in `docs/results/records/`; each is made by the tool named in its "
                "section's source: `tools/strength.py`, `tools/minimal_norm.py`, "
                "`tools/unbounded_threats.py`, `tools/adaptivity.py`, `tools/honest_nets.py`. "
                "Seconds in them were taken on a busy machine and are no benchmark; "
                "see `benchmarks/results/`.",
                "",
            ]
    return []


def main() -> None:
    """Write the page."""
    parts = [machine(), strength(), minimal(), spatial(), adaptivity(), honest()]
    lines = [
        "# How strong the attacks are",
        "",
        "An audit is worth what its strongest attack is worth. So ours stand here beside those of "
        "other libraries, on real networks and real images.",
        "",
    ]
    text = "\n".join([*lines, *(line for part in parts for line in part)])
    write_text(PAGE, text.rstrip() + "\n")


if __name__ == "__main__":
    main()
