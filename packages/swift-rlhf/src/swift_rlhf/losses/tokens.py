"""Numbers of single tokens: layout, sums over answers, and discounted sums along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from swift_core.errors import TrainingError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

LOG_LIMIT = 80.0
"""Exponents above this are cut: e^80 is still a float32 number."""


class Sum(NamedTuple):
    """A sum and what it is to be divided by, both scalars, so that a mean can span micro-batches and ranks.

    Add up `total` and `weight` over all micro-batches of all ranks, then divide. Only `total` carries a gradient.
    """

    total: Tensor
    weight: Tensor

    def mean(self) -> Tensor:
        """Return the mean of this call alone, 0 when nothing was counted."""
        return self.total / torch.where(self.weight == 0, 1, self.weight)


def wide(values: Tensor) -> Tensor:
    """Return float32 or wider: differences of sums of hundreds of log-probabilities would have no digits left in half precision."""
    return values if values.element_size() >= 4 else values.float()


def padded(values: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return packed token values as one row for each answer, with the mask of real tokens.

    Args:
        values: the tokens of all answers one after another, `[tokens]`.
        lengths: how many of them each answer has.

    Returns:
        values `[answers, longest]` with 0 on the right, and the mask `[answers, longest]`, bool.

    Raises:
        TrainingError: when the lengths do not add up to the values.
    """
    if sum(lengths) != len(values):
        raise TrainingError(f"lengths add up to {sum(lengths)}, values are {len(values)}", fix="one length for each answer")
    rows = pad_sequence(list(values.split(list(lengths))), batch_first=True)
    counts = torch.tensor(lengths, device=values.device)
    return rows, torch.arange(rows.shape[1], device=values.device) < counts[:, None]


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Return values with 0 outside the mask, even where they are NaN or infinite there."""
    return torch.where(mask.bool(), values, 0)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each row over its mask, `[answers, tokens] -> [answers]`; 0 for a row without tokens."""
    return masked(values, mask).sum(-1) / mask.sum(-1).clamp_min(1)


def sequence_logps(token_logps: Tensor, mask: Tensor) -> Tensor:
    """Return the log-probability of each answer in nats, `[answers, tokens] -> [answers]`."""
    return masked(wide(token_logps), mask).sum(-1)


def desensitized_logps(token_logps: Tensor, mask: Tensor, shared: Tensor, *, alpha: float) -> Tensor:
    """Return log-probabilities in which tokens past the length of the shorter answer count less (LD-DPO, Liu et al. 2024).

    `sum of the first shared tokens + alpha * sum of the rest`; 1 is the plain sum, 0 leaves the rest out, the paper uses 0.5.
    Use it for the policy and for the reference alike.

    Args:
        token_logps: `[answers, tokens]`.
        mask: tokens that count, `[answers, tokens]`.
        shared: tokens of the shorter answer of the pair that each answer belongs to, `[answers]`.
        alpha: weight of the rest, in [0, 1].

    Returns:
        `[answers]`.

    Raises:
        TrainingError: for an alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise TrainingError(f"ld_alpha {alpha} is outside [0, 1]", fix="for example 0.5")
    past = mask.cumsum(-1) > shared[:, None]
    return (masked(wide(token_logps), mask) * torch.where(past, alpha, 1.0)).sum(-1)


def wpo_weights(token_logps: Tensor, log_sum_sq_probs: Tensor, mask: Tensor) -> Tensor:
    """Return how likely the policy itself is to write each answer, as a weight without gradient (WPO, Zhou et al. 2024).

    `exp(mean over tokens of (log p(token) - log sum_v p(v)^2))`: 1 for an answer as likely as a sampled one. The weight of a
    pair is the product of both.

    Args:
        token_logps: `[answers, tokens]`.
        log_sum_sq_probs: `log sum_v p(v)^2` at each token, that is `lse(2 z) - 2 lse(z)` of its logits, `[answers, tokens]`.
        mask: tokens that count, `[answers, tokens]`.

    Returns:
        `[answers]`.
    """
    return token_mean(wide(token_logps) - wide(log_sum_sq_probs), mask).exp().detach()


def discounted_sums(values: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Return for each token the discounted sum of itself and the tokens after it, `y_t = x_t + discount * y_(t+1)`.

    Tokens outside the mask are stepped over: they add nothing and cost no discount.

    Args:
        values: `[answers, tokens]`.
        mask: tokens that count, `[answers, tokens]`.
        discount: factor for each token of distance, in [0, 1].

    Returns:
        `[answers, tokens]`, 0 outside the mask.
    """
    order, back = _mask_first(mask)
    sums = masked(values, mask).gather(-1, order)
    reach, factor = 1, discount
    # Doubling: after each pass a token holds the sum of twice as many of its followers.
    while reach < sums.shape[-1]:
        sums = torch.cat([sums[:, :-reach] + factor * sums[:, reach:], sums[:, -reach:]], dim=-1)
        reach, factor = reach * 2, factor * factor
    return masked(sums.gather(-1, back), mask)


def next_values(values: Tensor, mask: Tensor) -> Tensor:
    """Return for each token the value of the next token in the mask, `[answers, tokens]`; 0 after the last and outside the mask."""
    order, back = _mask_first(mask)
    shifted = torch.nn.functional.pad(masked(values, mask).gather(-1, order)[:, 1:], (0, 1))
    return masked(shifted.gather(-1, back), mask)


def _mask_first(mask: Tensor) -> tuple[Tensor, Tensor]:
    order = (~mask.bool()).to(torch.uint8).argsort(dim=-1, stable=True)
    return order, order.argsort(dim=-1)
