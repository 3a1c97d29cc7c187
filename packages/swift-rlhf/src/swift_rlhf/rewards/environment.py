"""The reward of an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def environment(completions: Sequence[str], *, episode_reward: Sequence[float | None], **columns: Any) -> list[float | None]:
    """Return what the environment gave in all turns of each episode together; None where there was none.

    Args:
        completions: last answers, not looked at.
        episode_reward: sums that the scheduler `gym` kept.
        columns: further columns, not used.
    """
    return [None if value is None else float(value) for value in episode_reward]
