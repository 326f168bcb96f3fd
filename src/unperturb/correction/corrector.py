"""A trained correction network with what it was trained on: for anyone who has logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unperturb.errors import ConfigError, InputError, WeightsError
from unperturb.files import write_json, write_tensors
from unperturb.networks.corrector import CorrectionNetwork
from unperturb.saved_networks import CONFIG, WEIGHTS, Form, digest_of

__all__ = ["FORM", "Corrected", "Corrector", "check_logits", "is_corrector", "load_corrector"]

FORM = Form("unperturb-corrector", "corrector", "unperturb fit logit-correction")


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
        facts = [self.network.config(), self.classifier]
        return digest_of(facts, self.network.state_dict())

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
        FORM.check_free(folder)
        write_tensors(folder / WEIGHTS, self.network.state_dict(), {"format": "pt"})
        write_json(
            folder / CONFIG,
            {
                **FORM.head(),
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
    return FORM.is_in(folder)


def load_corrector(folder: str | Path, *, device: str = "cpu") -> Corrector:
    """Read what ``Corrector.save`` wrote.

    Raises:
        SpecError: There is no such folder, or it holds something else.
        ConfigError: It is of another version, or damaged.
        WeightsError: The weights are missing, damaged, or not those the configuration names.
    """
    from unperturb.classifiers.weights import fit_state, read_weights

    folder = Path(folder)
    config = FORM.read(folder)
    try:
        network = CorrectionNetwork(**config["network"])
        facts = {key: config[key] for key in ("classifier", "arch", "classes", "card")}
        named = str(config["fingerprint"])
    except (KeyError, TypeError) as error:
        raise FORM.damaged(folder, error) from error
    state, _ = read_weights(folder / WEIGHTS)
    fit_state(network, state, source=repr(str(folder / WEIGHTS)), network="logit correction")
    corrector = Corrector(
        network,
        classifier=str(facts["classifier"]),
        arch=str(facts["arch"]),
        classes=_names(facts["classes"]),
        card=dict(facts["card"]),
    )
    FORM.check_fingerprint(folder, corrector.fingerprint(), named)
    corrector.network.to(device)
    return corrector


def _names(listed: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in listed)
