"""A denoising masked autoencoder: a ViT that reads the visible, noisy patches and draws them all.

Wu et al., *Denoising masked autoencoders help robust classification*, ICLR 2023, after He et al.,
*Masked autoencoders are scalable vision learners*, CVPR 2022.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unperturb.errors import ConfigError, InputError

__all__ = ["MaskedAutoencoder"]


class MaskedAutoencoder(nn.Module):
    """Masked, noisy images and their masks to whole, clean images.

    Images are cut into tokens of ``token x token`` pixels. The encoder reads the kept ones only;
    the decoder reads its answers, with one learned token in every empty place, and draws the
    pixels of all tokens, kept ones too. Positions are the fixed sines and cosines of He et al.,
    so that one network reads every size that its tokens divide.

    A token must be kept or dropped whole, and all images of a batch must keep as many, as the
    transforms of this package have it where a token divides their patch.

    Deviations: pixels are drawn as they are (He et al. normalize each patch), since a classifier
    reads them; there is no class token.

    Args:
        channels: Channels of the images.
        token: Side of a token in pixels: 4 for 32x32, 8 for 64x64, 14 for 224x224.
        width: Width of the encoder, a multiple of four times its heads.
        depth: Blocks of the encoder.
        heads: Attention heads of encoder and decoder.
        decoder_width: Width of the decoder, likewise.
        decoder_depth: Blocks of the decoder.

    Raises:
        ConfigError: A setting is out of range.

    Example:
        >>> net = MaskedAutoencoder(width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1)
        >>> mask = torch.ones(2, 1, 32, 32)
        >>> mask[..., :4, :8] = 0
        >>> net(mask * torch.rand(2, 3, 32, 32), mask).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        token: int = 4,
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
        decoder_width: int = 64,
        decoder_depth: int = 2,
    ) -> None:
        super().__init__()
        self.settings = {
            "channels": channels,
            "token": token,
            "width": width,
            "depth": depth,
            "heads": heads,
            "decoder_width": decoder_width,
            "decoder_depth": decoder_depth,
        }
        for name, value in self.settings.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
                raise ConfigError(f"{name} is {value!r}", expected="a whole number from 1 to 4,096")
        for name in ("width", "decoder_width"):
            if self.settings[name] % (4 * heads):
                raise ConfigError(
                    f"{name} is {self.settings[name]} with {heads} heads",
                    expected=f"a multiple of {4 * heads}, four times the heads",
                )
        self.token, self.channels = token, channels
        self.read = nn.Linear(channels * token**2, width)
        self.encoder = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.bridge = nn.Linear(width, decoder_width)
        self.empty = nn.Parameter(torch.zeros(decoder_width))
        self.decoder = nn.Sequential(*(_Block(decoder_width, heads) for _ in range(decoder_depth)))
        self.last = nn.LayerNorm(decoder_width)
        self.draw = nn.Linear(decoder_width, channels * token**2)
        nn.init.normal_(self.empty, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this network again."""
        return dict(self.settings)

    def forward(self, masked: Tensor, mask: Tensor) -> Tensor:
        """Restored images.

        Args:
            masked: ``mask * image`` (N, C, H, W), pixels in [0, 1] up to noise, 0 where dropped.
            mask: (N, 1, H, W), 1 where a pixel is kept; constant within a token.

        Returns:
            (N, C, H, W), about [0, 1] but not clipped.

        Raises:
            InputError: The token does not divide the image, a token is dropped in part, or images
                keep different numbers of tokens.
        """
        side = self.token
        height, width = masked.shape[-2:]
        if height % side or width % side:
            raise InputError(
                f"Images are {height}x{width} (height x width)",
                expected=f"sides that are multiples of {side}, the token of this autoencoder",
                fix="resize them, or use a network of another token",
            )
        rows, columns = height // side, width // side
        kept, count = _kept(mask, side)
        # Kept places first, in their order.
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :count, None]
        place = _positions(rows, columns, self.bridge.in_features, masked)
        tokens = self.read(_cut(2.0 * masked - 1.0, side)) + place
        seen = self.encoder(tokens.gather(1, order.expand(-1, -1, tokens.shape[-1])))
        seen = self.bridge(self.norm(seen))
        board = self.empty.to(seen.dtype).expand(len(seen), rows * columns, -1)
        board = board.scatter(1, order.expand(-1, -1, seen.shape[-1]), seen)
        board = board + _positions(rows, columns, board.shape[-1], masked)
        drawn = self.draw(self.last(self.decoder(board)))
        return 0.5 * _join(drawn, side, rows, columns, self.channels) + 0.5


def _kept(mask: Tensor, side: int) -> tuple[Tensor, int]:
    """Which tokens (N, T) are kept, and how many of each image."""
    share = F.avg_pool2d(mask.float(), side).flatten(1)
    fix = "use a patch that divides the image, and a token that divides the patch"
    whole = (share < 1e-3) | (share > 1 - 1e-3)
    if not bool(whole.all()):
        raise InputError(
            f"{int((~whole).sum())} tokens of {side}x{side} are dropped in part",
            expected="each kept or dropped whole",
            fix=fix,
        )
    kept = share > 0.5
    counts = kept.sum(1)
    low, high = int(counts.min()), int(counts.max())
    if low != high or not low:
        raise InputError(
            f"Images of one batch keep from {low} to {high} tokens of {side}x{side}",
            expected="equal numbers, at least one",
            fix=fix,
        )
    return kept, low


class _Block(nn.Module):
    """A transformer block that normalizes first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        shape = (count, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.proj(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


def _cut(images: Tensor, side: int) -> Tensor:
    """Images (N, C, H, W) to tokens (N, T, C * side * side), row by row."""
    count, channels, height, width = images.shape
    shape = (count, channels, height // side, side, width // side, side)
    return images.reshape(shape).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _join(tokens: Tensor, side: int, rows: int, columns: int, channels: int) -> Tensor:
    """Undo ``_cut``."""
    shape = (len(tokens), rows, columns, channels, side, side)
    return tokens.view(shape).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _positions(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, (1, rows * columns, width)."""
    quarter = width // 4
    powers = torch.arange(quarter, device=like.device, dtype=torch.float32)
    rates = torch.exp(-math.log(10_000.0) * powers / quarter)
    parts = []
    for length, down in ((rows, True), (columns, False)):
        angle = torch.arange(length, device=like.device, dtype=torch.float32)[:, None] * rates
        waves = torch.cat((angle.sin(), angle.cos()), 1)
        shape = (rows, columns, 2 * quarter)
        parts.append((waves[:, None] if down else waves[None]).expand(shape))
    return torch.cat(parts, -1).view(1, rows * columns, width).to(like.dtype)
