"""Drawing tokens from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from so many likeliest tokens; 0 or less: from all.
        top_p: draw from the fewest tokens that have this share of the probability together.
        min_p: draw from tokens at least so likely, as a share of the likeliest one.
        repetition_penalty: logits of tokens that were seen are divided by this, or multiplied where they are negative.
        stop: texts that end an answer and are not part of it.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    @property
    def cuts(self) -> bool:
        """Say whether some tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw one token for each row.

    Args:
        logits: `[rows, vocab]`.
        uniform: numbers in [0, 1) that decide, `[rows]`.
        sampling: from which distribution.
        seen: tokens that the repetition penalty acts on, `[rows, vocab]`, bool.

    Returns:
        tokens `[rows]`, and the log-probability of each in nats under the distribution it was drawn from, `[rows]`, float32.
    """
    logits = logits.float()
    if seen is not None and sampling.repetition_penalty != 1:
        worse = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, worse, logits)
    if sampling.temperature == 0:
        best = logits.max(-1)
        return best.indices, best.values - logits.logsumexp(-1)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.cuts:
        logits = cut(logits, sampling)
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp_()
    # Sums of blocks first: a running sum over the whole vocabulary would take longer than all the rest and lose digits.
    blocks = pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)
    reached = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    total = reached[:, -1]
    goal = uniform.to(total) * total
    block = torch.searchsorted(reached, goal[:, None], right=True).clamp_max(reached.shape[1] - 1)
    rows = torch.arange(len(weights), device=weights.device)
    inner = blocks[rows, block[:, 0]].double()
    below = reached.gather(1, block)[:, 0] - inner.sum(-1)
    place = torch.searchsorted(inner.cumsum(-1), (goal - below)[:, None], right=True)[:, 0]
    # Rounding may point past the last token that has any weight.
    last = BLOCK - 1 - inner.gt(0).flip(-1).to(torch.uint8).argmax(-1)
    tokens = block[:, 0] * BLOCK + torch.minimum(place, last)
    return tokens, (logits.gather(1, tokens[:, None])[:, 0] - peak[:, 0] - total.log()).float()


def cut(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return logits with -inf where top_k, min_p and top_p, in this order, leave a token out."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.min_p > 0:
        least = logits.amax(-1, keepdim=True) + torch.tensor(sampling.min_p, device=logits.device).log()
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays when those before it have less than top_p: the likeliest one always does.
        out = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(out).scatter(1, order, out), -torch.inf)
    return logits
