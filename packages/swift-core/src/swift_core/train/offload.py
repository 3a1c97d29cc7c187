"""Activations wait for the backward pass in main memory instead of the accelerator's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from swift_core.errors import TrainingError

# Copying a small tensor takes longer than it is worth.
SMALLEST = 2**16


def offloading(device: torch.device, *, wanted: bool) -> bool:
    """Return whether activations are moved.

    Raises:
        TrainingError: when it is asked for on a CPU, where activations are in main memory already.
    """
    if wanted and device.type == "cpu":
        raise TrainingError(
            "--activation_offload moves activations from an accelerator to main memory, and this run is on a CPU",
            fix="remove it; --gradient_checkpointing true saves memory here",
        )
    return wanted


class OffloadedActivations:
    """Moves what autograd saves to the CPU and back.

    Args:
        model: whose weights stay where they are, as autograd saves them too.
        smallest: tensors with fewer numbers stay where they are.
    """

    def __init__(self, model: nn.Module, *, smallest: int = SMALLEST) -> None:
        self._model = model
        self._smallest = smallest
        self.moved = 0

    def __call__(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._model.parameters()}

        def pack(tensor: torch.Tensor) -> tuple[torch.device, torch.Tensor] | torch.Tensor:
            if tensor.numel() < self._smallest or tensor.untyped_storage().data_ptr() in weights:
                return tensor
            self.moved += 1
            pinned = tensor.device.type == "cuda"
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
            copy.copy_(tensor)
            return tensor.device, copy

        def unpack(saved: tuple[torch.device, torch.Tensor] | torch.Tensor) -> torch.Tensor:
            return saved if isinstance(saved, torch.Tensor) else saved[1].to(saved[0], non_blocking=True)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def no_offloading() -> AbstractContextManager[Any]:
    """Return a context that does nothing."""
    return nullcontext()
