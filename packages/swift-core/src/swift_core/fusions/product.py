"""Products of half-precision matrices on CPUs, cut where the library's own way of sharing the work among threads is slow.

With few threads oneDNN leaves a third of the speed of some shapes unused, such as `[900, 1536] x [1536, 576]` on two cores. Cutting
the columns into parts helps there and harms elsewhere, so both ways are timed once for each shape.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

# Below this the time of a product is mostly that of starting it.
_LEAST_ROWS = 256
_PARTS = 2
# A way is changed only where it clearly pays, so that noise does not decide.
_GAIN = 1.15
_TRIES = 3


def product(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return `left @ right`, the same numbers as `torch.mm` gives.

    Args:
        left: `[rows, inner]`.
        right: `[inner, columns]`, of any strides.
        out: `[rows, columns]`, written to when given.
    """
    columns = right.shape[1]
    halves = (
        left.dtype is torch.bfloat16
        and left.device.type == "cpu"
        and len(left) >= _LEAST_ROWS
        and columns % (16 * _PARTS) == 0
        and _halves_pay(left.shape[1], columns, right.stride(0) == 1, torch.get_num_threads())
    )
    if not halves:
        return torch.mm(left, right, out=out) if out is not None else torch.mm(left, right)
    return _in_parts(left, right, left.new_empty(len(left), columns) if out is None else out)


def _in_parts(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    for part, into in zip(right.chunk(_PARTS, 1), out.chunk(_PARTS, 1), strict=True):
        torch.mm(left, part, out=into)
    return out


@lru_cache(maxsize=256)
def _halves_pay(inner: int, columns: int, transposed: bool, threads: int) -> bool:
    """Say whether half the columns at a time are faster, and the numbers the same bit for bit."""
    if threads == 1:
        return False
    with torch.random.fork_rng(devices=[]):
        left = torch.randn(768, inner, dtype=torch.bfloat16)
        right = torch.randn(columns, inner, dtype=torch.bfloat16).t() if transposed else torch.randn(inner, columns, dtype=torch.bfloat16)
    whole, parts = torch.empty(768, columns, dtype=torch.bfloat16), torch.empty(768, columns, dtype=torch.bfloat16)
    spent = [float("inf"), float("inf")]
    for _ in range(_TRIES):
        started = time.perf_counter()
        torch.mm(left, right, out=whole)
        between = time.perf_counter()
        _in_parts(left, right, parts)
        spent = [min(spent[0], between - started), min(spent[1], time.perf_counter() - between)]
    return spent[0] > _GAIN * spent[1] and torch.equal(whole, parts)
