"""Which characters of a rendered conversation are the assistant's answers, and which tokens those are.

What is trained in a turn is the text of the answer and the token that ends the turn (`<|im_end|>`, `<|eot_id|>`, `</s>`).
White space that a template puts after that token is not: generation has stopped by then.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift_core.errors import TemplateError
from swift_core.protocols import Message

IGNORED = -100

Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]
"""Renders messages; the second argument asks for the generation prompt."""

_QUESTION, _ANSWER, _FURTHER = "swiftprobequestion", "swiftprobeanswer", "swiftprobefurther"


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """What ends an assistant turn in one template.

    Attributes:
        words: texts found right after an answer, such as `<|im_end|>`.
        missing: text to add after the last answer because the template writes nothing there, or empty.
    """

    words: tuple[str, ...]
    missing: str = ""
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.words:
            object.__setattr__(self, "_pattern", _any_of(self.words))

    def close(self, text: str, position: int) -> int:
        """Return the position after the end-of-turn text that starts at `position`, or `position` when there is none."""
        match = self._pattern.match(text, position) if self._pattern else None
        return match.end() if match else position

    def trim(self, text: str) -> int:
        """Return where the end-of-turn text at the end of `text` starts, trailing white space included; else the length."""
        bare = text.rstrip()
        for word in self.words:
            if bare.endswith(word):
                return len(bare) - len(word)
        return len(text)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    ordered = sorted(words, key=len, reverse=True)
    return re.compile(r"\s*(" + "|".join(map(re.escape, ordered)) + ")")


def probe_turn_end(render: Render, *, markers: Iterable[str], eos_token: str | None, bos_token: str | None) -> TurnEnd:
    """Find out what a template writes after an answer by rendering two small conversations.

    Args:
        render: renders messages with the template.
        markers: texts that may end a turn: the special tokens of the tokenizer and the stop words of a named template.
        eos_token: added after the last answer where the template itself ends it with nothing.
        bos_token: never taken for the end of a turn unless it is also the eos token.
    """
    words = [word for word in markers if word.strip() and (word != bos_token or word == eos_token)]
    turns: list[Message] = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    further: Message = {"role": "user", "content": _FURTHER}
    last = _word_after_answer(render(turns, False), words, run=True)
    # A format may hold one question only.
    inner = _word_after_answer((_try(render, [*turns, further], False) or "").split(_FURTHER)[0], [*words, *([last] if last else [])])
    found = tuple(dict.fromkeys(word for word in (last, inner) if word))
    missing = "" if last else (inner or eos_token or "")
    return TurnEnd(found or ((eos_token,) if eos_token else ()), missing)


def _word_after_answer(text: str, words: Sequence[str], *, run: bool = False) -> str | None:
    """Return the word after the answer; with `run` together with those that follow it at once."""
    _, answer, tail = text.rpartition(_ANSWER)
    match = _any_of(words).match(tail) if answer and words else None
    if match is None:
        return None
    end = match.end()
    while run and (more := _any_of(words).match(tail, end)) and more.start(1) == end:
        end = more.end()
    return tail[match.start(1) : end]


@dataclass(frozen=True, slots=True)
class Answers:
    """Where the answers of a conversation are in its text.

    Attributes:
        spans: message index -> characters [start, end) to train.
        skipped: message index -> why its place in the text cannot be told.
        altered: indices of answers whose content is not found in the text as it was given.
    """

    spans: dict[int, Span]
    skipped: dict[int, str]
    altered: tuple[int, ...] = ()


def find_answers(messages: Sequence[Message], wanted: Sequence[int], text: str, render: Render, end: TurnEnd) -> Answers:
    """Locate assistant turns by incremental rendering.

    The answer of turn i is what rendering messages 0..i adds to the generation prompt of messages 0..i-1. A turn whose
    rendering changes when later messages are added (templates that strip thinking from the history do that) is
    skipped with the reason; the last turn of the conversation never is.

    Args:
        messages: the conversation.
        wanted: indices of the assistant messages to locate.
        text: the conversation rendered without generation prompt.
        render: renders messages with the template.
        end: what ends an assistant turn.

    Raises:
        TemplateError: when the last message's answer cannot be told from the rest of the text.
    """
    spans: dict[int, Span] = {}
    skipped: dict[int, str] = {}
    for index in wanted:
        prompt = _try(render, messages[:index], True)
        span = _visible(messages[index], text, prompt, end) or _difference(messages, index, text, prompt, render, end)
        if isinstance(span, tuple):
            spans[index] = span
        elif index == len(messages) - 1:
            raise TemplateError(f"message {index + 1}: {span}", fix="choose a prompt format with --template (see `swift list templates`)")
        else:
            skipped[index] = span
    altered = tuple(index for index, (start, stop) in spans.items() if _plain(messages[index]) not in text[start:stop])
    return Answers(spans, skipped, altered)


def _try(render: Render, messages: Sequence[Message], generation_prompt: bool) -> str | None:
    # Part of a conversation may be refused by a template that accepts the whole, for example one without a user turn yet.
    try:
        return render(messages, generation_prompt)
    except TemplateError:
        return None


def _visible(message: Message, text: str, prompt: str | None, end: TurnEnd) -> Span | None:
    """Return the span when the plain content follows the generation prompt and an end of turn follows the content."""
    content: Any = message["content"]
    if prompt is None or not isinstance(content, str) or message.get("tool_calls") or not text.startswith(prompt):
        return None
    start = len(prompt)
    for body in (content, content.strip()):
        if text.startswith(body, start):
            stop = start + len(body)
            closed = end.close(text, stop)
            if closed > stop:
                return start, closed
    return None


def _difference(messages: Sequence[Message], index: int, text: str, prompt: str | None, render: Render, end: TurnEnd) -> Span | str:
    last = index == len(messages) - 1
    until = text if last else _try(render, messages[: index + 1], False)
    if until is None:
        return "the chat template does not render the conversation up to this turn"
    stop = end.trim(until)
    if not text.startswith(until[:stop]):
        return "the chat template renders this turn differently once later messages follow"
    closed = end.close(text, stop)
    if prompt is not None and text.startswith(prompt) and len(prompt) <= stop:
        return len(prompt), closed
    body = _plain(messages[index])
    bare = text[:stop].rstrip()
    if body and bare.endswith(body):
        return len(bare) - len(body), closed
    before = _try(render, messages[:index], False)
    if prompt is not None and before is not None and prompt.startswith(before) and text.startswith(before):
        # The generation prompt opens with something (such as "<think>") that this answer was rendered without.
        return _agreement(text, prompt), closed
    return "the chat template's generation prompt is not what it puts before this answer"


def _plain(message: Message) -> str:
    content: Any = message["content"]
    return content.strip() if isinstance(content, str) else ""


def label_by_offsets(ids: Sequence[int], offsets: Sequence[Span], text: str, spans: Iterable[Span]) -> list[int]:
    """Return labels: the ids of tokens inside the spans, -100 elsewhere.

    A token across the border of a span is trained when its part inside holds more than white space.

    Args:
        ids: token ids, length n.
        offsets: characters [start, end) of each token, length n.
        text: the text the offsets point into.
        spans: characters [start, end) to train, ascending.
    """
    labels = [IGNORED] * len(ids)
    for start, stop in spans:
        first = bisect_right(offsets, start, key=_end)
        last = bisect_left(offsets, stop, lo=first, key=_start)
        while first < last and offsets[first][0] < start and not text[start : min(offsets[first][1], stop)].strip():
            first += 1
        while first < last and offsets[last - 1][1] > stop and not text[max(offsets[last - 1][0], start) : stop].strip():
            last -= 1
        labels[first:last] = ids[first:last]
    return labels


def _start(offset: Span) -> int:
    return offset[0]


def _end(offset: Span) -> int:
    return offset[1]


def label_by_prefixes(ids: Sequence[int], tokenize: Callable[[str], list[int]], text: str, spans: Iterable[Span]) -> list[int]:
    """Return labels as `label_by_offsets` does, for tokenizers that do not report offsets.

    The border of a span is where the tokens of the text up to it stop agreeing with the tokens of the whole text.
    """
    labels = [IGNORED] * len(ids)
    for start, stop in spans:
        first = _agreement(ids, tokenize(text[:start]))
        last = _agreement(ids, tokenize(text[:stop]))
        labels[first:last] = ids[first:last]
    return labels


def _agreement(whole: Sequence[object], prefix: Sequence[object]) -> int:
    return next((at for at, (one, other) in enumerate(zip(whole, prefix, strict=False)) if one != other), min(len(whole), len(prefix)))


def complement(spans: Sequence[Span], length: int) -> list[Span]:
    """Return the non-empty stretches of a text of `length` characters that no span covers.

    >>> complement([(2, 4)], 6)
    [(0, 2), (4, 6)]
    """
    borders = [0, *(border for span in spans for border in span), length]
    return [(start, stop) for start, stop in zip(borders[::2], borders[1::2], strict=True) if start < stop]


def subtract(spans: Iterable[Span], holes: Sequence[Span]) -> list[Span]:
    """Return what is left of ascending spans without the holes.

    >>> subtract([(0, 6)], [(2, 4)])
    [(0, 2), (4, 6)]
    """
    left: list[Span] = []
    for start, stop in spans:
        for low, high in sorted(holes):
            if low < stop and high > start:
                if low > start:
                    left.append((start, low))
                start = max(start, high)
        if start < stop:
            left.append((start, stop))
    return left
