"""The report as one HTML page that opens offline: no script, no font, no link to anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unperturb.audit import charts
from unperturb.audit import report_text as words
from unperturb.audit.cases import Case, CaseView
from unperturb.audit.report_glossary import COLUMN_HELP, GLOSSARY
from unperturb.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["data_uri", "html_page", "perturbation_factor"]

Summary = Mapping[str, Any]
Pixels = NDArray[np.float64]

# Thumbnails are drawn at about this many pixels; anything larger only makes the page heavy.
_LARGEST_IMAGE = 256


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("report.html.j2"))


def _asset(name: str) -> str:
    return files("unperturb.audit").joinpath("templates", name).read_text(encoding="utf-8")


def _pixels(image: Tensor | Pixels, what: str) -> Pixels:
    array = torch.as_tensor(image).detach().to("cpu", torch.float64).numpy()
    if array.ndim != 3:
        raise InputError(f"{what} has shape {tuple(array.shape)}", expected="one image (C, H, W)")
    return array


def data_uri(image: Tensor | Pixels) -> str:
    """An image as a PNG data URI, losslessly but for the rounding to 8 bits.

    Args:
        image: (C, H, W) in [0, 1]; one channel is gray, three are RGB, of any other number the
            mean is drawn. Sides above 256 pixels are reduced.

    Raises:
        InputError: It is not one image.

    Example:
        >>> data_uri(torch.zeros(1, 8, 8))[:22]
        'data:image/png;base64,'
    """
    from PIL import Image

    array = _pixels(image, "An image of the report")
    if len(array) not in (1, 3):
        array = array.mean(0, keepdims=True)
    # Rounded, not truncated: truncation would darken every image by half a gray level.
    levels = np.rint(np.nan_to_num(array).clip(0, 1) * 255).astype(np.uint8)
    drawn = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    if max(drawn.size) > _LARGEST_IMAGE:
        drawn.thumbnail((_LARGEST_IMAGE, _LARGEST_IMAGE))
    stream = io.BytesIO()
    drawn.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def perturbation_factor(cases: Sequence[Case]) -> float:
    """One factor for all perturbations shown: the largest change becomes black or white.

    Returns:
        ``0.5 / max |image - clean|``, or 1 where nothing was changed.
    """
    largest = 0.0
    for case in cases:
        clean = _pixels(case.clean, f"Clean image {case.image_id}")
        for view in case.views:
            change = np.abs(_pixels(view.image, f"Image {view.title!r}") - clean)
            largest = max(largest, float(change.max(initial=0.0)))
    return 0.5 / largest if largest > 0 else 1.0


def _view(
    view: CaseView, case: Case, names: Sequence[str], factor: float, has_defense: bool
) -> dict[str, Any]:
    image = _pixels(view.image, f"Image {view.title!r}")
    change = image - _pixels(case.clean, f"Clean image {case.image_id}")
    answers = [("target", view.target_prediction)]
    scores: dict[str, Sequence[float]] = {"target": view.target_scores}
    if has_defense:
        answers.insert(0, ("baseline", view.baseline_prediction))
        scores = {"baseline": view.baseline_logits, **scores}
    is_clean = view.title == "clean"
    return {
        "title": view.title,
        "image": data_uri(image),
        "change": None if is_clean else data_uri(0.5 + factor * change),
        "is_clean": is_clean,
        "unchanged": not is_clean and not change.any(),
        "wrong_before": case.label != view.target_prediction,
        "purified": None if view.purified is None else data_uri(view.purified),
        "bars": _markup(charts.score_bars(scores, case.label, names)),
        "answers": [
            {
                "who": words.subject_name(subject, has_defense),
                "subject": subject,
                "name": names[k] if k < len(names) else f"class {k}",
                "right": k == case.label,
            }
            for subject, k in answers
        ],
    }


def _cases(cases: Sequence[Case], summary: Summary) -> dict[str, Any]:
    factor = perturbation_factor(cases)
    names = [str(name) for name in summary["data"].get("classes") or []]
    has_defense = summary["has_defense"]
    clean = [(view, case) for case in cases for view in case.views if view.title == "clean"]
    all_right = all(view.target_prediction == case.label for view, case in clean)
    return {
        "factor": f"{factor:.3g}",
        "note": summary.get("cases_note") or words.cases_note(all_right, has_defense),
        "any_purified": any(view.purified is not None for case in cases for view in case.views),
        "items": [
            {
                "id": case.image_id,
                "label": case.label_name if names else f"class {case.label}",
                "views": [_view(view, case, names, factor, has_defense) for view in case.views],
            }
            for case in cases
        ],
    }


def _markup(svg: str) -> Any:
    # charts.py escapes every text it draws, so that its SVG may stand as it is.
    from markupsafe import Markup

    return Markup(svg)


def _number(accuracy: Mapping[str, Any] | None, subject: str, has_defense: bool) -> dict[str, Any]:
    return {
        "who": words.subject_name(subject, has_defense),
        "subject": subject,
        "value": words.percent(accuracy),
        "interval": words.interval(accuracy),
        "count": words.count(accuracy),
        "meter": _markup(charts.meter(accuracy, subject)),
        "run": accuracy is not None,
    }


def _headline(summary: Summary) -> dict[str, Any]:
    has_defense = summary["has_defense"]
    subjects = ["target", "baseline"] if has_defense else ["target"]

    def numbers(*path: str) -> list[dict[str, Any]]:
        found = []
        for subject in subjects:
            value: Any = summary[subject]
            for key in path:
                value = (value or {}).get(key)
            found.append(_number(value, subject, has_defense))
        return found

    cards = [
        {
            "id": attacker,
            "heading": words.attacker_heading(attacker, has_defense),
            "run": attacker in summary["attackers"],
            "numbers": numbers("worst_by_attacker", attacker),
            "by_attack": [
                (row.name, words.percent(row.cells[attacker]["target"]))
                for row in words.attack_rows(summary)
                if row.kind == "attack" and attacker in row.cells
            ],
        }
        for attacker in words.ATTACKER_ORDER
    ]
    return {
        "cards": cards,
        "strip": [
            {"title": "Worst case per image, over everything that was run",
             "numbers": numbers("worst_case")},
            {"title": "Clean accuracy, no attack", "numbers": numbers("clean")},
        ],
    }  # fmt: skip


def _table(summary: Summary) -> dict[str, Any]:
    has_defense = summary["has_defense"]
    attackers, subjects = words.columns(summary)
    rows = words.attack_rows(summary)
    panels = []
    for attacker in attackers:
        heading = words.attacker_heading(attacker, has_defense)
        label = f"Accuracy under each attack, {heading.subtitle}"
        drawn = charts.accuracy_chart(rows, attacker, subjects, label)
        panels.append({"heading": heading, "chart": _markup(drawn)})
    return {
        "attackers": [words.attacker_heading(name, has_defense) for name in attackers],
        "subjects": [(s, words.subject_name(s, has_defense)) for s in subjects],
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "cells": [
                    _number(row.cells[attacker][subject], subject, has_defense)
                    for attacker in attackers
                    for subject in subjects
                ],
            }
            for row in rows
        ],
        "panels": panels,
    }


def _gains(summary: Summary) -> list[dict[str, Any]]:
    rows = []
    # Never finer than ten points, so that a chance difference does not fill the bar.
    reach = max([0.1, *(abs(gain["difference"]) for gain in summary["gains"])])
    for gain in summary["gains"]:
        reading = words.verdict(gain)
        kind = reading if reading in ("better", "worse") else "unclear"
        rows.append(
            {
                "what": gain["what"],
                "baseline": words.percent(gain["baseline"]),
                "target": words.percent(gain["target"]),
                "points": words.points(gain["difference"]),
                "bar": _markup(charts.diverging_bar(gain["difference"], kind, reach)),
                "only_target": f"{gain['only_target']:,}",
                "only_baseline": f"{gain['only_baseline']:,}",
                "p": words.p_value(gain["mcnemar_p"]),
                "reading": reading,
                "kind": kind,
            }
        )
    return rows


def _attacks(summary: Summary) -> dict[str, Any]:
    has_defense = summary["has_defense"]
    random = summary.get("scoring_draws", 2) > 1
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    seconds: dict[tuple[object, ...], float] = {}
    for attack in words.ordered_attacks(summary):
        accuracy = {
            "accuracy": attack["robust_accuracy"],
            "n": attack["n"],
            "interval": attack["interval"],
        }
        settings = words.settings_text(attack.get("settings") or {}, random=random)
        oblivious = attack["attacker"] == "oblivious"
        # An oblivious attack is made once and scored on both models.
        key = (attack["name"], oblivious or attack["subject"], attack["backward"])
        seconds[key] = max(seconds.get(key, 0.0), attack.get("seconds") or 0.0)
        groups.setdefault((attack["name"], settings), []).append(
            {
                "attacker": attack["attacker"],
                "subject": words.subject_name(attack["subject"], has_defense),
                "backward": attack["backward"],
                "stop": attack["stop"].replace("-", " "),
                "accuracy": words.percent(accuracy),
                "interval": words.interval(accuracy),
                "rounded": words.share(attack.get("accuracy_8bit"), attack["n"]),
                "distance": words.distance(attack.get("median_distance"), attack["norm"]),
                "queries": _plain(attack.get("queries_per_image"), "{:,.1f}"),
                "zero": words.share(attack.get("zero_gradient_share"), 0),
                "leak": words.share(attack.get("wrong_when_clean_accuracy"), 0),
                "seconds": _plain(attack.get("seconds"), "{:,.1f}"),
            }
        )
    leaks = any(row["leak"] != "none" for rows in groups.values() for row in rows)
    return {
        "groups": [
            {"name": name, "settings": settings, "rows": rows}
            for (name, settings), rows in groups.items()
        ],
        "leaks": leaks,
        "seconds": f"{sum(seconds.values()):,.0f}",
        "help": COLUMN_HELP,
    }


def _plain(value: float | None, form: str) -> str:
    return "none" if value is None else form.format(value)


def _cost(summary: Summary) -> dict[str, Any] | None:
    cost = summary.get("cost")
    if cost is None:
        return None
    ratio = cost.get("ratio")
    return {
        "target": _plain(cost.get("target_ms_per_image"), "{:.3g} ms"),
        "baseline": _plain(cost.get("baseline_ms_per_image"), "{:.3g} ms"),
        "ratio": None if ratio is None else f"{ratio:.2f}\N{MULTIPLICATION SIGN}",
        "batch_size": cost.get("batch_size"),
        "note": (cost.get("note") or "").rstrip("."),
    }


def _settings(summary: Summary) -> list[dict[str, Any]]:
    data = {key: value for key, value in summary["data"].items() if key != "classes"}
    data["classes"] = summary["data"].get("classes") or []
    audit = {
        "threat": summary["threat"],
        "attackers": summary["attackers"],
        "seed": summary["seed"],
        "batch size": summary["batch_size"],
        "draws per answer": summary.get("scoring_draws", 1),
        "settings hash": summary["settings_hash"],
        "digest": summary.get("digest"),
    }
    groups: list[tuple[str, Any]] = [("Audit", audit)]
    if summary["has_defense"]:
        groups.append(("Defended classifier", summary["target"].get("describe") or {}))
        groups.append(("Undefended classifier", summary["baseline"].get("describe") or {}))
    else:
        groups.append(("Classifier", summary["target"].get("describe") or {}))
    groups += [("Data", data), ("Environment", summary["environment"])]
    return [{"title": title, "rows": words.settings_rows(values)} for title, values in groups]


def html_page(summary: Summary, cases: Sequence[Case]) -> str:
    """Render a checked summary; see :func:`unperturb.audit.report.render_html`."""
    has_defense = summary["has_defense"]
    return _template().render(
        style=_markup(_asset("report.css")),
        title=summary["title"],
        setting=words.setting_line(summary, " \N{MIDDLE DOT} "),
        has_defense=has_defense,
        complete=summary["complete"],
        left_out=summary["left_out"],
        incomplete=words.INCOMPLETE,
        lesson=summary["lesson"],
        headline=_headline(summary),
        flags=summary["flags"],
        no_flag=words.NO_FLAG,
        notes=summary["notes"],
        table=_table(summary),
        gains=_gains(summary),
        cases=_cases(cases, summary) if cases else None,
        attacks=_attacks(summary),
        cost=_cost(summary),
        settings=_settings(summary),
        digest=summary.get("digest"),
        command=summary.get("command"),
        glossary=GLOSSARY,
    )
