"""From losses of tokens to a loss of a step: what is summed, and what the sum is divided by."""

from __future__ import annotations

from typing import Literal

import torch
from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.tokens import Sum, masked, token_mean

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "fixed_length", "batch_token_mean"]
AGGREGATIONS: tuple[Aggregation, ...] = ("token_mean", "sequence_mean", "sequence_sum", "fixed_length", "batch_token_mean")


def aggregate(
    token_losses: Tensor,
    mask: Tensor,
    aggregation: Aggregation,
    *,
    max_completion_length: int | None = None,
    keep: Tensor | None = None,
) -> Sum:
    """Return the sum of token losses and its weight; the loss of a step is the sum of the sums over the sum of the weights.

    token_mean (DAPO): sum over tokens, weight tokens. sequence_mean (GRPO): sum of means over the tokens of an answer, weight
    answers. sequence_sum (LUSPO): sum over tokens, weight answers. fixed_length (Dr. GRPO): sum over tokens, weight answers times
    `max_completion_length`. batch_token_mean (BNPO): mean over the tokens of this call, weight its answers; the only one that
    depends on how a step is cut into micro-batches.

    `mask` says what counts, `keep` what carries loss: a token outside `keep` adds nothing but stays in the weight. An answer
    without any token in `mask` has no weight at all.

    Args:
        token_losses: `[answers, tokens]`, or `[answers, 1]` for one number for each token of an answer.
        mask: `[answers, tokens]`.
        aggregation: the rule.
        max_completion_length: tokens that an answer may have, for fixed_length.
        keep: `[answers, tokens]` or `[answers, 1]`, bool.

    Raises:
        TrainingError: for an unknown rule, or fixed_length without a length.
    """
    losses = token_losses.expand(mask.shape)
    if keep is not None:
        losses = masked(losses, keep.expand(mask.shape))
    losses = masked(losses, mask)
    weight = sample_weights(mask, aggregation, max_completion_length=max_completion_length).sum().to(losses.dtype)
    if aggregation == "sequence_mean":
        return Sum(token_mean(losses, mask).sum(), weight)
    if aggregation == "batch_token_mean":
        return Sum(losses.sum() / mask.sum().clamp_min(1) * weight, weight)
    return Sum(losses.sum(), weight)


def sample_weights(mask: Tensor, aggregation: Aggregation, *, max_completion_length: int | None = None) -> Tensor:
    """Return what each answer adds to the weight, `[answers, tokens] -> [answers]`, integers: known before any forward pass.

    Raises:
        TrainingError: for an unknown rule, or fixed_length without a length.
    """
    tokens = mask.sum(-1)
    if aggregation == "token_mean":
        return tokens
    if aggregation not in AGGREGATIONS:
        raise TrainingError(f"unknown aggregation {aggregation!r}", fix=", ".join(AGGREGATIONS))
    present = (tokens > 0).to(torch.long)
    if aggregation != "fixed_length":
        return present
    if max_completion_length is None or max_completion_length <= 0:
        raise TrainingError("fixed_length divides by the length an answer may have", fix="pass max_completion_length")
    return present * max_completion_length
