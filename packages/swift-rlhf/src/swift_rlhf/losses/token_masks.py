"""Which tokens carry the policy loss."""

from __future__ import annotations

import torch
from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.tokens import token_mean, wide


def entropy_threshold(entropies: Tensor, mask: Tensor, *, top: float) -> Tensor:
    """Return the entropy that the `top` share of tokens reach, scalar (Wang et al. 2025 use 0.2).

    Give it the tokens of the whole optimizer step on all ranks, so that the choice does not depend on micro-batches.

    Args:
        entropies: in nats, any shape.
        mask: what counts, same shape.
        top: share of tokens, in (0, 1].

    Raises:
        TrainingError: for a share outside (0, 1].
    """
    if not 0 < top <= 1:
        raise TrainingError(f"top_entropy_quantile {top} is outside (0, 1]", fix="for example 0.2; 1 keeps all tokens")
    kept = wide(entropies.detach())[mask.bool()]
    if not len(kept):
        return torch.tensor(torch.inf, dtype=kept.dtype, device=kept.device)
    # kthvalue rather than quantile(), which refuses more than 16 million values.
    rank = (1 - top) * (len(kept) - 1)
    below, above = (kept.kthvalue(int(place) + 1).values for place in (rank, -(-rank // 1)))
    return below + (above - below) * (rank % 1)


def entropy_mask(entropies: Tensor, mask: Tensor, threshold: Tensor | float) -> Tensor:
    """Return the tokens of the mask whose entropy is at least the threshold: a `keep` for `policy_loss`, bool, same shape."""
    return (wide(entropies.detach()) >= threshold) & mask.bool()


def off_policy_sequence_mask(logps: Tensor, sampler_logps: Tensor, advantages: Tensor, mask: Tensor, *, delta: float) -> Tensor:
    """Return the answers to keep, `[answers, 1]`, bool: bad ones that the policy has moved away from are dropped (DeepSeek-V3.2, 2025).

    Dropped is an answer with a negative advantage and `mean over tokens of (log mu - log p) > delta`. The result is a `keep` for
    `policy_loss`: dropped answers stay in the weight. Tokens whose sampler log-probability is NaN say nothing.

    Args:
        logps: under the policy now, `[answers, tokens]`.
        sampler_logps: under the policy that sampled, of the engine where it gives them, `[answers, tokens]`.
        advantages: of each answer, `[answers]`.
        mask: tokens that count, `[answers, tokens]`.
        delta: bound in nats per token; 0.5 to start with.
    """
    moved = (wide(sampler_logps) - wide(logps)).detach()
    distance = token_mean(torch.nan_to_num(moved), mask)
    return ((advantages >= 0) | (distance <= delta))[:, None]


def without_truncated(mask: Tensor, truncated: Tensor) -> Tensor:
    """Return the mask without answers that were cut off at the length limit (overlong filter of DAPO), bool.

    Those answers lose their weight as well: they neither train nor thin out the others.

    Args:
        mask: `[answers, tokens]`.
        truncated: `[answers]`, bool.
    """
    return mask.bool() & ~truncated.bool()[:, None]
