"""Advantages of the answers of a round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swift_rlhf.advantages import combine_rewards, decoupled_advantages, group_advantages, informative, rewards_less_kl
from swift_rlhf.config.grpo import GrpoSection
from swift_rlhf.grpo.rewarded import Rewarded
from swift_rlhf.losses import padded


def set_advantages(groups: Sequence[Rewarded], rewards: Tensor, settings: GrpoSection, weights: Tensor, *, kl_coef: float) -> None:
    """Compare the episodes of a round and write down how much better than expected each is.

    Args:
        groups: of the round.
        rewards: of their episodes, `[episodes, functions]`.
        settings: of the algorithm.
        weights: of the reward functions.
        kl_coef: weight of the distance from the reference that is taken off the reward; 0: none is.
    """
    ids = torch.tensor([rewarded.group.group for rewarded in groups for _ in rewarded.rewards])
    if settings.scale_rewards == "gdpo":
        advantages = decoupled_advantages(rewards, ids, weights=weights)
    else:
        total = combine_rewards(rewards, weights)
        if kl_coef:
            old, mask = _by_episode(groups, "old_logps")
            ref, _ = _by_episode(groups, "ref_logps")
            total = rewards_less_kl(total, old - ref, mask, kl_coef=kl_coef)
        advantages = group_advantages(total, ids, estimator=settings.advantage_estimator, scale_rewards=settings.scale_rewards)
    start = 0
    for rewarded in groups:
        for answer in rewarded.group.answers:
            answer.advantage = float(advantages[start + answer.episode])
        start += len(rewarded.rewards)


def _by_episode(groups: Sequence[Rewarded], name: str) -> tuple[Tensor, Tensor]:
    rows: list[list[float]] = []
    for rewarded in groups:
        of_group: list[list[float]] = [[] for _ in rewarded.rewards]
        for answer in rewarded.group.answers:
            of_group[answer.episode] += getattr(answer, name) or []
        rows += of_group
    return padded(torch.tensor([value for row in rows for value in row]), [len(row) for row in rows])


def teaches(rewarded: Rewarded, weights: Tensor) -> bool:
    """Say whether the episodes of a group differ in their reward."""
    return differs(combine_rewards(torch.tensor(rewarded.rewards), weights))


def differs(total: Tensor) -> bool:
    """Say whether rewards of one group differ, `[episodes]`."""
    return bool(informative(total, torch.zeros(len(total), dtype=torch.long)).any())
