"""The rewards that a run asked for: functions, reward models, and functions that Python code brings."""

from __future__ import annotations

from typing import Any

from swift_core.errors import ConfigError, Problem

from swift_rlhf.rewards.functions import Reward, make_rewards
from swift_rlhf.rewards.pool import RewardPool


def reward_pool(functions: Any, settings: Any) -> RewardPool:
    """Return the rewards of a run.

    Args:
        functions: one or several, as callables or as what `--reward_funcs` takes, besides those of the settings.
        settings: of the run.

    Raises:
        ConfigError: for weights that do not fit, and rewards that cannot be made.
        ModelError: when a reward model cannot be loaded.
    """
    section = settings.rewarding
    return RewardPool(
        _rewards(functions, settings),
        on_error=section.reward_on_error,
        processes=section.reward_processes,
        plugin_files=settings.launch.external_plugins,
    )


def _rewards(given: Any, settings: Any) -> list[Reward]:
    section = settings.rewarding
    functions = list(given) if isinstance(given, list | tuple) else [given]
    references = [*section.reward_funcs, *(each for each in functions if isinstance(each, str))]
    own = [(getattr(each, "__name__", type(each).__name__), each) for each in functions if not isinstance(each, str)]
    count = len(references) + len(section.reward_model) + len(own)
    weights = list(section.reward_weights) or [1.0] * count
    if len(weights) != count:
        raise ConfigError([Problem("--reward_weights", f"{len(weights)} weights for {count} rewards", "one weight for each reward")])
    made = make_rewards(
        references,
        weights=weights[: len(references)],
        options=section.options(settings.sampling.max_completion_length),
        channels={name: channels for name, channels in section.reward_channels.items() if name not in section.reward_model},
        timeout=section.reward_timeout,
    )
    if section.reward_model:
        from swift_rlhf.rewards.model import load_reward_models  # rules do without the code that loads models

        own = [*load_reward_models(section.reward_model, settings), *own]
    named = [
        Reward(name=name, function=function, weight=weight, channels=_channels(name, section), timeout=section.reward_timeout)
        for (name, function), weight in zip(own, weights[len(references) :], strict=True)
    ]
    return [*made, *named]


def _channels(name: str, section: Any) -> frozenset[str] | None:
    reference = next((each for each in section.reward_model if name == each), None)
    return frozenset(section.reward_channels[reference]) if reference in section.reward_channels else None
