"""How well a network restores images it was not trained on, beside filling without learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, Restored, Restorer, restore
from unperturb.randomness import Keys
from unperturb.restoration.fills import bilinear_fill, mean_fill

__all__ = ["restoration_errors"]


@torch.no_grad()
def restoration_errors(
    network: nn.Module | Restorer,
    images: Tensor,
    transform: RandomTransform,
    keys: Keys,
    *,
    batch_size: int = 128,
) -> dict[str, float]:
    """Errors in pixel units where pixels were dropped, and where they were kept.

    ``masked_l1`` and ``masked_rmse`` are the mean absolute and the root mean squared error on
    dropped pixels (all of them for ``rt3``, where each is taken from the pass that dropped it),
    ``visible_l1`` that on kept ones, under noise if the transform has any (absent for ``rt3``).
    ``mean_l1``, ``mean_rmse``, ``bilinear_l1`` and ``bilinear_rmse`` are those of the two fillings
    on the same dropped pixels and the same draws.

    Args:
        network: Masked images and masks to restored images.
        images: Clean images (N, C, H, W).
        transform: What is drawn.
        keys: Name the draws, one for each image.
        batch_size: Images at a time.

    Example:
        >>> images = torch.full((2, 1, 8, 8), 0.5)
        >>> found = restoration_errors(mean_fill, images, RandomTransform(name="rt1"),
        ...                            Keys.of(0, ["a", "b"]))
        >>> found["masked_l1"]
        0.0
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()

    # The last is counted on kept pixels, too.
    others: dict[str, nn.Module | Restorer] = {"mean": mean_fill, "bilinear": bilinear_fill}
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        part = images[rows]
        draws = KeyedDraws(keys[rows], part)
        for name, one in {**others, "masked": network}.items():
            found = restore(one, part, transform, draws)
            error, dropped = found.images.float() - part, _dropped(found)
            add(f"{name}_l1", (error.abs() * dropped).sum())
            add(f"{name}_rmse", (error.square() * dropped).sum())
            if name == "masked":
                add("visible_l1", (error.abs() * (1.0 - dropped)).sum())
                add("dropped", dropped.sum())
    channels, pixels = images.shape[1], images[:, :1].numel()
    dropped_count = sums.pop("dropped") * channels
    kept_count = pixels * channels - dropped_count
    kept_sum = sums.pop("visible_l1")
    result = {
        name: float((value / dropped_count).sqrt() if "rmse" in name else value / dropped_count)
        for name, value in sums.items()
    }
    if kept_count > 0:
        result["visible_l1"] = float(kept_sum / kept_count)
    return result


def _dropped(found: Restored) -> Tensor:
    """Where the image holds what the network did not see, (N, 1, H, W)."""
    return torch.stack([1.0 - mask for mask in found.corrupted.masks]).sum(0)
