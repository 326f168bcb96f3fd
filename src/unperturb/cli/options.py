"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unperturb.errors import ConfigError, InputError, OutputError, SpecError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from unperturb.classifiers import Classifier
    from unperturb.data import ImageSet
    from unperturb.defense import Defense
    from unperturb.threat import Threat

__all__ = [
    "check_fit",
    "check_output",
    "check_threat",
    "classifier_of",
    "classifier_options",
    "data_options",
    "echo_json",
    "image_size",
    "load_subject",
    "read_data",
    "run_options",
    "setup",
    "stack",
    "tell_skipped",
    "threat_of",
    "threat_options",
]

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def stack(*options: Wrap) -> Wrap:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def data_options(*, default_split: str = "test") -> Wrap:
    """``--data`` and all that says how it is read."""
    return stack(
        click.option(
            "--data",
            required=True,
            help="Images: 'digits', a parquet file or folder, a folder of class folders, or a "
            "hub id such as uoft-cs/cifar10.",
        ),
        click.option("--split", help=f"Split of the data.  [default: {default_split}]"),
        click.option("--limit", type=int, help="Take so many images only, in file order."),
        click.option("--shuffle", is_flag=True, help="Take them in a random order of --seed."),
        click.option("--image-column", help="Column of the images."),
        click.option("--label-column", help="Column of the labels."),
        click.option(
            "--label-map",
            help="Labels of the data to classes: 'cat=3,dog=5' or a JSON file.",
        ),
        click.option("--image-size", help="Resize and crop to HEIGHTxWIDTH (or one number)."),
        click.option(
            "--channels",
            type=click.Choice(["1", "3"]),
            help="Read images as grey (1) or color (3).  [default: as they are]",
        ),
        click.option(
            "--skip-broken", is_flag=True, help="Leave unreadable images out and count them."
        ),
    )


def classifier_options() -> Wrap:
    """``--classifier`` and ``--defense``."""
    return stack(
        click.option(
            "--classifier",
            help="ARCH@WEIGHTS.safetensors, a saved folder, hf:ID, timm:NAME, torchvision:NAME "
            "or package.module:callable@WEIGHTS; options follow '?', as in ?normalize=none.",
        ),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Let a saved folder or hub model name code that is then run.",
        ),
        click.option(
            "--defense",
            help="A preset such as 'tpap', 'tpap?radius=6/255' or "
            "'logit-correction?corrector=runs/corrector', or a saved folder.  "
            "[default: none, the classifier itself]",
        ),
    )


def threat_options() -> Wrap:
    """``--norm`` and ``--eps``."""
    return stack(
        click.option(
            "--norm", default="linf", show_default=True, help="Norm of the perturbation: linf, l2."
        ),
        click.option(
            "--eps",
            default=None,
            help="Its size in pixel units on [0, 1].  [default: 8/255 for linf, 0.5 for l2]",
        ),
    )


def run_options(*, out: str | None = None, out_help: str = "Folder of the results.") -> Wrap:
    """``--seed --device --threads --out --json --quiet``."""
    return stack(
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the run."),
        click.option("--device", help="cpu, cuda, cuda:1 ...  [default: cuda if there, else cpu]"),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads of a process."),
        click.option("--out", default=out, show_default=out is not None, help=out_help),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--quiet", is_flag=True, help="No progress, no table."),
    )


def echo_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def _keep_memory() -> None:
    """Let this process keep freed memory: glibc hands activations back after every backward.

    Taking them again costs attacks on small networks a tenth of their time. A library must not
    decide this for its host, a command may.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, (1 << 31) - 1)


def setup(device: str | None, threads: int | None) -> str:
    """Apply ``--threads`` and settle ``--device``.

    Raises:
        ConfigError: There is no such device.
    """
    import torch

    from unperturb.checks import check_device

    _keep_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def check_output(path: Path, *, folder: bool = True) -> None:
    """Refuse a place that cannot be written to, before any work is done; nothing is made.

    Args:
        path: Where results shall stand.
        folder: Whether that is a folder, or a file.

    Raises:
        OutputError: It cannot become one.
    """
    import os

    if path.exists() and path.is_dir() != folder:
        raise OutputError(
            f"{path} is a {'file' if folder else 'folder'}",
            expected=f"a {'folder' if folder else 'file'}, new or old",
            fix="choose another --out",
        )
    there = path if folder else path.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise OutputError(
            f"{path} cannot be made: {there} is a file",
            expected="a place inside folders",
            fix="choose another --out",
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path} cannot be written: there is no permission to write into {there}",
            expected="a folder that can be written to",
            fix="choose another --out",
        )


def read_data(options: dict[str, Any]) -> ImageSet:
    """Images of the data options; broken ones that were left out are counted on standard error."""
    from unperturb.data import load_images

    channels = options.get("channels")
    found = load_images(
        options["data"],
        split=options.get("split"),
        limit=options.get("limit"),
        shuffle=options.get("shuffle", False),
        seed=options["seed"],
        image_column=options.get("image_column"),
        label_column=options.get("label_column"),
        label_map=options.get("label_map"),
        image_size=image_size(options.get("image_size")),
        channels=None if channels is None else int(channels),
        skip_broken=options.get("skip_broken", False),
    )
    tell_skipped(found)
    return found


def tell_skipped(data: ImageSet) -> None:
    """Count and name, on standard error, the broken images that were left out."""
    count = len(data.skipped)
    if count:
        shown = ", ".join(data.skipped[:5]) + (" ..." if count > 5 else "")
        click.echo(f"skipped {count} broken image{'s' * (count > 1)}: {shown}", err=True)


def check_fit(classifier: Classifier, images: Tensor) -> None:
    """Check that a classifier can read these images, naming the option that mends it.

    Raises:
        InputError: Another number of channels, or another size.
    """
    try:
        classifier.check(images)
    except InputError as error:
        fix = error.fix
        channels, height, width = classifier.input_shape
        if channels in (1, 3) and images.shape[1] != channels:
            fix = f"--channels {channels} reads them as {'grey' if channels == 1 else 'color'}"
        elif height and width and tuple(images.shape[2:]) != (height, width):
            fix = f"--image-size {height}x{width} resizes and crops them"
        raise InputError(error.problem, expected=error.expected, fix=fix) from None


def image_size(text: str | None) -> tuple[int, int] | None:
    """The value of ``--image-size``, as (height, width).

    Raises:
        ConfigError: It is neither ``HEIGHTxWIDTH`` nor one number, each at least 1.

    Example:
        >>> image_size("224"), image_size("32x48")
        ((224, 224), (32, 48))
    """
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ConfigError(
            f"--image-size is {text!r}", expected="HEIGHTxWIDTH or one number, such as 224x224"
        )
    return sides[0], sides[-1]


def threat_of(norm: str, eps: str | None) -> Threat:
    """The threat model of ``--norm`` and ``--eps``; asks where 8 was surely meant as 8/255.

    Call it once in a command, or the user is asked twice.

    Raises:
        ConfigError: The size makes no sense in that norm and nobody is there to be asked.
    """
    from unperturb.threat import make_threat, parse_eps

    text = eps if eps is not None else ("0.5" if norm.lower() == "l2" else "8/255")
    value = parse_eps(text)
    if norm.lower() == "linf" and 1 < value <= 255:
        meant = f"{value:g}/255"
        if sys.stdin.isatty() and click.confirm(
            f"--eps {text} is larger than any image. Did you mean {meant}?", default=True, err=True
        ):
            value /= 255
    return make_threat(norm, value)


def check_threat(threat: Threat, images: Tensor) -> None:
    """Refuse an L2 ball that holds every image there is.

    Raises:
        ConfigError: eps is above the diagonal of [0, 1] for images of this shape.
    """
    import math

    largest = math.sqrt(images[0].numel())
    if threat.norm == "l2" and threat.eps > largest:
        raise ConfigError(
            f"eps is {threat.eps:g} in the norm l2",
            expected=f"at most {largest:.3g}, the diagonal of such images",
            fix="give it in pixel units on [0, 1], such as 0.5 or 128/255",
        )


def classifier_of(subject: Classifier | Defense) -> Classifier:
    """The classifier in a defense, or the classifier itself."""
    from unperturb.defense import Defense

    return subject.classifier if isinstance(subject, Defense) else subject


def load_subject(
    classifier: str | None,
    defense: str | None,
    *,
    trust_remote_code: bool,
    device: str,
    net: Classifier | None = None,
) -> tuple[Classifier | Defense, str]:
    """What ``--classifier`` and ``--defense`` name, and a short name for it.

    Args:
        classifier: The value of ``--classifier``.
        defense: The value of ``--defense``.
        trust_remote_code: Whether a saved folder or hub model may name code that is run.
        device: Where to put it.
        net: A classifier that is there already, where none is named.

    Raises:
        SpecError: Neither says what the classifier is.
    """
    from unperturb.classifiers import load_classifier
    from unperturb.presets import make_preset, preset_names
    from unperturb.saving import is_defense_folder, load_defense
    from unperturb.specs import option_pairs

    if classifier is not None:
        if is_defense_folder(Path(classifier)):
            raise SpecError(
                f"{classifier!r} is a saved defense",
                expected="a classifier as --classifier",
                fix=f"--defense {classifier}",
            )
        net = load_classifier(classifier, trust_remote_code=trust_remote_code, device=device)
    if defense is None:
        if net is None:
            raise SpecError(
                "Neither a classifier nor a defense is named",
                expected="--classifier, with --defense or without, or a saved folder as --defense",
                fix="--classifier cifar-resnet20@weights.safetensors, say",
            )
        return net, "undefended classifier"
    name, _, query = defense.partition("?")
    saved = Path(name).is_dir() or ("/" in name and name not in preset_names())
    if saved:
        if query:
            raise SpecError(
                f"Options ({query}) are given for the saved defense {name!r}",
                expected="none: its config.json states them",
                fix=f"--defense {name}",
            )
        loaded = load_defense(
            name, classifier=net, trust_remote_code=trust_remote_code, device=device
        )
        return loaded, Path(name).resolve().name
    if name not in preset_names():
        raise unknown_name("defense", name, preset_names())
    if net is None:
        raise SpecError(
            f"The preset {name!r} needs a classifier",
            expected="--classifier",
            fix="--classifier cifar-resnet20@weights.safetensors, say",
        )
    return make_preset(name, net, **option_pairs(query)).to(device), name
