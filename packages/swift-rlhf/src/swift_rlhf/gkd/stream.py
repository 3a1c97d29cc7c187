"""Lessons without end: conversations of the data, or prompts that student or teacher answers when training asks for more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from swift_core.protocols import EncodedSample, Sample
from swift_core.train.parallel import World

from swift_rlhf.gkd.samples import Lesson, written_lesson
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import PromptCursor, question
from swift_rlhf.grpo.record import Completions
from swift_rlhf.grpo.rewarded import Rewarded, finished_group
from swift_rlhf.rewards.pool import RewardTable
from swift_rlhf.rollout.continuation import Prompter
from swift_rlhf.rollout.engine import RolloutEngine
from swift_rlhf.rollout.episodes import Episode, Generation
from swift_rlhf.rollout.play import Limits, TurnRequest, play
from swift_rlhf.rollout.sampling import Sampling
from swift_rlhf.rollout.schedulers import Scheduler


@dataclass(slots=True)
class Writing:
    """Has prompts answered, each process its share; nobody rewards the answers.

    Attributes:
        prompter: makes token ids of conversations.
        scheduler: plays the other side.
        sampling: how tokens are drawn.
        limits: where an answer is cut off.
        world: the processes of the run.
        decode: makes a text of token ids.
        seed: of the run.
    """

    prompter: Prompter
    scheduler: Scheduler
    sampling: Sampling
    limits: Limits
    world: World
    decode: Callable[[Sequence[int]], Any]
    seed: int

    def answer(self, engine: RolloutEngine, samples: Sequence[Sample], *, first: int, version: int) -> list[Rewarded]:
        """Return one answer for each prompt, the same on all ranks.

        Args:
            engine: writes answers.
            samples: prompts.
            first: number of the first of them in the run; decides what is drawn.
            version: optimizer steps so far.
        """
        places = range(self.world.rank, len(samples), self.world.size)
        engine.update(version)
        found = self._share(engine, [(first + place, samples[place]) for place in places], version)
        merged = {rewarded.group.group: rewarded for of_rank in self.world.gather(found) for rewarded in of_rank}
        return [merged[first + place] for place in range(len(samples))]

    def _share(self, engine: RolloutEngine, prompts: Sequence[tuple[int, Sample]], version: int) -> list[Rewarded]:
        if not prompts:
            return []
        episodes: list[Episode] = []
        for _, sample in prompts:
            messages, columns = question(sample)
            episodes.append(Episode(messages, sample.tools, columns, sample.origin))
        turn = 0

        async def generate(requests: Sequence[TurnRequest]) -> list[Generation]:
            nonlocal turn
            turn += 1
            seed = hash((self.seed, prompts[0][0], turn)) & 0x7FFFFFFFFFFFFFFF  # integers hash alike in every process
            return engine.generate(requests, self.sampling, seed=seed, version=version)

        asyncio.run(play(episodes, generate, self.scheduler, self.prompter, limits=self.limits))
        nothing = RewardTable(torch.zeros(1, 0), (), {})
        return [
            finished_group(number, sample, [episode], nothing, version=version, decode=self.decode, waited=0.0)
            for (number, sample), episode in zip(prompts, episodes, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where lessons come from.

    Attributes:
        data: the conversation of each prompt as a lesson; empty where none is asked for.
        teacher_prompts: what the teacher reads instead of each prompt; empty: the same.
        student: writes the student's answers.
        teacher: writes answers in place of those of the data; None: the data has them.
        lmbda: share of the steps on the student's answers.
    """

    data: Sequence[Lesson]
    teacher_prompts: Sequence[list[int]]
    student: RolloutEngine
    teacher: RolloutEngine | None
    lmbda: float


class GkdStream(Iterator[EncodedSample]):
    """The samples of a run; all ranks see the same ones.

    Args:
        sources: where lessons come from.
        writing: has prompts answered.
        cursor: which prompts come next.
        step: samples of an optimizer step on all devices, which are of one kind.
        meter: takes what is logged.
        record: takes the answers.
    """

    def __init__(self, sources: Sources, writing: Writing, cursor: PromptCursor, step: int, meter: Meter, record: Completions) -> None:
        self._sources, self._writing, self._cursor = sources, writing, cursor
        self._step, self._meter, self._record = step, meter, record
        self._buffer: list[Lesson] = []
        self._given = 0

    @property
    def samples_per_epoch(self) -> int:
        """Return how many samples every prompt once makes."""
        return -(-len(self._cursor) // self._step) * self._step

    def __next__(self) -> EncodedSample:
        if not self._buffer:
            self._fill()
        self._given += 1
        return self._buffer.pop(0)

    def _fill(self) -> None:
        version = self._given // self._step
        own = Random(f"{self._writing.seed}/lmbda/{version}").random() < self._sources.lmbda
        places = self._cursor.take(self._step)
        engine = self._sources.student if own else self._sources.teacher
        if engine is None:
            self._buffer = [self._sources.data[place] for place in places]
            return
        started = time.monotonic()
        samples = [self._cursor[place] for place in places]
        written = self._writing.answer(engine, samples, first=self._given, version=version)
        self._log(written, time.monotonic() - started)
        self._record.write(written, (), step=version + 1)
        prompts = [self._sources.teacher_prompts[place] for place in places]
        self._buffer = [written_lesson(each, prompt, own=own) for each, prompt in zip(written, prompts, strict=True)]

    def _log(self, written: Sequence[Rewarded], seconds: float) -> None:
        for each in written:
            self._meter.add_value("completions/mean_length", each.group.answers[0].tokens)
            self._meter.add_value("completions/clipped_ratio", float(each.truncated[0]))
        self._meter.add_value("rollout_seconds", seconds)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain values: between two steps no sample waits."""
        return {"cursor": self._cursor.state_dict(), "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where another stream over the same prompts stood."""
        self._cursor.load_state_dict(state["cursor"])
        self._given = int(state["given"])
        self._record.resume(self._given // self._step)
