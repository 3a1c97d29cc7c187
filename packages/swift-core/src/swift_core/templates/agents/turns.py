"""Messages with tools as plain system, user and assistant turns, written in an agent format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from swift_core.errors import TemplateError
from swift_core.protocols import Message
from swift_core.templates.agents.base import AgentFormat, Result, Tool
from swift_core.templates.agents.incremental import Call


def with_agent_turns(
    agent: AgentFormat,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None,
    *,
    default_system: str | None = None,
    raw_results: bool = False,
) -> list[Message]:
    """Return messages in which tools, calls and results are text.

    Args:
        agent: how they are written.
        messages: the conversation, calls inside assistant messages and results as role `tool`.
        tools: tools on offer.
        default_system: system message where the conversation has none.
        raw_results: results may stand in the family's own frame, as a message of the role `tool`; else they become user turns.
    """
    turns: list[Message] = []
    rest = list(messages)
    if tools and raw_results and agent.tools_frame is not None:
        # It stands before the system message and is written as it is, like a result.
        turns.append(cast(Message, {"role": "tool", "content": agent.tools_frame.replace("{{TOOLS}}", agent.tools(tools))}))
    elif tools:
        first = rest.pop(0) if rest and rest[0]["role"] == "system" else None
        system: Any = first["content"] if first else default_system
        turns.append(cast(Message, {**(first or {}), "role": "system", "content": agent.format_tools(tools, system, framed=raw_results)}))
    names: dict[str, str] = {}
    waiting: list[str] = []
    results: list[Result] = []
    for index, message in enumerate(rest):
        if message["role"] == "tool":
            results.append(_result(message, names, waiting, index))
            continue
        if results:
            turns.append(_results_turn(agent, results, raw_results))
            results = []
        if message.get("tool_calls"):
            calls = [_call(call) for call in message.get("tool_calls", [])]
            names.update({call.id: call.name for call in calls if call.id})
            waiting = [call.name for call in calls]
            turns.append(_calls_turn(agent, message, calls, raw_results))
        else:
            turns.append(message)
    if results:
        turns.append(_results_turn(agent, results, raw_results))
    return turns


def _calls_turn(agent: AgentFormat, message: Message, calls: list[Call], raw: bool) -> Message:
    content: Any = message["content"] or ""
    values = {key: value for key, value in message.items() if key != "tool_calls"}
    between = agent.before_calls if content else ""
    if raw and agent.ending:
        values["end"] = agent.ending
    return cast(Message, {**values, "content": f"{content}{between}{agent.format_calls(calls)}"})


def _results_turn(agent: AgentFormat, results: list[Result], raw: bool) -> Message:
    text = agent.format_results(results)
    if not raw or agent.frame is None:
        # Templates and the choice of what is trained tell it from a question by this.
        opened = f"{agent.ending}{text}" if agent.continued and agent.ending else text
        return cast(Message, {"role": "user", "content": opened.strip("\n"), "tool_results": True})
    turn: dict[str, Any] = {"role": "tool", "content": agent.frame.replace("{{RESULTS}}", text)}
    if agent.continued:
        turn["continued"] = True
    return cast(Message, turn)


def _call(call: dict[str, Any]) -> Call:
    function: dict[str, Any] = call.get("function", call)
    return Call(function["name"], function.get("arguments", {}), call.get("id"))


def _result(message: Message, names: dict[str, str], waiting: list[str], index: int) -> Result:
    content: Any = message["content"]
    if not isinstance(content, str):
        raise TemplateError(f"message {index + 1}: a tool result is {type(content).__name__}, not a text", fix="write results as text")
    values = cast("dict[str, Any]", message)
    identity: Any = values.get("tool_call_id")
    # Results come in the order of their calls unless they say otherwise.
    following = waiting.pop(0) if waiting else ""
    return Result(content, values.get("name") or names.get(identity or "", following), identity)
