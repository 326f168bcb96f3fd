"""Settings of a process that decide the bits of a result: fixed here, taken over by workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Numerics", "deterministic"]


@dataclass(frozen=True)
class Numerics:
    """What of this process decides the bits of a result: workers take it over."""

    threads: int
    matmul: str
    deterministic: bool
    warn_only: bool
    cudnn_tf32: bool
    matmul_tf32: bool

    @classmethod
    def here(cls) -> Numerics:
        """Those of this process."""
        return cls(
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        )

    def apply(self) -> None:
        """Set them in this process, for good: a worker does nothing but audits."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32
        # As the audit itself runs; see ``deterministic``.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Fixed kernels on CUDA for the time of an audit; the flags are put back."""
    if device.type != "cuda":
        yield
        return
    tf32 = torch.backends.cudnn.allow_tf32
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
    ):
        yield
