"""Episodes in an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swift_core.protocols import Message

from swift_rlhf.rollout.environments import Running
from swift_rlhf.rollout.episodes import Episode, Generation
from swift_rlhf.rollout.schedulers import SingleTurn


class GymScheduler(SingleTurn):
    """Lets each answer act in an environment and shows what it sees then.

    `info` has `reward`, the sum over all turns, which the reward `environment` reads, and the numbers and texts that the environment notes.

    Args:
        make_environment: makes the world of one episode.
        tool_timeout: seconds of one act.
    """

    def __init__(self, make_environment: Callable[[], Any], tool_timeout: float = 30.0) -> None:
        self._make, self._timeout = make_environment, tool_timeout
        self._worlds: dict[int, Running] = {}
        self._seen: dict[int, str] = {}

    async def start(self, episode: Episode) -> None:
        """Open the world and show what it looks like."""
        world = Running(self._make(), self._timeout)
        self._worlds[id(episode)] = world
        episode.info["reward"] = 0.0
        observation = await world.reset(episode.columns)
        if observation and episode.messages and episode.messages[-1]["role"] == "user":
            last = episode.messages[-1]
            episode.messages[-1] = {**last, "content": f"{last['content']}\n\n{observation}"}
        elif observation:
            episode.messages.append(Message(role="user", content=observation))

    async def stop(self, episode: Episode, answer: Generation) -> bool:
        """Act, and say whether the episode is over."""
        step = await self._worlds[id(episode)].step(answer.text)
        episode.info["reward"] += step.reward
        episode.info |= {name: value for name, value in step.info.items() if name != "reward"}
        self._seen[id(episode)] = step.observation
        return step.done

    async def step(self, episode: Episode, answer: Generation) -> list[Message]:
        """Return what the act led to."""
        return [Message(role="user", content=self._seen[id(episode)])]

    async def finish(self, episode: Episode) -> None:
        """Close the world."""
        self._seen.pop(id(episode), None)
        world = self._worlds.pop(id(episode), None)
        if world is not None:
            await world.close()
