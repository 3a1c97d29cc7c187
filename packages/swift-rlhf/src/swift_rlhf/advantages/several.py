"""Several rewards for each answer."""

from __future__ import annotations

import torch
from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.advantages.group import EPSILON, check_shapes, group_advantages


def combine_rewards(rewards: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the weighted sum of the rewards of each answer, over those that apply.

    Args:
        rewards: `[answers, functions]`; NaN where a function does not apply.
        weights: `[functions]`; all 1 when left out.

    Returns:
        `[answers]`; NaN where no function applies.

    Raises:
        TrainingError: for shapes that do not fit.
    """
    scaled = rewards * _weights(rewards, weights)
    return torch.where(scaled.isnan().all(-1), torch.nan, scaled.nansum(-1))


def decoupled_advantages(rewards: Tensor, group_ids: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Return advantages in which every reward counts by its weight, whatever its scale (GDPO, Liu et al. 2026).

    Each function's rewards are compared and scaled within their group; the weighted sum is whitened over the batch.

    Args:
        rewards: `[answers, functions]`, of the whole step on all ranks; NaN where a function does not apply.
        group_ids: the prompt of each answer, `[answers]`.
        weights: `[functions]`; all 1 when left out.

    Returns:
        `[answers]`, float32 or wider; 0 where no function applies.

    Raises:
        TrainingError: for shapes that do not fit.
    """
    scale = _weights(rewards, weights)
    check_shapes(rewards[:, 0], group_ids)
    each = torch.stack([group_advantages(column, group_ids) for column in rewards.unbind(-1)], dim=-1)
    total = (each * scale).sum(-1)
    valid = ~rewards.isnan().all(-1)
    present = total[valid]
    if len(present) < 2 or not present.any():
        return torch.zeros_like(total)
    return torch.where(valid, (total - present.mean()) / (present.std() + EPSILON), 0)


def _weights(rewards: Tensor, weights: Tensor | None) -> Tensor:
    if rewards.ndim != 2 or not rewards.shape[1]:
        raise TrainingError(f"rewards {list(rewards.shape)} are no table", fix="one row for each answer, one column for each function")
    if weights is None:
        return torch.ones(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)
    if weights.shape != rewards.shape[1:]:
        raise TrainingError(f"{weights.numel()} reward_weights for {rewards.shape[1]} functions", fix="one weight for each function")
    return weights.to(rewards)
