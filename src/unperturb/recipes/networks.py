"""Networks of a recipe's defenses: from the zoo, or trained once in a folder that recipes share."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unperturb.errors import ConfigError, SpecError, unknown_name
from unperturb.files import short_paths
from unperturb.generative import DenoiserConfig, VAEConfig, load_denoiser, load_vae
from unperturb.networks.unet import DenoisingUNet
from unperturb.networks.vae import VAE
from unperturb.recipes.finished import changed_settings, refuse, settings_of
from unperturb.recipes.reading import typed
from unperturb.recipes.schema_parts import Network
from unperturb.recipes.sources import TIME_BUDGET, NotRunError
from unperturb.restoration.config import FineTuneConfig, GANConfig, MAEConfig

if TYPE_CHECKING:
    from unperturb.data import ImageSet
    from unperturb.recipes.models import Models

__all__ = ["CONFIGS", "HadNetwork", "Networks", "make_settings"]

FOLDER = "networks"
RECORD = "training.json"

Settings = VAEConfig | DenoiserConfig | GANConfig | MAEConfig | FineTuneConfig

CONFIGS: dict[str, type[Settings]] = {
    "vae": VAEConfig,
    "denoiser": DenoiserConfig,
    "gan": GANConfig,
    "mae": MAEConfig,
    "atop": FineTuneConfig,
}
"""Settings of the training of each kind of network."""


def make_settings(kind: str, given: Mapping[str, Any], *, where: str, seed: int = 0) -> Settings:
    """Settings of a network's training as a recipe writes them.

    Args:
        kind: A key of ``CONFIGS``.
        given: Fields of that class; sizes may be fractions such as 8/255.
        where: How a message names the place.
        seed: The seed where none is given.

    Raises:
        SpecError: An unknown field or name.
        ConfigError: A value of another kind, or out of range.

    Example:
        >>> make_settings("vae", {"epochs": 3}, where="here").epochs
        3
    """
    known = {field.name: field.default for field in fields(CONFIGS[kind])}
    found: dict[str, Any] = {"seed": seed}
    for key, value in given.items():
        if key not in known:
            raise unknown_name(f"training setting ({where})", str(key), known)
        text = known[key] is None and isinstance(value, str) and "/" not in value
        found[key] = value if text else typed(value, known[key], f"{where}: {key}")
    return CONFIGS[kind](**found)


@dataclass(frozen=True)
class HadNetwork:
    """A network of a recipe.

    Attributes:
        folder: Where it is, as presets read it.
        facts: What a record says of it.
    """

    folder: Path
    facts: dict[str, Any]


class Networks:
    """All networks of a recipe, each had once.

    Args:
        models: The recipe's classifiers, their images, folder, zoo, seed and device.
        given: Folders that the user names in their place, by name.

    Raises:
        SpecError: The user names a network that the recipe does not have.
    """

    def __init__(self, models: Models, given: Mapping[str, str] | None = None) -> None:
        self.models, self.recipe = models, models.recipe
        for name in given or {}:
            if name not in self.recipe.networks:
                raise unknown_name("network of this recipe", name, self.recipe.networks)
        self.given = dict(given or {})
        self._had: dict[str, HadNetwork | NotRunError] = {}

    def get(self, name: str) -> HadNetwork:
        """A network, trained first if need be.

        Raises:
            NotRunError: It cannot be had at this scale, or the time budget is spent.
            RecordError: The folder holds another run.
        """
        if name not in self._had:
            try:
                self._had[name] = self._make(self.recipe.networks[name])
            except NotRunError as reason:
                self._had[name] = reason
        found = self._had[name]
        if isinstance(found, NotRunError):
            raise found
        return found

    def vae(self, name: str) -> VAE:
        """A VAE of the recipe, for classifiers that see through it.

        Raises:
            NotRunError: It cannot be had.
        """
        return load_vae(self.get(name).folder)

    def plan(self, name: str) -> tuple[str, Any]:
        """How a network is had: ``given``, ``zoo``, ``train`` or ``unavailable``, from what."""
        network = self.recipe.networks[name]
        if name in self.given:
            return "given", Path(self.given[name])
        if network.unavailable is not None:
            return "unavailable", network.unavailable
        places = [path / network.zoo for path in self.models.zoo] if network.zoo else []
        found = next((path for path in places if (path / "config.json").is_file()), None)
        if found is not None:
            return "zoo", found
        if network.train is not None:
            return "train", network.train
        return "unavailable", f"the zoo has no network {network.zoo}"

    def folder(self, network: Network) -> Path:
        """Where a trained network is kept."""
        return self.models.folder / self.recipe.scale / FOLDER / network.name

    def finished(self, network: Network) -> bool:
        """Whether its training is through."""
        return (self.folder(network) / RECORD).is_file()

    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts of the networks that were had, by name."""
        return {name: had.facts for name, had in self._had.items() if isinstance(had, HadNetwork)}

    def settings(self, network: Network) -> Settings:
        """Settings of its training; a fine-tuning has its start's transform where it names none.

        Raises:
            NotRunError: The start cannot be had.
        """
        where, given = f"network {network.name}: train", dict(network.train or {})
        if network.kind == "atop":
            from unperturb.purifiers.transforms import RandomTransform
            from unperturb.restoration import load_restoration

            assert network.start is not None
            start = load_restoration(self.get(network.start).folder).transform
            names = ("patch", "rate", "sigma", "passes")
            asked = {name: given[name] for name in names if name in given}
            chosen = RandomTransform(name=given.get("transform", start.name), **asked)
            filled = chosen.filled(start, **asked).to_dict()
            given["transform"] = filled["name"]
            given |= {name: filled[name] for name in names if filled[name] is not None}
        return make_settings(network.kind, given, where=where, seed=self.models.seed)

    def fresh(self, network: Network, data: ImageSet) -> VAE | DenoisingUNet:
        """A VAE or denoiser before its first step."""
        seed = int((network.train or {}).get("seed", self.models.seed))
        if network.kind == "vae":
            return VAE(image_shape=tuple(data.pixels.shape[1:]), seed=seed, **network.net)
        return DenoisingUNet(in_channels=data.pixels.shape[1], seed=seed, **network.net)

    def _make(self, network: Network) -> HadNetwork:
        kind, what = self.plan(network.name)
        if kind == "unavailable":
            raise NotRunError(str(what))
        folder = what if kind != "train" else self._trained(network)
        name = network.name if kind == "train" else short_paths(str(folder))
        source = "trained" if kind == "train" else kind
        return HadNetwork(folder, {"from": source, "name": name, **_facts(network, folder)})

    def _trained(self, network: Network) -> Path:
        folder, config = self.folder(network), self.settings(network)
        data = self.models.sources.train(network.dataset)
        done = 0
        while not self.finished(network):
            if self.models.ends is not None and time.monotonic() > self.models.ends:
                raise NotRunError(TIME_BUDGET)
            if not done:
                self.models.say(f"training {folder}: {network.kind}, {config.epochs} epochs")
            done += 1
            # Epoch after epoch where time may run out: a run goes on where it was cut off.
            self._train(network, folder, config, data, None if self.models.ends is None else done)
        self._check_same(network, folder, config, data)
        return folder

    def _train(
        self, network: Network, folder: Path, config: Settings, data: ImageSet, stop: int | None
    ) -> None:
        from unperturb.generative import train_denoiser, train_vae
        from unperturb.restoration import plan_finetune, plan_pretrain, train_restoration

        device = self.models.device
        common: dict[str, Any] = {
            "out": folder,
            "device": device,
            "stop_after": stop,
            "show": self.models.show,
        }
        if isinstance(config, VAEConfig | DenoiserConfig):
            made = self.fresh(network, data)
            if isinstance(config, VAEConfig):
                assert isinstance(made, VAE)
                train_vae(made, data, config, **common)
                return
            assert isinstance(made, DenoisingUNet)
            train_denoiser(made, self._classifier(network), data, config, **common)
        elif isinstance(config, FineTuneConfig):
            assert network.start is not None
            start = self.get(network.start).folder
            plan = plan_finetune(self._classifier(network), start, data, config, device=device)
            train_restoration(plan, data, **common)
        else:
            assert isinstance(config, GANConfig | MAEConfig)
            train_restoration(plan_pretrain(data, config, device=device), data, **common)

    def _classifier(self, network: Network) -> Any:
        assert network.model is not None
        return self.models.get(network.model).classifier

    def _check_same(self, network: Network, folder: Path, config: Settings, data: ImageSet) -> None:
        """Refuse a finished run of other settings, images, classifier or start.

        Raises:
            RecordError: It is another run.
        """
        card, theirs, images = settings_of(folder / RECORD, type(config).from_dict)
        classifier = (card.get("classifier") or {}).get("fingerprint")
        began = (card.get("start") or {}).get("card")
        shape = card.get("network", {})
        changed = changed_settings(theirs, config)
        if images != data.fingerprint():
            changed.append("other images")
        if network.kind in ("vae", "denoiser") and shape != _json(
            self.fresh(network, data).config()
        ):
            changed.append("another architecture")
        if network.model is not None and classifier != self._classifier(network).fingerprint():
            changed.append("another classifier")
        if network.start is not None and began != _card(self.get(network.start).folder):
            changed.append("another start")
        refuse(folder, changed)


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _card(folder: Path) -> Any:
    from unperturb.restoration import load_restoration

    return _json(dict(load_restoration(folder).card))


def _facts(network: Network, folder: Path) -> dict[str, Any]:
    """What a record says of a network: its print, its training, its last figures.

    Raises:
        SpecError: The folder holds a network of another kind.
    """
    from unperturb.classifiers.weights import file_sha256
    from unperturb.generative import fingerprint
    from unperturb.restoration import load_restoration

    facts: dict[str, Any] = {
        "title": network.title,
        "kind": network.kind,
        "data": network.dataset,
        "model": network.model,
        "start": network.start,
    }
    if network.kind in ("vae", "denoiser"):
        found = load_vae(folder) if network.kind == "vae" else load_denoiser(folder)
        card = json.loads((folder / "config.json").read_text(encoding="utf-8"))["card"]
        facts |= {
            "network": _json(found.config()),
            "fingerprint": fingerprint(found),
            "figures": card.get("last", {}),
        }
    else:
        restorer = load_restoration(folder)
        made_by = "masked-autoencoder" if network.kind == "mae" else "inpainting-gan"
        if network.kind != "atop" and restorer.name != made_by:
            raise SpecError(
                f"The network {network.name} in {str(folder)!r} is {restorer.name}",
                expected=made_by,
                fix="name another folder",
            )
        card = dict(restorer.card)
        facts |= {
            "network": {"name": restorer.name, **_json(restorer.network.config())},  # type: ignore[operator]
            "transform": restorer.transform.to_dict(),
            "fingerprint": file_sha256(folder / "model.safetensors"),
            "figures": card.get("heldout", {}),
        }
    return facts | {
        "config": card.get("config"),
        "trained_by": card.get("trained_by"),
        "classifier": (card.get("classifier") or {}).get("fingerprint"),
        "environment": card.get("environment"),
    }


def check_architecture(kind: str, net: Mapping[str, Any], where: str) -> None:
    """Refuse settings that a VAE or a denoiser does not have.

    Raises:
        SpecError: An unknown setting.
        ConfigError: The kind has none, or a value is out of range.
    """
    names = {
        "vae": ("width", "downsample", "latent_channels"),
        "denoiser": ("width", "depth", "convolutions"),
    }.get(kind, ())
    if net and not names:
        raise ConfigError(
            f"{where} is given for a network of the kind {kind}",
            expected="none: train holds the settings of its architecture",
        )
    for name in net:
        if name not in names:
            raise unknown_name(f"setting of the architecture ({where})", name, names)
    if kind == "vae":
        side = 2 ** int(net.get("downsample", 2))
        VAE(image_shape=(1, side, side), **net)
    elif kind == "denoiser":
        DenoisingUNet(in_channels=1, **net)
