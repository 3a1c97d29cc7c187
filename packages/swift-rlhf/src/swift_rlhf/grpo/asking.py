"""Rounds of answers: asked for when they are needed, or ahead of time while training goes on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from swift_rlhf.grpo.prompts import PromptCursor
from swift_rlhf.grpo.rewarded import Rewarded
from swift_rlhf.grpo.rollouts import Rollouts


@dataclass(slots=True)
class _Asked:
    """A round that is under way: places of its prompts, and this rank's share of the answers once it is there."""

    first_group: int
    places: list[int]
    share: Future[list[Rewarded]]


class Asking:
    """Asks for the answers to the next prompts.

    Args:
        rollouts: answers prompts.
        cursor: which prompts come next.
        ahead: rounds that are under way while one is trained; 0 asks for a round when it is needed. An engine that writes ahead has its
            own copy of the weights.
    """

    def __init__(self, rollouts: Rollouts, cursor: PromptCursor, *, ahead: int = 0) -> None:
        self._rollouts, self._cursor, self._ahead = rollouts, cursor, ahead
        self._asked: deque[_Asked] = deque()
        self._again: list[tuple[int, list[int]]] = []
        self._groups = 0
        self._version = -1

    @property
    def prompts(self) -> int:
        """Return how many prompts there are."""
        return len(self._cursor)

    @property
    def reward_names(self) -> tuple[str, ...]:
        """Return the names of the reward functions."""
        return self._rollouts.reward_names

    def round(self, count: int, *, version: int) -> list[Rewarded]:
        """Return the answers of the next round, and ask for those after it where they are written ahead.

        Args:
            count: prompts of a round.
            version: optimizer steps so far.

        Raises:
            TrainingError: when a reward fails.
            EngineError: when the engine fails.
        """
        if not self._ahead:
            return self.now(count, version=version)
        for first, places in self._again:
            self._start(first, places, version)
        self._again = []
        if not self._asked:
            self._ask(count, version)
        found = self._rollouts.joined(self._asked[0].share.result)
        self._asked.popleft()
        while len(self._asked) < self._ahead:
            self._ask(count, version)
        return found

    def now(self, count: int, *, version: int) -> list[Rewarded]:
        """Return the answers to further prompts, asked for at once."""
        places, first = self._cursor.take(count), self._groups
        self._groups += count
        return self._rollouts.answer([self._cursor[place] for place in places], first_group=first, version=version)

    def _ask(self, count: int, version: int) -> None:
        places, first = self._cursor.take(count), self._groups
        self._groups += count
        self._start(first, places, version)

    def _start(self, first: int, places: list[int], version: int) -> None:
        if version != self._version:
            self._rollouts.update(version)
            self._version = version
        samples = [self._cursor[place] for place in places]
        share = aside(lambda: self._rollouts.share(samples, first_group=first, version=version))
        self._asked.append(_Asked(first, places, share))

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the prompts and the rounds under way, whose prompts are asked again, as plain values."""
        under_way = [*self._again, *((asked.first_group, asked.places) for asked in self._asked)]
        return {
            "cursor": self._cursor.state_dict(),
            "group_number": self._groups,
            "asked": [{"first_group": first, "places": places} for first, places in under_way],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another stood; rounds that were under way are asked again when the next one is needed."""
        self._cursor.load_state_dict(state["cursor"])
        self._groups = int(state["group_number"])
        self._asked.clear()
        self._again = [(int(asked["first_group"]), list(asked["places"])) for asked in state.get("asked", ())]
        self._version = -1


def aside(call: Callable[[], Sequence[Rewarded]]) -> Future[Any]:
    """Run a call in a thread that does not keep the program alive, and return its future."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            value = call()
        except BaseException as error:  # noqa: BLE001  raised again where the result is asked for
            future.set_exception(error)
        else:
            future.set_result(value)

    threading.Thread(target=run, name="rollouts", daemon=True).start()
    return future
