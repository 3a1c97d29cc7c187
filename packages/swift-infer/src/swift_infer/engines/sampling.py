"""Choosing the next token, row by row, independent of what else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from swift_core.protocols import RequestConfig
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 keeps all tokens.
        top_p, min_p: shares of probability; 1 and 0 keep all tokens.
        repetition_penalty: 1 is none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        """Say whether the likeliest token is taken."""
        return self.temperature == 0


def resolve_sampling(request: RequestConfig, own: Any) -> Sampling:
    """Return the request's values, and where it has none the model's own.

    Args:
        request: how to answer.
        own: the model's `GenerationConfig`, or None.
    """

    def value(given: float | None, name: str, default: float) -> float:
        if given is not None:
            return given
        found = getattr(own, name, None)
        return default if found is None else found

    # A model that does not ask for sampling is greedy, whatever temperature its file happens to hold.
    samples = request.temperature is not None or getattr(own, "do_sample", None)
    temperature = value(request.temperature, "temperature", 1.0) if samples else 0.0
    return Sampling(
        temperature=float(temperature),
        top_k=int(value(request.top_k, "top_k", 0)),
        top_p=float(value(request.top_p, "top_p", 1.0)),
        min_p=float(value(None, "min_p", 0.0)),
        repetition_penalty=float(value(request.repetition_penalty, "repetition_penalty", 1.0)),
    )


def processors(sampling: Sampling, prompts: Sequence[Sequence[int]], seeds: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """Return the steps from logits to scores whose arg max is the next token.

    Args:
        sampling: how tokens are drawn.
        prompts: token ids of each row, without padding.
        seeds: seed of each row.
        device: where the scores are.
    """
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        steps.append(RepetitionPenalty(sampling.repetition_penalty, prompts))
    if sampling.greedy:
        return steps
    if sampling.temperature != 1.0:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k > 0:
        steps.append(TopKLogitsWarper(top_k=sampling.top_k))
    if sampling.top_p < 1.0:
        steps.append(TopPLogitsWarper(top_p=sampling.top_p))
    if sampling.min_p > 0.0:
        steps.append(MinPLogitsWarper(min_p=sampling.min_p))
    steps.append(GumbelNoise(seeds, device))
    return steps


def row_seed(seed: int | None, index: int) -> int:
    """Return the seed of answer number `index` to one request; a random one where no seed is given."""
    if seed is None:
        return random.SystemRandom().getrandbits(63)
    return (seed + index * 0x9E3779B97F4A7C15) % 2**63


class RepetitionPenalty(LogitsProcessor):
    """Lowers the score of tokens that a row holds already.

    The one in transformers also counts padding, so that a row's answer would depend on how long its neighbours are.
    """

    def __init__(self, penalty: float, prompts: Sequence[Sequence[int]]) -> None:
        self._penalty = penalty
        self._prompts = prompts
        self._seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """Return the scores [rows, vocabulary] after the penalty."""
        if self._seen is None:
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
            for row, prompt in enumerate(self._prompts):
                self._seen[row, torch.tensor(list(prompt), device=scores.device, dtype=torch.long)] = True
        else:
            self._seen.scatter_(1, input_ids[:, -1:], True)
        lowered = torch.where(scores > 0, scores / self._penalty, scores * self._penalty)
        return torch.where(self._seen, lowered, scores)


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise, so that the arg max of the scores is a draw from their softmax.

    Each row has a generator of its own: its answer depends on its seed only, and the global generator stays untouched.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """Return the scores [rows, vocabulary] plus noise."""
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_()
