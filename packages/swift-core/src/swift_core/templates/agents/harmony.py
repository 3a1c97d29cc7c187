"""Harmony, the format of gpt-oss: every message names its channel; calls go to `functions.NAME` on the channel commentary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_json, dumps, function_of, loads
from swift_core.templates.agents.incremental import Call, CallParser, Delta

_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_MESSAGE = "<|message|>"
_SIMPLE = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "object": "object"}


def _type(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if kind == "array":
        items: Any = schema.get("items") or {}
        return f"{_type(cast('Mapping[str, Any]', items))}[]"
    if kind == "string" and schema.get("enum"):
        return " | ".join(dumps(value) for value in schema["enum"])
    return _SIMPLE.get(str(kind), "any")


def _declared(function: Tool) -> str:
    schema = function.get("parameters") or {}
    required = schema.get("required") or []
    lines = [f"// {function.get('description', '')}"]
    properties: Mapping[str, Any] = schema.get("properties") or {}
    if not properties:
        return "\n".join([*lines, f"type {function.get('name', '')} = () => any;"])
    lines.append(f"type {function.get('name', '')} = (_: {{")
    for name, parameter in properties.items():
        if parameter.get("description"):
            lines.append(f"// {parameter['description']}")
        default = f", // default: {dumps(parameter['default'])}" if "default" in parameter else ""
        lines.append(f"{name}{'' if name in required else '?'}: {_type(parameter)}{default},")
    return "\n".join([*lines, "}) => any;"])


def _tools(tools: Sequence[Tool]) -> str:
    declared = "\n\n".join(_declared(function_of(tool)) for tool in tools)
    return f"# Tools\n\n## functions\n\nnamespace functions {{\n\n{declared}\n\n}} // namespace functions"


def _calls(calls: Sequence[Call]) -> str:
    return "<|call|><|start|>assistant".join(
        f" to=functions.{call.name}<|channel|>commentary json<|message|>{arguments_json(call.arguments)}" for call in calls
    )


def _results(results: Sequence[Result]) -> str:
    return "".join(
        f"<|start|>functions.{result.name} to=assistant<|channel|>commentary<|message|>{dumps(result.content)}<|end|>" for result in results
    )


@dataclass(slots=True)
class HarmonyParser:
    """Reads messages with headers: the channel final is content, analysis is content between thinking marks, calls are calls."""

    _buffer: str = ""
    _header: str | None = ""
    _body: str = ""
    _thinking: bool = False
    _started: bool = field(default=False)

    def feed(self, text: str) -> list[Delta]:
        """Take the next piece and return what is known for sure by now."""
        self._buffer += text
        deltas: list[Delta] = []
        while True:
            if self._header is None or (not self._started and self._plain()):
                at, mark = _first(self._buffer, _ENDS)
                if not mark:
                    cut = len(self._buffer) - _held(self._buffer, _ENDS)
                    deltas += self._take(self._buffer[:cut])
                    self._buffer = self._buffer[cut:]
                    return deltas
                deltas += self._take(self._buffer[:at])
                deltas += self._close()
                self._buffer = self._buffer[at + len(mark) :]
                self._header = ""
            at = self._buffer.find(_MESSAGE)
            if at < 0:
                return deltas
            deltas += self._open(self._buffer[:at])
            self._buffer = self._buffer[at + len(_MESSAGE) :]

    def finish(self) -> list[Delta]:
        """Return what was held back; the answer is over."""
        rest, self._buffer = self._buffer, ""
        return [*(self._take(rest) if self._header is None or not self._started else []), *self._close()]

    def _plain(self) -> bool:
        """Say whether the answer is known to come without headers; it is content then."""
        opening = self._buffer.lstrip()
        marks = ("<|channel|>", "<|start|>", "<|message|>", "to=")
        if not opening or any(mark.startswith(opening) for mark in marks) or opening.startswith(marks):
            return False
        self._started, self._header, self._body = True, None, "final"
        return True

    def _open(self, header: str) -> list[Delta]:
        self._started = True
        self._header, self._body = None, ""
        recipient = re.search(r"to=(?:functions\.)?([\w.-]+)", header)
        channel = re.search(r"<\|channel\|>\s*(\w+)", header)
        if recipient and recipient.group(1) != "assistant":
            self._body = f"call:{recipient.group(1)}:"
        elif channel and channel.group(1) == "analysis":
            self._thinking = True
            self._body = "analysis"
            return [Delta(content="<think>\n")]
        else:
            self._body = "final"
        return []

    def _take(self, text: str) -> list[Delta]:
        if self._body.startswith("call:"):
            self._body += text
            return []
        return [Delta(content=text)] if text else []

    def _close(self) -> list[Delta]:
        body, self._body = self._body, ""
        if self._thinking:
            self._thinking = False
            return [Delta(content="\n</think>\n\n")]
        if body.startswith("call:"):
            _, name, text = body.split(":", 2)
            value = loads(text.strip())
            return [Delta(call=Call(name, value if isinstance(value, dict) else text.strip()))]
        return []


def _first(text: str, marks: Sequence[str]) -> tuple[int, str]:
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(found) if found else (len(text), "")


def _held(text: str, marks: Sequence[str]) -> int:
    longest = max(len(mark) for mark in marks) - 1
    return next((length for length in range(min(longest, len(text)), 0, -1) if any(mark.startswith(text[-length:]) for mark in marks)), 0)


def _reader(tools: Sequence[Tool]) -> CallParser:
    return HarmonyParser()


GPT_OSS = AgentFormat(tools=_tools, calls=_calls, results=_results, reader=_reader, before_calls="", frame="{{RESULTS}}", ending="<|call|>")
