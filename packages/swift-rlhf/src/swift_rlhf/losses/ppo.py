"""PPO with a value head: token rewards, advantages, and both losses (Schulman et al. 2016, 2017)."""

from __future__ import annotations

import torch
from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.policy import PolicyLoss, policy_loss
from swift_rlhf.losses.tokens import Sum, discounted_sums, masked, next_values, wide


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float = 0.05) -> Tensor:
    """Return the reward of each token: `-kl_coef * kl`, and the score of the answer at its last token.

    Args:
        scores: reward of each answer, `[answers]`.
        kl: estimate at each token, such as k1, `[answers, tokens]`.
        mask: tokens that the policy wrote, `[answers, tokens]`.
        kl_coef: price of a nat.

    Returns:
        `[answers, tokens]`, 0 outside the mask, without gradient.
    """
    rewards = masked(-kl_coef * wide(kl).detach(), mask)
    positions = torch.arange(mask.shape[-1], device=mask.device)
    last = torch.where(mask.bool(), positions, -1).amax(-1, keepdim=True)
    return rewards + torch.where(positions == last, wide(scores).detach()[:, None], 0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Return generalized advantages and returns.

    `delta_t = r_t + gamma V_(t+1) - V_t`, `A_t = delta_t + gamma lam A_(t+1)`, returns `A + V`. The next token is the next one in
    the mask: observations between the turns of an answer are stepped over. The value after the last token is 0.

    Args:
        rewards: reward of each token, `[answers, tokens]`.
        values: what the value head expected at each token, `[answers, tokens]`.
        mask: tokens that the policy wrote, `[answers, tokens]`.
        gamma: discount for each token.
        lam: 0 trusts the values, 1 the rewards.

    Returns:
        advantages and returns, `[answers, tokens]` each, 0 outside the mask, without gradient.
    """
    rewards, values = wide(rewards).detach(), wide(values).detach()
    delta = masked(rewards + gamma * next_values(values, mask) - values, mask)
    advantages = discounted_sums(delta, mask, gamma * lam)
    return advantages, masked(advantages + values, mask)


def ppo_policy_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Return the clipped loss summed over tokens, with the token count as its weight.

    `max(-A rho, -A clip(rho, 1 - epsilon, 1 + epsilon_high))` and, with `dual_clip` c, at most `-c A` where A is negative (Ye et
    al. 2020).

    Args:
        logps: log-probability of each token, `[answers, tokens]`.
        old_logps: the same when the answers were sampled; None means now.
        advantages: `[answers, tokens]`, whitened over the whole step.
        mask: tokens that the policy wrote, `[answers, tokens]`.
        epsilon: how far a ratio may fall below 1.
        epsilon_high: how far it may rise above 1; as `epsilon` when left out.
        dual_clip: bound for negative advantages, above 1.
    """
    return policy_loss(
        logps, old_logps, advantages, mask, loss_type="dapo", epsilon=epsilon, epsilon_high=epsilon_high, dual_clip=dual_clip
    )


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, epsilon: float | None = 0.2) -> Sum:
    """Return `max((V - R)^2, (clip(V, V_old - epsilon, V_old + epsilon) - R)^2) / 2` summed over tokens, with their count.

    Args:
        values: of the value head now, `[answers, tokens]`.
        old_values: of the value head when the answers were sampled, `[answers, tokens]`.
        returns: from `gae`, `[answers, tokens]`.
        mask: tokens that the policy wrote, `[answers, tokens]`.
        epsilon: how far a value may move; None leaves it free.

    Raises:
        TrainingError: for an epsilon that is not positive.
    """
    if epsilon is not None and epsilon <= 0:
        raise TrainingError(f"cliprange_value {epsilon} is not positive", fix="for example 0.2, or none")
    values, old, returns = wide(values), wide(old_values).detach(), wide(returns).detach()
    squared = (values - returns).square()
    if epsilon is not None:
        squared = torch.maximum(squared, (old + (values - old).clamp(-epsilon, epsilon) - returns).square())
    return Sum(masked(squared, mask).sum() / 2, mask.sum().to(values.dtype))


def adapted_kl_coef(coef: float, kl: float, *, target: float, answers: int, horizon: int) -> float:
    """Return the price of a nat after a step, raised while the KL is above its target (Ziegler et al. 2019).

    `coef (1 + clip(kl / target - 1, -0.2, 0.2) answers / horizon)`.

    Args:
        coef: price in this step.
        kl: mean KL of the answers of this step, in nats per answer.
        target: where it should be.
        answers: how many answers the step had.
        horizon: over how many answers the price adapts.
    """
    return coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * answers / horizon)
