"""From prompts to rewarded answers: generate, play the other side, reward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from swift_core.protocols import Sample
from swift_core.train.parallel import World

from swift_rlhf.grpo.prompts import question
from swift_rlhf.grpo.samples import Answer, AnswerGroup
from swift_rlhf.rewards.functions import RewardSample
from swift_rlhf.rewards.pool import RewardPool
from swift_rlhf.rollout.continuation import Prompter
from swift_rlhf.rollout.engine import RolloutEngine
from swift_rlhf.rollout.episodes import Episode, Generation
from swift_rlhf.rollout.play import Limits, TurnRequest, play
from swift_rlhf.rollout.sampling import Sampling
from swift_rlhf.rollout.schedulers import Scheduler


@dataclass(slots=True)
class Rewarded:
    """A group with what was found out about its answers; lists have one entry for each answer.

    Attributes:
        group: prompt and answers.
        rewards: of each function; NaN where it does not apply.
        prompt, completions: as texts.
        finish_reasons: how answers ended.
        turns: of the model.
    """

    group: AnswerGroup
    rewards: list[list[float]]
    prompt: str
    completions: list[str]
    finish_reasons: list[str]
    turns: list[int]

    @property
    def truncated(self) -> list[bool]:
        """Say which answers were cut off."""
        return [reason not in ("stop", "max_turns") for reason in self.finish_reasons]

    def saved(self) -> dict[str, Any]:
        """Return it as plain values."""
        values = {name: getattr(self, name) for name in ("rewards", "prompt", "completions", "finish_reasons", "turns")}
        return {**values, "group": self.group.saved()}

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Rewarded:
        """Return what was saved."""
        return cls(**{**values, "group": AnswerGroup.restored(values["group"])})


class Rollouts:
    """Lets the model answer prompts and has the answers rewarded; each process takes its share of the prompts.

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
        decode: Any,
        num_generations: int,
        seed: int,
    ) -> None:
        self._engine, self._pool, self._prompter, self._scheduler = engine, pool, prompter, scheduler
        self._sampling, self._limits, self._world, self._decode = sampling, limits, world, decode
        self._count, self._seed = num_generations, seed
        self.reward_names = tuple(reward.name for reward in pool.rewards)

    def answer(self, samples: Sequence[Sample], *, first_group: int, version: int) -> list[Rewarded]:
        """Return one rewarded group for each prompt, the same on all ranks.

        Args:
            samples: prompts.
            first_group: number of the first group; decides what is drawn.
            version: optimizer steps so far.

        Raises:
            TrainingError: when a reward fails.
        """
        mine = list(range(len(samples)))[self._world.rank :: self._world.size]
        found = self._share([(first_group + place, samples[place]) for place in mine], version)
        merged = {rewarded.group.group: rewarded for of_rank in self._world.gather(found) for rewarded in of_rank}
        return [merged[first_group + place] for place in range(len(samples))]

    def _share(self, prompts: Sequence[tuple[int, Sample]], version: int) -> list[Rewarded]:
        if not prompts:
            return []
        episodes = [self._episode(sample) for _, sample in prompts for _ in range(self._count)]
        self._engine.update(version)
        turn = 0
        first = prompts[0][0]

        async def generate(requests: Sequence[TurnRequest]) -> list[Generation]:
            nonlocal turn
            seed = hash((self._seed, first, turn)) & 0x7FFFFFFFFFFFFFFF  # integers hash alike in every process
            turn += 1
            return self._engine.generate(requests, self._sampling, seed=seed, version=version)

        asyncio.run(play(episodes, generate, self._scheduler, self._prompter, limits=self._limits))
        rows = [
            self._reward_sample(episode, sample)
            for (_, sample), start in zip(prompts, range(0, len(episodes), self._count), strict=True)
            for episode in episodes[start : start + self._count]
        ]
        rewards = self._pool.score(rows).values.tolist()
        return [
            self._group(number, sample, version, slice(place * self._count, (place + 1) * self._count), episodes, rows, rewards)
            for place, (number, sample) in enumerate(prompts)
        ]

    def _episode(self, sample: Sample) -> Episode:
        messages, columns = question(sample)
        return Episode(messages, sample.tools, columns, sample.origin)

    def _reward_sample(self, episode: Episode, sample: Sample) -> RewardSample:
        row = episode.rows[-1]
        last = episode.messages[-1]
        return RewardSample(
            completion=str(last.get("content") or ""),
            completion_ids=row.completion_ids,
            messages=episode.messages,
            columns={**episode.columns, **{f"episode_{name}": value for name, value in episode.info.items()}},
            channel=sample.channel,
            finish_reason="length" if episode.finish_reason == "length" else "stop",
            origin=sample.origin,
        )

    def _group(
        self,
        number: int,
        sample: Sample,
        version: int,
        which: slice,
        episodes: Sequence[Episode],
        rows: Sequence[RewardSample],
        rewards: Sequence[list[float]],
    ) -> Rewarded:
        played = episodes[which]
        answers = [
            Answer(row.completion_ids, row.mask, [value for value, written in zip(row.logprobs, row.mask, strict=True) if written])
            for row in (episode.rows[0] for episode in played)
        ]
        prompt = played[0].rows[0].prompt_ids
        group = AnswerGroup.of(prompt, answers, group=number, version=version, origin=sample.origin)
        return Rewarded(
            group,
            [list(values) for values in rewards[which]],
            self._decode(prompt),
            [
                row.completion if episode.turns == 1 else self._decode(episode.rows[0].completion_ids)
                for row, episode in zip(rows[which], played, strict=True)
            ],
            [str(episode.finish_reason) for episode in played],
            [episode.turns for episode in played],
        )


def reward_tensor(groups: Sequence[Rewarded]) -> torch.Tensor:
    """Return the rewards of all answers, `[answers, functions]`."""
    return torch.tensor([values for rewarded in groups for values in rewarded.rewards])
