"""Pictures of a report: what was sent, what was changed, what was read, what was answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unperturb.audit import charts
from unperturb.audit import report_text as words
from unperturb.audit.cases import Case, CaseView
from unperturb.errors import InputError

__all__ = ["case_views", "data_uri", "markup", "perturbation_factor"]

Summary = Mapping[str, Any]
Pixels = NDArray[np.float64]

# Thumbnails are drawn at about this many pixels; anything larger only makes the page heavy.
_LARGEST_IMAGE = 256


def markup(svg: str) -> Any:
    """An SVG of ours as it stands in a page."""
    # Charts escape every text they draw, so that their SVG may stand as it is.
    from markupsafe import Markup

    return Markup(svg)


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
        "bars": markup(charts.score_bars(scores, case.label, names)),
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


def case_views(cases: Sequence[Case], summary: Summary) -> dict[str, Any]:
    """What the template of the page draws of the cases."""
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
