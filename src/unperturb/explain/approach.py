"""Whether latent optimization finds back to the clean image: ALU's Appendix A, measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unperturb.audit.statistics import accuracy
from unperturb.checks import check_images
from unperturb.context import Context
from unperturb.defense import Defense
from unperturb.errors import ConfigError, InputError, SpecError
from unperturb.explain.canvas import INK, LINES, MUTED, new_figure, tidy
from unperturb.progress import progress
from unperturb.purifiers import LatentOptimization

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["approach", "figure_approach"]


@torch.no_grad()
def approach(
    defense: Defense,
    clean: Tensor,
    attacked: Tensor,
    *,
    steps: Sequence[int],
    labels: Tensor | None = None,
    batch_size: int = 128,
    show: bool = False,
) -> list[dict[str, Any]]:
    """Distances of the purified image to the clean and to the attacked one, against the steps N.

    The paper says that "with increasing update step, x_N approaches its clean version". The step
    itself lowers ``||D(z) - x||^2`` to the image that came, which is the attacked one.

    Args:
        defense: A defense that purifies by latent optimization of whole images.
        clean: Clean images (N, C, H, W) in [0, 1].
        attacked: The same images, attacked.
        steps: Numbers of steps, increasing, the first at least 0.
        labels: True labels (N,), if accuracies are asked for.
        batch_size: Images at a time.
        show: Show a progress bar on standard error.

    Returns:
        For each number of steps the medians over images of mean squared errors (per pixel):
        ``reconstruction`` ``(x_N, x_attacked)``, ``to_clean`` ``(x_N, x_clean)``, ``clean`` (the
        reconstruction error of the clean image itself) and ``perturbation``
        ``(x_attacked, x_clean)``, which does not depend on N; ``nearer``, the share of images
        that are nearer to the clean image than the attacked one is; ``psnr``, the mean over images
        of ``-10 log10`` of the mean squared error of the clean image's reconstruction, in dB; and
        with ``labels`` ``right``, the classifier's accuracy on that reconstruction, and
        ``right_clean``, on the clean image itself.

    Raises:
        SpecError: Another purifier, or one that gives the classifier no images.
        ConfigError: The steps do not increase, or the batch size is below 1.
        InputError: The two sets of images differ in shape.
    """
    check_images(clean)
    if attacked.shape != clean.shape:
        raise InputError(
            f"{tuple(attacked.shape)} attacked and {tuple(clean.shape)} clean images",
            expected="two sets of one shape",
        )
    own = defense.purifier
    if not isinstance(own, LatentOptimization) or own.level is not None:
        raise SpecError(
            f"The purifier is {own.name!r}"
            + (" at an inner level" if isinstance(own, LatentOptimization) else ""),
            expected="latent-optimization of whole images",
            fix="name a defense of the preset alu, plug-in or unified",
        )
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0 or batch_size < 1:
        raise ConfigError(
            f"steps is {list(steps)}, batch_size is {batch_size}",
            expected="increasing numbers of steps from 0 on, and at least 1 image at a time",
        )
    device = next(own.vae.parameters()).device
    found = []
    with progress(total=len(steps), desc="steps", show=show, unit="N") as bar:
        for count in steps:
            settings = {**own.config(), "steps": count, "vae": own.vae}
            purifier = LatentOptimization(**settings).to(device)
            errors: dict[str, list[Tensor]] = {}
            hits: dict[str, list[Tensor]] = {}
            for start in range(0, len(clean), batch_size):
                rows = slice(start, start + batch_size)
                images, came = clean[rows].to(device), attacked[rows].to(device)
                made = _purified(defense, purifier, came)
                pairs = {
                    "reconstruction": (made, came),
                    "to_clean": (made, images),
                    "clean": (again := _purified(defense, purifier, images), images),
                    "perturbation": (came, images),
                }
                for name, (one, other) in pairs.items():
                    error = (one - other).square().flatten(1).mean(1).cpu()
                    errors.setdefault(name, []).append(error)
                if labels is None:
                    continue
                for name, shown in (("right", again), ("right_clean", images)):
                    right = defense.classifier(shown).argmax(1).cpu() == labels[rows].cpu()
                    hits.setdefault(name, []).append(right)
            joined = {name: torch.cat(parts) for name, parts in errors.items()}
            nearer = (joined["to_clean"] < joined["perturbation"]).double().mean()
            medians = {name: float(values.median()) for name, values in joined.items()}
            shares = {name: accuracy(torch.cat(parts).numpy()) for name, parts in hits.items()}
            psnr = float((-10 * joined["clean"].double().clamp(min=1e-12).log10()).mean())
            found.append(
                {"steps": count, **medians, "nearer": float(nearer), "psnr": psnr, **shares}
            )
            bar.update(1)
    return found


def _purified(defense: Defense, purifier: LatentOptimization, images: Tensor) -> Tensor:
    ctx = Context(defense.classifier, images, keys=None, backward="exact", keep_before=False)
    shown = purifier(images, ctx=ctx).images
    assert isinstance(shown, Tensor)
    return shown


def figure_approach(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw the four distances against the number of steps.

    Args:
        found: What `approach` found.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(6.0, 3.8)
    axes = figure.add_axes((0.16, 0.145, 0.81, 0.72))
    lines = {
        "reconstruction": "purified to attacked: what the steps lower",
        "to_clean": "purified to clean",
        "clean": "purified clean to clean",
        "perturbation": "attacked to clean: the perturbation",
    }
    places = [row["steps"] for row in found]
    for (name, label), color in zip(lines.items(), LINES, strict=False):
        axes.plot(
            places, [row[name] for row in found], label=label,
            linewidth=1.4, marker="o", markersize=3, color=color,
            linestyle="--" if name == "perturbation" else "-",
        )  # fmt: skip
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    axes.set_xlabel("steps N", fontsize=8, color=MUTED)
    axes.set_ylabel("median of mean squared errors", fontsize=8, color=MUTED)
    axes.set_xticks(places, [str(place) for place in places])
    axes.tick_params(axis="x", which="minor", bottom=False)
    tidy(axes)
    axes.legend(
        frameon=False, fontsize=8, labelcolor=INK, ncols=2,
        loc="lower center", bbox_to_anchor=(0.46, 1.0),
    )  # fmt: skip
    return figure
