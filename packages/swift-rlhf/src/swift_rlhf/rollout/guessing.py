"""A small environment to try things out with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"-?\d+")


class NumberGuessing:
    """A hidden number that is found by guesses. The reward is 1 at the end for the right one, and a tenth for a guess in range.

    Args:
        highest: numbers go from 1 to this.
    """

    def __init__(self, highest: int = 16) -> None:
        self._highest, self._hidden = highest, 1

    def reset(self, columns: Mapping[str, Any]) -> str:
        """Hide the number of the column `solution`, or one that the row decides."""
        if columns.get("solution") is not None:
            self._hidden = int(str(columns["solution"]))
        else:
            digest = hashlib.sha256(json.dumps(dict(columns), sort_keys=True, default=str).encode()).digest()
            self._hidden = 1 + int.from_bytes(digest[:8]) % self._highest
        return f"Guess a number from 1 to {self._highest}."

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Take the first number of the answer as the guess."""
        found = _NUMBER.search(action)
        if found is None:
            return "That is no number.", 0.0, False, {"solved": False}
        guess = int(found[0])
        if guess == self._hidden:
            return "Right.", 1.0, True, {"solved": True}
        return ("Higher." if guess < self._hidden else "Lower."), 0.1 * (1 <= guess <= self._highest), False, {"solved": False}

    def close(self) -> None:
        """Have nothing to close."""
