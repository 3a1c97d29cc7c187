"""Mistral: calls after `[TOOL_CALLS]`, as a JSON list or as a name and arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from swift_core.templates.agents.base import AgentFormat, Result, Tool, arguments_json, dumps, loads, read_call, wrapped
from swift_core.templates.agents.incremental import BlockParser, Call, CallParser

_NAMED = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _tools(tools: Sequence[Tool]) -> str:
    return f"[AVAILABLE_TOOLS]{dumps([wrapped(tool) for tool in tools])}[/AVAILABLE_TOOLS]"


def _calls(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{call.name}[ARGS]{arguments_json(call.arguments)}" for call in calls)


def _results(results: Sequence[Result]) -> str:
    return "".join(f"[TOOL_RESULTS]{result.content}[/TOOL_RESULTS]" for result in results)


def _read(block: str) -> list[Call] | None:
    calls: list[Call] = []
    for text in block.split("[TOOL_CALLS]")[1:]:
        listed = loads(text.strip())
        if isinstance(listed, list):
            found = [read_call(value) for value in listed]  # pyright: ignore[reportUnknownVariableType]
            if not found or any(call is None for call in found):
                return None
            calls += [call for call in found if call is not None]
            continue
        match = _NAMED.match(text)
        try:
            value, stop = json.JSONDecoder().raw_decode(text, match.end()) if match else (None, 0)
        except ValueError:
            return None
        if match is None or not isinstance(value, dict) or text[stop:].strip():
            return None
        calls.append(Call(match.group(1), value, match.group(2)))
    return calls or None


def _reader(tools: Sequence[Tool]) -> CallParser:
    return BlockParser(("[TOOL_CALLS]",), (), _read)


MISTRAL = AgentFormat(
    tools=_tools, calls=_calls, results=_results, reader=_reader, between="", before_calls="", frame="{{RESULTS}}", continued=True
)
