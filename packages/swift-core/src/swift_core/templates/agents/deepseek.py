"""DeepSeek: calls between special tokens (V3.1, where the answer goes on right after the results), or tagged DSML (V4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from swift_core.templates.agents.base import (
    AgentFormat,
    Result,
    Tool,
    argument_text,
    arguments_json,
    arguments_of,
    dumps,
    function_of,
    loads,
)
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


_DSML = "｜DSML｜"
_BLOCK, _BLOCK_END = f"<{_DSML}tool_calls>", f"</{_DSML}tool_calls>"
_TOOLS_V4 = (
    "## Tools\n\nYou have access to a set of tools to help answer the user's question. You can invoke tools by writing a "
    '"{block}" block like the following:\n\n'
    '{block}\n<{mark}invoke name="$TOOL_NAME">\n'
    '<{mark}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{mark}parameter>\n...\n</{mark}invoke>\n'
    '<{mark}invoke name="$TOOL_NAME2">\n...\n</{mark}invoke>\n{end}\n\n'
    'String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), '
    'pass the value in JSON format and set `string="false"`.\n\n'
    "If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any "
    "tool calls or final response.\n\n"
    "Otherwise, output directly after </think> with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n{tools}\n\n"
    "You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"
)


def _tools_v4(tools: Sequence[Tool]) -> str:
    listed = "\n".join(dumps(function_of(tool)) for tool in tools)
    return _TOOLS_V4.format(block=_BLOCK, end=_BLOCK_END, mark=_DSML, tools=listed)


def _calls_v4(calls: Sequence[Call]) -> str:
    # The empty line belongs to the block, whether or not there is a text before it.
    return f"\n\n{_BLOCK}\n" + "\n".join(map(_invoked, calls)) + f"\n{_BLOCK_END}"


def _invoked(call: Call) -> str:
    lines = [_parameter(name, value) for name, value in arguments_of(call).items()]
    return "\n".join([f'<{_DSML}invoke name="{call.name}">', *lines, f"</{_DSML}invoke>"])


def _parameter(name: str, value: object) -> str:
    plain = "true" if isinstance(value, str) else "false"
    return f'<{_DSML}parameter name="{name}" string="{plain}">{argument_text(value)}</{_DSML}parameter>'


def _results_v4(results: Sequence[Result]) -> str:
    return "\n\n".join(f"<tool_result>{result.content}</tool_result>" for result in results)


_INVOKE = re.compile(rf'<{_DSML}invoke\s+name="([^"]+)">(.*?)(?:</{_DSML}invoke>|{_BLOCK_END}|$)', re.DOTALL)
_PARAMETER = re.compile(rf'<{_DSML}parameter\s+name="([^"]+)"\s+string="(true|false)">(.*?)</{_DSML}parameter>', re.DOTALL)


def _read_v4(block: str) -> list[Call] | None:
    return [
        Call(name, {key: _value(kind, text) for key, kind, text in _PARAMETER.findall(body)}) for name, body in _INVOKE.findall(block)
    ] or None


def _value(kind: str, text: str) -> object:
    value = None if kind == "true" else loads(text)
    return text if value is None and text.strip() != "null" else value


def _reader_v4(tools: Sequence[Tool]) -> CallParser:
    return BlockParser((_BLOCK,), (_BLOCK_END,), _read_v4)


DEEPSEEK_V4 = AgentFormat(tools=_tools_v4, calls=_calls_v4, results=_results_v4, reader=_reader_v4, before_calls="")
