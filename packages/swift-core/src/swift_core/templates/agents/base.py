"""An agent format: how tools stand in the prompt, how calls and results are written, how calls are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from swift_core.templates.agents.incremental import Call, CallParser

Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool returned.

    Attributes:
        content: its text.
        name: the function that was called, where that is known.
        id: the call it belongs to, where there is one.
    """

    content: str
    name: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFormat:
    """How one family of models writes tools, calls and results.

    Attributes:
        tools: text about the offered tools.
        calls: text of the calls in one answer.
        results: text of the results that follow it.
        reader: makes a parser of one answer; it gets the offered tools, whose schemas give arguments their types.
        tools_first: whether the text about tools comes before the system message, rather than after it.
        between: what stands between the two.
        before_calls: what stands between the text of an answer and its calls.
        frame: the turn that holds results, with `{{RESULTS}}`, where the family has one of its own; elsewhere they are a user turn.
        ending: what ends an answer with calls, where that is not the usual end of a turn.
        tools_frame: the message that holds the tools, with `{{TOOLS}}`, where the family does not put them into the system message.
        continued: whether the answer goes on right after the results, without a header.
    """

    tools: Callable[[Sequence[Tool]], str]
    calls: Callable[[Sequence[Call]], str]
    results: Callable[[Sequence[Result]], str]
    reader: Callable[[Sequence[Tool]], CallParser]
    tools_first: bool = False
    between: str = "\n\n"
    before_calls: str = "\n"
    frame: str | None = None
    ending: str = ""
    tools_frame: str | None = None
    continued: bool = False

    def format_tools(self, tools: Sequence[Tool], system: str | None = None, *, framed: bool = True) -> str:
        """Return the system message with the offered tools in it; `framed` is false outside the family's own prompt format."""
        about = self.tools(tools)
        parts = (about, system) if self.tools_first else (system, about)
        return (self.between if framed else "\n\n").join(part for part in parts if part)

    def format_calls(self, calls: Sequence[Call]) -> str:
        """Return the text of calls."""
        return self.calls(calls)

    def format_results(self, results: Sequence[Result]) -> str:
        """Return the text of results."""
        return self.results(results)

    def parser(self, tools: Sequence[Tool] = ()) -> CallParser:
        """Return a parser to feed with one answer as it comes in."""
        return self.reader(tools)

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> tuple[str, list[Call]]:
        """Return the content of a whole answer and the calls in it."""
        parser = self.parser(tools)
        deltas = [*parser.feed(text), *parser.finish()]
        return "".join(delta.content for delta in deltas), [delta.call for delta in deltas if delta.call is not None]


def load_agent(name: str) -> AgentFormat:
    """Return the agent format of a name.

    Raises:
        RegistryError: for an unknown name, with the nearest names.
    """
    from swift_core.registry import AGENT_TEMPLATES

    return cast(AgentFormat, AGENT_TEMPLATES.load(name))


def dumps(value: Any) -> str:
    """Return a value as JSON in one line, other scripts left as they are."""
    return json.dumps(value, ensure_ascii=False)


def loads(text: str) -> Any:
    """Return the value of a JSON text, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def argument_text(value: Any) -> str:
    """Return an argument as formats with a place for each write it: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else dumps(value)


def arguments_json(arguments: Any) -> str:
    """Return the arguments of a call as JSON text."""
    return arguments if isinstance(arguments, str) else dumps(arguments)


def arguments_of(call: Call) -> dict[str, Any]:
    """Return the arguments of a call by name; empty where they are no object."""
    value: Any = loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def function_of(tool: Tool) -> Tool:
    """Return the function schema of a tool, whether or not it is wrapped as OpenAI does."""
    inner: Any = tool.get("function")
    return cast(Tool, inner) if isinstance(inner, dict) else tool


def wrapped(tool: Tool) -> Tool:
    """Return a tool wrapped as OpenAI does."""
    return tool if "function" in tool else {"type": "function", "function": tool}


def read_call(value: Any) -> Call | None:
    """Return the call in a JSON value with `name` and `arguments` (or `parameters`), or None."""
    if not isinstance(value, dict):
        return None
    fields = cast(Mapping[str, Any], value)
    name = fields.get("name")
    arguments = fields.get("arguments", fields.get("parameters", {}))
    if isinstance(arguments, str) and isinstance(loads(arguments), dict):
        arguments = loads(arguments)
    identity = fields.get("id")
    return Call(name, arguments, identity if isinstance(identity, str) else None) if isinstance(name, str) and name else None


def typed(text: str, name: str, key: str, tools: Sequence[Tool]) -> Any:
    """Return an argument that was written as plain text with the type its schema says; without a schema, JSON where it is JSON."""
    if schema_of(name, key, tools).get("type") == "string":
        return text
    value = loads(text)
    return text if value is None and text.strip() != "null" else value


def schema_of(name: str, key: str, tools: Sequence[Tool]) -> Tool:
    """Return the JSON schema of an argument of a tool, empty where it is not known."""
    for tool in tools:
        function = function_of(tool)
        if function.get("name") == name:
            schema: Any = ((function.get("parameters") or {}).get("properties") or {}).get(key)
            return cast(Tool, schema) if isinstance(schema, dict) else {}
    return {}
