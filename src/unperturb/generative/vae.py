"""Training a VAE on clean images, from its settings to a saved folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unperturb.data import ImageSet
from unperturb.errors import DataError
from unperturb.generative.config import VAEConfig
from unperturb.generative.finish import finish
from unperturb.generative.loop import Job, check_unfinished, fit
from unperturb.generative.quality import reconstruction
from unperturb.networks.vae import VAE

__all__ = ["evidence_loss", "train_vae"]


def evidence_loss(
    vae: VAE, images: Tensor, noise: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``||D(z) - x||^2 + beta KL(N(m, s^2) || N(0, I))`` with ``z = m + s * noise``, a batch mean.

    Both terms are sums over an image (Kingma and Welling 2013, eq. 10, with a weight).

    Args:
        vae: The VAE.
        images: (N, C, H, W) in its range.
        noise: Standard normal numbers (N, l, h, w).
        beta: Weight of the divergence.

    Returns:
        The loss, the squared error and the divergence, each a mean over the batch.
    """
    mean, log_variance = vae.encode(images)
    mean, log_variance = mean.float(), log_variance.float()
    found = vae.decode(mean + (0.5 * log_variance).exp() * noise).float()
    error = (found - images).square().flatten(1).sum(1).mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    divergence = divergence.flatten(1).sum(1).mean()
    return error + beta * divergence, error, divergence


def train_vae(
    vae: VAE,
    data: ImageSet,
    config: VAEConfig,
    *,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    stop_after: int | None = None,
    checkpoint_seconds: float = 60.0,
    show: bool = True,
) -> VAE:
    """Train ``vae`` in place by Adam; with ``out``, leave a folder that ``load_vae`` reads.

    The folder holds ``config.json`` (with a card), ``model.safetensors``, ``training.json`` (one
    record for each epoch) and, until the run is finished, a checkpoint. A run that was cut off goes
    on from it, in the middle of an epoch too, and ends with the weights of an uninterrupted one.

    After each epoch the images held out (without any, as many training images) are encoded and
    decoded: ``heldout_psnr`` in dB and ``heldout_mse`` (or ``train_psnr``, ``train_mse``).

    Args:
        vae: Fresh, or with start weights.
        data: Clean images; labels are not read.
        config: The settings.
        out: The folder; None leaves nothing on disk.
        device: Where to train.
        stop_after: Stop after this many epochs of the whole run, leaving the checkpoint.
        checkpoint_seconds: Time after which a checkpoint is written within an epoch.
        show: Show progress.

    Raises:
        DataError: Too few images, or of another shape than the VAE's.
        RecordError: The folder holds another finished or unfinished run.
        OutputError: It cannot be written.
        ConfigError: The loss is not finite.
    """
    shape = tuple(data.pixels.shape[1:])
    if shape != vae.image_shape:
        raise DataError(
            f"The images are {'x'.join(map(str, shape))} (channels x height x width)",
            expected=f"{'x'.join(map(str, vae.image_shape))}, which the VAE was made for",
            fix="make a VAE of that shape, or resize the images",
        )
    folder = None if out is None else Path(out)
    if folder is not None:
        check_unfinished(folder)
    vae.to(device, memory_format=torch.channels_last).requires_grad_(True)  # type: ignore[call-overload]
    count = len(data) - config.holdout
    part = "heldout" if config.holdout else "train"
    watched = data.take(slice(max(count, 0), None) if config.holdout else slice(0, 1000))

    def objective(images: Tensor, labels: Tensor, generator: np.random.Generator) -> Tensor:
        size = (len(images), *vae.latent_shape)
        noise = torch.from_numpy(generator.standard_normal(size, dtype=np.float32))
        return evidence_loss(vae, images, noise.to(images.device), config.beta)[0]

    def monitor() -> dict[str, Any]:
        found = reconstruction(vae, watched, device=device)
        return {f"{part}_{name}": value for name, value in found.items()}

    job = Job(
        name="vae",
        network=vae,
        optimizer=torch.optim.Adam(vae.parameters(), lr=config.lr),
        objective=objective,
        monitor=monitor,
        facts={"network": vae.config()},
    )
    epochs = fit(
        job, data, config, out=folder, device=device, stop_after=stop_after,
        checkpoint_seconds=checkpoint_seconds, show=show,
    )  # fmt: skip
    vae.eval().requires_grad_(False)
    if folder is not None and len(epochs) == config.epochs:
        finish(vae, folder, data, config, epochs, made_by="unperturb fit vae", device=device)
    return vae
