"""Following a text through a processor that puts tokens of media in the place of placeholders. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from swift_core.errors import TemplateError
from swift_core.templates.mask import Span


def widen(text: str, spans: Sequence[Span], replacements: Sequence[tuple[Span, str]]) -> tuple[str, tuple[Span, ...]]:
    """Return a text with pieces replaced, and the spans moved along.

    Args:
        text: the text.
        spans: characters [start, end), none of them beginning or ending inside a piece.
        replacements: characters [start, end) of each piece and what takes its place, ascending.

    >>> widen("a#b", [(2, 3)], [((1, 2), "###")])
    ('a###b', ((4, 5),))
    """
    pieces: list[str] = []
    ends: list[int] = []
    gained = [0]
    last = 0
    for (start, stop), new in replacements:
        pieces += [text[last:start], new]
        ends.append(stop)
        gained.append(gained[-1] + len(new) - (stop - start))
        last = stop
    pieces.append(text[last:])
    moved = tuple((start + gained[bisect_right(ends, start)], stop + gained[bisect_right(ends, stop)]) for start, stop in spans)
    return "".join(pieces), moved


def read_replacements(text: str, ids: Sequence[int], tokenizer: Any, placeholders: Any) -> list[tuple[Span, str]]:
    """Find out what a processor put in the place of each placeholder from the tokens it returned.

    Raises:
        TemplateError: when the texts between the placeholders are not found again.
    """
    whole: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    pattern = re.compile("|".join(map(re.escape, placeholders)) or r"(?!)")
    found = list(pattern.finditer(text))
    if not found:
        return []
    between = [text[one.end() : other.start()] for one, other in pairwise(found)]
    tail = text[found[-1].end() :]
    start = whole.find(text[: found[0].start()])
    position = start + found[0].start()
    if start < 0 or not whole.endswith(tail):
        raise TemplateError("the processor changes the text besides its placeholders", fix="report the model; its processor is unusual")
    replacements: list[tuple[Span, str]] = []
    for number, match in enumerate(found):
        last = number == len(found) - 1
        after = len(whole) - len(tail) if last else whole.find(between[number], position + 1)
        if after < position:
            raise TemplateError("the text between two media is not found again", fix="report the model; its processor is unusual")
        replacements.append((match.span(), whole[position:after]))
        position = after + (0 if last else len(between[number]))
    return replacements
