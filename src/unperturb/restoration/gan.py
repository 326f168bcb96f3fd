"""Pre-training of the inpainting GAN: restore what a random transform leaves, and look real."""

from __future__ import annotations

import torch
from torch import Tensor

from unperturb.networks.inpainting_gan import InpaintingGenerator, PatchDiscriminator
from unperturb.purifiers.transforms import KeyedDraws, RandomTransform, corrupt
from unperturb.randomness import Keys
from unperturb.restoration.config import FineTuneConfig, GANConfig
from unperturb.restoration.loop import Work, make_adam, set_gradients
from unperturb.restoration.losses import adversarial, l1
from unperturb.restoration.watch import Watch

__all__ = ["GANWork", "judge", "rate_of"]


class GANWork(Work):
    """One step: noise and mask, both stages, the discriminator, and both gradients.

    Generator and discriminator are updated together, from one forward pass of each: the
    discriminator's loss does not reach the generator, and the other way round.

    Args:
        generator: The generator, trained in place.
        discriminator: The discriminator, likewise; None where its terms weigh nothing.
        transform: What is drawn.
        config: The settings.
    """

    def __init__(
        self,
        generator: InpaintingGenerator,
        discriminator: PatchDiscriminator | None,
        transform: RandomTransform,
        config: GANConfig,
    ) -> None:
        modules: dict[str, torch.nn.Module] = {"network": generator}
        if discriminator is not None:
            modules["discriminator"] = discriminator
        for module in modules.values():
            module.train().requires_grad_(True)
        super().__init__(modules, {name: make_adam(m, config) for name, m in modules.items()})
        self.generator, self.discriminator = generator, discriminator
        self.transform, self.config = transform.single(), config

    def rate(self, name: str, rate: float) -> float:
        """The discriminator may have a rate of its own, decayed alike."""
        return rate_of(name, rate, self.config)

    def losses(self, images: Tensor, labels: Tensor, keys: Keys) -> dict[str, Tensor]:
        """L1 errors of both stages, and both sides of the adversarial loss."""
        config = self.config
        half = config.precision == "bfloat16"
        corrupted = corrupt(images, self.transform, KeyedDraws(keys, images))
        (mask,) = corrupted.masks
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            coarse, fine = self.generator.stages(mask * corrupted.noisy, mask)
        coarse, fine = coarse.float(), fine.float()
        found = {"l1": l1(fine, images)}
        whole = found["l1"]
        if config.coarse_weight:
            found["coarse"] = l1(coarse, images)
            whole = whole + config.coarse_weight * found["coarse"]
        if self.discriminator is not None:
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
                judged, looks = judge(self.discriminator, images, fine, config.form, self.watch)
            found |= {"discriminator": judged, "adversarial": looks}
            whole = whole + config.adversarial_weight * looks
            set_gradients(judged, self.discriminator, keep=True)
        set_gradients(whole, self.generator)
        return found


def judge(
    discriminator: PatchDiscriminator, real: Tensor, made: Tensor, form: str, watch: Watch
) -> tuple[Tensor, Tensor]:
    """The discriminator's and the generator's loss, from one pass over both halves.

    Raises:
        Diverged: The discriminator has collapsed.
    """
    scores = discriminator(torch.cat((real, made))).float()
    watch.see(scores)
    return adversarial(form, *scores.split(len(real)))


def rate_of(name: str, rate: float, config: GANConfig | FineTuneConfig) -> float:
    """An optimizer's rate: a discriminator may have one of its own, decayed alike."""
    own = config.discriminator_lr
    return rate * own / config.lr if name == "discriminator" and own is not None else rate
