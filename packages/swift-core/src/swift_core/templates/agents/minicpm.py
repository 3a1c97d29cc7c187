"""MiniCPM 5: calls as XML, texts with marks of their own in CDATA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from swift_core.templates.agents.base import AgentFormat, Tool, argument_text, arguments_of, dumps, typed, wrapped
from swift_core.templates.agents.hermes import results_in_tags
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_TOOLS = (
    "# Tools\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
    "Tool usage guidelines:\n"
    "- You may call zero or more functions. If no function calls are needed, just answer normally and do not include any "
    "<function ... </function>.\n"
    "- When calling a function, return an XML object within <function ... </function> using:\n"
    '<function name="function-name"><param name="param-name">param-value</param></function>\n'
    "- param-value may be multi-line. If it contains <, & or newline characters, wrap it in a CDATA block: "
    '<param name="param-name"><![CDATA[...multi-line value...]]></param>'
)


def _tools(tools: Sequence[Tool]) -> str:
    return _TOOLS.format(tools="\n".join(dumps(wrapped(tool)) for tool in tools))


def _calls(calls: Sequence[Call]) -> str:
    return "\n".join(
        f'<function name="{call.name}">'
        + "".join(f'<param name="{name}">{_written(value)}</param>' for name, value in arguments_of(call).items())
        + "</function>"
        for call in calls
    )


def _written(value: object) -> str:
    text = argument_text(value)
    return f"<![CDATA[{text}]]>" if isinstance(value, str) and re.search(r"[<&\n]", text) else text


_NAME = re.compile(r'<function\s+name="([^"]+)"\s*>')
_PARAM = re.compile(r'<param\s+name="([^"]+)"\s*>(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))</param>', re.DOTALL)


def _read(tools: Sequence[Tool], block: str) -> list[Call] | None:
    match = _NAME.match(block)
    if match is None:
        return None
    name = match.group(1)
    return [Call(name, {key: typed(marked or plain, name, key, tools) for key, marked, plain in _PARAM.findall(block)})]


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser(("<function name=",), ("</function>",), partial(_read, tools))


MINICPM5 = AgentFormat(tools=_tools, calls=_calls, results=results_in_tags, reader=_reader)
