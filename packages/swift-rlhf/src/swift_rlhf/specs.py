"""What swift-rlhf registers."""

from __future__ import annotations

from swift_core.specs import RewardSpec

REWARDS = (
    RewardSpec(
        name="accuracy",
        summary="1 when the final number of the answer equals that of the column `solution`",
        target="swift_rlhf.rewards.rules:accuracy",
    ),
    RewardSpec(
        name="format",
        summary="1 when the answer is <think>...</think> followed by <answer>...</answer> and nothing else",
        target="swift_rlhf.rewards.rules:think_answer_format",
    ),
)
