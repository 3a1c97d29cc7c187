"""Rewards for the form of an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_THOUGHT = re.compile(r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>(?:(?!</?think>|</?answer>).)*</answer>\s*", re.DOTALL)
_STEP = r"(?:(?!Action:|Action Input:|Observation:|Final Answer:).)*"
_REACT = re.compile(
    rf"\s*Thought:{_STEP}(?:Action:{_STEP}Action Input:{_STEP}|Final Answer:.*)\s*",
    re.DOTALL,
)


def think_answer_format(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """Return 1.0 for each completion that is one thinking block, then one answer block, and nothing else, else 0.0."""
    return [float(_THOUGHT.fullmatch(completion) is not None) for completion in completions]


def react_format(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """Return 1.0 for each completion that is one ReAct step, else 0.0.

    A step is `Thought:` followed by `Action:` and `Action Input:`, or by `Final Answer:`. An `Observation:` that the model made up
    itself is no part of one.
    """
    return [float(_REACT.fullmatch(completion) is not None) for completion in completions]
