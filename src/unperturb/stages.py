"""What purifiers, detectors and decisions share: a name, settings, a fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from unperturb.errors import ConfigError, unknown_name
from unperturb.plugins import with_plugins
from unperturb.saved_networks import digest_of

__all__ = ["Stage", "build_stage", "registered"]


class Stage(nn.Module):
    """One stage of a defense.

    Attributes:
        name: Lower-case id, shared by Python, the command line and saved folders.
        attacks: Attacks made for this stage, such as ``("logit-matching",)``: an audit with a
            suite of ours adds them for the attacker who knows the defense.
    """

    name: str = ""
    attacks: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this stage again, JSON-able; weights excluded."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Name and settings, as written into every record."""
        return {"name": self.name, **self.config()}

    def fingerprint(self) -> str:
        """SHA-256 over name, settings and weights."""
        return digest_of(self.describe(), self.state_dict())


def registered(group: str, own: Mapping[str, type[Stage]]) -> dict[str, type[Stage]]:
    """Our stages and those that other packages register under the entry-point group.

    Raises:
        ConfigError: A package registers a name that exists.
    """
    return with_plugins(group, own)


def build_stage(group: str, own: Mapping[str, type[Stage]], settings: dict[str, Any]) -> Stage:
    """Build a stage from what ``describe`` wrote.

    Raises:
        SpecError: The name is unknown.
        ConfigError: The settings do not fit.
    """
    options = dict(settings)
    name = str(options.pop("name", ""))
    known = registered(group, own)
    if name not in known:
        raise unknown_name(group.removesuffix("s"), name, known)
    try:
        return known[name](**options)
    except TypeError as error:
        raise ConfigError(
            f"The settings {options} do not fit {name!r}: {error}",
            expected="settings that this version of the stage knows",
        ) from None
