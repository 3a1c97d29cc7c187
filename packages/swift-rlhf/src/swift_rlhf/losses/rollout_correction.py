"""Correction for an engine whose probabilities differ from the trainer's (Yao et al. 2025; Liu et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.tokens import Sum, masked, token_mean, wide

CorrectionLevel = Literal["token", "sequence", "geometric"]
CorrectionMode = Literal["truncate", "mask"]
_LIMIT = 20.0


def rollout_weights(
    old_logps: Tensor,
    sampler_logps: Tensor,
    mask: Tensor,
    *,
    level: CorrectionLevel = "token",
    mode: CorrectionMode = "truncate",
    upper: float = 2.0,
    lower: float | None = None,
) -> Tensor:
    """Return the factor of each token's policy loss, without gradient.

    With `w_t = p_old / mu` of tokens: token is `w_t`, sequence the product over the answer, geometric its geometric mean. truncate
    cuts a factor to `[lower, upper]`, mask puts 0 outside of it. Logarithms are cut to +-20 first. A token without a sampler
    log-probability (NaN) counts as `w_t = 1`.

    Args:
        old_logps: under the trainer's weights at sampling time, `[answers, tokens]`.
        sampler_logps: as the engine gave them, `[answers, tokens]`.
        mask: tokens that the policy wrote, `[answers, tokens]`.
        level: whose ratio it is.
        mode: what happens outside the bounds.
        upper: largest factor.
        lower: smallest factor; none when left out.

    Returns:
        `[answers, tokens]` for token, with 1 outside the mask, else `[answers, 1]`.

    Raises:
        TrainingError: for an unknown level or mode, or bounds that leave nothing.
    """
    if level not in ("token", "sequence", "geometric") or mode not in ("truncate", "mask"):
        raise TrainingError(f"unknown rollout correction {level!r} {mode!r}", fix="token, sequence or geometric; truncate or mask")
    if upper < 1 or (lower is not None and not 0 <= lower <= 1):
        raise TrainingError(f"bounds {lower} to {upper} do not hold 1", fix="an upper bound such as 2, a lower one such as 0.5 or none")
    ratios = _log_weights(old_logps, sampler_logps, mask)
    if level != "token":
        ratios = (ratios.sum(-1) if level == "sequence" else token_mean(ratios, mask))[:, None]
    factors = ratios.clamp(-_LIMIT, _LIMIT).exp()
    least = 0.0 if lower is None else lower
    if mode == "truncate":
        return factors.clamp(least, upper)
    return torch.where((factors < least) | (factors > upper), 0, factors)


def rollout_diagnostics(old_logps: Tensor, sampler_logps: Tensor, mask: Tensor, weights: Tensor | None = None) -> dict[str, Sum]:
    """Return how far engine and trainer are apart, as sums and weights to add up over the step; `named_diagnostics` ends it.

    Args:
        old_logps: under the trainer's weights at sampling time, `[answers, tokens]`.
        sampler_logps: as the engine gave them, `[answers, tokens]`.
        mask: tokens that the policy wrote, `[answers, tokens]`.
        weights: from `rollout_weights`, to say what the bounds did.
    """
    mask = mask.bool() & ~sampler_logps.isnan()
    ratios = _log_weights(old_logps, sampler_logps, mask)
    old, sampler = masked(wide(old_logps.detach()), mask), masked(wide(sampler_logps.detach()), mask)
    tokens, present = mask.sum().to(ratios.dtype), mask.any(-1)
    answers = present.sum().to(ratios.dtype)
    token_weights, answer_weights = ratios.clamp(-_LIMIT, _LIMIT).exp(), ratios.sum(-1).clamp(-_LIMIT, _LIMIT).exp()
    sums = {
        "kl": Sum(-ratios.sum(), tokens),
        "k3_kl": Sum(masked(token_weights - 1 - ratios, mask).sum(), tokens),
        "training_log_ppl": Sum(-token_mean(old, mask).sum(), answers),
        "rollout_log_ppl": Sum(-token_mean(sampler, mask).sum(), answers),
        "token_weight": Sum(masked(token_weights, mask).sum(), tokens),
        "token_weight_squared": Sum(masked(token_weights.square(), mask).sum(), tokens),
        "sequence_weight": Sum(masked(answer_weights, present).sum(), answers),
        "sequence_weight_squared": Sum(masked(answer_weights.square(), present).sum(), answers),
    }
    if weights is not None:
        by_token = weights.shape[-1] != 1
        where = mask if by_token else present[:, None]
        plain = token_weights if by_token else None
        sums["used_weight"] = Sum(masked(weights, where).sum(), tokens if by_token else answers)
        changed = weights == 0 if plain is None else (weights - plain).abs() > 1e-6 * plain
        sums["bounded_frac" if by_token else "masked_frac"] = Sum((changed & where).sum().to(ratios.dtype), tokens if by_token else answers)
    return sums


def named_diagnostics(means: Mapping[str, float]) -> dict[str, float]:
    """Return the log entries from the means over the step of what `rollout_diagnostics` returned.

    `kl` is that of the sampler from the trainer's policy by k1, `k3_kl` by k3, `chi2_*` is `E[w^2] - 1`, `ess_*` the effective
    share of samples `E[w]^2 / E[w^2]`, `ppl_ratio` training over rollout perplexity.
    """
    named = {f"rollout_correction/{name}": means[name] for name in ("kl", "k3_kl")}
    training, rollout = means["training_log_ppl"], means["rollout_log_ppl"]
    named |= {
        "rollout_correction/training_ppl": math.exp(min(training, 80)),
        "rollout_correction/rollout_ppl": math.exp(min(rollout, 80)),
        "rollout_correction/log_ppl_diff": training - rollout,
        "rollout_correction/ppl_ratio": math.exp(max(min(training - rollout, 80), -80)),
    }
    for level in ("token", "sequence"):
        mean, square = means[f"{level}_weight"], means[f"{level}_weight_squared"]
        named[f"rollout_correction/chi2_{level}"] = square - 1
        named[f"rollout_correction/ess_{level}"] = mean * mean / square if square else 0.0
    for name in ("used_weight", "bounded_frac", "masked_frac"):
        if name in means:
            named[f"rollout_correction/{name}"] = means[name]
    return named


def _log_weights(old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
    return masked(torch.nan_to_num(wide(old_logps.detach()) - wide(sampler_logps.detach()), 0.0, _LIMIT, -_LIMIT), mask)
