"""From settings to what answers are written with."""

from __future__ import annotations

from typing import Any

from swift_core.templates.chat import ChatTemplate

from swift_rlhf.config.sampling import SamplingSection
from swift_rlhf.rollout.play import Limits
from swift_rlhf.rollout.sampling import Sampling


def sampling_of(section: SamplingSection) -> Sampling:
    """Return how tokens are drawn."""
    return Sampling(
        temperature=section.temperature,
        top_k=section.top_k,
        top_p=section.top_p,
        min_p=section.min_p,
        repetition_penalty=section.repetition_penalty,
        stop=tuple(section.stop_words),
    )


def stop_tokens(template: ChatTemplate) -> list[int]:
    """Return the tokens that end an answer."""
    eos: Any = template.tokenizer.eos_token_id
    return list(dict.fromkeys([*template.stop_token_ids, *([eos] if isinstance(eos, int) else [])]))


def limits_of(settings: Any) -> Limits:
    """Return where an episode is cut off."""
    section = settings.sampling
    scope = "per_turn" if settings.turns.completion_length_limit_scope == "per_round" else "total"
    return Limits(max_turns=section.max_turns, max_completion_length=section.max_completion_length, scope=scope)
