"""Token ids of byte-level BPE from a memory of words: the ids that the tokenizer's library gives, in a fraction of its time.

Texts repeat their words, and a word (what the library's pre-tokenizer cuts a text into) always becomes the same tokens. Only
texts of ASCII characters are done here: of these it is certain how the patterns of both regular expression engines read
them, and it is checked, on every pair of characters and on many triples, before the memory is used at all.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, product
from typing import Any

from swift_core.templates.mask import IGNORED, Span

HELD = 1 << 18
"""Words that are held; when there are more, the memory starts again."""
_LONGEST = 64  # a longer word is hardly met twice
_MOST_ADDED = 2000
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CATEGORY = re.compile(r"\\p\{(\w{1,2}|Han)\}")
# As byte-level pre-tokenizers write bytes: what cannot be seen moves behind the first 256 characters.
_SHOWN = {code: 256 + number for number, code in enumerate([*range(33), 127])}

_PAIRS = product(map(chr, range(128)), repeat=2)
_TRIPLES = product("aZ5 \n\r\t'sl.\x00", repeat=3)
_TRIAL = "".join("".join(characters) for characters in chain(_PAIRS, _TRIPLES))
"""Every pair of ASCII characters, and triples of one character of each kind."""

Split = Callable[[str], list[str]]


class _Known(dict[str, tuple[int, ...]]):
    """Word -> ids; asks the model for those that are new."""

    def __init__(self, model: Any, added: dict[str, int]) -> None:
        super().__init__({text: (number,) for text, number in added.items()})
        self._model = model
        self._added = added

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(token.id for token in self._model.tokenize(word.translate(_SHOWN)))
        if len(word) <= _LONGEST:
            if len(self) > HELD:
                self.clear()
                self.update({text: (number,) for text, number in self._added.items()})
            self[word] = ids
        return ids


@dataclass(frozen=True, slots=True)
class Pieces:
    """The words of one text, to find tokens by characters.

    Attributes:
        words: the words in order.
        known: ids of each.
    """

    words: list[str]
    known: _Known

    def labels(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int] | None:
        """Return labels as `label_by_offsets` does, or None where a span does not start and end between words."""
        labels = [IGNORED] * len(ids)
        ends = list(accumulate(map(len, self.words)))
        for start, stop in spans:
            first, last = self._token(ends, start), self._token(ends, stop)
            # Offsets of some tokenizers leave out spaces, which matters for a word that ends with one.
            if first is None or last is None or self.words[bisect_left(ends, stop)].endswith(" "):
                return None
            labels[first:last] = ids[first:last]
        return labels

    def _token(self, ends: list[int], position: int) -> int | None:
        """Return how many tokens stand before a character, or None when that is inside a word."""
        if position == 0:
            return 0
        word = bisect_left(ends, position)
        if word == len(ends) or ends[word] != position:
            return None
        return sum(map(len, map(self.known.__getitem__, self.words[: word + 1])))


class Words:
    """Texts to ids by words, for one byte-level BPE tokenizer.

    Args:
        backend: the tokenizer of the library.
        split: cuts a text that holds no added token into words.
        added: added token -> id.
    """

    def __init__(self, backend: Any, split: Split, added: dict[str, int]) -> None:
        self._split = split
        self._known = _Known(backend.model, added)
        ordered = sorted(added, key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, ordered))})" if ordered else "((?!))")

    @classmethod
    def of(cls, backend: Any) -> Words | None:
        """Return the words of a tokenizer, or None where they might give other ids than it does."""
        added = backend.get_added_tokens_decoder()
        plain = all(not (token.lstrip or token.rstrip or token.single_word) for token in added.values())
        same = len({token.normalized for token in added.values()}) < 2
        if not (plain and same and len(added) <= _MOST_ADDED) or backend.encode_special_tokens:
            return None
        if not (_keeps_ascii(backend.normalizer) and _is_byte_bpe(backend.model)) or backend.pre_tokenizer is None:
            return None
        try:
            split = _splitter(_state(backend.pre_tokenizer))
        except (KeyError, re.error):
            return None
        if split is None or not _agrees(split, backend.pre_tokenizer):
            return None
        return cls(backend, split, {token.content: number for number, token in added.items()})

    def ids(self, text: str) -> tuple[list[int], Pieces] | None:
        """Return the ids of a text and its words; None for a text that the library has to do."""
        if not text.isascii():
            return None
        words: list[str] = []
        for number, part in enumerate(self._added.split(text)):
            if number % 2:
                words.append(part)
            elif part:
                words += self._split(part)
        if len("".join(words)) != len(text):  # the pattern leaves something between its words
            return None
        return list(chain.from_iterable(map(self._known.__getitem__, words))), Pieces(words, self._known)


def _state(part: Any) -> dict[str, Any]:
    return json.loads(part.__getstate__())


def _keeps_ascii(normalizer: Any) -> bool:
    if normalizer is None:
        return True
    state = _state(normalizer)
    kinds = [inner["type"] for inner in state["normalizers"]] if state["type"] == "Sequence" else [state["type"]]
    return set(kinds) <= {"NFC", "NFD", "NFKC", "NFKD"}


def _is_byte_bpe(model: Any) -> bool:
    if type(model).__name__ != "BPE":
        return False
    return not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix or model.byte_fallback)


def _splitter(state: dict[str, Any]) -> Split | None:
    """Return what cuts as a pre-tokenizer does, or None for one that is not understood."""
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    patterns: list[str] = []
    for step in steps:
        pattern = _pattern(step)
        if pattern is None:
            return None
        patterns += [pattern] if pattern else []
    if steps[-1]["type"] != "ByteLevel" or not patterns:
        return None
    compiled = [re.compile(_for_ascii(pattern), re.ASCII) for pattern in patterns]
    if any(pattern.groups for pattern in compiled):  # findall would give the groups alone
        return None
    cuts = [_matches(pattern) for pattern in compiled]
    return cuts[0] if len(cuts) == 1 else partial(_cut, cuts)


def _matches(pattern: re.Pattern[str]) -> Split:
    """Return what gives the matches of a pattern, and what stands between them where something does."""
    if len("".join(pattern.findall(_TRIAL))) == len(_TRIAL):
        return pattern.findall
    apart = re.compile(f"({pattern.pattern})", re.ASCII)
    return lambda text: [word for word in apart.split(text) if word]


def _cut(cuts: Sequence[Split], text: str) -> list[str]:
    words = [text]
    for cut in cuts:
        words = [word for piece in words for word in cut(piece)]
    return words


def _pattern(step: dict[str, Any]) -> str | None:
    """Return the pattern whose matches a step makes words of: empty when it cuts nothing, None when it is not understood."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return _GPT2 if step.get("use_regex", True) else ""
        case {"type": "Split", "behavior": "Isolated", "invert": False} | {"type": "Split", "behavior": "Removed", "invert": True}:
            return step["pattern"].get("Regex")
        case {"type": "Digits"}:
            return r"\d|\D+" if step["individual_digits"] else r"\d+|\D+"
        case _:
            return None


def _for_ascii(pattern: str) -> str:
    """Return a pattern with categories of Unicode written as the ASCII characters in them."""
    done: list[str] = []
    end = 0
    for match in _CATEGORY.finditer(pattern):
        done.append(pattern[end : match.start()])
        inside = "".join(re.escape(chr(code)) for code in range(128) if unicodedata.category(chr(code)).startswith(match[1]))
        done.append(inside if _in_class("".join(done)) else f"[{inside}]" if inside else "(?!)")
        end = match.end()
    return "".join([*done, pattern[end:]])


def _in_class(before: str) -> bool:
    bare = re.sub(r"\\.", "", before, flags=re.DOTALL)
    return bare.rfind("[") > bare.rfind("]")


def _agrees(split: Split, pre_tokenizer: Any) -> bool:
    """Say whether both cut the trial text the same way."""
    words = split(_TRIAL)
    ends = accumulate(map(len, words))
    found = pre_tokenizer.pre_tokenize_str(_TRIAL)
    return [(word.translate(_SHOWN), end) for word, end in zip(words, ends, strict=True)] == [(word, end) for word, (_, end) in found]
