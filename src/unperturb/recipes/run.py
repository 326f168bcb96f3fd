"""Running a recipe: its models, its audits or curves, and the record and page of what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unperturb.checks import check_device
from unperturb.errors import ConfigError, MissingExtraError
from unperturb.files import write_json, write_text
from unperturb.recipes.banks import Banks
from unperturb.recipes.cells import Cells
from unperturb.recipes.changes import run_changes
from unperturb.recipes.costs import run_costs
from unperturb.recipes.curves import draw_curves, draw_sweeps, run_curves
from unperturb.recipes.explanations import run_explanation
from unperturb.recipes.figures import run_figure
from unperturb.recipes.fits import Fits
from unperturb.recipes.library import load_recipe
from unperturb.recipes.models import Models, find_zoo
from unperturb.recipes.pairs import run_pairs
from unperturb.recipes.preview import preview
from unperturb.recipes.record import RECORD, begin, head, locked, read_record
from unperturb.recipes.render import render
from unperturb.recipes.selection import TestImages
from unperturb.recipes.sources import Sources
from unperturb.recipes.sweeps import expand, run_sweeps
from unperturb.recipes.tables import Workshop, run_rows
from unperturb.recipes.thresholds import Thresholds

__all__ = ["PAGE", "render_again", "reproduce"]

PAGE = "table.md"


def reproduce(
    name: str | Path,
    *,
    out: str | Path,
    scale: str = "cpu",
    data: str | Mapping[str, str] | None = None,
    models_dir: str | Path | None = None,
    audits_dir: str | Path | None = None,
    zoo: str | Path | None = None,
    use_zoo: bool = True,
    models: Mapping[str, str] | None = None,
    networks: Mapping[str, str] | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 1,
    limit: int | None = None,
    time_budget: float | None = None,
    show: bool = False,
    say: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Reproduce one table or figure of a paper.

    Models are taken from the zoo or trained, and so are the networks of defenses; logit banks are
    made, correctors and thresholds fitted where a defense needs them; rows are audited under both
    attackers; everything is kept, so the same call goes on after a kill and does nothing twice.

    Args:
        name: A recipe (``recipe_names``), or the path of a YAML file.
        out: Folder of ``record.json``, ``table.md`` and what is drawn.
        scale: ``smoke``, ``cpu``, ``gpu`` or ``paper``.
        data: Where the recipe's images are; a mapping by name where it has several sets.
        models_dir: Folder of what is trained and fitted, which recipes share;
            ``models`` beside ``out`` by default.
        audits_dir: Folder of the audits; recipes that share it share equal audits. Inside ``out``
            by default.
        zoo: Folder of the project's trained classifiers; ``zoo`` here or in the sources by default.
        use_zoo: Whether its classifiers serve; else every model is trained.
        models: Classifier specifications in place of the recipe's models, by name.
        networks: Folders in place of the recipe's networks, by name.
        seed: Seed of the attacks, and of training runs that state none.
        device: Where to compute.
        workers: Processes of an audit.
        limit: Test images of any column at most, for a first look.
        time_budget: Begin nothing more after this many seconds: a started epoch, bank or unit of an
            audit is finished, the rest is "not run: time budget", and the same call goes on.
        show: Show progress bars.
        say: Is told, in words, what it will cost and what is being done.

    Returns:
        The record.

    Raises:
        SpecError: An unknown recipe, scale, model, network or data set.
        ConfigError: A setting is out of range, or the recipe is wrong.
        DataError: Images are missing or broken.
        RecordError: ``out`` holds something else, or what is trained there is another run.
        OutputError: ``out`` cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = reproduce("tpap/table-5", scale="smoke", out=folder)
        >>> found["complete"], [row["row"] for row in found["costs"]][:2]
        (True, ['PGD-AT', 'TPAP'])
    """
    for what, value in (("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{what} is {value}", expected="at least 1")
    if time_budget is not None and not time_budget > 0:
        raise ConfigError(f"time_budget is {time_budget}", expected="seconds above 0")
    check_device(device)
    recipe = load_recipe(name, scale=scale)
    if recipe.sweeps:
        recipe = expand(recipe)
    folder = Path(out)
    given = {recipe.data: data} if isinstance(data, str) else dict(data or {})
    sources = Sources(recipe, given, limit)
    ends = None if time_budget is None else time.monotonic() + time_budget
    common: dict[str, Any] = {
        "seed": seed,
        "device": device,
        "ends": ends,
        "show": show,
        "say": say,
    }
    kept = Path(models_dir or folder.parent / "models")
    models_of = Models(
        recipe, sources, folder=kept, zoo=find_zoo(zoo) if use_zoo else [], given=models,
        networks=networks, **common,
    )  # fmt: skip
    images = TestImages(recipe, sources, models_of)
    banks = Banks(recipe, sources, images, models_of, folder=kept, **common)
    shop = Workshop(
        recipe=recipe, sources=sources, images=images, models=models_of, banks=banks,
        fits=Fits(recipe, banks, folder=kept, **common),
        thresholds=Thresholds(recipe, models_of, folder=kept, **common),
        audits=Path(audits_dir or folder / "audits"), workers=workers, **common,
    )  # fmt: skip
    with locked(folder):
        begin(folder, recipe, seed)
        for words in preview(shop):
            say(words)
        return _run(shop, folder)


def _run(shop: Workshop, folder: Path) -> dict[str, Any]:
    recipe = shop.recipe
    record = head(recipe, shop.seed)

    def keep(parts: Mapping[str, Any]) -> None:
        record.update(parts)
        write_json(folder / RECORD, record)
        write_text(folder / PAGE, render(record))

    if recipe.kind == "cost":
        keep(run_costs(recipe, seed=shop.seed, device=shop.device, show=shop.show))
    if recipe.kind == "curves":
        keep({**run_curves(recipe, shop.models, each=keep), **shop.made()})
        keep({"files": _drawn(draw_curves, record, folder, shop)})
    if recipe.kind == "sweep":
        keep(run_sweeps(recipe, shop.models, each=keep))
        keep({"files": _drawn(draw_sweeps, record, folder, shop)})
    if recipe.kind == "figure":
        keep({**run_figure(shop, folder), **shop.made()})
    if recipe.kind == "explanation":
        keep(run_explanation(shop, folder, each=keep))
    if recipe.kind == "logit-change":
        keep(run_changes(shop, folder, each=keep))
    if recipe.columns:
        trained = dict(record.get("models", {}))
        found = Cells(models=trained)
        run_rows(shop, found, each=lambda cells: keep(_parts(shop, cells)))
        keep(_parts(shop, found))
        if recipe.pairs:
            keep({"pairs": run_pairs(recipe, found, shop.audits)})
    left = _left_out(record)
    keep({"complete": not left, "left_out": left})
    return record


def _parts(shop: Workshop, found: Cells) -> dict[str, Any]:
    # Models of banks and those that select images have no row of their own.
    models = {**shop.models.facts(), **found.models} if shop.made() else found.models
    return {"cells": found.cells, "audits": found.audits, "models": models, **shop.made()}


def _drawn(
    draw: Callable[[Mapping[str, Any], Path], list[str]],
    record: Mapping[str, Any],
    folder: Path,
    shop: Workshop,
) -> list[str]:
    """Files of a figure; without matplotlib there is none, and its numbers are kept."""
    try:
        return draw(record, folder)
    except MissingExtraError as error:
        shop.say(f"no picture: {error}")
        return []


def _left_out(record: Mapping[str, Any]) -> list[str]:
    """What was not run, in words, each reason once with what it concerns."""
    found: dict[str, list[str]] = {}
    for cell in record.get("cells", ()):
        if cell["status"] not in ("done", "quoted") and cell.get("possible", True):
            found.setdefault(cell["reason"], []).append(f"{cell['row']}, {cell['column']}")
    for name, curve in record.get("curves", {}).items():
        if curve["status"] != "done":
            found.setdefault(curve["reason"], []).append(name)
    for sweep in record.get("sweeps", ()):
        for point in sweep["points"]:
            if point["status"] != "done":
                words = f"{sweep['label']} {point['value']}"
                found.setdefault(point["reason"], []).append(words)
    for figure in record.get("figures", ()):
        if figure["status"] != "done":
            found.setdefault(figure["reason"], []).append(figure["draw"])
    several = (record.get(key, {}).get("subjects", ()) for key in ("explanation", "changes"))
    for subject in (one for subjects in several for one in subjects):
        if subject["status"] != "done":
            found.setdefault(subject["reason"], []).append(subject["name"])
    return [f"{reason}: {'; '.join(dict.fromkeys(what))}" for reason, what in found.items()]


def render_again(out: str | Path) -> Path:
    """Write the page of a reproduction again, from its record alone.

    Returns:
        The page.

    Raises:
        RecordError: There is no record.
    """
    page = Path(out) / PAGE
    write_text(page, render(read_record(out)))
    return page
