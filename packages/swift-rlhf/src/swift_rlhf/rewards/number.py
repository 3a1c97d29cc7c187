"""Answers that end in a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?(?=\D|$)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def final_number_reward(completions: Sequence[str], *, solution: Sequence[str | None], **columns: Any) -> list[float | None]:
    r"""Return 1.0 where the final number of a completion equals that of its solution, else 0.0.

    The final number is that of the last `\boxed{}`, else of the last `<answer>`, else of what follows the last `####`,
    else the last number of the text. `1,000`, `1000.0` and `2000/2` are the same number.

    Args:
        completions: what the model wrote, one text for each sample.
        solution: reference answers, of the same length; None has no number.
        columns: further columns of the rows, not used.

    Returns:
        one reward for each completion; None where the solution holds no number, so that no reward applies.
    """
    rewards: list[float | None] = []
    for completion, reference in zip(completions, solution, strict=True):
        expected = None if reference is None else final_number(str(reference))
        rewards.append(None if expected is None else float(final_number(completion) == expected))
    return rewards


def final_number(text: str) -> Fraction | None:
    """Return the number that a text ends up with, or None."""
    for marked in (_BOXED.findall(text)[-1:], _ANSWER.findall(text)[-1:], text.rsplit("####", 1)[1:]):
        if marked:
            return _last_number(marked[0])
    return _last_number(text)


def _last_number(text: str) -> Fraction | None:
    found = [match for match in _NUMBER.findall(text) if any(character.isdigit() for character in match)]
    if not found:
        return None
    try:
        numerator, _, denominator = found[-1].replace(",", "").partition("/")
        return Fraction(numerator) / Fraction(denominator or 1)
    except ZeroDivisionError:
        return None
