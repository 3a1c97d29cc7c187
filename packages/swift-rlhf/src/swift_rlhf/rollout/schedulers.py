"""Who decides what happens between the turns of an episode."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from swift_core.protocols import Message
from swift_core.templates.agents.base import AgentFormat, arguments_json

from swift_rlhf.rollout.episodes import Episode, Generation
from swift_rlhf.rollout.tools import ToolBox


@runtime_checkable
class Scheduler(Protocol):
    """Plays the other side of a conversation. All methods may change `episode.info`."""

    async def start(self, episode: Episode) -> None:
        """Prepare an episode: change its messages or tools, open an environment."""
        ...

    async def read(self, episode: Episode, answer: Generation) -> Message:
        """Return the assistant message that an answer stands for; it is appended to the conversation."""
        ...

    async def stop(self, episode: Episode, answer: Generation) -> bool:
        """Say whether the episode is over after this answer."""
        ...

    async def step(self, episode: Episode, answer: Generation) -> list[Message]:
        """Return what the model is shown before its next turn, such as results of tools; at least one message."""
        ...

    async def finish(self, episode: Episode) -> None:
        """Close what `start` opened; called once, also for episodes that were cut off or failed."""
        ...


class SingleTurn:
    """One answer, and the episode is over."""

    async def start(self, episode: Episode) -> None:
        """Leave the episode as it is."""

    async def read(self, episode: Episode, answer: Generation) -> Message:
        """Return the answer as it is."""
        return Message(role="assistant", content=answer.text)

    async def stop(self, episode: Episode, answer: Generation) -> bool:
        """Stop."""
        return True

    async def step(self, episode: Episode, answer: Generation) -> list[Message]:
        """Have nothing to show."""
        return []

    async def finish(self, episode: Episode) -> None:
        """Have nothing to close."""


class ToolCalling(SingleTurn):
    """Runs the tools that the model calls, until it answers without a call.

    `info` counts `tool_calls` and `tool_failures`.

    Args:
        tools: what may be called; offered to the model in every episode, besides the tools of its row that are there.
        agent: how the model writes calls.
    """

    def __init__(self, tools: ToolBox, agent: AgentFormat) -> None:
        self._tools, self._agent = tools, agent

    async def start(self, episode: Episode) -> None:
        """Offer the tools; a row that lists tools of its own is offered those of them that exist."""
        offered = {each.get("function", each).get("name") for each in episode.tools or []}
        episode.tools = self._tools.schemas(offered or None)
        episode.info |= {"tool_calls": 0, "tool_failures": 0}

    async def read(self, episode: Episode, answer: Generation) -> Message:
        """Return the answer with its calls apart from its text."""
        content, calls = self._agent.parse(answer.text, episode.tools or [])
        message = Message(role="assistant", content=content)
        if calls:
            message["tool_calls"] = [
                {
                    "id": call.id or f"call_{episode.turns}_{number}",
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments if isinstance(call.arguments, dict) else arguments_json(call.arguments),
                    },
                }
                for number, call in enumerate(calls)
            ]
        return message

    async def stop(self, episode: Episode, answer: Generation) -> bool:
        """Stop at an answer without calls."""
        return not episode.messages[-1].get("tool_calls")

    async def step(self, episode: Episode, answer: Generation) -> list[Message]:
        """Return the results of the calls, in their order."""
        calls: list[dict[str, Any]] = episode.messages[-1].get("tool_calls", [])
        outcomes = await self._tools.run([(call["function"]["name"], call["function"]["arguments"]) for call in calls])
        episode.info["tool_calls"] += len(calls)
        episode.info["tool_failures"] += sum(outcome.failed for outcome in outcomes)
        return [
            # Templates read `name` and `tool_call_id` where they have a place for them.
            Message(role="tool", content=outcome.text, name=call["function"]["name"], tool_call_id=call["id"])  # pyright: ignore[reportCallIssue]
            for call, outcome in zip(calls, outcomes, strict=True)
        ]

    def close(self) -> None:
        """End the servers of tools."""
        self._tools.close()
