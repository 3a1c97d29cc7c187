"""GLM: a name and JSON on two lines (ChatGLM 4, GLM-4), or keys and values between tags (from GLM-4.5 on)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial

from swift_core.templates.agents.base import (
    AgentFormat,
    Result,
    Tool,
    argument_text,
    arguments_json,
    dumps,
    function_of,
    loads,
    typed,
    wrapped,
)
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser, WholeParser

_START = re.compile(r"[A-Za-z_][\w.-]*\n\s*\{")
_SO_FAR = re.compile(r"(?:[A-Za-z_][\w.-]*(?:\n\s*)?)?")
_CALL = re.compile(r"([A-Za-z_][\w.-]*)\n\s*(?=\{)")


def _tools4(tools: Sequence[Tool]) -> str:
    listed = "".join(
        f"\n\n## {function.get('name', '')}\n\n{json.dumps(function, ensure_ascii=False, indent=4)}\n"
        "在调用上述函数时，请使用 Json 格式表示调用的参数。"
        for function in map(function_of, tools)
    )
    return f"# 可用工具{listed}"


def _calls4(calls: Sequence[Call]) -> str:
    # Calls side by side are turns of their own; the end of each is the token that a result opens with.
    return "<|observation|>".join(f"{call.name}\n{arguments_json(call.arguments)}" for call in calls)


def _results4(results: Sequence[Result]) -> str:
    return "<|observation|>\n".join(result.content for result in results)


def _opens4(text: str) -> bool | None:
    return True if _START.match(text) else None if _SO_FAR.fullmatch(text) else False


def _read4(text: str) -> list[Call] | None:
    decoder = json.JSONDecoder()
    calls: list[Call] = []
    while text := text.strip().removeprefix("<|observation|>").removeprefix("<|assistant|>").strip():
        match = _CALL.match(text)
        try:
            value, stop = decoder.raw_decode(text, match.end()) if match else (None, 0)
        except ValueError:
            return None
        if match is None or not isinstance(value, dict):
            return None
        calls.append(Call(match.group(1), value))
        text = text[stop:]
    return calls or None


def _reader4(tools: Sequence[Tool]) -> CallParser:
    return WholeParser(_opens4, _read4)


_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
    "For each function call, output the function name and arguments within the following XML format:\n{example}"
)
_EXAMPLE = (
    "<tool_call>{function-name}{br}<arg_key>{arg-key-1}</arg_key>{br}<arg_value>{arg-value-1}</arg_value>{br}"
    "<arg_key>{arg-key-2}</arg_key>{br}<arg_value>{arg-value-2}</arg_value>{br}...{br}</tool_call>"
)


def _tools(br: str, tools: Sequence[Tool]) -> str:
    return _TOOLS.format(tools="\n".join(dumps(wrapped(tool)) for tool in tools), example=_EXAMPLE.replace("{br}", br))


def _calls(br: str, calls: Sequence[Call]) -> str:
    return br.join(f"<tool_call>{call.name}{br}{_arguments(br, call)}</tool_call>" for call in calls)


def _arguments(br: str, call: Call) -> str:
    arguments = loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    return "".join(
        f"<arg_key>{name}</arg_key>{br}<arg_value>{argument_text(value)}</arg_value>{br}" for name, value in (arguments or {}).items()
    )


def _results(br: str, results: Sequence[Result]) -> str:
    return "".join(f"{br}<tool_response>{br}{result.content}{br}</tool_response>" for result in results)


_NAME = re.compile(r"<tool_call>\s*([^<\s]+)")
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|</tool_call>|$)", re.DOTALL)


def _read(tools: Sequence[Tool], block: str) -> list[Call] | None:
    match = _NAME.match(block)
    if match is None:
        return None
    name = match.group(1)
    return [Call(name, {key.strip(): typed(text, name, key.strip(), tools) for key, text in _ARGUMENT.findall(block)})]


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser(("<tool_call>",), ("</tool_call>",), partial(_read, tools))


GLM4 = AgentFormat(tools=_tools4, calls=_calls4, results=_results4, reader=_reader4, frame="<|observation|>\n{{RESULTS}}")
GLM4_5 = AgentFormat(
    tools=partial(_tools, "\n"),
    calls=partial(_calls, "\n"),
    results=partial(_results, "\n"),
    reader=_reader,
    tools_first=True,
    between="<|system|>\n",
    frame="<|observation|>{{RESULTS}}",
)
GLM4_7 = AgentFormat(
    tools=partial(_tools, ""),
    calls=partial(_calls, ""),
    results=partial(_results, ""),
    reader=_reader,
    tools_first=True,
    between="<|system|>",
    before_calls="",
    frame="<|observation|>{{RESULTS}}",
)
