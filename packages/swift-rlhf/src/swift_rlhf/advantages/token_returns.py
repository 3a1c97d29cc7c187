"""Rewards that are priced or handed out token by token."""

from __future__ import annotations

from torch import Tensor

from swift_rlhf.losses.ppo import token_rewards
from swift_rlhf.losses.tokens import discounted_sums, masked, wide
from swift_rlhf.losses.whitening import whiten


def rewards_less_kl(rewards: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Return `R - kl_coef * sum over tokens of kl` of each answer, `[answers]`, without gradient.

    Args:
        rewards: `[answers]`; NaN stays NaN.
        kl: estimate at each token, such as k1, `[answers, tokens]`.
        mask: tokens that the policy wrote, `[answers, tokens]`.
        kl_coef: price of a nat.
    """
    return wide(rewards) - kl_coef * masked(wide(kl).detach(), mask).sum(-1)


def token_returns(rewards: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float, gamma: float = 1.0, totals: Tensor | None = None) -> Tensor:
    """Return whitened token advantages of REINFORCE++ (Hu 2025): what each token and the ones after it bring.

    `G_t = sum over s >= t of gamma^(s - t) r_s` with `r_s = -kl_coef * kl_s`, the reward at the last token added; then
    `(G - mean) / deviation` over all tokens.

    Args:
        rewards: of each answer, centred or not, `[answers]`; no NaN.
        kl: estimate at each token, `[answers, tokens]`.
        mask: tokens that the policy wrote, `[answers, tokens]`.
        kl_coef: price of a nat.
        gamma: discount for each token.
        totals: `moments` of the unwhitened returns over the whole step on all ranks; those of this call when left out.

    Returns:
        `[answers, tokens]`, 0 outside the mask.
    """
    returns = discounted_sums(token_rewards(rewards, kl, mask, kl_coef=kl_coef), mask, gamma)
    return whiten(returns, mask, totals=totals)
