"""``unperturb reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.cli.options import check_output, echo_json, run_options, setup
from unperturb.errors import ConfigError, SpecError, unknown_name

if TYPE_CHECKING:
    from unperturb.recipes import Recipe


@click.command(short_help="Run a recipe: one table or figure of a paper.")
@click.argument("recipe", required=False)
@click.option("--list", "listed", is_flag=True, help="List the recipes, with what they cost.")
@click.option("--scale", default="cpu", show_default=True,
              help="smoke (seconds, digits), cpu (two cores), gpu (one large GPU) or paper (its "
              "own settings).")  # fmt: skip
@click.option("--data", multiple=True, metavar="PATH | NAME=PATH",
              help="The recipe's images; NAME=PATH where it has several data sets. May be given "
              "again.")  # fmt: skip
@click.option("--model", "models", multiple=True, metavar="NAME=CLASSIFIER",
              help="A classifier in place of one of the recipe's models. May be given "
              "again.")  # fmt: skip
@click.option("--network", "networks", multiple=True, metavar="NAME=FOLDER",
              help="A network in place of one that the recipe's defenses have, such as a VAE. May "
              "be given again.")  # fmt: skip
@click.option("--models-dir", help="Folder of what is trained and fitted, which recipes share.  "
              "[default: models, beside --out]")  # fmt: skip
@click.option("--audits-dir", help="Folder of audits; recipes that share it do equal audits "
              "once.  [default: audits, in --out]")  # fmt: skip
@click.option("--zoo", help="Folder of the project's trained classifiers.  [default: zoo, here or "
              "beside the sources]")  # fmt: skip
@click.option("--no-zoo", is_flag=True, help="Train every model, whatever the zoo holds.")
@click.option("--limit", type=click.IntRange(min=1),
              help="Test images of any column at most, for a first look.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes of an audit.")  # fmt: skip
@click.option("--time-budget", type=float,
              help="Begin nothing more after so many seconds; the rest is 'not run'.")  # fmt: skip
@click.option("--render-only", is_flag=True,
              help="Write table.md again from record.json, and run nothing.")  # fmt: skip
@run_options(out_help="Folder of record.json and table.md.  [default: runs/RECIPE]")
def reproduce(**options: Any) -> int:
    """Reproduce one table or figure of a paper: train, audit, write record.json and table.md.

    \b
    Examples:
      unperturb reproduce --list
      unperturb reproduce tpap/table-6 --scale smoke --out runs/table-6
      unperturb reproduce tpap/table-2 --scale cpu --data cifar10/
      unperturb reproduce logit-correction/table-1 --data cifar10/

    A run that was cut off goes on with the same command. Every figure of the page stands beside
    the paper's, for attackers who ignore the defense and who know it; what was not run says why.
    RECIPE may also be a YAML file of your own.
    """
    from unperturb.recipes import load_recipe, render_again
    from unperturb.recipes import reproduce as run

    if options["listed"]:
        return _list(options)
    name = options["recipe"]
    if name is None:
        raise SpecError(
            "No recipe is named",
            expected="a recipe, such as tpap/table-2, or a YAML file",
            fix="unperturb reproduce --list",
        )
    recipe = load_recipe(name, scale=options["scale"])
    out = Path(options["out"] or Path("runs") / recipe.name.replace("/", "-"))
    check_output(out)
    if options["render_only"]:
        click.echo(render_again(out))
        return 0
    if options["no_zoo"] and options["zoo"] is not None:
        raise ConfigError("--zoo and --no-zoo are both given", expected="one of the two")
    data = _data(options["data"], recipe)
    models = _named(options["models"], "model", "CLASSIFIER", "fgsm=runs/fgsm")
    networks = _named(options["networks"], "network", "FOLDER", "vae=runs/vae")
    budget = options["time_budget"]
    if budget is not None and not budget > 0:
        raise ConfigError(f"--time-budget is {budget:g}", expected="seconds above 0")
    for key in ("models_dir", "audits_dir"):
        if options[key] is not None:
            check_output(Path(options[key]))
    device = setup(options["device"], options["threads"])
    told = not (options["quiet"] or options["as_json"])
    record = run(
        name,
        out=out,
        scale=options["scale"],
        data=data,
        models=models,
        networks=networks,
        models_dir=options["models_dir"],
        audits_dir=options["audits_dir"],
        zoo=options["zoo"],
        use_zoo=not options["no_zoo"],
        seed=options["seed"],
        device=device,
        workers=options["workers"],
        limit=options["limit"],
        time_budget=budget,
        show=told,
        say=(lambda words: click.echo(words, err=True)) if told else (lambda words: None),
    )
    if options["as_json"]:
        echo_json(record)
    elif not options["quiet"]:
        from unperturb.recipes.terminal import terminal_lines

        for line in terminal_lines(record):
            click.echo(line)
        click.echo(f"page: {out / 'table.md'}")
    return 0


def _list(options: dict[str, Any]) -> int:
    from unperturb.recipes import list_recipes

    found = list_recipes()
    if options["as_json"]:
        echo_json(found)
        return 0
    for recipe in found:
        click.echo(f"{recipe['name']}: {recipe['item']}. {recipe['title']} ({recipe['data']})")
        for scale, cost in recipe["scales"].items():
            click.echo(f"    {scale}: {cost or 'not known'}")
    return 0


def _data(given: tuple[str, ...], recipe: Recipe) -> dict[str, str]:
    """Where each data set is: a bare path is the recipe's own."""
    found: dict[str, str] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or (name not in recipe.datasets and Path(text).expanduser().exists()):
            name, path = recipe.data, text
        if name not in recipe.datasets:
            raise unknown_name("data set of this recipe", name, recipe.datasets)
        if name in found:
            raise ConfigError(
                f"--data names {name!r} twice", expected="one place for each data set"
            )
        if not path:
            raise ConfigError(f"--data is {text!r}", expected="PATH or NAME=PATH")
        found[name] = path
    return found


def _named(given: tuple[str, ...], option: str, what: str, such: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, separator, spec = text.partition("=")
        if not separator or not name or not spec:
            raise ConfigError(
                f"--{option} is {text!r}",
                expected=f"NAME={what}",
                fix=f"name one of the recipe's {option}s, such as --{option} {such}",
            )
        if name in found:
            raise ConfigError(
                f"--{option} names {name!r} twice", expected=f"one {what.lower()} for each"
            )
        found[name] = spec
    return found
