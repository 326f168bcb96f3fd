"""Tables of costs: operations and seconds of an epoch of training and of testing."""

from __future__ import annotations

from typing import Any

from unperturb.presets import make_preset
from unperturb.recipes.blanks import blank_options
from unperturb.recipes.schema import Recipe

__all__ = ["COST_COLUMNS", "run_costs"]

COST_COLUMNS = {
    "Training time (s)/epoch": ("training", "seconds_per_epoch", 1.0),
    "Test time (s)/epoch": ("answer", "seconds_per_epoch", 1.0),
    "Training FLOPs (T)/epoch": ("training", "flops_per_epoch", 1e12),
    "Test FLOPs (T)/epoch": ("answer", "flops_per_epoch", 1e12),
    "Params (M)": ("facts", "parameters", 1e6),
}
"""Heading, as the paper prints it, to what is measured, in which unit."""


def run_costs(recipe: Recipe, *, seed: int, device: str, show: bool) -> dict[str, Any]:
    """Count and time every row on a network of the recipe's architecture.

    Weights decide no cost, so nothing is trained. An epoch is as long as the recipe says, whatever
    data are at hand; its seconds are those of one batch, multiplied.
    """
    from unperturb.classifiers import new_classifier
    from unperturb.training import TrainConfig
    from unperturb.training.cost import measure_costs

    wanted = recipe.network
    net = new_classifier(
        wanted["arch"], num_classes=wanted["classes"], in_channels=wanted["channels"], seed=seed
    ).to(device)
    rows, facts = [], {}
    for row in recipe.measured:
        defended = None
        if row.defense is not None:
            preset, options = recipe.defenses[row.defense]
            defended = make_preset(
                preset, net, **blank_options(options, recipe.networks, net.num_classes)
            )
        config = TrainConfig(
            objective=row.objective,
            batch_size=wanted["batch_size"],
            attack_steps=wanted["attack_steps"],
            clean_pass=row.clean_pass,
            keep="last",
        )
        table = measure_costs(
            net,
            defense=defended,
            objectives=[row.objective],
            config=config,
            image_size=(wanted["image_size"],) * 2,
            train_images=wanted["train_images"],
            test_images=wanted["test_images"],
            repeats=wanted["repeats"],
            show=show,
        ).to_dict()
        facts = {key: value for key, value in table.items() if key != "rows"}
        by_name = {part["name"]: part for part in table["rows"]}
        answer = "plain answer" if row.defense is None else "defended answer"
        parts = {
            "answer": by_name[answer],
            "training": by_name[f"training step, {row.objective}"],
            "facts": facts,
        }
        values = []
        for name, (part, key, unit) in COST_COLUMNS.items():
            value = parts[part][key]
            values.append({"name": name, "value": None if value is None else value / unit})
        rows.append(
            {
                "row": row.name,
                "objective": row.objective,
                "defense": row.defense,
                "clean_pass": row.clean_pass,
                "paper": dict(row.paper),
                "values": values,
                "forwards": {k: parts[k]["forwards"] for k in ("answer", "training")},
            }
        )
    return {"costs": rows, "network": dict(wanted), "facts": facts}
