"""Networks, thresholds and defenses of a recipe, from YAML, everything checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unperturb.errors import ConfigError
from unperturb.recipes.networks import check_architecture, make_settings
from unperturb.recipes.parse_models import no_scale
from unperturb.recipes.reading import Section, number
from unperturb.recipes.schema import SCALES, Dataset, Model
from unperturb.recipes.schema_parts import NETWORKS, Network, Threshold

__all__ = ["check_circles", "parse_defense", "parse_networks", "parse_thresholds"]

_FOR_A_MODEL = ("denoiser", "atop")
_PURIFIER = ("vae", "denoiser", "purifier", "steps", "lr", "optimizer", "start", "tolerance")


def parse_networks(
    sections: Mapping[str, Section],
    scale: str,
    models: Mapping[str, Model],
    datasets: Mapping[str, Dataset],
) -> dict[str, Network]:
    """All networks at one scale; the other scales are checked as well."""
    found = {}
    for name, part in sections.items():
        kind, title = part.choice("kind", NETWORKS), part.text("title", name)
        model = part.choice("model", models) if kind in _FOR_A_MODEL else None
        dataset = part.choice("data", datasets) if model is None else models[model].dataset
        common: dict[str, Any] = {
            "name": name,
            "title": title,
            "kind": kind,
            "dataset": dataset,
            "model": model,
            "start": part.choice("start", sections) if kind == "atop" else None,
        }
        chosen = Network(**common, unavailable=no_scale("network", scale))
        for known in SCALES:
            if known in part:
                network = _at(part.section(known), common)
                chosen = network if known == scale else chosen
        part.end()
        found[name] = chosen
    for network in found.values():
        if network.start is not None and found[network.start].kind not in ("gan", "mae"):
            raise ConfigError(
                f"{sections[network.name].where}: start is {network.start}, a network of the kind "
                f"{found[network.start].kind}",
                expected="one of the kind gan or mae",
            )
    return found


def _at(at: Section, common: Mapping[str, Any]) -> Network:
    kind = str(common["kind"])
    net = at.any("net", {})
    Section(net, f"{at.where}: net")
    check_architecture(kind, net, f"{at.where}: net")
    train = at.any("train", None)
    if train is not None:
        Section(train, f"{at.where}: train")
        make_settings(kind, train, where=f"{at.where}: train")
    network = Network(
        **common,
        zoo=at.text("zoo", None),
        net=dict(net),
        train=train,
        unavailable=at.text("unavailable", None),
    )
    at.end()
    if network.train is None and not (network.zoo or network.unavailable):
        raise ConfigError(
            f"{at.where} says nothing", expected="zoo, train, or unavailable with the reason"
        )
    return network


def parse_thresholds(
    top: Section, models: Mapping[str, Model], networks: Mapping[str, Network]
) -> dict[str, Threshold]:
    """All thresholds: each with ``threshold_settings`` below it."""
    from unperturb.detectors import STATISTICS
    from unperturb.recipes.parse_fits import above

    found = {}
    for name, part in above(top, "thresholds", "threshold_settings").items():
        quantile = part.number("quantile", 0.995)
        if not 0 < quantile < 1:
            raise ConfigError(f"{part.where}: quantile is {quantile}", expected="between 0 and 1")
        found[name] = Threshold(
            name=name,
            model=part.choice("model", models, None),
            n=part.whole("n", None),
            quantile=quantile,
            statistic=part.choice("statistic", STATISTICS, "absolute-change"),
            options=_options(part, (), networks, ()),
        )
        for key in found[name].options:
            if key not in _PURIFIER:
                part.known(_PURIFIER)
                raise part.unknown(key)
    return found


def parse_defense(
    part: Section,
    fits: Iterable[str],
    networks: Iterable[str],
    thresholds: Mapping[str, Threshold],
) -> tuple[str, Mapping[str, Any]]:
    """A preset with its options; a threshold brings the options of its purifier along."""
    preset = part.text("preset")
    options = _options(part, fits, networks, thresholds)
    for value in list(options.values()):
        if isinstance(value, Mapping) and "threshold" in value:
            options = _with_purifier(part.where, thresholds[value["threshold"]], options)
    return preset, options


def _with_purifier(where: str, threshold: Threshold, options: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in threshold.options.items():
        if options.get(key, value) != value:
            raise ConfigError(
                f"{where}: {key} is {options[key]!r}, and the threshold {threshold.name} is "
                f"fitted with {value!r}",
                expected="the purifier that the threshold is fitted with",
                fix=f"leave {key} out: the threshold brings it along",
            )
    strange = [key for key in _PURIFIER if key in options and key not in threshold.options]
    if strange:
        raise ConfigError(
            f"{where}: {', '.join(strange)} is given, which the threshold {threshold.name} is not "
            "fitted with",
            expected="the purifier that the threshold is fitted with",
            fix=f"state it at the threshold {threshold.name}",
        )
    return {**threshold.options, **options}


def _options(
    part: Section, fits: Iterable[str], networks: Iterable[str], thresholds: Iterable[str]
) -> dict[str, Any]:
    """Options of a preset: plain ones, fractions, and names of what is made first."""
    known = {"fit": list(fits), "network": list(networks), "threshold": list(thresholds)}
    options: dict[str, Any] = {}
    for key, value in part.rest().items():
        if isinstance(value, Mapping):
            inner = Section(value, f"{part.where}: {key}")
            named = [kind for kind in known if kind in inner]
            if len(named) != 1 or len(value) != 1:
                raise ConfigError(
                    f"{inner.where} is {dict(value)}",
                    expected=f"one of {', '.join(known)}, and its name",
                )
            options[key] = {named[0]: inner.choice(named[0], known[named[0]])}
            continue
        numeric = isinstance(value, str) and "/" in value and not any(map(str.isalpha, value))
        options[key] = number(value, f"{part.where}: {key}") if numeric else value
    return options


def check_circles(where: str, models: Mapping[str, Model], networks: Mapping[str, Network]) -> None:
    """Refuse models and networks that need one another in a circle.

    Raises:
        SpecError: A start or a VAE that does not exist is named.
        ConfigError: There is such a circle, or a classifier goes through something else than a VAE.
    """
    from unperturb.errors import unknown_name

    needs: dict[str, list[str]] = {}
    for model in models.values():
        found = needs.setdefault(f"model {model.name}", [])
        for stage in model.stages:
            if stage.start is not None:
                if stage.start not in models:
                    raise unknown_name(f"model to start {model.name} from", stage.start, models)
                found.append(f"model {stage.start}")
            if stage.through is not None:
                if stage.through not in networks:
                    raise unknown_name(f"network of {model.name}", stage.through, networks)
                if networks[stage.through].kind != "vae":
                    raise ConfigError(
                        f"{where}: models: {model.name}: through is {stage.through}, of the kind "
                        f"{networks[stage.through].kind}",
                        expected="a network of the kind vae",
                    )
                found.append(f"network {stage.through}")
    for network in networks.values():
        found = needs.setdefault(f"network {network.name}", [])
        found += [f"model {network.model}"] * (network.model is not None)
        found += [f"network {network.start}"] * (network.start is not None)
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(
                f"{where}: {' needs '.join([*path[path.index(name) :], name])}",
                expected="models and networks that need no one who needs them",
            )
        if name not in done:
            for other in needs[name]:
                follow(other, (*path, name))
            done.add(name)

    for name in needs:
        follow(name, ())
