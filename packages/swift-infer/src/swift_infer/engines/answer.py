"""One answer while it grows: token ids in, releasable text out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]
Decode = Callable[[Sequence[int]], str]

# What a tokenizer writes for bytes that are not (yet) a character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Turns token ids into text piece by piece without splitting a character.

    Only a small window is decoded at each step. The window begins one step back, because a token's text can depend on the
    token before it.

    Args:
        decode: token ids to text.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token: int) -> str:
        """Add a token and return the text it completes, which may be empty."""
        self._ids.append(token)
        text = self._pending()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text

    def flush(self) -> str:
        """Return held text without the bytes of an unfinished character."""
        text = self._pending().rstrip(_INCOMPLETE)
        self._start = self._read = len(self._ids)
        return text

    def _pending(self) -> str:
        known = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(known) :]


class StopTexts:
    """Finds stop texts in a stream and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that can be shown, and whether a stop text was met."""
        self._held += text
        hits = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if hits:
            return self._release(min(hits)), True
        return self._release(len(self._held) - self._overlap()), False

    def flush(self) -> str:
        """Return what was held back."""
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _overlap(self) -> int:
        """Return the length of the longest end of the text that begins a stop text."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


class Answer:
    """The state of one answer.

    Args:
        decode: token ids to text, without special tokens.
        stop_ids: token ids that end the answer and give no text.
        stops: texts that end the answer and are not part of it.
        limit: most tokens.
    """

    def __init__(self, decode: Decode, *, stop_ids: Collection[int], stops: Sequence[str], limit: int) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stops = StopTexts(stops)
        self._stop_ids = frozenset(stop_ids)
        self.limit = limit
        self._pieces: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """Return all text released so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Add a sampled token and return the text it releases; sets `finish_reason` when the answer is complete."""
        self.token_ids.append(token)
        if token in self._stop_ids:
            return self._finish("stop", "")
        text, stopped = self._stops.push(self._detokenizer.push(token))
        if stopped:
            self.finish_reason = "stop"
            return self._keep(text)
        if len(self.token_ids) >= self.limit:
            return self._finish("length", text)
        return self._keep(text)

    def abort(self) -> str:
        """End an answer that is not complete and return what was held back."""
        return "" if self.finish_reason else self._finish("abort", "")

    def _finish(self, reason: FinishReason, text: str) -> str:
        last, stopped = self._stops.push(self._detokenizer.flush())
        self.finish_reason = "stop" if stopped else reason
        return self._keep(text + last + ("" if stopped else self._stops.flush()))

    def _keep(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text
