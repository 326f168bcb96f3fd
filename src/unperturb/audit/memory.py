"""How much memory a forward pass holds at its peak, counted tensor by tensor."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["peak_bytes"]


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate, until each is freed.

    Attributes:
        live: Bytes that are held now.
        peak: The most that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        # What an operation is handed stood there before it, whoever allocated it.
        for storage in _storages((args, given)):
            self._note(storage, own=False)
        found = func(*args, **given)
        for storage in _storages(found):
            self._note(storage, own=True)
        return found

    def _note(self, storage: Any, *, own: bool) -> None:
        name = storage._cdata
        if name in self._known:
            return
        self._known.add(name)
        size = storage.nbytes() if own else 0
        self.live += size
        self.peak = max(self.peak, self.live)
        # The address may be given to another storage once this one is gone.
        weakref.finalize(storage, self._free, name, size).atexit = False

    def _free(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.live -= size


def _storages(tree: Any) -> list[Any]:
    return [
        leaf.untyped_storage()
        for leaf in tree_leaves(tree)
        # Sparse and other opaque tensors have no storage of their own.
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided
    ]


def peak_bytes(module: nn.Module, images: Tensor) -> int:
    """The most bytes of tensors that an answer to a batch holds at once.

    Weights and the images themselves are not counted, and neither is what kernels take inside one
    operation (workspaces). The count is that of tensors, not of the machine: it is the same on
    every run, and it says what a defense adds, such as the activations that a backward pass
    within the defense keeps.

    Args:
        module: From images to scores.
        images: One batch (N, C, H, W).

    Example:
        >>> peak_bytes(nn.Flatten(), torch.zeros(2, 3, 4, 4))
        0
        >>> peak_bytes(nn.ReLU(), torch.zeros(2, 3, 4, 4))
        384
    """
    count = _Live()
    with torch.no_grad(), count:
        module(images)
    return count.peak
