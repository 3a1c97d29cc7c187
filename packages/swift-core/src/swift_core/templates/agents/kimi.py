"""Kimi: calls in a section of special tokens, each with an id `functions.NAME:NUMBER` (K2), or as tags of special tokens (K3)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from swift_core.templates.agents.base import AgentFormat, Result, Tool, argument_text, arguments_json, arguments_of, dumps, loads, wrapped
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


# --- K3


def _open(tag: str, **attributes: Any) -> str:
    written = "".join(f' {name}="{_escaped(value)}"' for name, value in attributes.items())
    return f"<|open|>{tag}{written}<|sep|>"


def _close(tag: str) -> str:
    return f"<|close|>{tag}<|sep|>"


def _escaped(value: Any) -> str:
    return str(value).replace("&", "&amp;").replace('"', "&quot;")


def _plain(text: str) -> str:
    return text.replace("&quot;", '"').replace("&amp;", "&")


def _tools3(tools: Sequence[Tool]) -> str:
    listed = json.dumps([wrapped(tool) for tool in tools], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return f"# Tools\nHere are the available tools, described in JSONSchema.\n\n```json\n{listed}\n```"


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {bool: "boolean", type(None): "null", int: "number", float: "number", str: "string", dict: "object"}
    return kinds.get(type(value), "array")


def _calls3(calls: Sequence[Call]) -> str:
    # The answer to the user, which may be empty, is closed before the calls.
    return (
        _close("response") + _open("tools") + "".join(_call3(call, number) for number, call in enumerate(calls, start=1)) + _close("tools")
    )


def _call3(call: Call, number: int) -> str:
    if isinstance(call.arguments, str) and not isinstance(loads(call.arguments), dict):
        body = _open("json", type="object") + call.arguments + _close("json")
    else:
        body = "".join(
            _open("argument", key=name, type=_kind(value)) + argument_text(value) + _close("argument")
            for name, value in arguments_of(call).items()
        )
    return _open("call", tool=call.name, index=number) + body + _close("call")


def _results3(results: Sequence[Result]) -> str:
    return "".join(
        _open("message", role="tool", tool=result.name, index=number) + result.content + _close("message") + "<|end_of_msg|>"
        for number, result in enumerate(results, start=1)
    )


_CALL3 = re.compile(
    r'<\|open\|>call tool="([^"]*)"(?: index="\d+")?<\|sep\|>(.*?)(?:<\|close\|>call<\|sep\|>|<\|close\|>tools<\|sep\|>|$)', re.DOTALL
)
_ARGUMENT3 = re.compile(r'<\|open\|>argument key="([^"]*)" type="(\w+)"<\|sep\|>(.*?)<\|close\|>argument<\|sep\|>', re.DOTALL)
_JSON3 = re.compile(r'<\|open\|>json type="object"<\|sep\|>(.*?)<\|close\|>json<\|sep\|>', re.DOTALL)


def _read3(block: str) -> list[Call] | None:
    calls: list[Call] = []
    for name, body in _CALL3.findall(block):
        whole = _JSON3.search(body)
        if whole:
            value = loads(whole.group(1))
            calls.append(Call(_plain(name), value if isinstance(value, dict) else whole.group(1)))
            continue
        calls.append(Call(_plain(name), {_plain(key): _value3(kind, text) for key, kind, text in _ARGUMENT3.findall(body)}))
    return calls or None


def _value3(kind: str, text: str) -> Any:
    value = None if kind == "string" else loads(text)
    return text if value is None and kind != "null" else value


def _reader3(tools: Sequence[Tool]) -> CallParser:
    opening = _close("response") + _open("tools")
    return BlockParser((opening, _open("tools")), (_close("tools"),), _read3)


KIMI_K3 = AgentFormat(
    tools=_tools3,
    calls=_calls3,
    results=_results3,
    reader=_reader3,
    before_calls="",
    frame="{{RESULTS}}",
    ending="<|close|>message<|sep|><|end_of_msg|>",
    tools_frame=_open("message", role="system", type="tool-declare") + "{{TOOLS}}" + _close("message") + "<|end_of_msg|>",
)
