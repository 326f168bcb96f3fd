"""Training in several processes: one batch among them, one gradient for all.

Started by ``accelerate launch --multi_gpu``, on the CPU too (with ``--cpu`` accelerate starts one
process, whatever ``--num_processes`` says, unless there is MPI), every process holds the whole
network and its share of each batch. After the backward pass gradients and batch-norm statistics are
averaged, so that all processes hold the same bits at all times, and the first alone measures, shows
and writes.

Gradients are averaged here and not by ``DistributedDataParallel``, because objectives may call the
network any number of times in a step, with and without gradients, which its hooks do not allow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unperturb.errors import ConfigError

__all__ = ["Alone", "Processes", "launched"]


class Alone:
    """One process: nothing to share."""

    count, rank, main = 1, 0, True

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def tell(self, value: Any) -> Any:
        """The value of the first process, which is this one."""
        return value


class Processes(Alone):
    """Processes that ``accelerate`` has connected."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.count, self.rank = accelerator.num_processes, accelerator.process_index
        self.main = accelerator.is_main_process

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        kept = list(tensors)
        if not kept:
            return
        # One message instead of one for each tensor.
        flat = torch.cat([tensor.detach().float().flatten() for tensor in kept])
        flat = self._accelerator.reduce(flat, reduction="mean")
        start = 0
        for tensor in kept:
            part = flat[start : start + tensor.numel()].view(tensor.shape)
            tensor.copy_(part.to(tensor.dtype))
            start += tensor.numel()

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def tell(self, value: Any) -> Any:
        """The value of the first process, to all."""
        from accelerate.utils import broadcast_object_list

        box = [value]
        broadcast_object_list(box)
        return box[0]


# Of torch's launcher, which accelerate uses, and of three kinds of MPI.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launched(device: torch.device) -> Alone:
    """The processes that this one is among: several under ``accelerate launch``, else itself.

    Args:
        device: Where to train; each process on ``cuda`` takes its own.

    Raises:
        ConfigError: Several processes were launched and ``accelerate`` is not installed; or several
            were asked for and one was launched.
    """
    sizes = [int(os.environ[name]) for name in _SIZES if name in os.environ]
    # Accelerate names a meeting place where it was asked for several, even if it starts one.
    if not sizes and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys():
        raise ConfigError(
            "accelerate launch was asked for several processes and started one",
            expected="accelerate launch --multi_gpu --num_processes N, on the CPU too",
            fix="write --multi_gpu in place of --cpu",
        )
    if max(sizes, default=1) <= 1:
        return Alone()
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ConfigError(
            "Several processes were launched, and accelerate is not installed",
            expected="the extra 'processes'",
            fix='pip install "unperturb[processes]"',
        ) from error
    return Processes(Accelerator(cpu=device.type == "cpu"))


def statistics(network: nn.Module) -> list[Tensor]:
    """The floating-point buffers of a network: means and variances of its batch norms."""
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]
