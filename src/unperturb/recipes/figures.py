"""Pictures of a recipe's subjects: heat maps, maps of features, stages of a restoration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from unperturb.files import short_paths
from unperturb.recipes.sources import NotRunError
from unperturb.recipes.tables import Workshop

__all__ = ["run_figure"]


def run_figure(shop: Workshop, folder: Path) -> dict[str, Any]:
    """Draw a recipe's figure.

    Returns:
        ``models``: facts of each classifier; ``figures``: what was drawn, its file and its
        figures, or the reason why it was not.
    """
    wanted = shop.recipe.figure
    found: dict[str, Any] = {"models": {}, "figures": []}
    subjects: dict[str, nn.Module] = {}
    missing = []
    dataset = None
    for label, (model, defense) in wanted["subjects"].items():
        try:
            had = shop.models.get(model)
            subjects[label] = shop.subject(model, defense)
        except NotRunError as reason:
            missing.append(f"{label} ({reason})")
            continue
        found["models"][model] = had.facts
        dataset = shop.recipe.models[model].dataset
    try:
        shop.left()
        if dataset is None:
            raise NotRunError("; ".join(missing) or "it has no subject")
        images = shop.sources.test(dataset, wanted["images"])
    except NotRunError as reason:
        entry = {"draw": wanted["draw"], "status": "not run", "reason": str(reason), "files": []}
        found["figures"].append(entry)
        return found
    facts = {"data": short_paths(images.source), "left_out": missing}
    if wanted["draw"] == "embedding":
        found["figures"].append({**_embedding(shop, subjects, images, folder), **facts})
        return found
    draw = _gradcam if wanted["draw"] == "gradcam" else _panels
    for label, subject in subjects.items():
        found["figures"].append({**draw(shop, label, subject, images, folder), **facts})
    return found


def _panels(
    shop: Workshop, label: str, subject: nn.Module, images: Any, folder: Path
) -> dict[str, Any]:
    """Every stage of a defense's own transform."""
    from unperturb.explain import figure_panels, restoration_panels, save_figure
    from unperturb.recipes.tables import slug

    wanted = shop.recipe.figure
    # What has no transform is refused by name there.
    transform = getattr(getattr(subject, "purifier", None), "transform", None)
    panels = restoration_panels(
        subject,
        images.images(),
        images.labels,
        transforms=() if transform is None else [transform.name],
        all_passes=wanted["all_passes"],
        attack=wanted["attack"],
        threat=shop.recipe.threat,
        ids=images.ids,
        seed=shop.seed,
        show=shop.show,
    )
    name = f"panels-{slug(label)}.png"
    save_figure(figure_panels(panels, classes=images.classes), folder / name)
    return {
        "draw": "panels",
        "subject": label,
        "status": "done",
        "reason": "",
        "files": [name],
        "found": panels.to_dict(),
    }


def _gradcam(
    shop: Workshop, label: str, subject: nn.Module, images: Any, folder: Path
) -> dict[str, Any]:
    from unperturb.explain import figure_gradcam, gradcam_columns, save_figure
    from unperturb.recipes.tables import slug

    columns = gradcam_columns(
        subject,
        images.images(),
        images.labels,
        attack=shop.recipe.figure["attack"],
        threat=shop.recipe.threat,
        ids=images.ids,
        seed=shop.seed,
        show=shop.show,
    )
    name = f"gradcam-{slug(label)}.png"
    save_figure(figure_gradcam(columns, classes=images.classes), folder / name)
    return {
        "draw": "gradcam",
        "subject": label,
        "status": "done",
        "reason": "",
        "files": [name],
        "found": columns.to_dict(),
    }


def _embedding(
    shop: Workshop, subjects: dict[str, nn.Module], images: Any, folder: Path
) -> dict[str, Any]:
    from unperturb.explain import embedding, figure_embedding, save_figure
    from unperturb.files import write_text

    made = embedding(
        subjects,
        images.images(),
        images.labels,
        attacks=shop.recipe.figure["attack"],
        threat=shop.recipe.threat,
        ids=images.ids,
        perplexity=shop.recipe.figure["perplexity"],
        seed=shop.seed,
        show=shop.show,
    )
    save_figure(figure_embedding(made, classes=images.classes), folder / "embedding.png")
    write_text(folder / "embedding.csv", made.to_csv())
    return {
        "draw": "embedding",
        "status": "done",
        "reason": "",
        "files": ["embedding.png", "embedding.csv"],
        "found": made.to_dict(),
    }
