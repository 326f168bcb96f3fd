"""A defense as a folder: ``config.json``, ``model.safetensors``, and its classifier.

The classifier is embedded (in ``classifier/``) or referenced by its specification and SHA-256.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from unperturb.classifiers import Classifier, load_classifier, save_classifier
from unperturb.decisions import DECISIONS, Decision
from unperturb.defense import Defense
from unperturb.detectors import DETECTORS, Detector
from unperturb.errors import ConfigError, SpecError, WeightsError
from unperturb.files import write_json, write_tensors
from unperturb.purifiers import PURIFIERS, Purifier
from unperturb.stages import build_stage

__all__ = [
    "FORMAT",
    "is_defense_folder",
    "load_defense",
    "load_detector",
    "push_defense",
    "save_defense",
]

SCHEMA_VERSION = 1
FORMAT = "unperturb-defense"
_STAGES = ("purifier", "detector", "decision")


def save_defense(defense: Defense, folder: Path, *, embed: bool = True) -> None:
    """Write a defense so that ``Defense.from_pretrained(folder)`` brings it back.

    Args:
        defense: The defense.
        folder: Where.
        embed: Store the classifier too; otherwise its specification and fingerprint.

    Raises:
        SpecError: The classifier cannot be stored, or has no specification to refer to.
        OutputError: The folder cannot be written.
    """
    classifier: dict[str, Any] = {"fingerprint": defense.classifier.fingerprint()}
    if embed:
        save_classifier(defense.classifier, folder / "classifier")
        classifier["embedded"] = "classifier"
    else:
        if not defense.classifier.spec:
            raise SpecError(
                "The classifier is a module from Python and has no specification",
                expected="a classifier that load_classifier loaded",
                fix="save with embed=True",
            )
        classifier["spec"] = defense.classifier.spec
    state = {
        f"{name}.{key}": value
        for name in _STAGES
        if (stage := getattr(defense, name)) is not None
        for key, value in stage.state_dict().items()
    }
    write_tensors(folder / "model.safetensors", state, {"format": "pt"})
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "classifier": classifier,
            "purifier": defense.purifier.describe(),
            "detector": None if defense.detector is None else defense.detector.describe(),
            "decision": defense.decision.describe(),
        },
    )


def is_defense_folder(folder: Path) -> bool:
    """Whether a folder holds a saved defense (and not a saved classifier)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def load_defense(
    source: str | Path,
    *,
    classifier: nn.Module | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> Defense:
    """Read what ``save_defense`` wrote.

    Args:
        source: A folder, or the id of a repository on the Hugging Face hub.
        classifier: The classifier, where the folder only refers to it.
        trust_remote_code: Allow the stored classifier to name code that is then run.
        device: Where to put it.

    Raises:
        SpecError: There is no such folder.
        ConfigError: It is no defense, or one of another version.
        WeightsError: The classifier is not the one it was saved with.
    """
    folder = _folder(source)
    config = _config(folder)
    kept = config["classifier"]
    if classifier is None:
        spec = str(folder / kept["embedded"]) if "embedded" in kept else kept["spec"]
        classifier = load_classifier(spec, trust_remote_code=trust_remote_code)
    elif not isinstance(classifier, Classifier):
        classifier = load_classifier(classifier)
    if classifier.fingerprint() != kept["fingerprint"]:
        raise WeightsError(
            f"The classifier has the fingerprint {str(classifier.fingerprint())[:12]}",
            expected=f"{kept['fingerprint'][:12]}, that of the classifier it was saved with",
            fix="give that classifier, or build the defense anew",
        )
    purifier = build_stage("purifiers", PURIFIERS, config["purifier"])
    decision = build_stage("decisions", DECISIONS, config["decision"])
    detector = config["detector"] and build_stage("detectors", DETECTORS, config["detector"])
    assert isinstance(purifier, Purifier)
    assert isinstance(decision, Decision)
    assert detector is None or isinstance(detector, Detector)
    _load_stages(folder, {"purifier": purifier, "detector": detector, "decision": decision})
    return Defense(classifier, purifier=purifier, detector=detector, decision=decision).to(device)


def load_detector(source: str | Path) -> Detector:
    """The detector of a saved defense alone, with what it was fitted on.

    Args:
        source: A folder, or the id of a repository on the Hugging Face hub.

    Raises:
        SpecError: There is no such folder.
        ConfigError: It is no defense, one of another version, or one without a detector.
    """
    folder = _folder(source)
    settings = _config(folder)["detector"]
    if settings is None:
        raise ConfigError(
            f"The defense in {str(source)!r} has no detector",
            expected="a defense with a fitted threshold",
            fix="unperturb fit alu makes one",
        )
    detector = build_stage("detectors", DETECTORS, settings)
    assert isinstance(detector, Detector)
    _load_stages(folder, {"detector": detector})
    return detector


def _load_stages(folder: Path, stages: dict[str, Any]) -> None:
    from unperturb.classifiers import fit_state, read_weights

    path = folder / "model.safetensors"
    state, _ = read_weights(path)
    for name, stage in stages.items():
        if stage is None:
            continue
        own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        if own or stage.state_dict():
            fit_state(stage, own, source=repr(str(path)), network=stage.name)


def _folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise SpecError(
            f"There is no folder {str(source)!r}",
            expected="the folder of a saved defense, or owner/name on the hub",
            fix="check the path",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SpecError(
            f"There is no folder {str(source)!r}, and the hub does not give it: {error}",
            expected="the folder of a saved defense, or owner/name on the hub",
            fix="check the path, the name and the network",
        ) from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, version = config.get("format"), config.get("schema_version")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read as a defense: {error}",
            expected="config.json of a saved defense",
            fix="save it again with save_pretrained",
        ) from error
    if kind != FORMAT or version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has format {kind!r}, schema version {version}",
            expected=f"format {FORMAT!r}, schema version {SCHEMA_VERSION}",
            fix="a saved classifier is given as --classifier"
            if kind != FORMAT
            else "read it with the version of unperturb that wrote it",
        )
    missing = [key for key in ("classifier", *_STAGES) if key not in config]
    if missing or not {"embedded", "spec"} & set(config["classifier"]):
        raise ConfigError(
            f"{path} lacks {', '.join(missing) or 'where the classifier is'}",
            expected="config.json of a saved defense",
            fix="save it again with save_pretrained",
        )
    return config  # type: ignore[no-any-return]


def push_defense(defense: Defense, repository: str, *, private: bool = False) -> str:
    """Upload a defense, classifier embedded, to the Hugging Face hub; returns its address.

    Args:
        defense: The defense.
        repository: ``owner/name``; made if it is not there.
        private: Whether a new repository is private.
    """
    import tempfile

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_defense(defense, Path(folder))
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    return str(address)
