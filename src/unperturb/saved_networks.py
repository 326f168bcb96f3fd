"""Folders of trained networks: what ``config.json`` must say, and digests of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unperturb.errors import ConfigError, OutputError, SpecError, WeightsError

__all__ = ["CONFIG", "WEIGHTS", "Form", "digest_of"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def digest_of(facts: Any, state: Mapping[str, Tensor]) -> str:
    """SHA-256 over JSON-able facts and a state dictionary, in the order of its names.

    Example:
        >>> digest_of({}, {"a": torch.zeros(2)}) == digest_of({}, {"a": torch.ones(2)})
        False
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Form:
    """One kind of folder.

    Attributes:
        format: What ``config.json`` calls it.
        words: The network in words, for messages: "corrector".
        maker: Command that makes one.
        version: Version of the schema.

    Example:
        >>> Form("unperturb-vae", "VAE", "unperturb fit vae").is_in("nowhere")
        False
    """

    format: str
    words: str
    maker: str
    version: int = 1

    def is_in(self, folder: str | Path) -> bool:
        """Whether a folder holds such a network."""
        try:
            config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and config.get("format") == self.format

    def check_free(self, folder: Path) -> None:
        """Refuse to write over anything but such a network.

        Raises:
            OutputError: The folder is a file, or holds something else.
        """
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file", expected="a folder", fix="choose another one")
        if (folder / CONFIG).exists() and not self.is_in(folder):
            raise OutputError(
                f"{folder} holds a {CONFIG} of something else",
                expected=f"a new folder, or one that holds a {self.words}",
                fix="choose another folder",
            )

    def head(self) -> dict[str, Any]:
        """What ``config.json`` begins with."""
        return {"format": self.format, "schema_version": self.version}

    def read(self, folder: str | Path) -> dict[str, Any]:
        """The configuration of a folder.

        Raises:
            SpecError: There is no such folder, or it holds something else.
            ConfigError: It cannot be read, or is of another version.
        """
        from unperturb.classifiers.weights import nearest_sibling

        folder = Path(folder)
        path = folder / CONFIG
        if not path.is_file():
            raise SpecError(
                f"There is no {self.words} in {str(folder)!r}",
                expected=f"a folder with {CONFIG} and {WEIGHTS}",
                fix=f"{self.maker} makes one" if folder.is_dir() else nearest_sibling(folder),
            )
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            form, version = config.get("format"), config.get("schema_version")
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path} cannot be read: {error}", expected="a JSON object"
            ) from error
        if form != self.format:
            raise SpecError(
                f"{path} has format {form!r}",
                expected=f"{self.format!r}, a saved {self.words}",
                fix=f"{self.maker} makes one",
            )
        if version != self.version:
            raise ConfigError(
                f"{path} has schema version {version!r}",
                expected=f"schema version {self.version}",
                fix="read it with the version of unperturb that wrote it",
            )
        return config  # type: ignore[no-any-return]

    def damaged(self, folder: Path, error: Exception) -> ConfigError:
        """The error for a configuration that lacks something."""
        return ConfigError(
            f"{folder / CONFIG} is damaged: {error}", expected=f"{CONFIG} of a saved {self.words}"
        )

    def check_fingerprint(self, folder: Path, found: str, named: str) -> None:
        """Refuse weights that are not those which the configuration names.

        Raises:
            WeightsError: They are not.
        """
        if found != named:
            raise WeightsError(
                f"The {self.words} in {str(folder)!r} has the fingerprint {found[:12]}",
                expected=f"{named[:12]}, as {CONFIG} says",
                fix="the folder was changed or saved only in part: fit or fetch it again",
            )
