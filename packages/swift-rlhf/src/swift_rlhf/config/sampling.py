"""How answers are sampled during a run."""

from __future__ import annotations

from swift_core.config.fields import Section, option


class SamplingSection(Section):
    """Sampling options."""

    max_completion_length: int = option(512, "most tokens of an answer", basic=True, ge=1)
    temperature: float = option(0.9, "divides the logits that answers are sampled from", basic=True, gt=0)
    top_k: int = option(-1, "draw from so many likeliest tokens; 0 or less: from all", ge=-1)
    top_p: float = option(1.0, "draw from the fewest tokens that have this share of the probability together", gt=0, le=1)
    min_p: float = option(0.0, "draw from tokens at least so likely, as a share of the likeliest one", ge=0, le=1)
    repetition_penalty: float = option(1.0, "make tokens that were seen less likely; 1 does nothing", gt=0)
    stop_words: list[str] = option([], "texts that end an answer, besides the end of a turn")
    rollout_batch_size: int = option(256, "answers that are written at the same time in this process", ge=1)
    use_vllm: bool = option(False, "let vLLM write the answers; not available yet")
