"""A reward of your own: right answers, short ones first. Use it by file, or by its name once the file is loaded.

swift rlhf --rlhf_type grpo ... --reward_funcs examples/plugins/reward.py:short_and_right
swift rlhf --rlhf_type grpo ... --external_plugins examples/plugins/reward.py --reward_funcs short_and_right
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swift_core.registry import REWARDS
from swift_core.specs import RewardSpec


def short_and_right(completions: Sequence[str], *, solution: Sequence[str | None], **columns: Any) -> list[float | None]:
    """Return a number for each answer: 0 without the solution in it, else 1 less a tenth for every ten words; None: does not apply."""
    rewards: list[float | None] = []
    for completion, expected in zip(completions, solution, strict=True):
        if expected is None:
            rewards.append(None)
        elif expected not in completion:
            rewards.append(0.0)
        else:
            rewards.append(max(0.1, 1.0 - len(completion.split()) // 10 / 10))
    return rewards


REWARDS.register(
    RewardSpec(
        name="short_and_right", summary="the solution is in the answer, and the answer is short", target=f"{__name__}:short_and_right"
    )
)
