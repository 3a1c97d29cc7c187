"""From settings to what answers are written with."""

from __future__ import annotations

from typing import Any

from swift_core.plugins import load_plugin_files
from swift_core.registry import import_target
from swift_core.templates.chat import ChatTemplate

from swift_rlhf.config.sampling import SamplingSection
from swift_rlhf.rollout.sampling import Sampling
from swift_rlhf.rollout.schedulers import Scheduler


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


def load_scheduler(reference: str | None) -> Scheduler | None:
    """Return what plays the other side: FILE.py:CLASS or MODULE:CLASS, or None where nobody does."""
    if reference is None:
        return None
    place, _, attribute = reference.rpartition(":")
    module = load_plugin_files([place])[0] if place.endswith(".py") else place
    return import_target(f"{module}:{attribute}", needed_for="--multi_turn_scheduler")()
