"""A prompt with its answers and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift_core.errors import TrainingError
from swift_core.protocols import Sample

from swift_rlhf.grpo.samples import Answer, AnswerGroup
from swift_rlhf.rewards.pool import RewardTable
from swift_rlhf.rollout.episodes import Episode


@dataclass(slots=True)
class Rewarded:
    """A group with what was found out about its episodes; lists have one entry for each episode.

    Attributes:
        group: prompt and answers.
        rewards: of each function; NaN where it does not apply.
        prompt, completions: as texts.
        finish_reasons: how episodes ended.
        turns: of the model.
        info: what the scheduler kept, such as counts of tool calls.
        failed: for each function, episodes that it raised for or took too long for.
        waited: seconds that the process waited for rewards after the last answer of its share.
    """

    group: AnswerGroup
    rewards: list[list[float]]
    prompt: str
    completions: list[str]
    finish_reasons: list[str]
    turns: list[int]
    info: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    failed: list[int] = field(default_factory=list[int])
    waited: float = 0.0

    @property
    def truncated(self) -> list[bool]:
        """Say which episodes were cut off."""
        return [reason not in ("stop", "max_turns") for reason in self.finish_reasons]

    @property
    def lengths(self) -> list[int]:
        """Return the tokens that the model wrote in each episode."""
        found = [0] * len(self.rewards)
        for answer in self.group.answers:
            found[answer.episode] += answer.tokens
        return found

    def saved(self) -> dict[str, Any]:
        """Return it as plain values."""
        names = ("rewards", "prompt", "completions", "finish_reasons", "turns", "info", "failed", "waited")
        return {**{name: getattr(self, name) for name in names}, "group": self.group.saved()}

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Rewarded:
        """Return what was saved."""
        return cls(**{**values, "group": AnswerGroup.restored(values["group"])})


def finished_group(
    number: int,
    sample: Sample,
    episodes: Sequence[Episode],
    table: RewardTable,
    *,
    version: int,
    decode: Callable[[Sequence[int]], Any],
    waited: float,
) -> Rewarded:
    """Return the group of a prompt whose episodes are over.

    Raises:
        TrainingError: when a turn does not start with the prompt, so that it cannot be trained as an answer to it.
    """
    prompt = episodes[0].rows[0].prompt_ids
    answers = [answer for place, episode in enumerate(episodes) for answer in _answers(episode, place, prompt)]
    written = [each for episode in episodes for row in episode.rows for each in row.versions if each >= 0]
    group = AnswerGroup.of(prompt, answers, group=number, version=min(written, default=version), origin=sample.origin)
    return Rewarded(
        group,
        [list(values) for values in table.values.tolist()],
        decode(prompt),
        [_text(episode, decode) for episode in episodes],
        [str(episode.finish_reason) for episode in episodes],
        [episode.turns for episode in episodes],
        [_plain(episode.info) for episode in episodes],
        [stats.failed + stats.timed_out for stats in table.stats.values()],
        waited,
    )


def _answers(episode: Episode, place: int, prompt: Sequence[int]) -> Iterator[Answer]:
    """Yield what the model wrote as answers to the first prompt: what it was shown before a later turn is a part that carries no loss."""
    for number, row in enumerate(episode.rows):
        if number and not row.completion_ids:
            continue  # the limit was reached before the model said anything
        if row.prompt_ids[: len(prompt)] != prompt:
            raise TrainingError(
                f"{episode.origin}: with the history written anew, turn {number + 1} does not start with the first prompt",
                fix="--history append",
            )
        shown = row.prompt_ids[len(prompt) :]
        logps = [value for value, written in zip(row.logprobs, row.mask, strict=True) if written]
        yield Answer([*shown, *row.completion_ids], [0] * len(shown) + row.mask, logps, episode=place)


def _text(episode: Episode, decode: Callable[[Sequence[int]], Any]) -> str:
    if episode.turns == 1 and not episode.messages[-1].get("tool_calls"):
        return str(episode.messages[-1].get("content") or "")
    return "\n".join(str(decode(row.completion_ids)) for row in episode.rows)


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    """Return what of a scheduler's notes a checkpoint and the log can hold."""
    return {name: value for name, value in info.items() if isinstance(value, bool | int | float | str)}
