"""A tokenizer as GGUF metadata."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from gguf import GGUFWriter, TokenType
from swift_core.errors import ModelError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_UNUSED = "[PAD{}]"
# How texts are cut before merging, as llama.cpp calls it, by what tells it apart in tokenizer.json; the first that fits wins.
_SPLITS = (
    (r"\p{N}{1,3}", "llama-bpe"),
    (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|", "qwen2"),
    (r"[^\r\n\p{L}\p{N}]?[\p{Lu}", "tekken"),
    ('"individual_digits": true', "smollm"),
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in the order of their ids.

    Attributes:
        kind: `gpt2` for byte-level merges, `llama` for SentencePiece with bytes to fall back on.
        split: llama.cpp's name of how texts are cut before merging.
        tokens: texts as the tokenizer keeps them.
        types: GGUF token types.
        scores: of SentencePiece tokens.
        merges: of byte-level tokens, `left right`.
    """

    kind: str
    split: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer, filled up to the rows of the embedding.

    Args:
        tokenizer: a fast tokenizer that merges pairs (BPE).
        size: rows of the embedding.

    Raises:
        ModelError: when GGUF has no such tokenizer.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("the tokenizer has no tokenizer.json, which GGUF metadata is made from", fix="use a model with a fast tokenizer")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"GGUF files of {model.get('type')} tokenizers are not written", fix="use a model with a BPE tokenizer")
    by_id = {index: text for text, index in cast(Mapping[str, int], tokenizer.get_vocab()).items()}
    if len(by_id) and max(by_id) >= size:
        raise ModelError(f"the tokenizer has token {max(by_id)}, the embedding {size} rows", fix="resize the embedding of the model first")
    added = {entry["id"]: bool(entry["special"]) for entry in described.get("added_tokens", [])}
    sentencepiece = bool(model.get("byte_fallback"))
    tokens = [by_id.get(index, _UNUSED.format(index)) for index in range(size)]
    types = [_type(index, text, by_id, added, sentencepiece) for index, text in enumerate(tokens)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    if not sentencepiece:
        return Vocabulary("gpt2", _split(described.get("pre_tokenizer")), tokens, types, [], merges)
    # What is merged first has the highest score.
    rank = {"".join(pair.split(" ")) if pair.count(" ") == 1 else pair: -float(index) for index, pair in enumerate(merges)}
    scores = [rank.get(text, -1000.0) for text in tokens]
    return Vocabulary("llama", "default", tokens, types, scores, [])


def _type(index: int, text: str, by_id: Mapping[int, str], added: Mapping[int, bool], sentencepiece: bool) -> int:
    if index not in by_id:
        return int(TokenType.UNUSED)
    if index in added:
        return int(TokenType.CONTROL if added[index] else TokenType.USER_DEFINED)
    if sentencepiece and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return int(TokenType.BYTE)
    return int(TokenType.NORMAL)


def _split(pre_tokenizer: Any) -> str:
    text = json.dumps(pre_tokenizer, ensure_ascii=False)
    plain = text.replace("\\\\", "\\")
    for mark, name in _SPLITS:
        if mark in plain:
            return name
    if '"Split"' not in text:
        return "gpt-2"
    logger.warning("llama.cpp may cut texts differently: the tokenizer's way to cut them is not known, and 'default' is written")
    return "default"


def add_vocabulary(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, chat_template: str | None) -> None:
    """Write tokens, special ids and the chat template."""
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    ids: dict[str, Any] = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for name, value in ids.items():
        if value is not None:
            getattr(writer, f"add_{name}_token_id")(value)
    plain: Any = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids["bos"] is not None and plain[:1] == [ids["bos"]])
    writer.add_add_eos_token(len(plain) > 1 and plain[-1:] == [ids["eos"]])
    if chat_template:
        writer.add_chat_template(chat_template)
