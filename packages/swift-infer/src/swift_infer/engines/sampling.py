"""What a request's settings mean for one model."""

from __future__ import annotations

import random
from typing import Any

from swift_core.decoding.drawing import Drawing
from swift_core.protocols import RequestConfig

# What a model's generation_config may ask for beside sampling. Transformers' generate does it, our own decoding does not.
_SPECIAL = (
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id"),
    *("no_repeat_ngram_size", "exponential_decay_length_penalty", "guidance_scale", "typical_p", "epsilon_cutoff", "eta_cutoff"),
)
_NEUTRAL = (None, 0, 0.0, 1.0, [], ())


def resolve_drawing(request: RequestConfig, own: Any) -> Drawing:
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
    return Drawing(
        temperature=float(temperature),
        top_k=int(value(request.top_k, "top_k", 0)),
        top_p=float(value(request.top_p, "top_p", 1.0)),
        min_p=float(value(request.min_p, "min_p", 0.0)),
        repetition_penalty=float(value(request.repetition_penalty, "repetition_penalty", 1.0)),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=dict(request.logit_bias or {}),
    )


def special_wishes(own: Any) -> list[str]:
    """Return what a model's `GenerationConfig` asks for that only transformers' generate does."""
    return [name for name in _SPECIAL if getattr(own, name, None) not in _NEUTRAL]


def row_seed(seed: int | None, index: int) -> int:
    """Return the seed of answer number `index` to one request; a random one where no seed is given."""
    if seed is None:
        return random.SystemRandom().getrandbits(63)
    return (seed + index * 0x9E3779B97F4A7C15) % 2**63
