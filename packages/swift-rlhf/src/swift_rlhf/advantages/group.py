"""How much better an answer is than the others to the same prompt."""

from __future__ import annotations

from typing import Literal

import torch
from swift_core.errors import TrainingError
from torch import Tensor

EPSILON = 1e-4

Estimator = Literal["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]
Scale = Literal["group", "batch", "none"]
DEFAULT_SCALE: dict[str, Scale] = {
    "grpo": "group",
    "rloo": "none",
    "reinforce_plus_plus": "batch",
    "reinforce_plus_plus_baseline": "batch",
}


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    estimator: Estimator = "grpo",
    scale_rewards: Scale | None = None,
) -> Tensor:
    """Return the advantage of each answer.

    grpo is `R - mean(group)` (Shao et al. 2024), rloo `R - mean(others of the group)` (Ahmadian et al. 2024), reinforce_plus_plus
    `R - mean(batch)`, reinforce_plus_plus_baseline `R - mean(group)`, less what the batch has left of a mean (Hu et al. 2025). The
    result is divided by a standard deviation (unbiased, plus 1e-4) or left as it is. grpo with none is Dr. GRPO (Liu et al. 2025).

    Args:
        rewards: one reward for each answer, `[answers]`, of the whole step on all ranks; NaN where none applies.
        group_ids: the prompt of each answer as an integer, `[answers]`, in any order; groups may differ in size.
        estimator: what the reward is compared with.
        scale_rewards: the deviation of the group, of the whole batch, or none; when left out group for grpo, none for rloo, batch
            for the other two.

    Returns:
        advantages in float32 or wider, `[answers]`; 0 for NaN rewards and, where groups are compared, for an answer that is alone.

    Raises:
        TrainingError: for shapes that do not fit or an unknown setting.
    """
    check_shapes(rewards, group_ids)
    scale = DEFAULT_SCALE.get(estimator) if scale_rewards is None else scale_rewards
    if estimator not in DEFAULT_SCALE or scale not in ("group", "batch", "none"):
        raise TrainingError(
            f"unknown estimator {estimator!r} or scale_rewards {scale_rewards!r}", fix=f"{', '.join(DEFAULT_SCALE)}; group, batch or none"
        )
    values = rewards if rewards.element_size() >= 4 else rewards.float()
    valid = ~values.isnan()
    groups = _Groups(values, valid, group_ids)
    present = values[valid]
    if estimator == "reinforce_plus_plus":
        advantages = torch.where(valid, values - present.mean(), 0) if len(present) > 1 and not _same(present) else torch.zeros_like(values)
    else:
        advantages = groups.centred()
        if estimator == "rloo":
            advantages = advantages * (groups.count / (groups.count - 1).clamp_min(1))[groups.index]
        elif estimator == "reinforce_plus_plus_baseline" and len(present):
            advantages = torch.where(valid, advantages - advantages[valid].mean(), 0)
    if scale == "none":
        return advantages
    if scale == "group":
        return advantages / (groups.deviation()[groups.index] + EPSILON)
    # REINFORCE++ whitens what it has compared, Lite PPO takes the deviation of the rewards themselves.
    spread = advantages[valid] if estimator.startswith("reinforce") else present
    deviation = spread.std() if len(spread) > 1 else torch.zeros((), dtype=values.dtype, device=values.device)
    return advantages / (deviation + EPSILON)


def informative(rewards: Tensor, group_ids: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return whether the group of each answer has rewards that differ, `[answers]`, bool: the others teach nothing (DAPO).

    Args:
        rewards: `[answers]`; NaN where none applies.
        group_ids: the prompt of each answer, `[answers]`.
        threshold: smallest standard deviation that counts; above 0 for rewards that are never quite equal.

    Raises:
        TrainingError: for shapes that do not fit.
    """
    check_shapes(rewards, group_ids)
    values = rewards if rewards.element_size() >= 4 else rewards.float()
    groups = _Groups(values, ~values.isnan(), group_ids)
    return (groups.deviation() > threshold)[groups.index]


def check_shapes(rewards: Tensor, group_ids: Tensor) -> None:
    """Raise a TrainingError unless there is one reward and one group for each answer."""
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise TrainingError(f"rewards {list(rewards.shape)} and group_ids {list(group_ids.shape)} differ", fix="one number for each answer")


class _Groups:
    """Sums over groups of any size, in any order."""

    def __init__(self, values: Tensor, valid: Tensor, group_ids: Tensor) -> None:
        self.values, self.valid = values, valid
        names, self.index = group_ids.unique(return_inverse=True)
        self.size = len(names)
        self.count = self.total(valid.to(values.dtype))

    def total(self, of_each: Tensor) -> Tensor:
        empty = torch.zeros(self.size, dtype=self.values.dtype, device=self.values.device)
        return empty.index_add_(0, self.index, of_each)

    def centred(self) -> Tensor:
        known = torch.where(self.valid, self.values, 0)
        mean = self.total(known) / self.count.clamp_min(1)
        centred = torch.where(self.valid, known - mean[self.index], 0)
        # Equal rewards must give exactly 0: a rounded mean leaves noise that a small deviation would blow up.
        lowest = self._extreme("amin", torch.inf)
        highest = self._extreme("amax", -torch.inf)
        return torch.where((lowest == highest)[self.index], 0, centred)

    def deviation(self) -> Tensor:
        return (self.total(self.centred().square()) / (self.count - 1).clamp_min(1)).sqrt()

    def _extreme(self, how: str, start: float) -> Tensor:
        filled = torch.where(self.valid, self.values, start)
        return torch.full_like(self.count, start).scatter_reduce_(0, self.index, filled, how)


def _same(values: Tensor) -> bool:
    return bool(values.min() == values.max())
