"""Rows of all ranks on every rank, with gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Return how many ranks take part, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def row_counts(rows: torch.Tensor) -> list[int]:
    """Return how many rows each rank has."""
    if world_size() == 1:
        return [len(rows)]
    counts = torch.zeros(world_size(), dtype=torch.long, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    return [int(count) for count in counts]


def gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Return the rows of all ranks, by rank; `counts` are theirs.

    Unlike `accelerate.gather`, gradients flow back: the loss of one rank depends on vectors that another rank has computed, and
    that rank's parameters get their share. Every rank must call this, and go backward through it, the same number of times.

    Args:
        rows: `[own, ...]`.
        counts: rows of each rank.

    Returns:
        `[all, ...]`.
    """
    if len(counts) == 1:
        return rows
    widest = max(counts)
    padded = torch.cat([rows, rows.new_zeros((widest - len(rows), *rows.shape[1:]))])
    if padded.is_floating_point() and torch.is_grad_enabled():
        parts = list(all_gather(padded))
    else:
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
