"""Answers taken apart while they come in: thoughts, content, calls of tools."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from swift_core.templates.agents.base import arguments_json
from swift_core.templates.agents.incremental import Call, CallParser

_OPEN, _CLOSE = "<think>", "</think>"

Forced = Literal["one", "several"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a piece of text added: thoughts, content, or a whole call."""

    kind: Literal["reasoning", "content", "call"]
    text: str = ""
    call: Call | None = None


class Thoughts:
    """Tells thoughts from the answer proper.

    Args:
        opened: whether the prompt has opened them already.
    """

    def __init__(self, *, opened: bool) -> None:
        self._state: Literal["start", "opened", "thinking", "after", "answer"] = "opened" if opened else "start"
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        """Take the next piece and return what is known for sure by now."""
        self._held += text
        pieces: list[Piece] = []
        if self._state == "start":
            bare = self._held.lstrip()
            if bare.startswith(_OPEN):
                self._state, self._held = "opened", bare[len(_OPEN) :]
            elif bare and not _OPEN.startswith(bare):
                self._state = "answer"
        if self._state == "opened":
            self._held = self._held.lstrip("\n")
            self._state = "thinking" if self._held else "opened"
        if self._state == "thinking":
            thought, closed, rest = self._held.partition(_CLOSE)
            keep = 0 if closed else _overlap(thought, _CLOSE)
            said = thought[: len(thought) - keep] if keep else thought
            self._held = rest if closed else thought[len(said) :]
            if said:
                pieces.append(Piece("reasoning", said))
            if closed:
                self._state = "after"
        if self._state == "after":
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "after"
        if self._state == "answer" and self._held:
            pieces.append(Piece("content", self._held))
            self._held = ""
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back; the answer is over."""
        held, self._held = self._held, ""
        return [Piece("reasoning" if self._state == "thinking" else "content", held)] if held else []


class AnswerReader:
    """Reads one answer.

    Args:
        calls: finds calls in content, or None where no tools are offered.
        thoughts: finds thoughts, or None where they stay in the content.
        forced: the whole content is calls in JSON: the arguments of the tool `name`, or a list of them.
        name: the tool that is called.
        parallel: whether there may be more than one call.
    """

    def __init__(
        self,
        *,
        calls: CallParser | None = None,
        thoughts: Thoughts | None = None,
        forced: Forced | None = None,
        name: str = "",
        parallel: bool = True,
    ) -> None:
        self._calls, self._thoughts, self._forced, self._name, self._parallel = calls, thoughts, forced, name, parallel
        self._json = ""
        self.called = 0

    def feed(self, text: str) -> list[Piece]:
        """Take the next piece and return what is known for sure by now."""
        pieces = self._thoughts.feed(text) if self._thoughts else [Piece("content", text)] if text else []
        return self._read(pieces)

    def finish(self) -> list[Piece]:
        """Return what was held back; the answer is over."""
        pieces = self._read(self._thoughts.finish() if self._thoughts else [])
        if self._forced:
            pieces += self._forced_calls()
        elif self._calls is not None:
            pieces += self._deltas(self._calls.finish())
        return pieces

    def _read(self, pieces: list[Piece]) -> list[Piece]:
        found: list[Piece] = []
        for piece in pieces:
            if piece.kind != "content":
                found.append(piece)
            elif self._forced:
                self._json += piece.text
            elif self._calls is not None:
                found += self._deltas(self._calls.feed(piece.text))
            else:
                found.append(piece)
        return found

    def _deltas(self, deltas: list[Any]) -> list[Piece]:
        found: list[Piece] = []
        for delta in deltas:
            if delta.call is not None:
                found += self._call(delta.call)
            elif delta.content:
                found.append(Piece("content", delta.content))
        return found

    def _call(self, call: Call) -> list[Piece]:
        if self.called and not self._parallel:
            return []
        self.called += 1
        return [Piece("call", call=call)]

    def _forced_calls(self) -> list[Piece]:
        try:
            value: Any = json.loads(self._json)
        except ValueError:  # cut off by max_tokens
            return [Piece("content", self._json)] if self._json else []
        if self._forced == "one":
            return self._call(Call(self._name, value))
        return [piece for one in value for piece in self._call(Call(one["name"], one["parameters"]))]


def wire_call(call: Call) -> dict[str, Any]:
    """Return a call as clients expect it."""
    function = {"name": call.name, "arguments": arguments_json(call.arguments)}
    return {"id": call.id or f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def forced_schema(tools: list[dict[str, Any]], name: str | None, *, parallel: bool) -> dict[str, Any]:
    """Return the JSON schema of an answer that is the arguments of one tool, or a list of calls of any of them."""
    functions = [tool["function"] for tool in tools]
    if name is not None:
        return next(function for function in functions if function["name"] == name).get("parameters") or {"type": "object"}
    one = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "parameters": function.get("parameters") or {"type": "object"}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return {"type": "array", "minItems": 1, "items": {"anyOf": one}, **({} if parallel else {"maxItems": 1})}


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of a text that begins the mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)
