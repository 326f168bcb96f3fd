"""``unperturb explain supporting-classes`` and ``unperturb explain mean-logits``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from unperturb.cli.options import image_size, run_options, setup
from unperturb.cli.pictures import outputs, tell, watched
from unperturb.errors import ConfigError, DataError, SpecError, WeightsError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from unperturb.banks import LogitBank
    from unperturb.correction import Corrector
    from unperturb.data import ImageSet
    from unperturb.explain import Explained, Overlap

BANK_ATTACK_HELP = (
    "An attack of the bank, with or without what follows its '?'; may be given again.  "
    "[default: all of the bank]"
)


class Set(NamedTuple):
    """One corrector on one attack's logits."""

    named: str  # the corrector's folder, in short
    corrector: Corrector
    bank: LogitBank
    attack: str


@click.command("supporting-classes", short_help="The classes by which a corrector corrects.")
@click.option("--corrector", "correctors", multiple=True, required=True,
              help="Folder of a saved corrector; may be given again.")  # fmt: skip
@click.option("--bank", "banks", multiple=True, required=True,
              help="Folder of a logit bank, of test images: one for all correctors, or one for "
                   "each in the same order.")  # fmt: skip
@click.option("--attack", "attacks", multiple=True, help=BANK_ATTACK_HELP)
@click.option("--own", is_flag=True, help="Show each corrector only on attacks it was fitted on.")
@click.option("--any-classifier", is_flag=True,
              help="Let a corrector read a bank of another classifier than its own.")  # fmt: skip
@click.option("--top", type=click.IntRange(min=1),
              help="Classes in an image's list.  [default: 10, or a third of few]")  # fmt: skip
@click.option("--only", default="all", show_default=True,
              help="Images that are counted: all, or those that are corrected.")  # fmt: skip
@click.option("--lower", type=float, default=20.0, show_default=True,
              help="Lower the supporting classes' logits by this and correct again.")  # fmt: skip
@click.option("--controls", type=click.IntRange(min=1), default=20, show_default=True,
              help="Do so with as many random classes, so many times.")  # fmt: skip
@click.option("--draws", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Bootstrap draws for the intervals of overlaps.")  # fmt: skip
@click.option("--focus", type=int, help="A class whose place among the first three is counted.  "
              "[default: the most frequent]")  # fmt: skip
@click.option("--instance", help="Also draw the classes of this image, an id of the bank.")
@click.option("--data", help="Images of the same classes, of which the first of each class stands "
              "above its bar; named as for audit.")  # fmt: skip
@click.option("--split", help="Split of these images.  [default: test]")
@click.option("--image-size", help="Resize and crop them to HEIGHTxWIDTH (or one number).")
@click.option("--batch-size", type=click.IntRange(min=1), default=512, show_default=True,
              help="Rows at a time.")  # fmt: skip
@run_options(out="supporting.png", out_help="The picture: .png, .svg or .pdf; a .csv of counts and "
             "a .json of all figures go beside it, and with several sets a second picture, "
             "-overlap.")  # fmt: skip
def supporting_classes(**options: Any) -> int:
    """Which classes' logits a corrector goes by, and what happens once they are lowered.

    A panel for each corrector and attack. Beside the counts: the causal check with its random
    controls, shares of images whose own class or one class stands first, and how much the sets
    overlap.

    \b
    Example:
      unperturb explain supporting-classes --corrector runs/corrector --bank runs/bank \\
        --lower 20 --controls 20 --out supporting.png
    """
    from unperturb.explain import explain_correction, figure_supporting, overlap, save_figure
    from unperturb.explain.supporting import counts_csv
    from unperturb.files import write_json, write_text
    from unperturb.progress import progress

    drawn = ["-instance"] if options["instance"] is not None else []
    out, table, figures, second, *third = outputs(options, ".csv", ".json", "-overlap", *drawn)
    chosen = _named(_sets(options))
    first = next(iter(chosen.values()))
    data = _examples(options, first.corrector.num_classes)
    names = _classes(first, data)
    row = _row(options["instance"], [one.bank for one in chosen.values()])
    found: dict[str, Explained] = {}
    with progress(total=len(chosen), desc="explain", show=watched(options), unit="set") as bar:
        for name, one in chosen.items():
            found[name] = explain_correction(
                one.corrector, one.bank.logits(one.attack), one.bank.labels, top=options["top"],
                only=options["only"], lower=options["lower"], controls=options["controls"],
                focus=options["focus"], seed=options["seed"], batch_size=options["batch_size"],
            )  # fmt: skip
            bar.update(1)
    sets = {name: one.supporting for name, one in found.items()}
    common = overlap(sets, draws=options["draws"], seed=options["seed"])
    shown = {k for one in sets.values() for k in one.classes()}
    save_figure(figure_supporting(sets, classes=names, examples=_first_images(data, shown)), out)
    files = [out, table, figures]
    if row is not None:
        files += _draw_instance(third[0], sets, row, options["instance"], names, data)
    if len(sets) > 1:
        from unperturb.explain import figure_overlap

        save_figure(figure_overlap(common), second)
        files.append(second)
    facts: dict[str, Any] = {
        "settings": {key: options[key] for key in ("only", "lower", "controls", "seed")},
        "sets": [
            {"name": name, **_source(one), **found[name].to_dict(names)}
            for name, one in chosen.items()
        ],
        "overlap": common.to_dict(),
    }
    write_text(table, counts_csv(sets, names))
    write_json(figures, facts)
    lines = [line for each in facts["sets"] for line in _lines(each)] + _overlap_lines(common)
    tell(
        options,
        {**facts, "out": str(out), "files": [str(path) for path in files]},
        "\n".join([*lines, ", ".join(str(path) for path in files)]),
    )
    return 0


@click.command("mean-logits", short_help="Histograms of the mean logit, clean and attacked.")
@click.option("--bank", "folder", required=True, help="Folder of a logit bank.")
@click.option("--attack", "attacks", multiple=True, help=BANK_ATTACK_HELP)
@click.option("--bins", type=click.IntRange(min=1), default=20, show_default=True,
              help="Bins, the same for all.")  # fmt: skip
@click.option("--out", default="mean-logits.png", show_default=True,
              help="The picture: .png, .svg or .pdf; a .json of all figures goes "
                   "beside it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Print nothing.")
def mean_logits(**options: Any) -> int:
    """How the mean over all logits tells attacked images from clean ones, without a corrector.

    \b
    Example:
      unperturb explain mean-logits --bank runs/bank --out hist.png
    """
    from unperturb.banks import open_bank
    from unperturb.explain import figure_mean_logits, save_figure
    from unperturb.explain import mean_logits as compute
    from unperturb.files import write_json

    out, figures = outputs(options, ".json")
    bank = open_bank(options["folder"])
    attacks = _attacks(bank, options["attacks"])
    found = compute(
        bank.logits("clean"), {name: bank.logits(name) for name in attacks}, bins=options["bins"]
    )
    save_figure(figure_mean_logits(found), out)
    facts = {**found.to_dict(), "classifier": bank.classifier, "bank": bank.digest}
    write_json(figures, facts)
    lines = [
        f"{name}: mean logit {found.means[name]:.4g}, clean {found.means['clean']:.4g}; "
        f"AUROC {found.aurocs[name]:.3f}"
        for name in attacks
    ]
    tell(
        options,
        {**facts, "out": str(out)},
        "\n".join([*lines, f"n = {len(bank)}; {out}, {figures}"]),
    )
    return 0


# -- what is given --------------------------------------------------------------------------------


def _sets(options: dict[str, Any]) -> list[Set]:
    """Every corrector with the attacks of its bank, checked against each other."""
    from unperturb.banks import open_bank
    from unperturb.correction import load_corrector

    folders, banks = options["correctors"], options["banks"]
    if len(banks) not in (1, len(folders)):
        raise ConfigError(
            f"--bank is given {len(banks)} times and --corrector {len(folders)} times",
            expected="one --bank for all correctors, or one for each in the same order",
        )
    device = setup(options["device"], options["threads"])
    correctors = [load_corrector(folder, device=device) for folder in folders]
    opened = [open_bank(folder) for folder in banks]
    opened = opened if len(opened) == len(correctors) else opened * len(correctors)
    found = []
    for folder, corrector, bank in zip(folders, correctors, opened, strict=True):
        _check_pair(corrector, bank, options["any_classifier"])
        attacks = _attacks(bank, options["attacks"])
        if options["own"]:
            attacks = _own(folder, corrector, attacks)
        named = Path(folder).resolve().name
        found += [Set(named, corrector, bank, attack) for attack in attacks]
    kinds = {one.corrector.num_classes for one in found}
    if len(kinds) > 1:
        raise ConfigError(
            f"The correctors are of {' and '.join(map(str, sorted(kinds)))} classes",
            expected="correctors of the same classes",
            fix="explain them one by one",
        )
    return found


def _check_pair(corrector: Corrector, bank: LogitBank, any_classifier: bool) -> None:
    try:
        corrector.check_classifier(bank.classifier, bank.num_classes, any_classifier=any_classifier)
    except WeightsError as error:
        same = corrector.num_classes == bank.num_classes
        fix = "use a bank of that classifier, or allow another one with --any-classifier"
        raise WeightsError(
            error.problem, expected=error.expected, fix=fix if same else error.fix
        ) from None


def _attacks(bank: LogitBank, wanted: Sequence[str]) -> list[str]:
    """Attacks of the bank by their names, or by what stands before their '?'.

    Raises:
        SpecError: The bank has no such attack, or several.
        DataError: The bank has clean logits only.
    """
    if not bank.attacks:
        raise DataError("The bank has clean logits only", expected="a bank with an attack")
    found = []
    for name in wanted:
        like = [attack for attack in bank.attacks if attack.partition("?")[0] == name]
        if name not in bank.attacks and len(like) != 1:
            raise unknown_name("attack of the bank", name, like or bank.attacks)
        found.append(name if name in bank.attacks else like[0])
    return list(dict.fromkeys(found)) or list(bank.attacks)


def _own(folder: str, corrector: Corrector, attacks: list[str]) -> list[str]:
    known = [str(name) for name in corrector.card.get("bank", {}).get("attacks", ())]
    found = [attack for attack in attacks if attack in known]
    if not found:
        raise SpecError(
            f"The corrector {folder!r} was fitted on {', '.join(known) or 'nobody knows what'}",
            expected=f"one of the attacks {', '.join(attacks)}",
            fix="leave out --own",
        )
    return found


def _named(sets: list[Set]) -> dict[str, Set]:
    """Sets by the shortest name that tells them apart: corrector, attack, or both."""
    names: dict[int, str] = {}
    for one in sets:
        count, own = 1, one.named
        while id(one.corrector) not in names and own in names.values():
            count += 1
            own = f"{one.named} ({count})"
        names.setdefault(id(one.corrector), own)
    if len(names) == 1:
        return {one.attack: one for one in sets}
    both = len({one.attack for one in sets}) > 1
    return {
        f"{names[id(one.corrector)]}: {one.attack}" if both else names[id(one.corrector)]: one
        for one in sets
    }


def _examples(options: dict[str, Any], classes: int) -> ImageSet | None:
    from unperturb.data import load_images

    if options["data"] is None:
        return None
    data = load_images(
        options["data"], split=options["split"], image_size=image_size(options["image_size"])
    )
    if len(data.classes) != classes:
        raise DataError(
            f"The images of --data have {len(data.classes)} classes, the bank {classes}",
            expected="images of the same classes, with labels",
        )
    return data


def _first_images(data: ImageSet | None, classes: set[int]) -> dict[int, Tensor] | None:
    """The first image of each class, in the order of the data; they are not chosen."""
    if data is None:
        return None
    labels = data.labels.tolist()
    return {k: data.images([labels.index(k)])[0] for k in classes if k in labels}


def _row(wanted: str | None, banks: list[LogitBank]) -> int | None:
    if wanted is None:
        return None
    places = {bank.ids.index(wanted) if wanted in bank.ids else -1 for bank in banks}
    if places == {-1}:
        raise SpecError(
            f"The bank has no image {wanted!r}",
            expected=f"an id of the bank, such as {banks[0].ids[0]!r}",
        )
    if len(places) > 1:
        raise SpecError(
            f"The image {wanted!r} is not at the same place of every bank",
            expected="banks of the same images in the same order",
        )
    return places.pop()


def _classes(one: Set, data: ImageSet | None) -> tuple[str, ...]:
    return one.bank.classes or one.corrector.classes or (data.classes if data is not None else ())


# -- what is told ---------------------------------------------------------------------------------


def _draw_instance(
    path: Path, sets: dict[str, Any], row: int, name: str, classes: Sequence[str],
    data: ImageSet | None,
) -> list[Path]:  # fmt: skip
    from unperturb.explain import figure_instance, save_figure

    there = data is not None and name in data.ids
    image = data.images([data.ids.index(name)])[0] if there and data is not None else None
    save_figure(figure_instance(sets, row, classes=classes, image=image, name=name), path)
    return [path]


def _source(one: Set) -> dict[str, Any]:
    return {
        "corrector": one.named,
        "corrector_fingerprint": one.corrector.fingerprint(),
        "corrector_classifier": one.corrector.classifier,
        "bank": one.bank.digest,
        "bank_classifier": one.bank.classifier,
        "split": one.bank.split,
        "attack": one.attack,
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    """What is said of one set."""
    found, causal, shares = facts["supporting"], facts["causal"], facts["instances"]
    named = ", ".join(f"{each['name']} {each['count']}" for each in found["classes"]["score"])
    own = shares["top_is_true"]["rate"]
    lines = [
        f"{facts['name']}: {found['n']} images, {found['corrected']} corrected",
        f"  supporting classes: {named}",
        f"  greatest S is the true class's in {own:.1%} of the images",
        f"  corrected {_share(causal['before'])}; classes lowered by {causal['lower']:g}:",
    ]
    for key, words in (("lowered", "in every image"), ("spared", "but an image's own class")):
        each = causal[key]
        controls = each["controls"]
        back = each["returned"]
        lines.append(
            f"    {words}: {_share(each['after'])}"
            + (f", {back['rate']:.1%} return to the attack's class" if back else "")
            + f"; random classes: {controls['mean']:.1%} ({controls['min']:.1%} to "
            f"{controls['max']:.1%}), rank {each['rank']} of {1 + len(controls['accuracies'])}, "
            f"p = {each['p']:.2g}"
        )
    return lines + [f"  warning: {warning}" for warning in found["warnings"]]


def _share(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def _overlap_lines(found: Overlap) -> list[str]:
    count = len(found.names)
    return [
        f"overlap of {found.names[one]} and {found.names[two]}: {found.values[one, two]:.4f} "
        f"({found.low[one, two]:.3f} to {found.high[one, two]:.3f})"
        for one in range(count)
        for two in range(one + 1, count)
    ]
