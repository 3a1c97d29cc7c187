"""Another try after a wrong answer."""

from __future__ import annotations

from swift_core.protocols import Message

from swift_rlhf.rewards.number import final_number
from swift_rlhf.rollout.episodes import Episode, Generation
from swift_rlhf.rollout.schedulers import SingleTurn

HINT = "That is not right. Look at each step again and give the final answer."


class Retry(SingleTurn):
    """Tells the model that the number of its answer is wrong and lets it try again, as long as turns last.

    Args:
        hint: what it is told.
        column: column with the right answer.
    """

    def __init__(self, hint: str = HINT, column: str = "solution") -> None:
        self._hint, self._column = hint, column

    async def stop(self, episode: Episode, answer: Generation) -> bool:
        """Stop at the right number, and where there is no right one to compare with."""
        expected = final_number(str(episode.columns.get(self._column) or ""))
        return expected is None or final_number(answer.text) == expected

    async def step(self, episode: Episode, answer: Generation) -> list[Message]:
        """Return the hint."""
        return [Message(role="user", content=self._hint)]
