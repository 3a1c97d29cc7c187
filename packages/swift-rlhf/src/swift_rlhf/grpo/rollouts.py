"""From prompts to rewarded answers: generate, play the other side, reward."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from swift_core.errors import SwiftError
from swift_core.protocols import Sample
from swift_core.train.parallel import World

from swift_rlhf.grpo.prompts import question
from swift_rlhf.grpo.rewarded import Rewarded, finished_group
from swift_rlhf.rewards.functions import RewardSample
from swift_rlhf.rewards.pool import RewardPool, RewardTable
from swift_rlhf.rollout.continuation import Prompter
from swift_rlhf.rollout.engine import EpisodeEngine, RestingEngine, RolloutEngine
from swift_rlhf.rollout.episodes import Episode, Generation
from swift_rlhf.rollout.play import History, Limits, TurnRequest, play
from swift_rlhf.rollout.sampling import Sampling
from swift_rlhf.rollout.schedulers import Scheduler

_EVALUATION = 1  # evaluations draw other numbers than training does, and the same ones every time


@dataclass(slots=True)
class _Group:
    """A prompt that is being answered."""

    number: int
    sample: Sample
    episodes: list[Episode]
    left: int
    rewards: Future[RewardTable] | None = None


class Rollouts:
    """Lets the model answer prompts and has the answers rewarded; each process takes its share of the prompts.

    The answers to a prompt are rewarded as soon as all of them are there, while others are being written.

    Args:
        engine: writes answers.
        pool: rewards them.
        prompter: makes token ids of conversations.
        scheduler: plays the other side.
        sampling: how tokens are drawn.
        limits: where an episode is cut off.
        world: the processes of the run.
        decode: makes a text of token ids.
        num_generations: answers to each prompt.
        seed: of the run.
        history: what the model sees of earlier turns.
        rows: answers that an engine in this process writes at the same time.
        columns: names of all columns of the data; rewards find None in rows that lack one.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        pool: RewardPool,
        prompter: Prompter,
        scheduler: Scheduler,
        *,
        sampling: Sampling,
        limits: Limits,
        world: World,
        decode: Callable[[Sequence[int]], Any],
        num_generations: int,
        seed: int,
        history: History = "append",
        rows: int = 256,
        columns: Collection[str] = (),
    ) -> None:
        self._engine, self._pool, self._prompter, self._scheduler = engine, pool, prompter, scheduler
        self._sampling, self._limits, self._world, self._decode = sampling, limits, world, decode
        self._count, self._rows, self._columns = num_generations, rows, tuple(columns)
        self._history: History = history
        self._seeds: tuple[int, ...] = (seed,)
        self.reward_names = tuple(reward.name for reward in pool.rewards)

    def for_evaluation(self, *, num_generations: int, temperature: float | None) -> Self:
        """Return the same with other numbers of answers and another temperature; what it draws is the same every time."""
        twin = copy.copy(self)
        twin._count = num_generations
        twin._sampling = self._sampling if temperature is None else replace(self._sampling, temperature=temperature)
        twin._seeds = (*self._seeds, _EVALUATION)
        return twin

    def update(self, version: int) -> None:
        """Let the engine take over the weights as they are now.

        Raises:
            EngineError: on all ranks, when that fails on one.
        """
        self._agreed(lambda: self._engine.update(version))

    def answer(self, samples: Sequence[Sample], *, first_group: int, version: int) -> list[Rewarded]:
        """Return one rewarded group for each prompt, the same on all ranks.

        Args:
            samples: prompts.
            first_group: number of the first group; decides what is drawn.
            version: optimizer steps so far.

        Raises:
            TrainingError: on all ranks, when a reward fails on one.
            EngineError: on all ranks, when the engine fails on one.
        """
        self.update(version)
        found = self.joined(lambda: self.share(samples, first_group=first_group, version=version))
        if isinstance(self._engine, RestingEngine):
            self._engine.rest()
        return found

    def share(self, samples: Sequence[Sample], *, first_group: int, version: int) -> list[Rewarded]:
        """Return the groups that this rank answers; it talks to no other rank, and may run aside where the engine allows it."""
        places = range(self._world.rank, len(samples), self._world.size)
        groups = [self._group(first_group + place, samples[place]) for place in places]
        if isinstance(self._engine, EpisodeEngine):
            asyncio.run(self._each(self._engine, groups, version))
        else:
            size = max(1, self._rows // self._count)
            for start in range(0, len(groups), size):
                asyncio.run(self._together(groups[start : start + size], version))
        started = time.monotonic()
        tables = [group.rewards.result() for group in groups if group.rewards is not None]
        waited = time.monotonic() - started
        return [
            finished_group(group.number, group.sample, group.episodes, table, version=version, decode=self._decode, waited=waited)
            for group, table in zip(groups, tables, strict=True)
        ]

    def joined(self, share: Callable[[], list[Rewarded]]) -> list[Rewarded]:
        """Return the groups of all ranks in order of their numbers.

        Raises:
            SwiftError: on all ranks, when `share` raises on one.
        """
        found = [rewarded for of_rank in self._agreed(share) for rewarded in of_rank]
        return sorted(found, key=lambda rewarded: rewarded.group.group)

    def _agreed(self, act: Callable[[], Any]) -> list[Any]:
        """Return what every rank's call returns; a rank that fails must not leave the others waiting for it."""
        result: Any = None
        failure: SwiftError | None = None
        try:
            result = act()
        except SwiftError as error:
            failure = error
        of_ranks = self._world.gather((result, failure))
        failures = [failed for _, failed in of_ranks if failed is not None]
        if failure is not None or failures:
            raise failure or failures[0]
        return [value for value, _ in of_ranks]

    # ---- playing ---------------------------------------------------------------------------------------------------

    def _group(self, number: int, sample: Sample) -> _Group:
        episodes: list[Episode] = []
        for _ in range(self._count):
            messages, columns = question(sample)
            episodes.append(Episode(messages, sample.tools, columns, sample.origin))
        return _Group(number, sample, episodes, left=self._count)

    def _ended(self, groups: Sequence[_Group]) -> Callable[[Episode], None]:
        """Return what counts the ends of episodes and has a group rewarded at the last one."""
        owners = {id(episode): group for group in groups for episode in group.episodes}

        def ended(episode: Episode) -> None:
            group = owners[id(episode)]
            group.left -= 1
            if not group.left:
                group.rewards = self._pool.submit([self._reward_sample(each, group.sample) for each in group.episodes])

        return ended

    async def _together(self, groups: Sequence[_Group], version: int) -> None:
        turn = 0

        async def generate(requests: Sequence[TurnRequest]) -> list[Generation]:
            nonlocal turn
            seed = _seed(*self._seeds, groups[0].number, turn)
            turn += 1
            return self._engine.generate(requests, self._sampling, seed=seed, version=version)

        await self._play([episode for group in groups for episode in group.episodes], generate, self._ended(groups))

    async def _each(self, engine: EpisodeEngine, groups: Sequence[_Group], version: int) -> None:
        ended = self._ended(groups)

        async def one(group: _Group, place: int) -> None:
            episode = group.episodes[place]

            async def generate(requests: Sequence[TurnRequest]) -> list[Generation]:
                seed = _seed(*self._seeds, group.number, place, episode.turns)
                return [await engine.answer(request, self._sampling, seed=seed, version=version) for request in requests]

            await self._play([episode], generate, ended)

        await asyncio.gather(*(one(group, place) for group in groups for place in range(len(group.episodes))))

    async def _play(self, episodes: Sequence[Episode], generate: Any, ended: Callable[[Episode], None]) -> None:
        limits, history = self._limits, self._history
        await play(episodes, generate, self._scheduler, self._prompter, limits=limits, history=history, ended=ended)

    def _reward_sample(self, episode: Episode, sample: Sample) -> RewardSample:
        row = episode.rows[-1]
        last = episode.messages[-1]
        known = dict.fromkeys(self._columns)
        return RewardSample(
            completion=str(last.get("content") or ""),
            completion_ids=row.completion_ids,
            messages=episode.messages,
            columns={**known, **episode.columns, **{f"episode_{name}": value for name, value in episode.info.items()}},
            channel=sample.channel,
            finish_reason="length" if episode.finish_reason == "length" else "stop",
            origin=sample.origin,
        )


def _seed(*numbers: int) -> int:
    return hash(numbers) & 0x7FFFFFFFFFFFFFFF  # integers hash alike in every process


def reward_tensor(groups: Sequence[Rewarded]) -> torch.Tensor:
    """Return the rewards of all answers, `[answers, functions]`."""
    return torch.tensor([values for rewarded in groups for values in rewarded.rewards])
