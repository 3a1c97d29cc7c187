"""What a run asks for answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from swift_rlhf.rollout.episodes import Generation
from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling


class RolloutEngine(Protocol):
    """Writes answers with the weights that are being trained: token ids in, token ids and log-probabilities out."""

    def generate(self, requests: Sequence[TurnRequest], sampling: Sampling, *, seed: int, version: int) -> list[Generation]:
        """Return one answer for each request, in order; requests with the same prompt may share its computation.

        Args:
            requests: prompts and how many tokens an answer may have.
            sampling: how tokens are drawn.
            seed: decides what is drawn: the same requests, weights and seed give the same answers.
            version: of the weights, written into the answers.
        """
        ...

    def update(self, version: int) -> None:
        """Take over the weights as they are now; called before answers of a new version are asked for."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


@runtime_checkable
class EpisodeEngine(Protocol):
    """A `RolloutEngine` that takes requests one by one and batches them by itself: episodes need not wait for one another."""

    async def answer(self, request: TurnRequest, sampling: Sampling, *, seed: int, version: int) -> Generation:
        """Return the answer to one request; the arguments are those of `RolloutEngine.generate`."""
        ...


@runtime_checkable
class RestingEngine(Protocol):
    """A `RolloutEngine` that can give memory back between rounds; `update` wakes it."""

    def rest(self) -> None:
        """Give back what is not needed until the next `update`."""
        ...


def answered_together(
    engine: EpisodeEngine, requests: Sequence[TurnRequest], sampling: Sampling, *, seed: int, version: int
) -> list[Generation]:
    """Return one answer for each request, in order, from an engine that takes them one by one."""

    async def all_of_them() -> list[Generation]:
        answers = (engine.answer(request, sampling, seed=hash((seed, place)), version=version) for place, request in enumerate(requests))
        return list(await asyncio.gather(*answers))

    return asyncio.run(all_of_them())
