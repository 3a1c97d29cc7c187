"""Playing episodes, turn by turn and all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from swift_core.errors import ConfigError, Problem, TrainingError

from swift_rlhf.rollout.continuation import Prompter
from swift_rlhf.rollout.episodes import Episode, Generation, TokenRow
from swift_rlhf.rollout.schedulers import Scheduler

History = Literal["append", "rebuild"]


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What an engine is asked for one turn of one episode: tokens in, at most `max_tokens` out."""

    prompt_ids: list[int]
    max_tokens: int


Generate = Callable[[Sequence[TurnRequest]], Awaitable[Sequence[Generation]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long an episode may get.

    Attributes:
        max_turns: answers of the model.
        max_completion_length: tokens that follow the first prompt, observations included; with `scope` per_turn those of one answer.
        scope: what `max_completion_length` bounds.
        max_length: tokens of a whole row, or None.
    """

    max_turns: int = 1
    max_completion_length: int = 512
    scope: Literal["total", "per_turn"] = "total"
    max_length: int | None = None

    def __post_init__(self) -> None:
        problems = [
            Problem(f"--{name}", f"{value} is below 1", "a number from 1")
            for name, value in (("max_turns", self.max_turns), ("max_completion_length", self.max_completion_length))
            if value < 1
        ]
        if problems:
            raise ConfigError(problems)

    def left(self, episode: Episode) -> int:
        """Return how many tokens the next answer may have."""
        row = episode.rows[-1]
        used = sum(len(each.completion_ids) for each in episode.rows) if self.scope == "total" else 0
        left = self.max_completion_length - used
        return left if self.max_length is None else min(left, self.max_length - len(row.prompt_ids) - len(row.completion_ids))


async def play(
    episodes: Sequence[Episode],
    generate: Generate,
    scheduler: Scheduler,
    prompter: Prompter,
    *,
    limits: Limits,
    history: History = "append",
    ended: Callable[[Episode], None] = lambda episode: None,
) -> None:
    """Play episodes to their end, filling in their messages and rows.

    All episodes that are still going ask the engine together, once a round; tools and environments of one episode run while others
    do the same. For an engine that batches by itself, play episodes one by one in tasks of their own.

    With history `append` the tokens of a turn are those of the turn before, the answer as sampled, and what is shown: one training
    row, nothing tokenised twice. With `rebuild` the template writes the whole conversation anew before every turn, which lets it
    drop earlier thoughts: one training row for each turn.

    Args:
        episodes: with messages up to the first answer; changed in place.
        generate: asks the engine for several answers at a time, in order.
        scheduler: plays the other side.
        prompter: makes token ids.
        limits: where an episode is cut off.
        history: what the model sees of earlier turns.
        ended: called with each episode once its last answer is there, while others go on.

    Raises:
        TrainingError: when the engine answers with another number of answers, or a scheduler shows nothing to go on with.
    """
    await asyncio.gather(*(scheduler.start(episode) for episode in episodes))
    try:
        active = list(episodes)
        for episode in active:
            _open(episode, prompter)
        while active := [episode for episode in active if _has_room(episode, limits, ended)]:
            requests = [TurnRequest(episode.rows[-1].ids, limits.left(episode)) for episode in active]
            answers = list(await generate(requests))
            if len(answers) != len(active):
                raise TrainingError(f"the engine gave {len(answers)} answers to {len(active)} prompts", fix="one for each, in order")
            going = await asyncio.gather(
                *(_turn(episode, answer, scheduler, prompter, limits, history) for episode, answer in zip(active, answers, strict=True))
            )
            for episode, goes_on in zip(active, going, strict=True):
                if not goes_on:
                    ended(episode)
            active = [episode for episode, goes_on in zip(active, going, strict=True) if goes_on]
    finally:
        await asyncio.gather(*(scheduler.finish(episode) for episode in episodes))


def _open(episode: Episode, prompter: Prompter) -> None:
    episode.rows.append(TokenRow(prompter.prompt(episode.messages, episode.tools)))


def _has_room(episode: Episode, limits: Limits, ended: Callable[[Episode], None]) -> bool:
    if limits.left(episode) > 0:
        return True
    episode.finish_reason = "length"
    ended(episode)
    return False


async def _turn(episode: Episode, answer: Generation, scheduler: Scheduler, prompter: Prompter, limits: Limits, history: History) -> bool:
    row = episode.rows[-1]
    row.add_answer(answer)
    episode.turns += 1
    episode.finish_reason = answer.finish_reason
    episode.messages.append(await scheduler.read(episode, answer))
    if answer.finish_reason != "stop" or await scheduler.stop(episode, answer):
        return False
    if episode.turns >= limits.max_turns:
        episode.finish_reason = "max_turns"
        return False
    shown = await scheduler.step(episode, answer)
    if not shown:
        raise TrainingError(
            f"{type(scheduler).__name__} goes on without showing anything at {episode.origin}", fix="stop, or return a message"
        )
    if history == "append":
        row.add_observation(prompter.continuation(episode.messages, shown, episode.tools, answer.token_ids))
    episode.messages.extend(shown)
    if history == "rebuild":
        _open(episode, prompter)
    return True
