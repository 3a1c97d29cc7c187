"""How much better an answer is than the others to the same prompt."""

from __future__ import annotations

from typing import Literal

import torch
from swift_core.errors import TrainingError
from torch import Tensor

EPSILON = 1e-4


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    estimator: Literal["grpo", "rloo"] = "grpo",
    scale_rewards: Literal["group", "batch", "none"] = "group",
) -> Tensor:
    """Return the advantage of each answer over the other answers of its group.

    grpo is `R - mean(group)` (Shao et al. 2024), rloo `R - mean(others of the group)` (Ahmadian et al. 2024). The result is
    divided by the standard deviation of the group or of the whole batch (unbiased, plus 1e-4), or left as it is.

    Args:
        rewards: one reward for each answer, `[answers]`; NaN where none applies.
        group_ids: the prompt of each answer as an integer, `[answers]`, in any order.
        estimator: what the reward is compared with.
        scale_rewards: what it is divided by.

    Returns:
        advantages in float32 or wider, `[answers]`; 0 for NaN rewards and for an answer that is alone in its group.

    Raises:
        TrainingError: for shapes that do not fit or an unknown setting.
    """
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise TrainingError(f"rewards {list(rewards.shape)} and group_ids {list(group_ids.shape)} differ", fix="one number for each answer")
    if estimator not in ("grpo", "rloo") or scale_rewards not in ("group", "batch", "none"):
        raise TrainingError(f"unknown estimator {estimator!r} or scale_rewards {scale_rewards!r}", fix="grpo or rloo; group, batch or none")
    values = rewards if rewards.element_size() >= 4 else rewards.float()
    valid = ~values.isnan()
    known = torch.where(valid, values, 0)
    groups, index = group_ids.unique(return_inverse=True)

    def total(of_each: Tensor) -> Tensor:
        return torch.zeros(len(groups), dtype=values.dtype, device=values.device).index_add_(0, index, of_each)

    count = total(valid.to(values.dtype))
    centred = torch.where(valid, known - (total(known) / count.clamp_min(1))[index], 0)
    # Equal rewards must give exactly 0: a rounded mean leaves noise that a small deviation would blow up.
    lowest = torch.full_like(count, torch.inf).scatter_reduce_(0, index, torch.where(valid, values, torch.inf), "amin")
    highest = torch.full_like(count, -torch.inf).scatter_reduce_(0, index, torch.where(valid, values, -torch.inf), "amax")
    centred = torch.where((lowest == highest)[index], 0, centred)
    advantages = centred * (count / (count - 1).clamp_min(1))[index] if estimator == "rloo" else centred
    if scale_rewards == "group":
        deviation = (total(centred.square()) / (count - 1).clamp_min(1)).sqrt()[index]
    elif scale_rewards == "batch":
        present = values[valid]
        deviation = present.std() if len(present) > 1 else torch.zeros((), dtype=values.dtype, device=values.device)
    else:
        return advantages
    return advantages / (deviation + EPSILON)
