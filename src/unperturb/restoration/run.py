"""Training a restoration network from settings to a saved folder with its record."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.checks import check_labels
from unperturb.classifiers import Classifier
from unperturb.data import ImageSet
from unperturb.errors import ConfigError, RecordError, SpecError
from unperturb.files import short_paths, write_json
from unperturb.networks.inpainting_gan import InpaintingGenerator, PatchDiscriminator
from unperturb.networks.masked_autoencoder import MaskedAutoencoder
from unperturb.networks.restorers import build_restorer, seeded
from unperturb.purifiers.restoration import check_shape
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, restore
from unperturb.randomness import Keys
from unperturb.restoration.checkpoint import CHECKPOINT, Epoch
from unperturb.restoration.config import FineTuneConfig, GANConfig, MAEConfig, RestorationConfig
from unperturb.restoration.finetune import FineTuneWork, frozen, linf_examples
from unperturb.restoration.folder import RestorationNet, load_restoration, save_restoration
from unperturb.restoration.gan import GANWork
from unperturb.restoration.heldout import restoration_errors
from unperturb.restoration.loop import CHECKPOINT_SECONDS, Monitor, Work, fit
from unperturb.restoration.mae import MAEWork
from unperturb.restoration.panels import sample_panel, save_panel

__all__ = ["RECORD", "Plan", "plan_finetune", "plan_pretrain", "train_restoration"]

RECORD = "training.json"
LAST_GOOD = "last-good"


class Plan:
    """A training that is ready to begin: networks, work, and what is watched.

    Attributes:
        work: What is trained.
        net: The network with its facts, as it will be saved; its card is filled at the end.
        config: The settings.
        purpose: ``gan``, ``mae`` or ``atop``.
        classifier: The frozen classifier of a fine-tuning, batch norms folded; None before it.
        facts: JSON-able facts of its making.
    """

    def __init__(
        self,
        work: Work,
        net: RestorationNet,
        config: RestorationConfig,
        purpose: str,
        *,
        classifier: nn.Module | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.work, self.net, self.config, self.purpose = work, net, config, purpose
        self.classifier, self.facts = classifier, facts or {}

    def step_seconds(self, data: ImageSet, device: torch.device | str) -> float:
        """Seconds of one step on this machine, of two; the networks are not the same after it."""
        count = min(self.config.batch_size, len(data))
        images = data.images(slice(0, count)).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = data.labels[:count].to(device).clamp(min=0)
        keys = Keys.of(0, data.ids[:count]).to(device)
        for _ in range(2):
            began = time.perf_counter()
            for value in self.work.losses(images, labels, keys).values():
                float(value.detach())
            taken = time.perf_counter() - began
        return taken


def plan_pretrain(
    data: ImageSet,
    config: GANConfig | MAEConfig,
    *,
    start: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """Build the networks of a pre-training: fresh ones, or with the weights of another run.

    Args:
        data: Training images; their labels are not read.
        config: `GANConfig` or `MAEConfig`, which says what is trained.
        start: Folder of a run whose weights are taken, finished or not (its last good checkpoint
            then); networks of the same size.
        device: Where to train.

    Raises:
        InputError: The images do not go with patch and token.
        SpecError: The start is no such folder.
        WeightsError: Its networks are of another size.
    """
    channels, height, width = (int(side) for side in data.pixels.shape[1:])
    transform = config.make_transform()
    discriminator = None
    if isinstance(config, GANConfig):
        kind, purpose = "inpainting-gan", "gan"
        options: dict[str, Any] = {
            "width": config.width,
            "coarse_width": config.coarse_width,
            "attention": config.attention,
        }
        if config.adversarial_weight:
            with seeded(config.seed + 1):
                discriminator = PatchDiscriminator(
                    channels=channels, width=config.discriminator_width
                )
    else:
        kind, purpose = "masked-autoencoder", "mae"
        names = ("width", "depth", "heads", "decoder_width", "decoder_depth")
        options = {name: getattr(config, name) for name in names}
        options["token"] = config.token or transform.patch_of((height, width))
    network = build_restorer(kind, seed=config.seed, channels=channels, **options)
    facts: dict[str, Any] = {"start": None}
    if start is not None:
        _take_weights(Path(start), {"network": network, "discriminator": discriminator})
        facts["start"] = short_paths(str(start))
    _place(network, discriminator, device)
    _try(network, transform.single(), data, device)
    work: Work
    if isinstance(config, GANConfig):
        assert isinstance(network, InpaintingGenerator)
        work = GANWork(network, discriminator, transform, config)
    else:
        assert isinstance(network, MaskedAutoencoder)
        work = MAEWork(network, transform, config)
    net = RestorationNet(kind, network, (channels, height, width), transform, discriminator)
    return Plan(work, net, config, purpose, facts=facts)


def plan_finetune(
    classifier: Classifier,
    start: str | Path | RestorationNet,
    data: ImageSet,
    config: FineTuneConfig,
    *,
    device: torch.device | str = "cpu",
) -> Plan:
    """Take a pre-trained restoration network, to fine-tune it for a classifier.

    Args:
        classifier: The classifier, which stays as it is.
        start: Folder of the pre-trained network, or the network.
        data: Training images with labels.
        config: The settings.
        device: Where to train.

    Raises:
        InputError: Images, labels, classifier and network do not go together.
        SpecError: The start is no such folder.
        ConfigError: Terms of a discriminator are asked for, and the network has none.
    """
    found = start if isinstance(start, RestorationNet) else load_restoration(start)
    transform = config.make_transform()
    check_labels(data.labels, count=len(data), num_classes=classifier.num_classes)
    classifier.to(device)
    few = data.images(slice(0, 2)).to(device)
    classifier.check(few)
    discriminator = None
    if isinstance(found.network, InpaintingGenerator) and config.adversarial_weight:
        discriminator = found.discriminator
        if discriminator is None:
            raise ConfigError(
                f"adversarial_weight is {config.adversarial_weight:g}, and the GAN has no "
                "discriminator",
                expected="a folder with discriminator.safetensors",
                fix="set it to 0, or pre-train with a discriminator",
            )
    _place(found.network, discriminator, device)
    check_shape(few, found.image_shape)
    _try(found.network, transform, data, device)
    logits = frozen(classifier, few)
    work = FineTuneWork(found.network, discriminator, logits, transform, config)
    net = replace(found, transform=transform, discriminator=discriminator)
    origin = "" if isinstance(start, RestorationNet) else short_paths(str(start))
    facts = {
        "start": {"folder": origin, "card": dict(found.card)},
        "classifier": {
            "fingerprint": classifier.fingerprint(),
            "spec": short_paths(classifier.spec),
            "arch": classifier.origin.arch,
            "num_classes": classifier.num_classes,
        },
    }
    return Plan(work, net, config, "atop", classifier=logits, facts=facts)


def train_restoration(
    plan: Plan,
    data: ImageSet,
    *,
    out: str | Path,
    device: torch.device | str = "cpu",
    stop_after: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    show: bool = True,
) -> RestorationNet:
    """Train, and leave a folder that ``Restoration.from_folder`` reads.

    The folder holds ``config.json`` (with a card), ``model.safetensors``, for a GAN
    ``discriminator.safetensors``, ``training.json`` (one record for each epoch; that of
    the first holds, for a fine-tuning, the held-out figures ``before`` it), ``samples/`` (a
    panel of held-out images for each epoch) and, until the run is finished, a checkpoint. A run
    that was cut off goes on from its checkpoint and ends with the weights of an uninterrupted one.

    Args:
        plan: What `plan_pretrain` or `plan_finetune` gives; its networks are trained in place.
        data: The images it was made for; the last ``config.holdout`` are held out.
        out: The folder.
        device: Where to train.
        stop_after: Stop after this many epochs, leaving the checkpoint.
        checkpoint_seconds: A checkpoint is written after each epoch, and when this much time has
            passed since the last.
        show: Show progress.

    Raises:
        RecordError: The folder holds another finished or unfinished run.
        DataError: Too few images.
        ConfigError: The training diverged; the last good checkpoint is in the folder, and its
            network in ``last-good`` there, which both plans take as a start.
        OutputError: The folder cannot be written.
    """
    folder, config = Path(out), plan.config
    if (folder / RECORD).exists() and not (folder / CHECKPOINT).exists():
        raise RecordError(
            f"{folder} holds a finished training run",
            expected="a new folder, or one with an unfinished run of the same settings",
            fix="choose another --out, or delete that folder",
        )
    epochs = fit(
        plan.work,
        data,
        config,
        out=folder,
        device=device,
        purpose=plan.purpose,
        monitor=_monitor(plan, data, folder, device),
        # What is fine-tuned can do something already, which is where its curves begin.
        look_before=plan.classifier is not None,
        stop_after=stop_after,
        checkpoint_seconds=checkpoint_seconds,
        rescue=lambda: _keep(plan, folder / LAST_GOOD),
        show=show,
    )
    plan.net.network.eval().requires_grad_(False)
    if len(epochs) < config.epochs:
        return plan.net
    card = {
        **plan.facts,
        "trained_by": f"unperturb fit {plan.purpose}",
        "config": config.to_dict(),
        "data": {
            "source": short_paths(data.source),
            "split": data.split,
            "fingerprint": data.fingerprint(),
        },
        "heldout": {k: v for k, v in epochs[-1].items() if isinstance(v, float)},
        "environment": {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "device": str(device),
            "threads": torch.get_num_threads(),
        },
    }
    card = json.loads(json.dumps(card))
    found = replace(plan.net, card=card)
    save_restoration(found, folder)
    write_json(folder / RECORD, {**card, "epochs": epochs})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return found


def _keep(plan: Plan, folder: Path) -> Path:
    """Write the network of a run that diverged, as one to start from."""
    card = {**plan.facts, "config": plan.config.to_dict(), "diverged": True}
    return save_restoration(replace(plan.net, card=json.loads(json.dumps(card))), folder)


def _monitor(plan: Plan, data: ImageSet, folder: Path, device: torch.device | str) -> Monitor:
    """Held-out errors, with a classifier its accuracies, and a panel."""
    config, net = plan.config, plan.net
    count = len(data) - config.holdout
    rows = slice(count, min(len(data), count + config.monitor_images))
    few = slice(count, min(len(data), count + config.samples))
    # Pre-training is on single passes; fine-tuning on the transform as it is.
    transform = net.transform if plan.classifier is not None else net.transform.single()

    def keys(part: slice) -> Keys:
        return Keys.of(config.seed, data.ids[part], domain=f"{plan.purpose}/monitor").to(device)

    def look(epoch: int) -> Epoch:
        net.network.eval()
        found: Epoch = {}
        if rows.stop > rows.start:
            images = data.images(rows).to(device)
            found |= restoration_errors(net.network, images, transform, keys(rows))
            if plan.classifier is not None:
                labels = data.labels[rows].to(device)
                found |= _accuracies(plan, images, labels, transform, keys(rows))
        if few.stop > few.start and epoch:
            images = data.images(few).to(device)
            sheet = sample_panel(net.network, images, transform, keys(few))
            save_panel(sheet, folder / "samples" / f"epoch-{epoch:03d}.png")
        net.network.train()
        return found

    return look


def _accuracies(
    plan: Plan, images: Tensor, labels: Tensor, transform: RandomTransform, keys: Keys
) -> dict[str, float]:
    """Accuracy on restored images: clean ones, and FGSM examples against the classifier alone."""
    assert plan.classifier is not None
    assert isinstance(plan.config, FineTuneConfig)
    right = {"clean": 0, "attacked": 0}
    for start in range(0, len(images), 128):
        rows = slice(start, start + 128)
        part, true = images[rows], labels[rows]
        attacked = linf_examples(plan.classifier, part, true, eps=plan.config.eps)
        draws = KeyedDraws(keys[rows], part)
        with torch.no_grad():
            for name, given in (("clean", part), ("attacked", attacked)):
                made = restore(plan.net.network, given, transform, draws).images
                right[name] += int((plan.classifier(made).argmax(1) == true).sum())
    return {name: found / len(images) for name, found in right.items()}


def _place(network: nn.Module, discriminator: nn.Module | None, device: torch.device | str) -> None:
    for module in (network, discriminator):
        if module is not None:
            module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def _try(
    network: nn.Module, transform: RandomTransform, data: ImageSet, device: torch.device | str
) -> None:
    """Find out on two images, before anything is trained, whether sizes go together."""
    images = data.images(slice(0, 2)).to(device)
    keys = Keys.of(0, data.ids[:2]).to(device)
    network.eval()
    restore(network, images, transform, KeyedDraws(keys, images))


def _take_weights(folder: Path, modules: dict[str, nn.Module | None]) -> None:
    """Fill networks from a finished run, or from the checkpoint of one that is not."""
    from unperturb.classifiers.weights import fit_state, read_weights

    checkpoint = folder / CHECKPOINT
    files = {"network": "model.safetensors", "discriminator": "discriminator.safetensors"}
    if not checkpoint.exists() and not (folder / files["network"]).exists():
        raise SpecError(
            f"There are no weights to start from in {str(folder)!r}",
            expected="the folder of a run of unperturb fit gan or fit mae",
            fix="check the path",
        )
    stored = read_weights(checkpoint)[0] if checkpoint.exists() else None
    for name, module in modules.items():
        if module is None:
            continue
        source = checkpoint if stored is not None else folder / files[name]
        if stored is not None:
            under = {k: v for k, v in stored.items() if k.startswith(f"{name}.")}
            state = {key.removeprefix(f"{name}."): value for key, value in under.items()}
        else:
            state = read_weights(source)[0]
        fit_state(module, state, source=repr(str(source)), network=type(module).__name__)
