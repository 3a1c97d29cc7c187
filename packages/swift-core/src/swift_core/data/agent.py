"""Function schemas of a row, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from swift_core.data.values import Refused, kind_of, parse_json


def tools_of(value: Any, what: str) -> list[dict[str, Any]] | None:
    """Return the function schemas of a column: a list, one schema, or either as a JSON text.

    Raises:
        Refused: when something in it is no schema.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        value = parse_json(value, what)
    tools = [value] if isinstance(value, dict) else value
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise Refused(f"{what} is {kind_of(tools)}, not a list of function schemas")
    return [_schema(tool, number) for number, tool in enumerate(tools, start=1)] or None


def _schema(tool: Any, number: int) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = parse_json(tool, f"tool {number}")
    if not isinstance(tool, dict):
        raise Refused(f"tool {number} is {kind_of(tool)}, not a function schema")
    if "function" in tool or "name" not in tool:
        return tool
    if "input_schema" in tool:  # Anthropic's name for the parameters
        tool = {("parameters" if key == "input_schema" else key): value for key, value in tool.items()}
    if tool.get("type") == "function":  # OpenAI's Responses API keeps the function's fields beside the type
        tool = {key: value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": tool}
