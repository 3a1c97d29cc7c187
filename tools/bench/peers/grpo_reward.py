"""The reward of `grpo_speed.py` for every side: whether the first number of an answer is the solution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def first_number(completions: Sequence[Any], solution: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 for each answer whose first number is the solution, else 0; answers are texts or conversations."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [float(re.findall(r"\d+", text)[:1] == [str(wanted)]) for text, wanted in zip(texts, solution, strict=True)]
