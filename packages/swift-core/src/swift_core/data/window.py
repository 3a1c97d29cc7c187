"""Reading a text stream through a window, so that files of any size are read without holding them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TextIO

CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\n\r\ufeff]*")


class Window:
    """A piece of a text stream that grows at the end and is forgotten at the start, with the line number of its position."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.text = ""
        self.position = 0
        self.line = 1
        self._done = False

    @property
    def at_end(self) -> bool:
        """Say whether nothing is left, reading on if need be."""
        return self.position >= len(self.text) and not self.grow()

    @property
    def char(self) -> str:
        """Return the character at the position."""
        return self.text[self.position]

    @property
    def margin(self) -> str:
        """Return what stands before the position on its line."""
        return self.text[self.text.rfind("\n", 0, self.position) + 1 : self.position]

    def grow(self) -> bool:
        """Read as much again as is waiting, so that a row of any size costs a linear number of characters."""
        if self._done:
            return False
        if self.position > CHUNK:
            # Keep the start of the current line: the margin of a row tells where the next one starts.
            keep = self.text.rfind("\n", 0, self.position) + 1
            if self.position - keep > CHUNK:
                keep = self.position - 8  # a line this long holds several rows: what is kept shows it
            self.text, self.position = self.text[keep:], self.position - keep
        piece = self._stream.read(max(CHUNK, len(self.text) - self.position))
        self._done = not piece
        self.text += piece
        return bool(piece)

    def ahead(self, count: int) -> str:
        """Return up to `count` characters from the position on without passing them."""
        while len(self.text) - self.position < count and self.grow():
            pass
        return self.text[self.position : self.position + count]

    def line_ahead(self) -> str:
        """Return the rest of the line without passing it."""
        return next(iter(self.lines_ahead(1)), "")

    def lines_ahead(self, count: int) -> list[str]:
        """Return up to `count` lines without passing them."""
        while self.text.count("\n", self.position) < count and self.grow():
            pass
        return list(itertools.islice(self.text[self.position :].split("\n"), count))

    def advance(self, count: int) -> None:
        """Move on by `count` characters that are here."""
        self.line += self.text.count("\n", self.position, self.position + count)
        self.position += count

    def pass_over(self, end: int) -> str:
        """Move on to the index `end` of the text and return what was passed."""
        raw = self.text[self.position : end]
        self.advance(end - self.position)
        return raw

    def skip_space(self, *, commas: bool = False) -> None:
        """Move on to the next character that is no space (nor comma)."""
        while not self.at_end:
            found = _SPACE.match(self.text, self.position)
            self.advance(found.end() - self.position if found else 0)
            if commas and self.position < len(self.text) and self.char == ",":
                self.advance(1)
            elif self.position < len(self.text):
                return

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of every line from the position on; the window is used up."""
        number = self.line
        rest = self.text[self.position :]
        self.text, self.position = "", 0
        pieces = rest.split("\n")
        for line in pieces[:-1]:
            yield number, line
            number += 1
        last = pieces[-1]
        for line in self._stream:
            yield number, last + line
            last = ""
            number += 1
        if last:
            yield number, last
