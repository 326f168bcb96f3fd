"""Who is audited on what: what the plan says of the subjects and of the images."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from unperturb.attacks import Surface
from unperturb.classifiers import Classifier
from unperturb.defense import Defense
from unperturb.errors import ConfigError
from unperturb.files import short_paths
from unperturb.randomness import Keys

__all__ = ["check_repeatable", "data_facts", "subject_facts"]


def check_repeatable(subject: Defense | Classifier, images: Tensor) -> None:
    """Refuse randomness that no key names: nothing about it could be repeated or averaged.

    Raises:
        ConfigError: Two passes on equal images differ by more than rounding.
    """
    where = next(subject.parameters(), images).device
    keys = Keys.of(0, [str(i) for i in range(len(images))], domain="check")
    surface = Surface(subject)
    with torch.no_grad():
        one, two = (surface.terms(images.to(where), keys).scores for _ in range(2))
    size = float(one.nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-3 * size, equal_nan=True):
        raise ConfigError(
            "The classifier answers differently on equal images, and no draw is named for it",
            expected="a module that gives equal scores to equal images in eval mode",
            fix="put what is random into a Purifier with stochastic = True, drawing by ctx.noise",
        )


def subject_facts(module: Defense | Classifier, name: str | None) -> dict[str, Any]:
    """Name, title, fingerprint and description of a target or baseline."""
    describe = module.describe()
    classifier = describe["classifier"] if isinstance(module, Defense) else describe
    classifier["spec"] = short_paths(classifier.get("spec", ""))
    weights = (classifier.get("weights") or {}).get("file")
    of = classifier.get("arch") or "classifier"
    of = f"{of} ({weights})" if weights else of
    own = name or ("defense" if isinstance(module, Defense) else "undefended classifier")
    return {
        "name": own,
        "title": f"{own} around {of}" if isinstance(module, Defense) else of,
        "fingerprint": module.fingerprint(),
        "describe": describe,
    }


def data_facts(given: dict[str, Any] | None, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Source, split, classes and fingerprint of the images."""
    facts = {"source": "tensors", "split": None, "classes": [], **(given or {})}
    facts["source"] = short_paths(str(facts["source"]))
    return {**facts, "fingerprint": _images_fingerprint(images, labels)}


def _images_fingerprint(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    digest.update(labels.detach().cpu().to(torch.int64).numpy().tobytes())
    return digest.hexdigest()
