"""Calls whose every argument has tags of its own: Qwen3-Coder and Qwen 3.5, Seed-OSS, MiniMax M2."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from swift_core.templates.agents.base import AgentFormat, Result, Tool, argument_text, dumps, function_of, loads, typed, wrapped
from swift_core.templates.agents.hermes import results_in_tags
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser


@dataclass(frozen=True, slots=True)
class Tags:
    """The marks of one family; `{}` stands for a name.

    Attributes:
        block: opens and closes a block of calls.
        call: opens and closes a call.
        argument: opens and closes an argument.
        padded: line breaks stand around the text of an argument.
        several: a block may hold several calls.
    """

    block: tuple[str, str]
    call: tuple[str, str]
    argument: tuple[str, str]
    padded: bool = True
    several: bool = False


def _one(tags: Tags, call: Call) -> str:
    pad = "\n" if tags.padded else ""
    arguments = loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    lines = [
        f"{tags.argument[0].format(name)}{pad}{argument_text(value)}{pad}{tags.argument[1]}" for name, value in (arguments or {}).items()
    ]
    return "\n".join([tags.call[0].format(call.name), *lines, tags.call[1]])


def _calls(tags: Tags, calls: Sequence[Call]) -> str:
    texts = [_one(tags, call) for call in calls]
    blocks = ["\n".join(texts)] if tags.several else texts
    return "\n".join(f"{tags.block[0]}\n{block}\n{tags.block[1]}" for block in blocks)


def _pattern(pair: tuple[str, str]) -> re.Pattern[str]:
    opening = re.escape(pair[0]).replace(r"\{\}", r"([^>\"]+)")
    return re.compile(rf"{opening}(.*?)(?:{re.escape(pair[1])}|$)", re.DOTALL)


def _read(tags: Tags, tools: Sequence[Tool], block: str) -> list[Call] | None:
    calls: list[Call] = []
    for name, body in _pattern(tags.call).findall(block):
        arguments = {key: typed(_bare(text, tags.padded), name.strip(), key, tools) for key, text in _pattern(tags.argument).findall(body)}
        calls.append(Call(name.strip(), arguments))
    return calls or None


def _bare(text: str, padded: bool) -> str:
    return text.removeprefix("\n").removesuffix("\n") if padded else text


def _reader(tags: Tags, tools: Sequence[Tool]) -> CallParser:
    return BlockParser((tags.block[0],), (tags.block[1],), partial(_read, tags, tools))


def _format(tags: Tags, tools: Callable[[Sequence[Tool]], str], results: Callable[[Sequence[Result]], str], **more: object) -> AgentFormat:
    return AgentFormat(tools=tools, calls=partial(_calls, tags), results=results, reader=partial(_reader, tags), **more)  # pyright: ignore[reportArgumentType]


_QWEN = Tags(("<tool_call>", "</tool_call>"), ("<function={}>", "</function>"), ("<parameter={}>", "</parameter>"))
_SEED = Tags(("<seed:tool_call>", "</seed:tool_call>"), ("<function={}>", "</function>"), ("<parameter={}>", "</parameter>"), padded=False)
_MINIMAX = Tags(
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ('<invoke name="{}">', "</invoke>"),
    ('<parameter name="{}">', "</parameter>"),
    padded=False,
    several=True,
)
_HOW = (
    "If you choose to call a function ONLY reply in the following format with NO suffix:\n\n{block[0]}\n<function=example_function_name>\n"
    "<parameter=example_parameter_1>\nvalue_1\n</parameter>\n<parameter=example_parameter_2>\n"
    "This is the value for the second parameter\nthat can span\nmultiple lines\n</parameter>\n</function>\n{block[1]}\n\n<IMPORTANT>\n"
    "Reminder:\n- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within "
    "{block[0]}{block[1]} XML tags\n- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after\n"
    "- If there is no function call available, answer the question like normal with your current knowledge and do not tell the user "
    "about function calls\n</IMPORTANT>"
)


def _qwen3_5(tools: Sequence[Tool]) -> str:
    lines = "\n".join(dumps(wrapped(tool)) for tool in tools)
    return f"# Tools\n\nYou have access to the following functions:\n\n<tools>\n{lines}\n</tools>\n\n{_HOW.format(block=_QWEN.block)}"


def _described(tool: Tool) -> str:
    function = function_of(tool)
    lines = ["<function>", f"<name>{function.get('name', '')}</name>"]
    if function.get("description"):
        lines.append(f"<description>{str(function['description']).strip()}</description>")
    lines.append("<parameters>")
    schema = function.get("parameters") or {}
    for name, parameter in (schema.get("properties") or {}).items():
        lines += ["<parameter>", f"<name>{name}</name>"]
        lines += [
            f"<{key}>{argument_text(value).strip()}</{key}>" for key, value in parameter.items() if key in ("type", "description", "enum")
        ]
        lines.append("</parameter>")
    if schema.get("required"):
        lines.append(f"<required>{dumps(schema['required'])}</required>")
    return "\n".join([*lines, "</parameters>", "</function>"])


def _xml_tools(block: tuple[str, str], tools: Sequence[Tool]) -> str:
    lines = "\n".join(_described(tool) for tool in tools)
    return f"# Tools\n\nYou have access to the following functions:\n\n<tools>\n{lines}\n</tools>\n\n{_HOW.format(block=block)}"


def _minimax_tools(tools: Sequence[Tool]) -> str:
    lines = "\n".join(f"<tool>{dumps(function_of(tool))}</tool>" for tool in tools)
    return (
        "# Tools\nYou may call one or more tools to assist with the user query.\nHere are the tools available in JSONSchema format:\n\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "When making tool calls, use XML format to invoke tools and pass parameters:\n\n"
        '<minimax:tool_call>\n<invoke name="tool-name-1">\n<parameter name="param-key-1">param-value-1</parameter>\n'
        '<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n</minimax:tool_call>'
    )


def _minimax_results(results: Sequence[Result]) -> str:
    return "\n".join(f"<response>{result.content}</response>" for result in results)


QWEN3_CODER = _format(_QWEN, partial(_xml_tools, _QWEN.block), results_in_tags)
QWEN3_5 = _format(_QWEN, _qwen3_5, results_in_tags, tools_first=True, before_calls="\n\n")
SEED_OSS = _format(_SEED, partial(_xml_tools, _SEED.block), results_in_tags)
MINIMAX_M2 = _format(_MINIMAX, _minimax_tools, _minimax_results, frame="]~b]tool\n{{RESULTS}}[e~[\n")
