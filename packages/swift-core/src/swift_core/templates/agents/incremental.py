"""Reading calls out of generated text while it comes in; however the text is cut into pieces, the outcome is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool.

    Attributes:
        name: function to call.
        arguments: an object, or the text that the model wrote where it is no JSON object.
        id: what the result refers to, where the format has such a thing.
    """

    name: str
    arguments: Any
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What a piece of text added: content, or a whole call."""

    content: str = ""
    call: Call | None = None


Read = Callable[[str], "list[Call] | None"]
"""Reads the calls of a block of text; None when the block holds none after all."""


class CallParser(Protocol):
    """Reads one answer piece by piece."""

    def feed(self, text: str) -> list[Delta]:
        """Take the next piece and return what is known for sure by now."""
        ...

    def finish(self) -> list[Delta]:
        """Return what was held back; the answer is over."""
        ...


@dataclass(slots=True)
class _Content:
    """Passes content on; white space around calls is no part of it."""

    calls: int = 0
    _space: str = ""
    _fresh: bool = False

    def say(self, text: str) -> list[Delta]:
        text = self._space + text
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        said = text.rstrip()
        self._space = text[len(said) :]
        return [Delta(content=said)] if said else []

    def call(self, calls: Sequence[Call]) -> list[Delta]:
        self.calls += len(calls)
        self._space, self._fresh = "", True
        return [Delta(call=call) for call in calls]

    def finish(self) -> list[Delta]:
        space, self._space = self._space, ""
        return [Delta(content=space)] if space and not self.calls else []


@dataclass(slots=True)
class BlockParser:
    """Finds blocks of calls between marks.

    Attributes:
        starts: texts that open a block; none of them contains another.
        ends: texts that close it; without any, or when none comes, it goes on to the end of the answer.
        read: reads a block, marks included. A block that holds no call is content.
        ignored: texts that are left out of the content wherever they stand.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    read: Read
    _buffer: str = ""
    _inside: str = ""
    _content: _Content = field(default_factory=_Content)

    def feed(self, text: str) -> list[Delta]:
        """Take the next piece and return what is known for sure by now."""
        self._buffer += text
        deltas: list[Delta] = []
        while True:
            if not self._inside:
                found = _first(self._buffer, self.starts, 0)
                if found is None:
                    cut = len(self._buffer) - _held(self._buffer, self.starts)
                    deltas += self._content.say(self._buffer[:cut])
                    self._buffer = self._buffer[cut:]
                    return deltas
                at, self._inside = found
                deltas += self._content.say(self._buffer[:at])
                self._buffer = self._buffer[at:]
            end = _first(self._buffer, self.ends, len(self._inside))
            if end is None:
                return deltas
            stop = end[0] + len(end[1])
            deltas += self._block(self._buffer[:stop])
            self._buffer = self._buffer[stop:]

    def finish(self) -> list[Delta]:
        """Return what was held back; the answer is over."""
        rest, self._buffer = self._buffer, ""
        last = (self._block(rest) if self._inside else self._content.say(rest)) if rest else []
        return [*last, *self._content.finish()]

    def _block(self, block: str) -> list[Delta]:
        self._inside = ""
        calls = self.read(block)
        return self._content.call(calls) if calls else self._content.say(block)


@dataclass(slots=True)
class WholeParser:
    """Takes an answer that starts like a call for a call as a whole, for formats without marks.

    Attributes:
        opens: says whether a text without white space at its start opens a call; None while that is open.
        read: reads the whole answer.
    """

    opens: Callable[[str], bool | None]
    read: Read
    _buffer: str = ""
    _verdict: bool | None = None

    def feed(self, text: str) -> list[Delta]:
        """Take the next piece and return what is known for sure by now."""
        self._buffer += text
        if self._verdict is None:
            self._verdict = self.opens(self._buffer.lstrip())
        return self._release() if self._verdict is False else []

    def finish(self) -> list[Delta]:
        """Return what was held back; the answer is over."""
        calls = self.read(self._buffer.strip()) if self._verdict is not False and self._buffer else None
        return [Delta(call=call) for call in calls] if calls else self._release()

    def _release(self) -> list[Delta]:
        text, self._buffer = self._buffer, ""
        return [Delta(content=text)] if text else []


def _first(text: str, marks: Sequence[str], start: int) -> tuple[int, str] | None:
    found = [(at, mark) for mark in marks if (at := text.find(mark, start)) >= 0]
    return min(found, key=lambda pair: (pair[0], -len(pair[1]))) if found else None


def _held(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the start of a mark."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
