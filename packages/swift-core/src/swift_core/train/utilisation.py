"""How much of what a device can compute a run makes use of."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from swift_core.models.modules import unwrap

# Dense bfloat16 products a second, as the makers state them.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
    "MI300X": 1307e12,
}


def flops_per_token(model: nn.Module) -> int:
    """Return the operations that one trained token takes: 2 a weight forward, 2 for the gradient that goes on, 2 where it is trained.

    Counts matrices alone, without attention over other tokens, and nothing twice that is computed twice (arXiv:2204.02311,
    appendix B). The input embedding is a look-up; where the output layer shares its weight, that is counted.
    """
    inner: Any = unwrap(model)
    embedding = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    shared = head is not None and embedding is not None and getattr(head, "weight", None) is getattr(embedding, "weight", None)
    left_out = {id(parameter) for parameter in embedding.parameters()} if embedding is not None and not shared else set[int]()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2 and id(parameter) not in left_out]
    return sum(parameter.numel() * (6 if parameter.requires_grad else 4) for parameter in matrices)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations a second that a device can do in products of this number type; None where nobody has said.

    On a CPU it is measured by products of the size that training has, which takes some tens of milliseconds.
    """
    if device.type == "cpu":
        return _measured(dtype)
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def _measured(dtype: torch.dtype) -> float:
    rows, matrix = torch.ones(1024, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(rows, matrix)
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def occupancy(batch: Any) -> tuple[int, int]:
    """Return the tokens of a batch and the places that they take up with their padding; 0 and 0 for a batch without token ids."""
    ids, mask = getattr(batch, "input_ids", None), getattr(batch, "attention_mask", None)
    return (int(mask.sum()), ids.numel()) if isinstance(ids, torch.Tensor) and isinstance(mask, torch.Tensor) else (0, 0)


class Utilisation:
    """Model FLOPs utilisation (MFU) of a run.

    Args:
        model: the model as it is trained.
        device: what one process computes on.
        processes: how many of them there are.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, processes: int) -> None:
        self._per_token = flops_per_token(model)
        dtypes = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point() and not parameter.requires_grad]
        trained = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
        dtype = dtypes[0] if dtypes else trained
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        peak = peak_flops(device, dtype)
        self._peak = None if peak is None else peak * processes

    def line(self, tokens_per_second: float) -> dict[str, float]:
        """Return `mfu` as a share of 1, nothing where the device's peak is not known."""
        return {} if self._peak is None else {"mfu": round(self._per_token * tokens_per_second / self._peak, 4)}
