"""Objectives of the GRPO family: what a token adds, given its ratio and the advantage of its answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swift_rlhf.losses.tokens import LOG_LIMIT, discounted_sums, masked, token_mean

VESPO_LOW = math.log(1e-8)


def clipped(
    ratios: Tensor,
    advantages: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    *,
    delta: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Return `-min(rho A, clip(rho, low, high) A)` (PPO, Schulman et al. 2017), `[answers, tokens]`.

    With `delta` (INTELLECT-2, 2025) the free ratio is cut at it; with `dual_clip` c the loss of a negative advantage is at most
    `-c A` (Ye et al. 2020).
    """
    free = ratios if delta is None else ratios.clamp_max(delta)
    bound = torch.as_tensor(low, dtype=ratios.dtype, device=ratios.device), torch.as_tensor(high, dtype=ratios.dtype, device=ratios.device)
    losses = -torch.minimum(free * advantages, ratios.clamp(*bound) * advantages)
    return losses if dual_clip is None else torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)


def cispo(ratios: Tensor, advantages: Tensor, logps: Tensor, *, cap: float) -> Tensor:
    """Return `-min(rho, cap) A log p` with a constant ratio (MiniMax-M1, 2025): every token keeps a gradient."""
    return -ratios.detach().clamp_max(cap) * advantages * logps


def sapo(ratios: Tensor, advantages: Tensor, *, tau_pos: float, tau_neg: float) -> Tensor:
    """Return `-A s(tau (rho - 1)) 4 / tau` (SAPO, Gao et al. 2025), with a tau for each sign of the advantage."""
    tau = torch.where(advantages > 0, tau_pos, tau_neg).to(ratios.dtype)
    return -advantages * (tau * (ratios - 1)).sigmoid() * 4 / tau


def vespo(
    token_log_ratios: Tensor,
    advantages: Tensor,
    logps: Tensor,
    mask: Tensor,
    weights: Tensor | None,
    *,
    positive: tuple[float, float],
    negative: tuple[float, float],
) -> Tensor:
    """Return `-phi(W) A log p`, with a constant `phi(w) = w^k e^(lam (1 - w))` of the answer's whole ratio W (VESPO, 2026).

    Args:
        token_log_ratios: `[answers, tokens]`.
        advantages: `[answers, 1]` or `[answers, tokens]`.
        logps: `[answers, tokens]`.
        mask: `[answers, tokens]`.
        weights: rollout corrections, which become a part of W.
        positive: k and lam where the advantage is not negative.
        negative: k and lam where it is.
    """
    total = masked(token_log_ratios.detach().clamp(-20, 20), mask).sum(-1, keepdim=True)
    if weights is not None:
        per_token = weights.detach().log().clamp(VESPO_LOW, 20)
        total = total + (per_token if weights.shape[-1] == 1 else masked(per_token, mask).sum(-1, keepdim=True))
    return -vespo_phi(total.clamp(VESPO_LOW, 20), advantages, positive=positive, negative=negative) * advantages * logps


def vespo_phi(log_weights: Tensor, advantages: Tensor, *, positive: tuple[float, float], negative: tuple[float, float]) -> Tensor:
    """Return `phi(e^x)`, 1 at x = 0."""
    power = torch.where(advantages >= 0, positive[0], negative[0]).to(log_weights.dtype)
    decay = torch.where(advantages >= 0, positive[1], negative[1]).to(log_weights.dtype)
    return (decay + power * log_weights - decay * log_weights.exp()).exp()


def fipo_weights(
    token_log_ratios: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    half_life: float,
    clip_range: float,
    high_only: bool,
    safety: float,
) -> Tensor:
    """Return what a token's future says about it, as a constant factor of its loss, `[answers, tokens]` (FIPO, 2026).

    `clip(exp(sum over s >= t of g^(s - t) log rho_s), low, 1 + clip_range)` with `g = 2^(-1 / half_life)` and low 1, or
    `1 - clip_range` unless `high_only`. Where the advantage is negative and the token's own ratio is above `safety`, the factor is
    cut to `[1 - clip_range, 1]`.
    """
    own = token_log_ratios.detach()
    future = discounted_sums(own, mask, 2 ** (-1 / half_life)).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
    factors = future.clamp(1.0 if high_only else 1 - clip_range, 1 + clip_range)
    risky = (advantages < 0) & (own.exp() > safety)
    return torch.where(risky, factors.clamp(1 - clip_range, 1), factors)


def gmpo(token_log_ratios: Tensor, advantages: Tensor, mask: Tensor, *, low: float, high: float) -> Tensor:
    """Return `-A exp(mean of clipped log-ratios)` of each answer, `[answers, 1]` (GMPO, Zhao et al. 2025).

    Log-ratios are cut to `[-low, high]` on the side where the advantage would profit from going further.
    """
    cut = token_log_ratios.clamp(-low, high)
    kept = torch.where(advantages > 0, torch.minimum(token_log_ratios, cut), torch.maximum(token_log_ratios, cut))
    some = mask.bool().any(-1, keepdim=True)
    return torch.where(some, -advantages * token_mean(kept, mask)[:, None].exp(), 0)


def real(sequence_log_ratios: Tensor, advantages: Tensor, group_ids: Tensor, present: Tensor, *, tau: float) -> tuple[Tensor, Tensor]:
    """Return the loss of each group and its number of groups (REAL, 2026): answers of a group are told apart by their log-ratios.

    `log(1 + sum over negative of e^(S / tau)) + log(1 + sum over positive of e^(-S / tau))`, 0 for groups without both signs.

    Args:
        sequence_log_ratios: mean log-ratio S of each answer, `[answers]`.
        advantages: `[answers]`; only the sign matters.
        group_ids: prompt of each answer, `[answers]`; a group must be whole.
        present: answers that have tokens, `[answers]`, bool.
        tau: temperature.

    Returns:
        losses `[groups]`, and how many groups have a present answer, scalar.
    """
    groups, index = group_ids.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(index, len(groups)).bool() & present[:, None]
    positive, negative = member & (advantages > 0)[:, None], member & (advantages < 0)[:, None]
    both = positive.any(0) & negative.any(0)
    scaled = (sequence_log_ratios / tau)[:, None].expand(member.shape)
    zero = torch.zeros(1, len(groups), dtype=scaled.dtype, device=scaled.device)

    def softplus_sum(values: Tensor, of: Tensor) -> Tensor:
        return torch.cat([zero, values.masked_fill(~of, -torch.inf)]).logsumexp(0)

    losses = softplus_sum(scaled, negative) + softplus_sum(-scaled, positive)
    return torch.where(both, losses, 0), member.any(0).sum()
