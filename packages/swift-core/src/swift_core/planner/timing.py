"""How long a step takes: each operation at the speed of products or of memory, whichever is slower, or steps that were run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

_ROWS = 1024
_MOVED = 2**24


@dataclass(frozen=True, slots=True)
class Speed:
    """What a device does in a second.

    Attributes:
        operations: multiplications and additions in matrix products.
        bytes: read and written by simple operations.
    """

    operations: float
    bytes: float

    def seconds(self, costs: Mapping[tuple[str, int, int], float]) -> float:
        """Return the time of kernels that cost so much, one after another."""
        return sum(count * max(operations / self.operations, moved / self.bytes) for (_, operations, moved), count in costs.items())


def calibrate(device: str, dtype: torch.dtype) -> Speed:
    """Measure a device for about a tenth of a second.

    Args:
        device: kind of device.
        dtype: number type of products.
    """
    rows = torch.ones(_ROWS, _ROWS, dtype=dtype, device=device)
    product = _best(lambda: torch.mm(rows, rows), device)
    numbers = torch.ones(_MOVED // dtype.itemsize, dtype=dtype, device=device)
    sum_of = torch.empty_like(numbers)
    passed = _best(lambda: torch.add(numbers, numbers, out=sum_of), device)
    return Speed(2 * _ROWS**3 / product, 2 * _MOVED / passed)


def _best(action: Callable[[], object], device: str) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        action()
        if device != "cpu":
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
