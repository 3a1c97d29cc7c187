"""Kimi K2: calls in a section of special tokens, each with an id `functions.NAME:NUMBER`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_json, dumps, loads, wrapped
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_SECTION, _SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_ONE, _ARGUMENTS, _ONE_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def _tools(tools: Sequence[Tool]) -> str:
    return f"# Tools\n{dumps([wrapped(tool) for tool in tools])}"


def _calls(calls: Sequence[Call]) -> str:
    written = "".join(
        f"{_ONE}{call.id or f'functions.{call.name}:{number}'}{_ARGUMENTS}{arguments_json(call.arguments)}{_ONE_END}"
        for number, call in enumerate(calls)
    )
    return f"{_SECTION}{written}{_SECTION_END}"


def _results(results: Sequence[Result]) -> str:
    return "\n".join(
        f"## Return of {result.id or f'functions.{result.name}:{number}'}\n{result.content}" for number, result in enumerate(results)
    )


_CALL = re.compile(
    rf"{re.escape(_ONE)}\s*(.*?)\s*{re.escape(_ARGUMENTS)}(.*?)(?:{re.escape(_ONE_END)}|{re.escape(_SECTION_END)}|$)", re.DOTALL
)


def _read(block: str) -> list[Call] | None:
    calls: list[Call] = []
    for identity, text in _CALL.findall(block):
        value = loads(text.strip())
        name = identity.rsplit(":", 1)[0].removeprefix("functions.")
        calls.append(Call(name, value if isinstance(value, dict) else text.strip(), identity))
    return calls or None


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser((_SECTION,), (_SECTION_END,), _read)


KIMI_K2 = AgentFormat(
    tools=_tools,
    calls=_calls,
    results=_results,
    reader=_reader,
    before_calls="",
    frame="<|im_system|>tool<|im_middle|>{{RESULTS}}<|im_end|>",
)
