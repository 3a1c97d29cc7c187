"""Mean and deviation over the tokens of all micro-batches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from swift_rlhf.losses.tokens import masked, wide


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Return count, sum and sum of squares over a mask, `[3]`, float64: add those of all micro-batches and ranks.

    Args:
        values: any shape.
        mask: what counts, same shape.
    """
    kept = masked(values.detach().double(), mask)
    return torch.stack([mask.sum().double(), kept.sum(), kept.square().sum()])


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, totals: Tensor | None = None) -> Tensor:
    """Return values with deviation 1 over the mask and, unless told otherwise, mean 0: `(x - mean) / sqrt(var + 1e-8)`.

    Args:
        values: any shape.
        mask: what counts, same shape.
        shift_mean: whether the mean goes to 0.
        totals: `moments` of the whole step on all ranks, `[3]`; those of these values when left out.

    Returns:
        the same shape, 0 outside the mask; unbiased variance.
    """
    values = wide(values)
    count, total, squares = (moments(values, mask) if totals is None else totals.double()).unbind()
    mean = total / count.clamp_min(1)
    variance = ((squares - count * mean.square()) / (count - 1).clamp_min(1)).clamp_min(0)
    shifted = (values - mean.to(values.dtype)) if shift_mean else values
    return masked(shifted * (variance + 1e-8).rsqrt().to(values.dtype), mask)
