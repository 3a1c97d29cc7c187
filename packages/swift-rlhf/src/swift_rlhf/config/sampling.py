"""How answers are sampled during a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swift_core.config.fields import Section, option
from swift_core.errors import Problem


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
    max_turns: int = option(1, "answers of the model in an episode, for --multi_turn_scheduler", ge=1)
    multi_turn_scheduler: str | None = option(
        None, "who answers the model: a name (see `swift list schedulers`), FILE.py:CLASS or MODULE:CLASS of a Scheduler; default: nobody"
    )
    log_completions: bool = option(True, "write prompts, answers, rewards and advantages to completions.jsonl in the run folder")
    use_vllm: bool = option(False, "let vLLM write the answers, see --vllm_mode")


def rollout_problems(config: Any) -> Iterator[Problem]:
    """Yield the settings that do not go with answers that are written during the run."""
    sampling = config.sampling
    if config.training.packing:
        yield Problem("--packing", "answers lie side by side without padding anyway", "remove it")
    if hasattr(config, "data"):  # Python code may bring a scheduler of its own
        if sampling.max_turns > 1 and sampling.multi_turn_scheduler is None:
            yield Problem("--max_turns", "nobody answers the model", "add --multi_turn_scheduler tools, or FILE.py:CLASS")
        if config.data.streaming:
            yield Problem("--streaming", "prompts are drawn again in every epoch", "remove it")
        if config.encoding.cached_dataset:
            yield Problem("--cached_dataset", "holds encoded conversations, and this algorithm needs prompts", "use --dataset")
