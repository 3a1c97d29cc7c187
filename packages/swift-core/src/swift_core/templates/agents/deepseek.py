"""DeepSeek V3.1: calls between special tokens; the answer goes on right after the results."""

from __future__ import annotations

import re
from collections.abc import Sequence

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_json, dumps, function_of, loads
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _SEP, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_OUT, _OUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"


def _tools(tools: Sequence[Tool]) -> str:
    listed = "\n\n".join(
        f"### {function.get('name', '')}\nDescription: {function.get('description', '')}\n\n"
        f"Parameters: {dumps(function.get('parameters', {}))}"
        for function in map(function_of, tools)
    )
    return (
        f"## Tools\nYou have access to the following tools:\n\n{listed}\n\n"
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        f"{_ALL}{_ONE}tool_call_name{_SEP}tool_call_arguments{_ONE_END}{{additional_tool_calls}}{_ALL_END}\n\n"
        "Where:\n\n- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces\n"
    )


def _calls(calls: Sequence[Call]) -> str:
    return _ALL + "".join(f"{_ONE}{call.name}{_SEP}{arguments_json(call.arguments)}{_ONE_END}" for call in calls) + _ALL_END


def _results(results: Sequence[Result]) -> str:
    return "".join(f"{_OUT}{result.content}{_OUT_END}" for result in results)


_CALL = re.compile(rf"{_ONE}(.*?){_SEP}(.*?)(?:{_ONE_END}|{_ALL_END}|$)", re.DOTALL)
_FENCED = re.compile(r"(\S+)\s*```json\s*(.*?)\s*```", re.DOTALL)


def _read(block: str) -> list[Call] | None:
    calls: list[Call] = []
    for name, text in _CALL.findall(block):
        # DeepSeek V3 and R1 write the kind first, then the name and the arguments in a fence.
        fenced = _FENCED.fullmatch(text.strip())
        name, text = fenced.groups() if fenced else (name, text)
        value = loads(text)
        calls.append(Call(name.strip(), value if isinstance(value, dict) else text.strip()))
    return calls or None


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser((_ALL,), (_ALL_END,), _read)


DEEPSEEK_V3_1 = AgentFormat(
    tools=_tools, calls=_calls, results=_results, reader=_reader, before_calls="", frame="{{RESULTS}}", continued=True
)
