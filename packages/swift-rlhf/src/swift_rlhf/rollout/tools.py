"""Tools that a model may call while it is being trained."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from swift_core.errors import ConfigError, Problem
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from swift_rlhf.threads import in_thread


@runtime_checkable
class Tool(Protocol):
    """Something that can be called.

    Attributes:
        name: as the model writes it.
        schema: of the function, as OpenAI wraps it.
    """

    name: str
    schema: dict[str, Any]

    async def call(self, arguments: dict[str, Any]) -> str:
        """Return what the model is shown; raise for what went wrong."""
        ...


class PythonTool:
    """A Python function, sync or async, with type hints and a Google-style docstring that describes every argument.

    Args:
        function: what is called; sync ones run in a thread of their own.

    Raises:
        ConfigError: when the function does not say what it takes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function
        try:
            self.schema: dict[str, Any] = get_json_schema(function)
        except (DocstringParsingException, TypeHintParsingException) as error:
            fix = "type hints, one line on what it does, and a line for each argument under `Args:`"
            raise ConfigError([Problem(f"tool {self.name!r}", str(error), fix)]) from error

    async def call(self, arguments: dict[str, Any]) -> str:
        """Return the result as text: texts as they are, everything else as JSON."""
        inspect.signature(self._function).bind(**arguments)
        if inspect.iscoroutinefunction(self._function):
            result = await self._function(**arguments)
        else:
            result = await in_thread(lambda: self._function(**arguments))
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call: the text that the model is shown, and whether it tells of a failure."""

    text: str
    failed: bool = False


class ToolBox:
    """The tools of a run. What goes wrong in a call is told to the model, so that it can learn from it.

    Args:
        tools: functions or tools.
        timeout: seconds that a call may take.
        max_characters: longer results are cut in the middle.

    Raises:
        ConfigError: for two tools of one name, or a function that does not say what it takes.
    """

    def __init__(self, tools: Iterable[Tool | Callable[..., Any]], *, timeout: float = 30.0, max_characters: int = 8000) -> None:
        made = [tool if isinstance(tool, Tool) else PythonTool(tool) for tool in tools]
        self._tools = {tool.name: tool for tool in made}
        if len(self._tools) != len(made):
            raise ConfigError([Problem("--tools", f"{[tool.name for tool in made]} has a name twice", "rename one of them")])
        self._timeout, self._limit = timeout, max_characters

    def schemas(self, names: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return the schemas of all tools, or of those with these names."""
        return [tool.schema for name, tool in self._tools.items() if names is None or name in names]

    def close(self) -> None:
        """End the servers of tools."""
        for tool in self._tools.values():
            close = getattr(tool, "close", None)
            if close is not None:
                close()

    async def run(self, calls: Sequence[tuple[str, Any]]) -> list[Outcome]:
        """Run calls, each a name and its arguments, at the same time and return what came of them, in order."""
        return list(await asyncio.gather(*(self._one(name, arguments) for name, arguments in calls)))

    async def _one(self, name: str, arguments: Any) -> Outcome:
        tool = self._tools.get(name)
        if tool is None:
            return Outcome(f"Error: there is no tool {name!r}. Tools are: {', '.join(self._tools)}", failed=True)
        if not isinstance(arguments, dict):
            return Outcome(f"Error: the arguments of {name} are no JSON object: {str(arguments)[:200]}", failed=True)
        try:
            text = await asyncio.wait_for(tool.call(arguments), self._timeout)
        except TimeoutError:
            return Outcome(f"Error: {name} took longer than {self._timeout:g} s", failed=True)
        except Exception as error:  # noqa: BLE001  a tool may raise anything; the model is told
            return Outcome(self._cut(f"Error: {type(error).__name__}: {error}"), failed=True)
        return Outcome(self._cut(text))

    def _cut(self, text: str) -> str:
        if len(text) <= self._limit:
            return text
        half = self._limit // 2
        return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
