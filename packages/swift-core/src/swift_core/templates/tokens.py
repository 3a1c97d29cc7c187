"""Many texts to token ids and character offsets in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from swift_core.templates.mask import Span


def tokens_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[list[int], list[Span] | None]]:
    """Yield token ids and the characters [start, end) of each token for every text, without special tokens added.

    Offsets are None where the tokenizer does not know them.
    """
    if _is_plain(tokenizer):
        backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
        for encoding in backend.encode_batch(list(texts), add_special_tokens=False):
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


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether calling the tokenizer does nothing beyond its library's own tokenizer.

    The wrapper copies five lists for each text that nobody reads here, which takes as long as the tokens do.
    """
    kind = type(tokenizer)
    names = ("__call__", "_encode_plus", "_batch_encode_plus")
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in names
    )
