"""Many texts to token ids, and where each token stands in its text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from swift_core.templates.mask import Span, label_by_offsets, label_by_prefixes
from swift_core.templates.words import Pieces, Words

_WORTH = 32
"""Texts in one call from which on a memory of words pays; it starts with a check of some 40 ms."""

Places = Pieces | list[Span] | None
"""Where tokens stand: the words of the text, or the characters [start, end) of each token; None where nobody knows."""


class TextTokens:
    """Token ids of texts, without special tokens added, and their labels.

    Args:
        tokenizer: as the model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._words: Words | None = None
        self._state: tuple[Any, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return TextTokens, (self._tokenizer,)  # another process makes a memory of its own

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Places]]:
        """Yield token ids and the places of the tokens for every text."""
        words = self._words_for(texts)
        if words is None:
            yield from _by_library(self._tokenizer, texts)
            return
        found = [words.ids(text) for text in texts]
        rest = [text for text, done in zip(texts, found, strict=True) if done is None]
        # What the memory gives is looked at once in every call, at the longest text that it did.
        probe = max((number for number, done in enumerate(found) if done is not None), key=lambda number: len(texts[number]), default=None)
        by_library = _by_library(self._tokenizer, rest if probe is None else [texts[probe], *rest])
        if probe is not None and found[probe][0] != next(by_library)[0]:  # pyright: ignore[reportOptionalSubscript]
            self._words = None
            yield from _by_library(self._tokenizer, texts)
            return
        for done in found:
            yield next(by_library) if done is None else done

    def _words_for(self, texts: Sequence[str]) -> Words | None:
        if len(texts) < _WORTH or not _is_plain(self._tokenizer):
            return None
        backend: Any = _library(self._tokenizer)
        state = (backend.get_vocab_size(), backend.encode_special_tokens)
        if self._state != state:
            self._state, self._words = state, Words.of(backend)
        return self._words

    def labels(self, ids: Sequence[int], places: Places, text: str, spans: Sequence[Span]) -> list[int]:
        """Return the ids of tokens inside the spans of a text, and -100 elsewhere."""
        if isinstance(places, Pieces):
            found = places.labels(ids, spans)
            if found is not None:
                return found
            places = next(_by_library(self._tokenizer, [text]))[1]
        if places is not None:
            return label_by_offsets(ids, places, text, spans)
        return label_by_prefixes(ids, self.ids, text, spans)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of one text."""
        ids: Any = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _by_library(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[list[int], list[Span] | None]]:
    if not texts:
        return
    if _is_plain(tokenizer):
        for encoding in _library(tokenizer).encode_batch(list(texts), add_special_tokens=False):
            yield encoding.ids, encoding.offsets
        return
    fast = bool(tokenizer.is_fast)
    batch: Any = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=fast,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    for number, ids in enumerate(batch["input_ids"]):
        yield ids, batch["offset_mapping"][number] if fast else None


def _library(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the tokenizer of the library behind a plain one, set to encode whole texts."""
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
    return backend


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether calling the tokenizer does nothing beyond its library's own tokenizer.

    The wrapper copies five lists for each text that nobody reads here, which takes as long as the tokens do.
    """
    kind = type(tokenizer)
    names = ("__call__", "_encode_plus", "_batch_encode_plus")
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in names
    )
