"""Gemma 4: declarations and calls in a notation of its own, texts between `<|"|>` marks; the answer goes on after the results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_of, function_of
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_QUOTE = '<|"|>'
_CALL, _CALL_END = "<|tool_call>", "<tool_call|>"
_RESULT, _RESULT_END = "<|tool_response>", "<tool_response|>"
# Keys of a schema without `properties` that are no names of fields.
_SCHEMA_KEYS = frozenset({"description", "type", "properties", "required", "nullable"})


def _sorted(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(values.items(), key=lambda pair: pair[0].lower())


def _quoted(text: Any) -> str:
    return f"{_QUOTE}{text}{_QUOTE}"


def _written(value: Any, *, quote_keys: bool) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        pairs = _sorted(cast("dict[str, Any]", value))
        return "{" + ",".join(f"{_quoted(key) if quote_keys else key}:{_written(item, quote_keys=quote_keys)}" for key, item in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_written(item, quote_keys=quote_keys) for item in cast("Sequence[Any]", value)) + "]"
    return str(value)


def _upper(kind: Any) -> str:
    names = cast("list[Any]", kind) if isinstance(kind, list) else None
    return _written([str(name).upper() for name in names], quote_keys=True) if names else _quoted(str(kind or "").upper())


def _names(required: Any) -> str:
    return "[" + ",".join(map(_quoted, required)) + "]"


def _fields(properties: Mapping[str, Any], *, without: frozenset[str] = frozenset()) -> str:
    return ",".join(f"{name}:{{{_field(schema)}}}" for name, schema in _sorted(properties) if name not in without)


def _field(schema: Any) -> str:
    values: Mapping[str, Any] = cast("Mapping[str, Any]", schema) if isinstance(schema, dict) else {}
    kind = str(values.get("type") or "").upper()
    parts = [f"description:{_quoted(values['description'])}"] if values.get("description") else []
    if kind == "STRING" and values.get("enum"):
        parts.append(f"enum:{_written(values['enum'], quote_keys=True)}")
    if kind == "ARRAY" and isinstance(values.get("items"), dict) and values["items"]:
        parts.append(f"items:{{{_items(values['items'])}}}")
    if values.get("nullable"):
        parts.append("nullable:true")
    if kind == "OBJECT":
        inner: Any = values.get("properties")
        parts.append(f"properties:{{{_fields(inner) if isinstance(inner, dict) else _fields(values, without=_SCHEMA_KEYS)}}}")
        parts += [f"required:{_names(values['required'])}"] if values.get("required") else []
    return ",".join([*parts, f"type:{_upper(values.get('type'))}"])


def _items(items: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for key, value in _sorted(items):
        if value is None:
            continue
        if key == "properties":
            parts.append(f"properties:{{{_fields(value) if isinstance(value, dict) else ''}}}")
        elif key == "required":
            parts.append(f"required:{_names(value)}")
        else:
            parts.append(f"{key}:{_upper(value) if key == 'type' else _written(value, quote_keys=True)}")
    return ",".join(parts)


def _declared(tool: Tool) -> str:
    function = function_of(tool)
    text = f"declaration:{function.get('name', '')}{{description:{_quoted(function.get('description', ''))}"
    schema: Mapping[str, Any] = function.get("parameters") or {}
    if schema:
        parts = [f"properties:{{{_fields(schema['properties'])}}}"] if schema.get("properties") else []
        parts += [f"required:{_names(schema['required'])}"] if schema.get("required") else []
        parts.append(f"type:{_upper(schema.get('type') or 'object')}")
        text += f",parameters:{{{','.join(parts)}}}"
    return f"<|tool>{text}}}<tool|>"


def _tools(tools: Sequence[Tool]) -> str:
    return "".join(map(_declared, tools))


def _calls(calls: Sequence[Call]) -> str:
    return "".join(f"{_CALL}call:{call.name}{_written(arguments_of(call), quote_keys=False)}{_CALL_END}" for call in calls)


def _results(results: Sequence[Result]) -> str:
    # The mark that opens the first result is the one with which the model has ended its calls.
    return _RESULT.join(f"response:{result.name or 'unknown'}{{value:{_quoted(result.content)}}}{_RESULT_END}" for result in results)


_HEAD = re.compile(r"<\|tool_call>\s*(?:call:)?\s*([\w.-]+)\s*(?=\{)")


class _Reader:
    """Reads a value in the notation of calls."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def value(self) -> Any:
        if self.text.startswith(_QUOTE, self.at):
            return self._string()
        opening = self.text[self.at : self.at + 1]
        if opening == "{":
            return dict(self._listed("}", self._pair))
        if opening == "[":
            return self._listed("]", self.value)
        match = re.compile(r"[^,\]}]+").match(self.text, self.at)
        if match is None:
            raise ValueError(f"no value at {self.at}")
        self.at = match.end()
        return _scalar(match.group().strip())

    def _string(self) -> str:
        start = self.at + len(_QUOTE)
        stop = self.text.index(_QUOTE, start)
        self.at = stop + len(_QUOTE)
        return self.text[start:stop]

    def _pair(self) -> tuple[str, Any]:
        key = self._string() if self.text.startswith(_QUOTE, self.at) else self.text[self.at : self.text.index(":", self.at)].strip()
        self.at = self.text.index(":", self.at) + 1
        return key, self.value()

    def _listed(self, end: str, read: Any) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        while True:
            self.at += len(self.text[self.at :]) - len(self.text[self.at :].lstrip(" ,\n"))
            if self.text.startswith(end, self.at):
                self.at += 1
                return found
            found.append(read())


def _scalar(word: str) -> Any:
    if word in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[word]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _read(block: str) -> list[Call] | None:
    match = _HEAD.match(block)
    if match is None:
        return None
    body = block[match.end() :].removesuffix(_CALL_END)
    try:
        return [Call(match.group(1), _Reader(body).value())]
    except (ValueError, IndexError):
        return None


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser((_CALL,), (_CALL_END,), _read)


GEMMA4 = AgentFormat(
    tools=_tools,
    calls=_calls,
    results=_results,
    reader=_reader,
    between="",
    before_calls="",
    frame="{{RESULTS}}",
    ending=_RESULT,
    continued=True,
)
