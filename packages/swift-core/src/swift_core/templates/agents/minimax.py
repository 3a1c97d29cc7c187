"""MiniMax M3: calls as XML whose every tag follows a mark, arguments as elements of their own names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_of, dumps, function_of, loads, schema_of
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_MARK = "]<]minimax[>["
_BLOCK, _BLOCK_END = f"{_MARK}<tool_call>", f"{_MARK}</tool_call>"
_EXAMPLE: tuple[Call, ...] = (
    Call("tool-name-1", {"param-1": "value-1", "param-2": [{"key-a": "val-a", "key-b": "val-b"}]}),
    Call("tool-name-2", {"param-1": "value-1"}),
)


def _tools(tools: Sequence[Tool]) -> str:
    listed = "\n".join(f"<tool>{dumps(function_of(tool))}</tool>" for tool in tools)
    return (
        "# Tools\nYou may call one or more tools to assist with the user query.\nHere are the tools available in JSONSchema format:\n\n"
        f"<tools>\n{listed}\n</tools>\n\nTo call tools, wrap all invocations in a single {_BLOCK}{_BLOCK_END} block. Parameter values "
        f"containing nested objects or arrays are recursively expanded into XML elements. Example:\n{_calls(_EXAMPLE)}"
    )


def _calls(calls: Sequence[Call]) -> str:
    lines = [f'{_MARK}<invoke name="{call.name}">{_xml(arguments_of(call))}{_MARK}</invoke>' for call in calls]
    return "\n".join([_BLOCK, *lines, _BLOCK_END])


def _xml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return "".join(_element(name, item) for name, item in pairs if item is not None)
    if isinstance(value, list | tuple):
        return "".join(_element("item", item) for item in cast("Sequence[Any]", value))
    return "" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)


def _element(name: str, value: Any) -> str:
    return f"{_MARK}<{name}>{_xml(value)}{_MARK}</{name}>"


def _results(results: Sequence[Result]) -> str:
    return "\n".join(f"<response>{result.content}</response>" for result in results)


_INVOKE = re.compile(
    rf'{re.escape(_MARK)}<invoke\s+name="([^"]+)">(.*?)(?:{re.escape(_MARK)}</invoke>|{re.escape(_BLOCK_END)}|$)', re.DOTALL
)
_OPENING = re.compile(rf"{re.escape(_MARK)}<([^/\s>]+)>")


def _read(tools: Sequence[Tool], block: str) -> list[Call] | None:
    return [
        Call(name, {key: _value(text, schema_of(name, key, tools)) for key, text in _elements(body)})
        for name, body in _INVOKE.findall(block)
    ] or None


def _elements(body: str) -> Iterator[tuple[str, str]]:
    """Yield name and content of the elements that stand side by side; one of them may hold others of its name."""
    position = 0
    while match := _OPENING.search(body, position):
        name, depth, stop = match.group(1), 1, match.end()
        opening, closing = f"{_MARK}<{name}>", f"{_MARK}</{name}>"
        while depth:
            close = body.find(closing, stop)
            if close < 0:  # cut short
                yield name, body[match.end() :]
                return
            nested = body.find(opening, stop, close)
            depth, stop = (depth + 1, nested + len(opening)) if nested >= 0 else (depth - 1, close + len(closing))
        yield name, body[match.end() : stop - len(closing)]
        position = stop


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """Return the value of an element; the schema tells texts from numbers, and nothing from an empty list."""
    kind = schema.get("type")
    inner = list(_elements(text))
    if inner and kind != "string":
        if kind == "array" or (kind is None and all(name == "item" for name, _ in inner)):
            return [_value(item, schema.get("items") or {}) for _, item in inner]
        fields: Mapping[str, Any] = schema.get("properties") or {}
        return {name: _value(item, fields.get(name) or {}) for name, item in inner}
    if kind == "string":
        return text
    if not text.strip() and kind in ("array", "object"):
        return [] if kind == "array" else {}
    value = loads(text)
    return text if value is None and text.strip() != "null" else value


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser((_BLOCK,), (_BLOCK_END,), partial(_read, tools))


MINIMAX_M3 = AgentFormat(tools=_tools, calls=_calls, results=_results, reader=_reader, frame="]~b]tool\n{{RESULTS}}[e~[\n")
