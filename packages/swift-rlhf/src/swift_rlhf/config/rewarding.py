"""What answers are rewarded for."""

from __future__ import annotations

from swift_core.config.fields import Section, option


class RewardingSection(Section):
    """Reward options."""

    reward_funcs: list[str] = option([], "rewards: names (see `swift list rewards`), FILE.py:FUNCTION or MODULE:FUNCTION", basic=True)
    reward_weights: list[float] = option([], "weight of each reward, in order; default: 1 each", basic=True)
