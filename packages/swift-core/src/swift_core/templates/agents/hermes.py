"""Hermes: JSON calls between `<tool_call>` marks, as Qwen 2.5 and 3 and many others write them."""

from __future__ import annotations

from collections.abc import Sequence

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_json, dumps, loads, read_call, wrapped
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


def _tools(tools: Sequence[Tool]) -> str:
    return _TOOLS.format(tools="\n".join(dumps(wrapped(tool)) for tool in tools))


def _calls(calls: Sequence[Call]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": {dumps(call.name)}, "arguments": {arguments_json(call.arguments)}}}\n</tool_call>' for call in calls
    )


def results_in_tags(results: Sequence[Result]) -> str:
    """Return results, each between `<tool_response>` marks."""
    return "\n".join(f"<tool_response>\n{result.content}\n</tool_response>" for result in results)


def _read(block: str) -> list[Call] | None:
    call = read_call(loads(block.removeprefix("<tool_call>").removesuffix("</tool_call>").strip()))
    return [call] if call else None


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser(("<tool_call>",), ("</tool_call>",), _read)


HERMES = AgentFormat(tools=_tools, calls=_calls, results=results_in_tags, reader=_reader)
