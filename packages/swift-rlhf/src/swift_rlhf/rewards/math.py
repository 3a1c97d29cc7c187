"""Mathematical answers, compared by what they mean rather than how they are written."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from swift_core.errors import MissingDependencyError

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_SECONDS = 5


def accuracy(completions: Sequence[str], *, solution: Sequence[str | None], **columns: Any) -> list[float | None]:
    r"""Return 1.0 where a completion comes to the same value as its solution, else 0.0.

    Compared is what stands in the last `<answer>`, else the whole text, of which the last `\boxed{}` counts first. `0.5`, `1/2` and
    `\frac{1}{2}` are the same value; sets, intervals, matrices and equations are understood.

    Args:
        completions: what the model wrote, one text for each sample.
        solution: reference answers as text or LaTeX, of the same length; what follows a last `####` counts. None has no value.
        columns: further columns of the rows, not used.

    Returns:
        one reward for each completion; None where the solution holds no value, so that no reward applies.

    Raises:
        MissingDependencyError: without the library math-verify.
    """
    return [
        None if reference is None else _compared(completion, str(reference))
        for completion, reference in zip(completions, solution, strict=True)
    ]


def _compared(completion: str, reference: str) -> float | None:
    parse, verify = _library()
    # The library interrupts itself with a signal, which only the main thread gets; elsewhere the time limit is the pool's.
    limit = _SECONDS if threading.current_thread() is threading.main_thread() else None
    reference = reference.rpartition("####")[2].strip()

    def value(text: str) -> Any:
        # The library looks for formulas between marks: a text that is nothing but a formula gets them, prose does not.
        marked = text if _WORD.search(text) or "$" in text or "\\boxed" in text else f"${text.strip()}$"
        return parse(marked, parsing_timeout=limit) or parse(text, parsing_timeout=limit)

    expected = value(reference)
    if not expected:
        return None
    inside = _ANSWER.findall(completion)
    found = value(inside[-1]) if inside else parse(completion, parsing_timeout=limit)
    return float(verify(expected, found, timeout_seconds=limit))


@cache
def _library() -> tuple[Any, Any]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise MissingDependencyError("math-verify", needed_for="the reward 'accuracy'", install="swift-rlhf[rewards]") from error
    for name in ("math_verify.parser", "math_verify.grader"):
        # It warns at every call without a time limit of its own.
        logging.getLogger(name).setLevel(logging.ERROR)
    return parse, verify
