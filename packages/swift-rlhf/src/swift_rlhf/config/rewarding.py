"""What answers are rewarded for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from swift_core.config.fields import Section, option
from swift_core.errors import Problem


class RewardingSection(Section):
    """Reward options."""

    reward_funcs: list[str] = option([], "rewards: names (see `swift list rewards`), FILE.py:FUNCTION or MODULE:FUNCTION", basic=True)
    reward_model: list[str] = option(
        [],
        "reward models: folders or adapters of `swift rlhf --rlhf_type rm`, or sequence classifiers of a hub with one output",
        basic=True,
    )
    reward_weights: list[float] = option(
        [], "weight of each reward, --reward_funcs first and then --reward_model; default: 1 each", basic=True
    )
    reward_channels: dict[str, list[str]] = option({}, 'data sets that a reward holds for, as JSON: {"accuracy": ["gsm8k"]}; default: all')
    reward_timeout: float = option(60.0, "seconds that a reward may take for a batch, or for an answer where it runs in a process", gt=0)
    reward_on_error: Literal["fail", "nan"] = option("fail", "what a reward that raises does: stop the run, or leave its answer without it")
    reward_processes: int = option(2, "processes for rewards that keep a core busy", ge=1)
    reward_kwargs: dict[str, Any] = option({}, 'further settings of rewards, as JSON: {"judge_base_url": "http://127.0.0.1:8000/v1"}')
    cosine_min_len_value_wrong: float = option(-0.5, "reward cosine: of the shortest wrong answer")
    cosine_max_len_value_wrong: float = option(0.0, "reward cosine: of the longest wrong answer")
    cosine_min_len_value_correct: float = option(1.0, "reward cosine: of the shortest correct answer")
    cosine_max_len_value_correct: float = option(0.5, "reward cosine: of the longest correct answer")
    cosine_max_len: int | None = option(None, "reward cosine: the longest answer; default: --max_completion_length", ge=1)
    repetition_n_grams: int = option(3, "reward repetition: words of an n-gram", ge=1)
    repetition_max_penalty: float = option(-1.0, "reward repetition: of an answer that only repeats", le=0)
    soft_max_length: int | None = option(None, "reward soft_overlong: the longest answer; default: --max_completion_length", ge=1)
    soft_cache_length: int | None = option(None, "reward soft_overlong: tokens before the longest in which the reward falls", ge=1)

    def options(self, max_completion_length: int) -> dict[str, Any]:
        """Return the settings that rewards may ask for by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields if not name.startswith("reward_")}
        for name in ("cosine_max_len", "soft_max_length"):
            values[name] = values[name] or max_completion_length
        return {**values, **self.reward_kwargs}


def reward_problems(config: Any) -> Iterator[Problem]:
    """Yield what is missing for an algorithm that learns from rewards."""
    if hasattr(config, "data") and not config.rewarding.reward_funcs and not config.rewarding.reward_model:
        fix = "--reward_funcs accuracy, or my_rewards.py:my_function, or --reward_model FOLDER"
        yield Problem("--reward_funcs", "is missing", fix)
