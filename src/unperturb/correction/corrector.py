"""A trained correction network with what it was trained on: for anyone who has logits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unperturb.errors import ConfigError, InputError, OutputError, SpecError, WeightsError
from unperturb.files import write_json, write_tensors
from unperturb.networks.corrector import CorrectionNetwork

__all__ = ["FORMAT", "Corrected", "Corrector", "check_logits", "is_corrector", "load_corrector"]

FORMAT = "unperturb-corrector"
SCHEMA_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Corrected:
    """What became of logits.

    Attributes:
        logits: Corrected logits (N, K).
        labels: Their argmax (N,).
        before: Argmax of the logits that were given (N,).
        changed: Where the two differ (N,) bool: a free flag that something was corrected.
    """

    logits: Tensor
    labels: Tensor
    before: Tensor
    changed: Tensor


@dataclass(frozen=True, eq=False)
class Corrector:
    """A correction network and the facts of its making.

    Attributes:
        network: The network, in eval mode.
        classifier: Fingerprint of the classifier whose logits it was trained on; "" if unknown.
        arch: That classifier's architecture, in words.
        classes: Names of the classes, if they are known.
        card: JSON-able facts: settings, bank, attacks, figures of the kept epoch.

    Example:
        >>> corrector = Corrector(CorrectionNetwork(num_classes=3, width=8))
        >>> corrector.correct(torch.eye(3)).changed.shape
        torch.Size([3])
    """

    network: CorrectionNetwork
    classifier: str = ""
    arch: str = ""
    classes: tuple[str, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.network.num_classes

    def fingerprint(self) -> str:
        """SHA-256 over the network's settings and weights, and the classifier it is for."""
        digest = hashlib.sha256(
            json.dumps([self.network.config(), self.classifier], sort_keys=True).encode()
        )
        for name, value in sorted(self.network.state_dict().items()):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def correct(self, logits: Tensor, *, batch_size: int = 1024) -> Corrected:
        """Correct logits (N, K).

        Args:
            logits: Logits before softmax, of the classifier it was trained on.
            batch_size: Rows at a time.

        Raises:
            InputError: Not a float tensor (N, K) of finite numbers with as many classes.
            ConfigError: The batch size is below 1.
        """
        check_logits(logits, self.num_classes)
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}", expected="at least 1")
        like = next(self.network.parameters())
        parts = [
            self.network(part.to(like.device, like.dtype)) for part in logits.split(batch_size)
        ]
        corrected = torch.cat(parts)
        before = logits.to(like.device).argmax(1)
        labels = corrected.argmax(1)
        return Corrected(corrected, labels, before, labels != before)

    def check_classifier(
        self, fingerprint: str, num_classes: int, *, any_classifier: bool = False
    ) -> None:
        """Refuse to serve a classifier it was not trained on.

        Args:
            fingerprint: The classifier's.
            num_classes: Its K.
            any_classifier: Serve another one all the same (transfer); another K never.

        Raises:
            WeightsError: Another classifier, or another number of classes.
        """
        check_pair(
            self.classifier,
            self.num_classes,
            fingerprint,
            num_classes,
            any_classifier=any_classifier,
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors``, each whole or not at all.

        Raises:
            OutputError: The folder cannot be written, or holds something else.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file", expected="a folder", fix="choose another one")
        if (folder / _CONFIG).exists() and not is_corrector(folder):
            raise OutputError(
                f"{folder} holds a {_CONFIG} of something else",
                expected="a new folder, or one that holds a corrector",
                fix="choose another folder",
            )
        write_tensors(folder / _WEIGHTS, self.network.state_dict(), {"format": "pt"})
        write_json(
            folder / _CONFIG,
            {
                "format": FORMAT,
                "schema_version": SCHEMA_VERSION,
                "network": self.network.config(),
                "classifier": self.classifier,
                "arch": self.arch,
                "classes": list(self.classes),
                "fingerprint": self.fingerprint(),
                "card": dict(self.card),
            },
        )
        return folder


def check_pair(
    fitted: str,
    fitted_classes: int,
    found: str,
    found_classes: int,
    *,
    any_classifier: bool = False,
) -> None:
    """Refuse a corrector for another classifier, both named.

    Raises:
        WeightsError: Another number of classes; or another classifier, unless that is allowed.
    """
    if fitted_classes != found_classes:
        raise WeightsError(
            f"The corrector reads {fitted_classes} classes, the classifier has {found_classes}",
            expected=f"a corrector for {found_classes} classes",
            fix="fit one on a bank of this classifier",
        )
    if fitted and fitted != found and not any_classifier:
        raise WeightsError(
            f"The corrector was fitted on the logits of another classifier ({fitted[:12]})",
            expected=f"a corrector for the classifier {found[:12]}",
            fix="fit one on a bank of this classifier, or allow the transfer with "
            "any_classifier=true",
        )


def check_logits(logits: Tensor, num_classes: int | None = None) -> None:
    """Check that logits are a float tensor (N, K) of finite numbers.

    Args:
        logits: What the caller handed in.
        num_classes: K; None accepts 2 and more.

    Raises:
        InputError: They are not.

    Example:
        >>> check_logits(torch.zeros(2, 10), 10)
        >>> check_logits(torch.zeros(2, 9), 10)
        Traceback (most recent call last):
        ...
        unperturb.errors.InputError: Logits have 9 classes. Expected: 10. Fix: use the corrector \
of that classifier.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = getattr(logits, "dtype", type(logits).__name__)
        raise InputError(
            f"Logits are {kind}", expected="a float tensor (N, K)", fix="torch.as_tensor(z).float()"
        )
    if logits.ndim != 2 or not len(logits):
        raise InputError(
            f"Logits have shape {tuple(logits.shape)}",
            expected="(N, K), at least one row",
            fix="one row for each image, one column for each class",
        )
    found = logits.shape[1]
    if num_classes is not None and found != num_classes:
        raise InputError(
            f"Logits have {found} classes",
            expected=str(num_classes),
            fix="use the corrector of that classifier",
        )
    bad = ~torch.isfinite(logits).all(1)
    if bool(bad.any()):
        raise InputError(
            f"{int(bad.sum())} of {len(logits)} rows of logits hold NaN or infinity "
            f"(the first is row {int(bad.nonzero()[0, 0])})",
            expected="finite logits",
            fix="leave those rows out, or repair what produced them",
        )


def is_corrector(folder: str | Path) -> bool:
    """Whether a folder holds a saved corrector."""
    try:
        config = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def load_corrector(folder: str | Path, *, device: str = "cpu") -> Corrector:
    """Read what ``Corrector.save`` wrote.

    Raises:
        SpecError: There is no such folder, or it holds something else.
        ConfigError: It is of another version, or damaged.
        WeightsError: The weights are missing, damaged, or not those the configuration names.
    """
    from unperturb.classifiers.weights import fit_state, nearest_sibling, read_weights

    folder = Path(folder)
    path = folder / _CONFIG
    if not path.is_file():
        raise SpecError(
            f"There is no corrector in {str(folder)!r}",
            expected=f"a folder with {_CONFIG} and {_WEIGHTS}",
            fix=nearest_sibling(folder) if not folder.is_dir() else "check the folder",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, version = config.get("format"), config.get("schema_version")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", expected="a JSON object") from error
    if kind != FORMAT:
        raise SpecError(
            f"{path} has format {kind!r}",
            expected=f"{FORMAT!r}, a saved corrector",
            fix="unperturb fit logit-correction makes one",
        )
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema version {version!r}",
            expected=f"schema version {SCHEMA_VERSION}",
            fix="read it with the version of unperturb that wrote it",
        )
    try:
        network = CorrectionNetwork(**config["network"])
        facts = {key: config[key] for key in ("classifier", "arch", "classes", "card")}
        named = str(config["fingerprint"])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}", expected=f"{_CONFIG} of a saved corrector"
        ) from error
    state, _ = read_weights(folder / _WEIGHTS)
    fit_state(network, state, source=repr(str(folder / _WEIGHTS)), network="logit correction")
    corrector = Corrector(
        network,
        classifier=str(facts["classifier"]),
        arch=str(facts["arch"]),
        classes=_names(facts["classes"]),
        card=dict(facts["card"]),
    )
    if corrector.fingerprint() != named:
        raise WeightsError(
            f"The corrector in {str(folder)!r} has the fingerprint {corrector.fingerprint()[:12]}",
            expected=f"{named[:12]}, as {_CONFIG} says",
            fix="the folder was changed or saved only in part: fit or fetch it again",
        )
    corrector.network.to(device)
    return corrector


def _names(listed: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in listed)
