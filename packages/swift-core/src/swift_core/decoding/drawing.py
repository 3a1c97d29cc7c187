"""Drawing the next token of many rows at once, each in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

# A running sum over the whole vocabulary would take longer than all the rest and lose digits: sums of blocks come first.
BLOCK = 256
# Tokens among which the nucleus of top_p is looked for before the whole vocabulary is sorted.
CANDIDATES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How the tokens of a row are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from so many likeliest tokens; 0 or less: from all.
        top_p: draw from the fewest tokens that have this share of the probability together.
        min_p: draw from tokens at least so likely, as a share of the likeliest one.
        repetition_penalty: logits of tokens in prompt or answer are divided by this, or multiplied where they are negative.
        presence_penalty, frequency_penalty: taken from the logits of tokens in the answer, once or for each time.
        logit_bias: token id -> number added to its logit.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])

    @property
    def cuts(self) -> bool:
        """Say whether some tokens are never drawn."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def edits(self) -> bool:
        """Say whether logits change with what was written, or token by token."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return penalties or bool(self.logit_bias)


class Edits:
    """The penalties and biases of one row.

    Args:
        drawing: the row's settings.
        prompt_ids: tokens that the repetition penalty counts as seen.
        vocabulary: number of logits.
        device: where the logits are.
    """

    def __init__(self, drawing: Drawing, prompt_ids: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self._drawing = drawing
        self._counts = torch.zeros(vocabulary, device=device)
        self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._seen[torch.tensor(list(prompt_ids), dtype=torch.long, device=device)] = True
        bias = {token: value for token, value in drawing.logit_bias.items() if 0 <= token < vocabulary}
        self._biased = torch.tensor(list(bias), dtype=torch.long, device=device)
        self._bias = torch.tensor(list(bias.values()), device=device)

    def apply(self, logits: Tensor) -> None:
        """Change the logits `[vocab]` of the next token in place."""
        settings = self._drawing
        if settings.repetition_penalty != 1:
            penalty = settings.repetition_penalty
            lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
            torch.where(self._seen, lowered, logits, out=logits)
        if settings.frequency_penalty:
            logits -= self._counts * settings.frequency_penalty
        if settings.presence_penalty:
            logits -= (self._counts > 0) * settings.presence_penalty
        if len(self._biased):
            logits[self._biased] += self._bias

    def push(self, token: int) -> None:
        """Count a token that was written."""
        self._counts[token] += 1
        self._seen[token] = True


def draw(logits: Tensor, uniform: Tensor, drawings: Sequence[Drawing]) -> tuple[Tensor, Tensor]:
    """Draw one token for each row.

    Args:
        logits: `[rows, vocab]`, float32; penalties are in them already.
        uniform: numbers in [0, 1) that decide, `[rows]`.
        drawings: from which distribution, one for each row.

    Returns:
        tokens `[rows]`, and logits whose softmax is the distribution that each was drawn from, `[rows, vocab]`: -inf where a token
        was left out, untouched where the likeliest token was taken.
    """
    greedy = [drawing.temperature == 0 for drawing in drawings]
    if all(greedy):
        return logits.argmax(-1), logits
    heat = torch.tensor([drawing.temperature or 1.0 for drawing in drawings], device=logits.device)
    if not all(drawing.temperature in (0, 1) for drawing in drawings):
        logits = logits / heat[:, None]
    if any(drawing.cuts for drawing in drawings):
        logits = cut(logits, drawings)
    tokens = inverse(logits, uniform)
    if any(greedy):
        tokens = torch.where(torch.tensor(greedy, device=tokens.device), logits.argmax(-1), tokens)
    return tokens, logits


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of one token for each row, `[rows]`, in nats."""
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def inverse(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the token `[rows]` at which the running sum of each row's probabilities passes its number."""
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    blocks = pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)
    reached = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    goal = uniform.to(reached) * reached[:, -1]
    block = torch.searchsorted(reached, goal[:, None], right=True).clamp_max(reached.shape[1] - 1)
    rows = torch.arange(len(weights), device=weights.device)
    inner = blocks[rows, block[:, 0]].double()
    below = reached.gather(1, block)[:, 0] - inner.sum(-1)
    place = torch.searchsorted(inner.cumsum(-1), (goal - below)[:, None], right=True)[:, 0]
    # Rounding may point past the last token that has any weight.
    last = BLOCK - 1 - inner.gt(0).flip(-1).to(torch.uint8).argmax(-1)
    return block[:, 0] * BLOCK + torch.minimum(place, last)


def cut(logits: Tensor, drawings: Sequence[Drawing]) -> Tensor:
    """Return logits with -inf where top_k, min_p and top_p, in this order, leave a token out."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=logits.dtype)[:, None]

    vocabulary = logits.shape[-1]
    counts = [drawing.top_k if 0 < drawing.top_k < vocabulary and drawing.temperature else vocabulary for drawing in drawings]
    if min(counts) < vocabulary:
        most = max(count for count in counts if count < vocabulary)
        ordered = logits.topk(most, -1).values
        at = torch.tensor([min(count, most) - 1 for count in counts], device=logits.device)[:, None]
        free = torch.tensor([count == vocabulary for count in counts], device=logits.device)[:, None]
        logits = logits.masked_fill((logits < ordered.gather(1, at)) & ~free, -torch.inf)
    shares = [drawing.min_p if drawing.temperature else 0.0 for drawing in drawings]
    if max(shares) > 0:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + column(shares).log(), -torch.inf)
    masses = [drawing.top_p if drawing.temperature else 1.0 for drawing in drawings]
    return _nucleus(logits, column(masses)) if min(masses) < 1 else logits


def _nucleus(logits: Tensor, mass: Tensor) -> Tensor:
    """Return logits with -inf behind the likeliest tokens that have `mass` `[rows, 1]` together; 1 leaves a row as it is."""
    total = logits.logsumexp(-1, keepdim=True)
    count = min(CANDIDATES, logits.shape[-1])
    ordered = logits.topk(count, -1).values
    probabilities = (ordered - total).exp()
    if bool(((probabilities.sum(-1, keepdim=True) < mass) & (mass < 1)).any()):
        ordered = logits.sort(-1, descending=True).values
        probabilities = (ordered - total).exp()
    # A token stays when those before it have less than the mass: the likeliest one always does.
    stays = probabilities.cumsum(-1) - probabilities < mass
    least = ordered.masked_fill(~stays, torch.inf).amin(-1, keepdim=True)
    return logits.masked_fill((logits < least) & (mass < 1), -torch.inf)
