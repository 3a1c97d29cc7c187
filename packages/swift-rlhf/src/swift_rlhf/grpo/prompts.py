"""Which prompts come next."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from swift_core.errors import DataError
from swift_core.protocols import Message, Sample


class PromptCursor:
    """Goes through prompts epoch by epoch, each exactly once in an epoch.

    Args:
        samples: conversations; an answer at the end is taken off, and rewards find it as `solution` where there is no such column.
        seed: of the order.
        shuffle: draw a new order in every epoch.

    Raises:
        DataError: when there are none.
    """

    def __init__(self, samples: Sequence[Sample], *, seed: int, shuffle: bool) -> None:
        if not samples:
            raise DataError("there are no prompts", fix="check --dataset")
        media = next((sample for sample in samples if sample.has_media), None)
        if media is not None:
            raise DataError("GRPO takes prompts without media so far", location=media.origin, fix="leave such rows out")
        self._samples = samples
        self._seed, self._shuffle = seed, shuffle
        self._epoch, self._at = 0, 0
        self._order = self._ordered()

    def __len__(self) -> int:
        return len(self._samples)

    def _ordered(self) -> list[int]:
        order = list(range(len(self._samples)))
        if self._shuffle:
            Random(f"{self._seed}/prompts/{self._epoch}").shuffle(order)
        return order

    def __getitem__(self, place: int) -> Sample:
        return self._samples[place]

    def take(self, count: int) -> list[int]:
        """Return the places of the next prompts."""
        taken: list[int] = []
        while len(taken) < count:
            if self._at == len(self._order):
                self._epoch, self._at = self._epoch + 1, 0
                self._order = self._ordered()
            taken.append(self._order[self._at])
            self._at += 1
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain values."""
        return {"epoch": self._epoch, "at": self._at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self._epoch, self._at = int(state["epoch"]), int(state["at"])
        self._order = self._ordered()


def question(sample: Sample) -> tuple[list[Message], dict[str, Any]]:
    """Return the messages up to the answer, and the columns that rewards get."""
    messages = list(sample.messages)
    columns = dict(sample.extra)
    while messages and messages[-1]["role"] == "assistant":
        answer = messages.pop()
        columns.setdefault("solution", answer["content"])
    return messages, columns
