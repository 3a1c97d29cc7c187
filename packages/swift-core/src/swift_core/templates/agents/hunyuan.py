"""Tencent: Hunyuan dense models (a name and JSON in a fence), Hy3 (keys and values between tags), Youtu-LLM (JSON in one line)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from swift_core.templates.agents.base import (
    AgentFormat,
    Result,
    Tool,
    argument_text,
    arguments_json,
    arguments_of,
    dumps,
    loads,
    read_call,
    typed,
    wrapped,
)
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
)
_FENCED = (
    "For function call returns, you should first print <tool_calls>For each function call, you should return object like:\n"
    "<tool_call>function_name\n```json\nfunction_arguments_in_json_format\n```</tool_call>"
    "At the end of function call returns, you should print </tool_calls>"
)


def _listed(tools: Sequence[Tool]) -> str:
    return _TOOLS.format(tools="\n".join(dumps(wrapped(tool)) for tool in tools))


def _tools(tools: Sequence[Tool]) -> str:
    return _listed(tools) + _FENCED


def _calls(calls: Sequence[Call]) -> str:
    written = "\n".join(f"<tool_call>{call.name}\n```json\n{arguments_json(call.arguments)}\n```</tool_call>" for call in calls)
    return f"<tool_calls>{written}</tool_calls>"


def _results(results: Sequence[Result]) -> str:
    written = "\n".join(f"<tool_response>{result.content}</tool_response>" for result in results)
    return f"<tool_responses>{written}</tool_responses>"


_CALL = re.compile(r"<tool_call>\s*(.+?)\s*```json\s*(.*?)\s*```\s*(?:</tool_call>|</tool_calls>|$)", re.DOTALL)


def _read(block: str) -> list[Call] | None:
    calls: list[Call] = []
    for name, text in _CALL.findall(block):
        value = loads(text)
        calls.append(Call(name, value if isinstance(value, dict) else text))
    return calls or None


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser(("<tool_calls>",), ("</tool_calls>",), _read)


# --- Hy3: every tag ends with a word of its own


def _tag(kind: str, name: str) -> str:
    return f"<{name}{kind}>"


def _tools3(kind: str, tools: Sequence[Tool]) -> str:
    tag = partial(_tag, kind)
    pairs = "\n".join(
        f"{tag('arg_key')}{{arg-key-{number}}}{tag('/arg_key')}\n{tag('arg_value')}{{arg-value-{number}}}{tag('/arg_value')}"
        for number in (1, 2)
    )
    return (
        f"{_listed(tools)}For function call returns, you should first print {tag('tool_calls')}\n"
        "For each function call, you should return object like:\n"
        f"{tag('tool_call')}{{function-name}}{tag('tool_sep')}\n{pairs}\n...\n{tag('/tool_call')}\n"
        f"At the end of function call returns, you should print {tag('/tool_calls')}"
    )


def _calls3(kind: str, calls: Sequence[Call]) -> str:
    tag = partial(_tag, kind)
    written: list[str] = []
    for call in calls:
        pairs = [
            f"{tag('arg_key')}{name}{tag('/arg_key')}\n{tag('arg_value')}{argument_text(value)}{tag('/arg_value')}"
            for name, value in arguments_of(call).items()
        ]
        written.append(f"{tag('tool_call')}{call.name}{tag('tool_sep')}\n" + "\n".join(pairs) + f"\n{tag('/tool_call')}")
    return f"{tag('tool_calls')}\n" + "\n".join(written) + f"\n{tag('/tool_calls')}"


def _results3(kind: str, results: Sequence[Result]) -> str:
    tag = partial(_tag, kind)
    written = "\n".join(f"{tag('tool_response')}\n{result.content}\n{tag('/tool_response')}" for result in results)
    return f"{tag('tool_responses')}\n{written}\n{tag('/tool_responses')}"


def _read3(kind: str, tools: Sequence[Tool], block: str) -> list[Call] | None:
    tag = partial(_tag, kind)
    one = re.compile(rf"{tag('tool_call')}(.*?){tag('tool_sep')}(.*?)(?:{tag('/tool_call')}|{tag('/tool_calls')}|$)", re.DOTALL)
    pair = re.compile(rf"{tag('arg_key')}(.*?){tag('/arg_key')}\s*{tag('arg_value')}(.*?){tag('/arg_value')}", re.DOTALL)
    return [
        Call(name.strip(), {key.strip(): typed(text, name.strip(), key.strip(), tools) for key, text in pair.findall(body)})
        for name, body in one.findall(block)
    ] or None


def _reader3(kind: str, tools: Sequence[Tool]) -> CallParser:
    return BlockParser((_tag(kind, "tool_calls"),), (_tag(kind, "/tool_calls"),), partial(_read3, kind, tools))


def _hy3(kind: str) -> AgentFormat:
    return AgentFormat(
        tools=partial(_tools3, kind),
        calls=partial(_calls3, kind),
        results=partial(_results3, kind),
        reader=partial(_reader3, kind),
        frame="{{RESULTS}}",
    )


# --- Youtu-LLM


def _tools_youtu(tools: Sequence[Tool]) -> str:
    listed = "\n".join(f"```json\n{dumps(wrapped(tool))}\n```" for tool in tools)
    return (
        "<|begin_of_tool_description|>Tool calling capabilities.\n"
        "You may call one or more functions to assist with the user query. You have the following functions available:\n"
        f"{listed}\nFor tool call returns, you MUST use the following format:\n"
        '<tool_call>{"name": "function-name", "arguments": {"param1": "value1", "param2": "value2"}}</tool_call>\n'
        "<|end_of_tool_description|>"
    )


def _calls_youtu(calls: Sequence[Call]) -> str:
    return "".join(
        f'<tool_call>{{"name": {dumps(call.name)}, "arguments": {arguments_json(call.arguments)}}}</tool_call>' for call in calls
    )


def _results_youtu(results: Sequence[Result]) -> str:
    return "\n".join(f"<tool_response>{result.content}</tool_response>" for result in results)


def _read_youtu(block: str) -> list[Call] | None:
    call = read_call(loads(block.removeprefix("<tool_call>").removesuffix("</tool_call>").strip()))
    return [call] if call else None


def _reader_youtu(tools: Sequence[Tool]) -> CallParser:
    return BlockParser(("<tool_call>",), ("</tool_call>",), _read_youtu)


HUNYUAN = AgentFormat(tools=_tools, calls=_calls, results=_results, reader=_reader, before_calls="")
HY_V3_PREVIEW = _hy3("")
HY_V3 = _hy3(":opensource")
YOUTU = AgentFormat(tools=_tools_youtu, calls=_calls_youtu, results=_results_youtu, reader=_reader_youtu)
