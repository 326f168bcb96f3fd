"""Training a denoiser on the adversarial noise of a standard network (Liao et al. 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unperturb.checks import check_labels
from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.errors import DataError
from unperturb.generative.config import DenoiserConfig
from unperturb.generative.finish import finish
from unperturb.generative.loop import Job, check_unfinished, fit
from unperturb.networks.unet import DenoisingUNet
from unperturb.training.augment import step_generator
from unperturb.training.examples import pgd_examples

__all__ = ["guided_loss", "train_denoiser"]

_BATCH = 250


def guided_loss(
    unet: DenoisingUNet, classifier: nn.Module, clean: Tensor, attacked: Tensor, guide: str
) -> Tensor:
    """``|f(x* - U(x*)) - f(x)|`` of logits, or ``|x* - U(x*) - x|`` of pixels, a mean of both axes.

    The pixel guided and the logits guided denoiser (LGD) of Liao et al. 2018, ``x*`` being
    attacked. Gradients reach the U-Net alone.

    Args:
        unet: The denoiser.
        classifier: Images to logits, with frozen weights.
        clean: Clean images (N, C, H, W).
        attacked: The same, attacked.
        guide: ``logits`` or ``pixels``.
    """
    denoised = attacked - unet(attacked).float()
    found, wanted = denoised, clean
    if guide == "logits":
        with torch.no_grad():
            wanted = classifier(clean).float()
        found = classifier(denoised).float()
    apart: Tensor = (found - wanted).abs().mean()
    return apart


def train_denoiser(
    unet: DenoisingUNet,
    classifier: Classifier,
    data: ImageSet,
    config: DenoiserConfig,
    *,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    stop_after: int | None = None,
    checkpoint_seconds: float = 60.0,
    show: bool = True,
) -> DenoisingUNet:
    """Train ``unet`` in place by SGD; with ``out``, leave a folder that ``load_denoiser`` reads.

    Every batch is attacked by PGD on the undefended classifier, from fresh random starts; the
    classifier itself is never changed. Checkpoints and their resumption are as for ``train_vae``.

    After each epoch 500 of the images held out (without any, of the training images) are measured:
    accuracy on clean images (``heldout_clean``), on attacked ones (``heldout_attacked``), and on
    both after denoising (``heldout_clean_denoised``, ``heldout_denoised``). The attack does not
    know the denoiser.

    Deviations: Liao et al. train on the noise of several attacks and sizes, the toy experiment of
    ALU on PGD-20 alone; neither gives this loss's layer for CIFAR-10 (logits here), nor momentum.

    Args:
        unet: Fresh, or with start weights.
        classifier: The standard network.
        data: Training images with labels.
        config: The settings.
        out: The folder; None leaves nothing on disk.
        device: Where to train.
        stop_after: Stop after this many epochs of the whole run, leaving the checkpoint.
        checkpoint_seconds: Time after which a checkpoint is written within an epoch.
        show: Show progress.

    Raises:
        DataError: Too few images, or of other channels than the denoiser's.
        InputError: A label lies outside the classifier's classes.
        RecordError: The folder holds another finished or unfinished run.
        OutputError: It cannot be written.
        ConfigError: The loss is not finite.
    """
    channels = data.pixels.shape[1]
    if channels != unet.in_channels:
        raise DataError(
            f"The images have {channels} channels",
            expected=f"{unet.in_channels}, which the denoiser was made for",
            fix="make a denoiser of so many channels, or convert the images",
        )
    check_labels(data.labels, count=len(data), num_classes=classifier.num_classes)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_unfinished(folder)
    classifier.to(device)
    unet.to(device, memory_format=torch.channels_last).requires_grad_(True)  # type: ignore[call-overload]
    flags = [(p, p.requires_grad) for p in classifier.parameters()]
    classifier.requires_grad_(False)
    count = len(data) - config.holdout
    part = "heldout" if config.holdout else "train"
    first = max(count, 0) if config.holdout else 0
    watched = data.take(slice(first, min(first + 500, len(data))))

    def attacked(images: Tensor, labels: Tensor, generator: np.random.Generator) -> Tensor:
        return pgd_examples(
            classifier, images, labels, config.eps, steps=config.attack_steps,
            step_size=config.attack_step_size, generator=generator,
        )  # fmt: skip

    def objective(images: Tensor, labels: Tensor, generator: np.random.Generator) -> Tensor:
        noisy = attacked(images, labels, generator)
        return guided_loss(unet, classifier, images, noisy, config.guide)

    def monitor() -> dict[str, Any]:
        right = np.zeros(4)
        for start in range(0, len(watched), _BATCH):
            rows = slice(start, start + _BATCH)
            images, labels = watched.images(rows).to(device), watched.labels[rows].to(device)
            noisy = attacked(images, labels, step_generator(config.seed, 0, start))
            with torch.no_grad():
                shown = (images, noisy, images - unet(images), noisy - unet(noisy))
                right += [int((classifier(x).argmax(1) == labels).sum()) for x in shown]
        names = ("clean", "attacked", "clean_denoised", "denoised")
        return {f"{part}_{n}": float(v) / len(watched) for n, v in zip(names, right, strict=True)}

    job = Job(
        name="denoiser",
        network=unet,
        optimizer=torch.optim.SGD(
            unet.parameters(), lr=config.lr, momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        objective=objective,
        monitor=monitor,
        facts={"network": unet.config(), "classifier": classifier.fingerprint()},
    )  # fmt: skip
    try:
        epochs = fit(
            job, data, config, out=folder, device=device, stop_after=stop_after,
            checkpoint_seconds=checkpoint_seconds, show=show,
        )  # fmt: skip
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    unet.eval().requires_grad_(False)
    if folder is not None and len(epochs) == config.epochs:
        known = {"fingerprint": classifier.fingerprint(), "arch": classifier.origin.arch}
        finish(
            unet, folder, data, config, epochs, made_by="unperturb fit denoiser", device=device,
            facts={"classifier": known},
        )  # fmt: skip
    return unet
