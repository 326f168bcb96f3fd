"""Words and numbers of a report, shared by its HTML, Markdown and terminal forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "ATTACKER_ORDER",
    "INCOMPLETE",
    "NOT_RUN",
    "NO_FLAG",
    "Heading",
    "Row",
    "attack_rows",
    "attacker_heading",
    "cases_note",
    "columns",
    "count",
    "distance",
    "draws_line",
    "flatten",
    "interval",
    "memory_line",
    "norm_name",
    "ordered_attacks",
    "p_value",
    "percent",
    "points",
    "rate",
    "rate_interval",
    "setting_line",
    "settings_rows",
    "settings_text",
    "share",
    "size",
    "subject_name",
    "verdict",
]

Summary = Mapping[str, Any]
Accuracy = Mapping[str, Any]

NOT_RUN = "not run"
ATTACKER_ORDER = ("oblivious", "adaptive")

NO_FLAG = (
    "No red flag was raised. This is not proof of robustness: it only means that none of the "
    "known signs of a broken evaluation was seen. A stronger attack may still do better."
)
INCOMPLETE = (
    "The figures cover only what was run: missing attacks can only lower the worst case, and "
    "missing images can move every figure."
)


class Heading(NamedTuple):
    """How one attacker's column is titled."""

    title: str
    subtitle: str
    short: str


class Row(NamedTuple):
    """One row of the accuracy table: ``cells[attacker][subject]``, None where not run."""

    name: str
    kind: str  # clean, attack or worst
    cells: dict[str, dict[str, Accuracy | None]]


def attacker_heading(attacker: str, has_defense: bool) -> Heading:
    """Title of an attacker's column.

    Example:
        >>> attacker_heading("adaptive", True).subtitle
        'the attacker knows the defense'
    """
    if has_defense:
        return {
            "oblivious": Heading("As published", "the attacker ignores the defense", "oblivious"),
            "adaptive": Heading("Informed attacker", "the attacker knows the defense", "adaptive"),
        }[attacker]
    return {
        "oblivious": Heading("As published", "all attack steps are run", "fixed-step"),
        "adaptive": Heading("Persistent attacker", "stops at first success", "first success"),
    }[attacker]


def subject_name(subject: str, has_defense: bool) -> str:
    """Plain name of a column: ``defended``, ``undefended``, or ``classifier``."""
    if not has_defense:
        return "classifier"
    return {"target": "defended", "baseline": "undefended"}[subject]


def columns(summary: Summary) -> tuple[list[str], list[str]]:
    """Attackers that were run, in reading order, and the subjects shown below each."""
    attackers = [name for name in ATTACKER_ORDER if name in summary["attackers"]]
    return attackers, ["baseline", "target"] if summary["has_defense"] else ["target"]


def attack_rows(summary: Summary) -> list[Row]:
    """The accuracy table: clean, each attack, and the worst case per image."""
    attackers, subjects = columns(summary)

    def same(kind: str) -> dict[str, dict[str, Accuracy | None]]:
        return {a: {s: summary[s].get(kind) for s in subjects} for a in attackers}

    rows = [Row("clean", "clean", same("clean"))]
    for entry in summary["table"]:
        cells = entry["cells"]
        found = {a: {s: (cells.get(s) or {}).get(a) for s in subjects} for a in attackers}
        rows.append(Row(entry["attack"], "attack", found))
    worst = {
        a: {s: (summary[s].get("worst_by_attacker") or {}).get(a) for s in subjects}
        for a in attackers
    }
    return [*rows, Row("worst case", "worst", worst)]


def cases_note(all_right: bool, has_defense: bool) -> str:
    """How the pictured images were chosen.

    Args:
        all_right: Whether the target answers every one of them rightly unperturbed.
        has_defense: Whether the target is a defended classifier.
    """
    who = "the defended classifier" if has_defense else "the classifier"
    which = f" that {who} answers rightly unperturbed" if all_right else ""
    return f"These are the first images{which}, in the data's own order; none was picked by hand."


def _decimals(n: int) -> int:
    return 2 if n >= 5000 else 1


def percent(accuracy: Accuracy | None) -> str:
    """An accuracy in percent, with as many decimals as n bears.

    Example:
        >>> percent({"accuracy": 0.8204, "n": 1000}), percent(None)
        ('82.0%', 'not run')
    """
    if accuracy is None:
        return NOT_RUN
    return f"{100 * accuracy['accuracy']:.{_decimals(accuracy['n'])}f}%"


def interval(accuracy: Accuracy | None, dash: str = "\N{EN DASH}") -> str:
    """Its 95 % interval, such as ``79.5-84.3%``; empty where not run."""
    if accuracy is None:
        return ""
    low, high = (f"{100 * end:.{_decimals(accuracy['n'])}f}" for end in accuracy["interval"])
    return f"{low}{dash}{high}%"


def share(value: float | None, n: int) -> str:
    """A plain share in percent; ``none`` where there is none.

    Example:
        >>> share(0.0312, 1000), share(None, 1000)
        ('3.1%', 'none')
    """
    return "none" if value is None else f"{100 * value:.{_decimals(n)}f}%"


def rate(value: Mapping[str, Any] | None) -> str:
    """A share of images in percent; ``none`` where there is no such image.

    Example:
        >>> rate({"rate": 0.05, "n": 100}), rate(None)
        ('5.0%', 'none')
    """
    return "none" if value is None else percent({"accuracy": value["rate"], "n": value["n"]})


def rate_interval(value: Mapping[str, Any] | None, dash: str = "\N{EN DASH}") -> str:
    """Its 95 % interval; empty where there is none."""
    return "" if value is None else interval(value, dash)


def count(accuracy: Accuracy | None) -> str:
    """``820 of 1,000``; empty where not run."""
    return "" if accuracy is None else f"{accuracy['correct']:,} of {accuracy['n']:,}"


def points(difference: float, minus: str = "\N{MINUS SIGN}") -> str:
    """A signed difference of accuracies in percentage points.

    Example:
        >>> points(-0.005, "-"), points(0.8)
        ('-0.5', '+80.0')
    """
    text = f"{abs(100 * difference):.1f}"
    if text == "0.0":
        return text
    return f"{'+' if difference > 0 else minus}{text}"


def p_value(p: float) -> str:
    """A p-value as it is printed.

    Example:
        >>> p_value(1e-12), p_value(0.0213), p_value(1.0)
        ('< 0.001', '0.021', '1.000')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(gain: Mapping[str, Any]) -> str:
    """What a gain says: at least one point and p < 0.01, or it is no clear difference.

    Example:
        >>> verdict({"difference": 0.8, "mcnemar_p": 1e-9})
        'better'
        >>> verdict({"difference": 0.8, "mcnemar_p": 0.2})
        'no clear difference'
    """
    # Differences are ratios of counts: one point on 1,000 images is 0.010000000000000009 or less.
    if abs(gain["difference"]) < 0.01 - 1e-9 or gain["mcnemar_p"] >= 0.01:
        return "no clear difference"
    return "better" if gain["difference"] > 0 else "worse"


def norm_name(norm: str, *, ascii_only: bool = False) -> str:
    """A norm as it is printed: ``linf`` is L∞, in a terminal Linf."""
    names = {"linf": "Linf" if ascii_only else "L\N{INFINITY}", "l2": "L2"}
    return names.get(norm, norm)


def distance(value: float | None, norm: str) -> str:
    """A perturbation's size: Linf in gray levels of 255, L2 as it is.

    Example:
        >>> distance(8 / 255, "linf"), distance(0.5, "l2"), distance(None, "l2")
        ('8/255', '0.5', 'none')
    """
    if value is None:
        return "none"
    return f"{round(255 * value, 2):g}/255" if norm == "linf" else f"{value:.3g}"


def size(count: int) -> str:
    """Bytes as people read them.

    Example:
        >>> size(812), size(41_700), size(12_300_000)
        ('812 bytes', '42 kB', '12.3 MB')
    """
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def draws_line(summary: Summary) -> str:
    """Worst case of a random defense on one draw and over many, in one line; else empty."""
    facts = summary.get("random") or {}
    row = next((row for row in facts.get("rows", ()) if row["what"] == "worst case"), None)
    if row is None:
        return ""
    draws = facts["draws"]
    return (
        f"The defense is random; these are majority answers of {draws} fresh draws. Worst case on "
        f"a single draw {percent(row['single'])}, worst of {draws} draws "
        f"{percent(row['worst_of_n'])}, majority {percent(row['majority'])}."
    )


def memory_line(cost: Mapping[str, Any], has_defense: bool) -> str:
    """Peak memory of an answer in one line; empty where it was not measured.

    Example:
        >>> memory_line({"target_peak_mb": 1.5, "baseline_peak_mb": 0.5, "memory_ratio": 3.0}, True)
        'Peak memory for each image: 1.50 MB against 0.500 MB, 3.00× as much.'
    """
    ours, theirs = cost.get("target_peak_mb"), cost.get("baseline_peak_mb")
    if ours is None:
        return ""
    note = (cost.get("memory_note") or "").rstrip(".")
    note = f" ({note})" if note else ""
    if not has_defense or theirs is None:
        return f"Peak memory for each image: {ours:#.3g} MB{note}."
    ratio = cost.get("memory_ratio")
    times = "" if ratio is None else f", {ratio:.2f}\N{MULTIPLICATION SIGN} as much"
    return f"Peak memory for each image: {ours:#.3g} MB against {theirs:#.3g} MB{times}{note}."


def setting_line(summary: Summary, separator: str, *, ascii_only: bool = False) -> str:
    """The audit's setting in one line: images, threat model, seed, digest."""
    data, threat = summary["data"], summary["threat"]
    digest = summary.get("digest")
    split = f" ({data['split']})" if data.get("split") else ""
    parts = [
        f"{data['n']:,} images of {data['source']}{split}",
        f"{norm_name(threat['norm'], ascii_only=ascii_only)} {threat['eps_text']}",
        f"seed {summary['seed']}",
        f"digest {digest[:12]}" if digest else "no digest",
    ]
    return separator.join(parts)


def ordered_attacks(summary: Summary) -> list[Mapping[str, Any]]:
    """Entries of ``attacks`` by attack, oblivious first and undefended first, as in the table."""
    names = list(dict.fromkeys(attack["name"] for attack in summary["attacks"]))
    return sorted(
        summary["attacks"],
        key=lambda a: (
            names.index(a["name"]),
            ATTACKER_ORDER.index(a["attacker"]) if a["attacker"] in ATTACKER_ORDER else 9,
            a["subject"] == "target",
        ),
    )


# Facts of an attack that other columns show, or that follow from its name.
_FACTS = ("name", "rules", "gradients", "access", "bound", "only")


def settings_text(settings: Mapping[str, Any], *, random: bool = True) -> str:
    """An attack's settings in a few words.

    Args:
        settings: The attack's own dictionary.
        random: Whether the audited target is random; if not, draws have no meaning.

    Example:
        >>> settings_text({"name": "pgd-20", "steps": 20, "step_size": 0.25, "random_start": True})
        '20 steps of 0.25 eps, random start'
    """
    rest = {k: v for k, v in settings.items() if k not in _FACTS and (random or k != "draws")}
    access, bound = settings.get("access", "gradients"), settings.get("bound", "threat")
    parts = {"scores": ["sees scores only"], "labels": ["sees labels only"]}.get(access, [])
    parts = parts + {"minimal": ["minimal norm"], "own": ["bound of its own"]}.get(bound, [])
    if "steps" in rest:
        steps, size = rest.pop("steps"), rest.pop("step_size", None)
        told = f"{steps:,} step{'s' if steps != 1 else ''}"
        parts.append(told + (f" of {size:g} eps" if isinstance(size, int | float) else ""))
    if rest.pop("random_start", False):
        parts.append("random start")
    for name, silent in (("momentum", 0), ("restarts", 1), ("draws", 1)):
        value = rest.pop(name, silent)
        if value != silent:
            parts.append(f"{name} {_plain(value)}")
    if "loss" in rest:
        parts.append(f"loss {rest.pop('loss')}")
    others = (f"{key.replace('_', ' ')} {_plain(value)}" for key, value in sorted(rest.items()))
    return ", ".join([*parts, *others])


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of dotted name and text.

    Example:
        >>> flatten({"a": {"b": 0.1}, "c": [1, 2]})
        [('a.b', '0.1'), ('c', '1, 2')]
    """
    if isinstance(value, Mapping):
        rows = []
        for key, inner in value.items():
            rows += flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return rows
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, (Mapping, list, tuple)) for item in value):
            return flatten({str(i): item for i, item in enumerate(value)}, prefix)
        return [(prefix, ", ".join(map(_plain, value)) or "none")]
    return [(prefix, _plain(value))]


def settings_rows(value: Any, *, rows: int = 60, characters: int = 240) -> list[tuple[str, str]]:
    """Settings as :func:`flatten` gives them, cut to what a page can bear.

    Example:
        >>> settings_rows({"a": "x" * 9, "b": 2}, rows=1, characters=4)
        [('a', 'xxxx...'), ('...', '1 more in report.json')]
    """
    found = [
        (name, text if len(text) <= characters else text[:characters] + "...")
        for name, text in flatten(value)
    ]
    left = len(found) - rows
    return found if left <= 0 else [*found[:rows], ("...", f"{left:,} more in report.json")]


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
